"""
Bayes and gradient descent
==========================

The posterior of an infinitely wide network, and the law of networks trained by gradient descent, at four times.
"""

import numpy as np

import widelimit as wl
from widelimit import plots

X = np.array([[-1.8], [-1.1], [-0.2], [0.4], [1.5]])
y = np.sin(2 * X[:, 0])
Z = np.linspace(-2.5, 2.5, 120)[:, None]
net = wl.mlp(depth=3, activation="erf", weight_std=1.6, bias_std=0.4)
post = wl.posterior(wl.nngp(net), X, y, noise=1e-6)
figure = plots.learning(post, wl.trained_ensemble(net, X, y), Z, np.array([0.0, 1.0, 10.0, 100.0, np.inf]))
