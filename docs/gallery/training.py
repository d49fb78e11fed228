"""
Training of finite networks
===========================

Loss, drift of the tangent kernel, and movement of the parameters, for four networks of width 64 trained at once.
"""

import numpy as np

import widelimit as wl
from widelimit import plots

rng = np.random.default_rng(0)
X = rng.standard_normal((20, 3)).astype(np.float32)
y = np.sin(2 * X[:, 0])
net = wl.mlp(depth=3, activation="erf", weight_std=1.5, bias_std=0.3)
many = net.init_many(range(4), input_dim=3, width=64)
run = wl.train(net.apply, many, X, y, ensemble=True, learning_rate=0.3, steps=200, progress=False)
figure = plots.training(run.history)
