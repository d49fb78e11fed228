"""
A learning curve, predicted
===========================

The test error of a wide network for every number of training rows, from the kernel and the targets alone.
"""

import numpy as np

import widelimit as wl

rng = np.random.default_rng(0)
X = rng.standard_normal((300, 6))
y = np.tanh(X[:, 0] * X[:, 1]) + 0.1 * rng.standard_normal(300)
curve = wl.generalization(wl.ntk(wl.mlp(depth=3, bias_std=0.1)), X, y, sizes=[10, 20, 40, 80, 160, 250], noise=0.1)
figure = curve.plot().get_figure()
