r"""
Your own PyTorch model's tangent kernel
=======================================

The tangent kernel of a trained network says which training points move which predictions:
:math:`\Theta(x, x') = \nabla_\theta f(x) \cdot \nabla_\theta f(x')`. It needs ``pip install "widelimit[torch]"``.
"""

# %%
# A model
# -------
# A small convolutional classifier of digits. Any module works whose output for a row depends on that row alone.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

import widelimit as wl
import widelimit.torch

torch.manual_seed(0)
digits = load_digits()
images = (digits.images[:, None] / 16).astype("float32")
X, y, Z, z = images[:300], digits.target[:300], images[300:400], digits.target[300:400]
module = torch.nn.Sequential(
    torch.nn.Conv2d(1, 16, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.AvgPool2d(2),
    torch.nn.Flatten(),
    torch.nn.Linear(256, 10),
)

# %%
# Its kernel before training
# --------------------------
# ``output="trace"`` averages over the ten outputs: one number a pair of images.

before = widelimit.torch.empirical_ntk(module.eval(), output="trace").gram(X[:60])

# %%
# Train it as you always do
# -------------------------
# The loop is yours.

optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
inputs, labels = torch.from_numpy(X), torch.from_numpy(y)
for _ in range(100):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(module(inputs), labels).backward()
    optimizer.step()
with torch.no_grad():
    right = float((module(torch.from_numpy(Z)).argmax(1).numpy() == z).mean())
print(f"right on new images: {right:.0%}")
assert right > 0.8

# %%
# Did the kernel move?
# --------------------
# In an infinitely wide network it would not. Here it has: the network has learned features. Images are sorted by class.

k = widelimit.torch.empirical_ntk(module, output="trace")
after = k.gram(X[:60])
order = np.argsort(y[:60], kind="stable")
fig, panels = plt.subplots(1, 2, figsize=(6, 2.9), sharey=True)
for ax, K, title in zip(panels, (before, after), ("before", "after training"), strict=True):
    shown = ax.imshow(K[np.ix_(order, order)] / K.max(), cmap="viridis", vmin=0, vmax=1)
    ax.set(title=title, xlabel="image, by class")
    ax.grid(visible=False)
panels[0].set_ylabel("image, by class")
fig.colorbar(shown, ax=panels, label="kernel / its largest entry")
print(f"relative change: {np.linalg.norm(after - before) / np.linalg.norm(before):.1f}")

# %%
# Which layer does it come from?
# ------------------------------
# The kernel is a sum over parameters, so it splits by layer.

parts = k.parts(X[:60], by="layer")
fig, ax = plt.subplots(figsize=(5, 1.8))
names = [f"{name}: {type(module[int(name)]).__name__}" for name in parts]
ax.barh(names, [np.trace(part) / np.trace(after) for part in parts.values()])
ax.set(xlabel="share of the trace of the kernel")

# %%
# Which training images made a prediction?
# ----------------------------------------
# Tangents of the margin (the log-odds of the label) give the influence of every training row on every new one.

margin = widelimit.torch.tangents(module, of="margin")
scores = wl.attribution(margin.at(X, labels=y), margin.at(Z[:1], labels=z[:1]), noise=1.0)[0]
best = np.argsort(scores)[::-1][:4]
fig, panels = plt.subplots(1, 5, figsize=(6, 1.6))
for ax, image, title in zip(panels, [Z[0], *X[best]], ["new", *(f"{s:+.3f}" for s in scores[best])], strict=True):
    ax.imshow(image[0], cmap="gray_r")
    ax.set(title=title, xticks=[], yticks=[])
    ax.grid(visible=False)

# %%
# Next: :doc:`/tangents` has error bars of the linearised model, selection of rows and sketches for large models;
# :doc:`/empirical` the kernel of modules in detail.
