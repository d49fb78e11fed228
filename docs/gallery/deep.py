"""
Depth and the loss of the angle
===============================

The correlation of two inputs after many layers: on the edge of chaos it survives longest.
"""

import matplotlib.pyplot as plt
import numpy as np

import widelimit as wl

depths = np.arange(1, 31)
tanh = wl.activation("tanh")
weight_std, bias_std = wl.critical(tanh, q=0.5)
fig, ax = plt.subplots()
for factor, label in ((0.7, "order"), (1.0, "edge of chaos"), (1.5, "chaos")):
    w = factor * weight_std
    q = wl.phase(tanh, weight_std=w, bias_std=bias_std).variance
    rho = [0.5]
    for _ in depths[1:]:
        second, covariance = (float(tanh.dual(q, q * r, q)) for r in (1.0, rho[-1]))
        rho.append((w**2 * covariance + bias_std**2) / (w**2 * second + bias_std**2))
    ax.plot(depths, rho, label=label)
ax.set(xlabel="depth (layers)", ylabel=r"correlation $\rho$ of two inputs")
ax.legend()
