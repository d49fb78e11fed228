"""
Images
======

An infinitely wide convolutional network as a classifier: no training loop, and probabilities.
"""

# %%
# Digits
# ------
# 8 x 8 pixels, ten classes; 150 images to learn from.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import widelimit as wl

digits = load_digits()
X, Z, y, z = train_test_split(digits.images[..., None], digits.target, train_size=150, test_size=200, random_state=0)
net = wl.convnet(inputs=wl.Image(8, 8, 1), depth=2, bias_std=0.1)
print(net)

# %%
# Fit and predict
# ---------------
# The convolutional network beside one without convolutions, on the same images.

conv = wl.NNGPClassifier(network=net, likelihood="least_squares").fit(X, y)
dense = wl.NNGPClassifier(input_scales=None, likelihood="least_squares").fit(X.reshape(150, 64), y)
p = conv.predict_proba(Z)
right = conv.score(Z, z)
print(f"convolutional: {right:.1%} right, fully connected: {dense.score(Z.reshape(200, 64), z):.1%}")
assert right > 0.9

# %%
# Where it is unsure
# ------------------
# The probability of the chosen class says which images to look at by hand.

unsure = np.argsort(p.max(axis=1))[:6]
fig, panels = plt.subplots(1, 6, figsize=(6, 1.7))
for ax, i in zip(panels, unsure, strict=True):
    ax.imshow(Z[i, ..., 0], cmap="gray_r")
    ax.set(xticks=[], yticks=[], title=f"{conv.classes_[p[i].argmax()]}, p = {p[i].max():.2f}\nis {z[i]}")
    ax.title.set_fontsize(8)
    ax.grid(visible=False)

# %%
# What the kernel sees
# --------------------
# How alike one digit is to itself moved to the side: with global average pooling a shift matters less.

pool = wl.convnet(inputs=wl.Image(8, 8, 1), depth=2, bias_std=0.1, end="pool")
image = X[0] / 16
moved = np.stack([np.roll(image, shift, axis=1) for shift in range(-3, 4)])
fig, ax = plt.subplots()
for name, network in (("flatten", net), ("pool", pool)):
    K = wl.nngp(network).gram(moved)
    ax.plot(range(-3, 4), K[3] / np.sqrt(np.diag(K) * K[3, 3]), "o-", label=name)
ax.set(xlabel="shift (pixels)", ylabel="correlation with the image itself")
ax.legend()

# %%
# Next: :doc:`/images` has the layers, their cost, larger networks and the command line; :doc:`/sequences_and_graphs`
# data of other shapes.
