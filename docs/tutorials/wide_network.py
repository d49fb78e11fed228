"""
What a wide network is
======================

A random network is a Gaussian process in the limit of infinite width, and gradient descent on it is kernel gradient
descent. This page looks at both statements of the paper with finite networks beside the limit.
"""

# %%
# At initialisation
# -----------------
# A network in the NTK parameterisation has the layers :math:`a \mapsto \beta b + \frac{\sigma_w}{\sqrt{n}} W a` with all
# entries of W and b from N(0, 1). At one input, the output of many random networks has a distribution; as the width
# grows it tends to a Gaussian whose variance is the NNGP kernel :math:`\Sigma^L(x, x)`.

import matplotlib.pyplot as plt
import numpy as np

import widelimit as wl

net = wl.mlp(depth=3, activation="relu", weight_std=2**0.5, bias_std=0.1)
x = np.array([[1.0, 0.5]], np.float32)
sd = wl.nngp(net).diag(x)[0] ** 0.5
u = np.linspace(-4, 4, 200)

fig, panels = plt.subplots(1, 2, figsize=(6, 2.8), sharey=True)
for ax, width in zip(panels, (2, 64), strict=True):
    many = net.init_many(range(2000), input_dim=2, width=width)
    outputs = np.asarray(net.apply_many(many, x)).ravel() / sd
    ax.hist(outputs, bins=60, range=(-4, 4), density=True, color="C4", label="2,000 networks")
    ax.plot(u, np.exp(-(u**2) / 2) / (2 * np.pi) ** 0.5, color="C1", label="limit")
    ax.set(title=f"width {width}", xlabel="output / its limiting sd")
panels[0].set_ylabel("density")
panels[0].legend()

# %%
# Two points at an angle
# ----------------------
# On the circle both kernels are functions of the angle alone. The tangent kernel of a *finite* network is random; at
# width n it differs from its limit :math:`\Theta^L` by an amount of order :math:`n^{-1/2}`.

angles = np.linspace(0, np.pi, 60)
circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
fig, ax = plt.subplots()
for width, color in ((16, "C4"), (512, "C2")):
    for seed in range(3):
        params = net.init(seed, input_dim=2, width=width, output_dim=1)
        finite = wl.empirical_ntk(net.apply, params, output="trace").cross(circle[:1], circle)[0]
        ax.plot(angles, finite, color=color, linewidth=0.8, label=f"width {width}" if seed == 0 else None)
ax.plot(angles, wl.ntk(net).cross(circle[:1], circle)[0], color="C1", label="limit")
ax.set(xlabel="angle between x and x' (radians)", ylabel=r"tangent kernel $\Theta(x, x')$")
ax.legend()

# %%
# Under gradient descent
# ----------------------
# In the limit the tangent kernel does not move in training, so the function follows
# :math:`f_t(X) - y = e^{-2 \Theta t/n} (f_0(X) - y)`: a linear equation with a closed solution for every time t. Time is
# that of :math:`\dot\theta = -\nabla C`, C the mean squared error.

X = np.array([[-1.5], [-0.7], [0.1], [0.9], [1.6]])
y = np.sin(2 * X[:, 0])
Z = np.linspace(-2.2, 2.2, 90)[:, None]
erf = wl.mlp(depth=3, activation="erf", weight_std=1.5, bias_std=0.5)
flow = wl.gradient_flow(wl.ntk(erf), X, y)
times = [0.3, 1.0, 10.0, np.inf]
fig, ax = plt.subplots()
for t, f in zip(times, flow.predict(Z, times), strict=True):
    ax.plot(Z[:, 0], f, label=f"t = {t:g}")
ax.plot(X[:, 0], y, "o", color="black")
ax.set(xlabel="input x", ylabel=r"mean output $f_t(x)$")
ax.legend(ncols=2)

# %%
# A wide network agrees
# ---------------------
# Networks of width 256, trained by gradient descent from five random initialisations, and the limiting law of such
# networks: a Gaussian whose mean and variance are known in closed form at every time.

ensemble = wl.trained_ensemble(erf, X, y)
mean, deviation = ensemble.mean(Z, 10.0), ensemble.variance(Z, 10.0) ** 0.5
many = erf.init_many(range(5), input_dim=1, width=256)
run = wl.train(
    erf.apply,
    many,
    X.astype(np.float32),
    y,
    ensemble=True,
    learning_rate=0.1,
    steps=100,
    record_every=50,
    progress=False,
)
outputs = np.asarray(erf.apply_many(run.params, Z.astype(np.float32)))[..., 0]
fig, ax = plt.subplots()
ax.fill_between(Z[:, 0], mean - 1.96 * deviation, mean + 1.96 * deviation, alpha=0.22, color="C1", label="limit, 95 %")
ax.plot(Z[:, 0], outputs.T, color="C0", linewidth=0.8)
ax.plot([], [], color="C0", linewidth=0.8, label="width 256, t = 10")
ax.plot(X[:, 0], y, "o", color="black")
ax.set(xlabel="input x", ylabel="output f(x)")
ax.legend()
inside = np.mean(np.abs(outputs - mean) < 3 * deviation)
print(f"inside three standard deviations: {inside:.0%}")
assert inside > 0.95

# %%
# Next: :doc:`/paper` gives the function, experiment and test of each statement, :doc:`/generated/claims/index` the
# experiments, and :doc:`/beyond` what changes at finite width.
