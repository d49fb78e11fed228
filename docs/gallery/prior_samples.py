"""
Samples of wide networks
========================

Functions drawn from infinitely wide networks at initialisation, for four activations.
"""

import matplotlib.pyplot as plt
import numpy as np

import widelimit as wl

x = np.linspace(-3, 3, 121)[:, None]
fig, panels = plt.subplots(2, 2, figsize=(5, 4), sharex=True)
for ax, activation in zip(panels.flat, ("relu", "erf", "gelu", "sin"), strict=True):
    prior = wl.GaussianProcess(wl.nngp(wl.mlp(depth=3, activation=activation, weight_std=1.5, bias_std=0.3)))
    ax.plot(x[:, 0], prior.sample(x, 4, seed=0).T)
    ax.set_title(activation)
fig.supxlabel("input x", fontsize=9)
fig.supylabel("output f(x)", fontsize=9)
