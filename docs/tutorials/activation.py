r"""
The kernel of your own activation
=================================

A kernel of a wide network needs two expectations of the activation, over centred Gaussian pairs (u, v):
:math:`\mathbb{E}[\phi(u)\phi(v)]` and :math:`\mathbb{E}[\phi'(u)\phi'(v)]`. For any function they are computed to a
stated error.
"""

# %%
# One line
# --------
# Write the function with ``jax.numpy`` and declare where it has kinks.

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import widelimit as wl

mine = wl.activation(lambda u: jnp.where(u > 0, u, jnp.sin(u)), kinks=(0.0,))
net = wl.mlp(depth=3, activation=mine, weight_std=1.4, bias_std=0.1)
X = np.random.default_rng(0).standard_normal((6, 4))
print(np.round(wl.ntk(net).gram(X)[:3, :3], 4))

# %%
# Is it right?
# ------------
# :py:obj:`~widelimit.gaussian_expectation` integrates in another way, and says how far off it can be.

phi = lambda u: jnp.where(u > 0, u, jnp.sin(u))  # noqa: E731
found = float(mine.dual(1.0, 0.3, 2.0))
value, error = wl.gaussian_expectation(phi, phi, q1=1.0, c=0.3, q2=2.0, kinks=(0.0,))
print(f"dual {found:.10f}, quadrature {float(value):.10f}, difference {abs(found - float(value)):.1e}")
assert abs(found - float(value)) < 1e-6 * float(value)

# %%
# What it does to correlations
# ----------------------------
# A layer maps the correlation of two signals to another. Where the curve meets the diagonal with a slope below 1, deep
# networks end there (order: all inputs become alike); a slope above 1 at correlation 1 is chaos.

rho = np.linspace(-1, 1, 81)
fig, ax = plt.subplots(figsize=(4, 3.6))
ax.plot([-1, 1], [-1, 1], color="black", linewidth=0.8, linestyle=":")
for name, phi_ in (("mine", mine), ("relu", wl.Relu()), ("erf", wl.Erf()), ("sin", wl.Sin())):
    ax.plot(rho, phi_.correlation_map(rho), label=name)
ax.set(xlabel=r"correlation $\rho$ before", ylabel=r"correlation after $\phi$")
ax.legend()

# %%
# The edge of chaos
# -----------------
# :py:obj:`~widelimit.critical` finds the scales at which a network neither forgets nor scrambles its inputs.

weight_std, bias_std = wl.critical(mine)
print(f"weight_std {weight_std:.4f}, bias_std {bias_std:.4f}")

# %%
# The function space
# ------------------
# Draws from the prior of such a network, and its posterior given five points.

x = np.linspace(-3, 3, 120)[:, None]
k = wl.nngp(wl.mlp(depth=3, activation=mine, weight_std=weight_std, bias_std=0.3))
given = np.array([[-2.0], [-1.0], [0.0], [1.0], [2.2]])
post = wl.posterior(k, given, np.cos(2 * given[:, 0]), noise=1e-4)
mean, variance = post.predict(x)
fig, (left, right) = plt.subplots(1, 2, figsize=(6, 2.8), sharey=True)
left.plot(x[:, 0], wl.GaussianProcess(k).sample(x, 4, seed=1).T)
left.set(title="prior", xlabel="input x", ylabel="output f(x)")
right.fill_between(x[:, 0], mean - 1.96 * variance**0.5, mean + 1.96 * variance**0.5, alpha=0.22)
right.plot(x[:, 0], mean)
right.plot(given[:, 0], np.cos(2 * given[:, 0]), "o", color="black")
right.set(title="posterior, 95 %", xlabel="input x")

# %%
# Next: :doc:`/activations` lists those with a closed form, and the errors of all others; :doc:`/extending` shows how to
# write an activation class with a dual of your own.
