"""The first tensors of the neural tangent hierarchy describe how the kernels of random networks change in training.

`tensors` computes them by derivatives of random networks; `Expansion` integrates them over time in closed form.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.shapes import Float

SLOWEST = 1e-4
"""Least product of an eigenvalue and tau: smaller ones are raised to it, which changes their part of f by 1e-4."""


class Tensors(NamedTuple):
    """The tensors of E networks of one width n are given times n, at p points of which the first t are trained on.

    With D_z g = <grad g, grad f_z>: Theta_az = D_z f_a, O3 = D_w D_z f_a, O4 = D_u D_w D_z f_a. In time tau,
    d f_a = -Theta_az r_z, d Theta_az = -O3_azw r_w, d O3_azw = -O4_azwu r_u, r = f - y at the trained points.
    """

    third: Float[np.ndarray, "E p t t t"]
    """n E[O3_azw f_u] over the last layer: f is linear in its weights, which are N(0, 1), so E[O3 f_u] is the mean of
    the derivative of O3 along the part of grad f_u that belongs to them (Stein's identity)."""
    fourth: Float[np.ndarray, "E p t t t"]
    """n O4_azwu."""


@functools.partial(jax.jit, static_argnames=("trained", "width"))
def _tensors(net: Network, params: Any, points: jax.Array, *, trained: int, width: int) -> tuple[jax.Array, jax.Array]:
    def member(own: Any) -> tuple[jax.Array, jax.Array]:
        flat, whole = ravel_pytree(own)
        last = ravel_pytree((*jax.tree.map(jnp.zeros_like, own[:-1]), jax.tree.map(jnp.ones_like, own[-1])))[0]

        def outputs(theta: jax.Array) -> jax.Array:
            return net.signals_of(whole(theta), points)[:, 0]

        def along(g: Any, row: jax.Array) -> Any:
            """Return theta -> <grad g, grad f(row)>."""
            slope = jax.grad(lambda theta: net.signals_of(whole(theta), row[None])[0, 0])
            return lambda theta: jax.jvp(g, (theta,), (slope(theta),))[1]

        def pair(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            _, further = jax.linearize(along(along(outputs, rows[0]), rows[1]), flat)
            return jax.vmap(further, out_axes=1)(last * slopes), jax.vmap(further, out_axes=1)(slopes)

        slopes = jax.jacrev(outputs)(flat)[:trained]
        first, second = (jnp.repeat(points[:trained], trained, axis=0), jnp.tile(points[:trained], (trained, 1)))
        both = jax.lax.map(pair, jnp.stack([first, second], axis=1))
        shape = trained, trained, len(points), trained
        return tuple(width * jnp.moveaxis(found.reshape(shape), 2, 0) for found in both)  # type: ignore[return-value]

    return jax.lax.map(member, params)  # type: ignore[no-any-return]


@jax.jit
def _kernels(net: Network, params: Any, points: jax.Array) -> jax.Array:
    def member(own: Any) -> jax.Array:
        leaves = jax.tree.leaves(jax.jacrev(lambda own: net.signals_of(own, points)[:, 0])(own))
        rows = [leaf.reshape(len(points), -1) for leaf in leaves]
        return jnp.asarray(sum(row @ row.T for row in rows))

    return jax.lax.map(member, params)  # type: ignore[no-any-return]


def tensors(net: Network, points: np.ndarray, *, trained: int, width: int, draws: int, seed: int) -> Tensors:
    """Compute the tensors of `draws` random networks at `points`, of which the first `trained` are trained on."""
    params = _random_parameters(net, points, width, range(seed, seed + draws))
    with arithmetic(True):
        found = _tensors(net, params, jnp.asarray(points), trained=trained, width=width)
    return Tensors(*(np.asarray(value) for value in found))


def kernels(net: Network, points: np.ndarray, *, width: int, seeds: range) -> Float[np.ndarray, "E p p"]:
    """Compute the tangent kernels of random networks at p points, one network for each seed."""
    return kernels_of(net, _random_parameters(net, points, width, seeds), points)


def kernels_of(net: Network, params: Any, points: np.ndarray) -> Float[np.ndarray, "E p p"]:
    """Compute the tangent kernels of networks with stacked parameters, by plain Jacobians."""
    with arithmetic(True):
        return np.asarray(_kernels(net, params, jnp.asarray(points)))


def _random_parameters(net: Network, points: np.ndarray, width: int, seeds: range) -> Any:
    return net.init_many(list(seeds), input_dim=points.shape[1], width=width, dtype=np.float64)


class Expansion(NamedTuple):
    """The expansion in 1/width starts from the limit's kernels at p points, of which the first t are trained on.

    Times are tau = 2 time/n for n training rows, with the time in the unit of d theta/dt = -grad C.
    """

    theta: Float[np.ndarray, "p t"]
    covariance: Float[np.ndarray, "t t"]
    y: Float[np.ndarray, " t"]

    def limit(self, tau: float) -> Float[np.ndarray, " p"]:
        """Compute the mean of the outputs at infinite width, Theta Theta^{-1} (1 - exp(-Theta tau)) y."""
        return np.asarray(_flow(self.theta[None], self.y, tau)[0])

    def start(self, tau: float, moved: Float[np.ndarray, "E p t"]) -> tuple[np.ndarray, np.ndarray]:
        """Compute the terms of first and second order of `limit` in a change `moved` of Theta, (E, p) each.

        They are central differences with 1e-4 of the change, right to six digits or more.
        """
        up, down = (_flow(self.theta + step * moved, self.y, tau) for step in (1e-4, -1e-4))
        return (up - down) / 2e-4, (up + down - 2 * self.limit(tau)) / 2e-8

    def drift(self, tau: float, found: Tensors) -> tuple[np.ndarray, np.ndarray]:
        """Compute E[Theta_t - Theta_0], (E, p, t), and E[f_t - f_t^lin], (E, p), times the width, for each network.

        f^lin is trained with the network's own Theta_0. The equations are d f_a = -Theta_az r_z d tau,
        d Theta_az = -O3_azc r_c d tau and d O3_azc = -O4_azcd r_d d tau, with the limit's residual
        r = exp(-Theta tau) (f_0 - y), where f_0 is Gaussian with the covariance K.
        """
        own = self.theta[: len(self.y)]
        if tau == 0:
            return np.zeros((len(found.third), *self.theta.shape)), np.zeros((len(found.third), len(self.theta)))
        values, Q = np.linalg.eigh(own)
        values = np.maximum(values, SLOWEST / tau)
        y, K = Q.T @ self.y, Q.T @ self.covariance @ Q
        turned = Tensors(*(np.einsum("eazcd,zi,cj,dk->eaijk", T, Q, Q, Q, optimize=True) for T in found))
        c, d = values[:, None], values
        twice = (_decay(c, tau) - _decay(c + d, tau)) / d
        moved = np.einsum("eazcd,cd->eaz", turned.fourth, (K + np.outer(y, y)) * twice)
        moved -= np.einsum("eazcc,c->eaz", turned.third, _decay(values, tau))
        force = _Force(values, y, K, tau)
        at_points = force.without_decay(turned)
        trained = Tensors(*(np.einsum("eazcd,ai->eizcd", T[:, : len(y)], Q) for T in turned))
        lasting = (at_points[:, : len(y)] @ Q - force.with_decay(trained)) / values
        return moved @ Q.T, at_points - lasting @ (self.theta @ Q).T


class _Force(NamedTuple):
    """-int_0^tau exp(-a (tau - s)) E[(Theta_s - Theta_0) r_s] ds, in the eigenvectors of Theta."""

    values: np.ndarray
    y: np.ndarray
    K: np.ndarray
    tau: float

    def without_decay(self, found: Tensors) -> np.ndarray:
        """Compute the integral with a = 0, at all points, (E, p)."""
        return self._sum(found, np.zeros(1))

    def with_decay(self, found: Tensors) -> np.ndarray:
        """Compute the integral with a = each eigenvalue; the tensors' first index is its eigenvector, (E, t)."""
        return self._sum(found, self.values)

    def _sum(self, found: Tensors, rates: np.ndarray) -> np.ndarray:
        """Compute the integral for the rates a. Terms odd in f_0 have the mean 0; those that remain are odd in y."""
        y, K, values = self.y, self.K, self.values
        a, z = rates[:, None, None], values[:, None]
        once = self._integral(a, z, values)
        c, d = values[:, None], values
        twice = (once[..., None] - self._integral(a[..., None], z[..., None], c + d)) / d
        cubes = y[:, None, None] * (K + np.outer(y, y)) + K[:, :, None] * y + K[:, None, :] * y[:, None]
        mixed = np.einsum("eazcc->eazc", found.third) * y[:, None] + np.einsum("eazcz->eazc", found.third) * y
        every = (found.third.shape[1], *[len(values)] * 3)
        return np.asarray(
            np.einsum("eazcd,azcd->ea", found.fourth, np.broadcast_to(cubes * twice, every))
            - np.einsum("eazc,azc->ea", mixed, np.broadcast_to(once, every[:3]))
        )

    def _integral(self, a: np.ndarray, z: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Compute int_0^tau exp(-a (tau - s) - z s) (1 - exp(-c s))/c ds."""

        def both(rate: np.ndarray) -> np.ndarray:
            return np.asarray(np.exp(-np.minimum(a, rate) * self.tau) * _decay(np.abs(a - rate), self.tau))

        return np.asarray((both(z) - both(z + c)) / c)


def _decay(rate: np.ndarray, tau: float) -> np.ndarray:
    """Compute int_0^tau exp(-rate s) ds, for rates of either sign."""
    flat = np.abs(rate) * tau < 1e-12
    return np.asarray(np.where(flat, tau, -np.expm1(-rate * tau) / np.where(flat, 1, rate)))


def _flow(theta: Float[np.ndarray, "E p t"], y: np.ndarray, tau: float) -> Float[np.ndarray, "E p"]:
    """Compute Theta_pt Theta_tt^{-1} (1 - exp(-Theta_tt tau)) y."""
    values, Q = np.linalg.eigh(theta[:, : len(y)])
    return np.asarray(np.einsum("epb,ebc,ec,edc,d->ep", theta, Q, _decay(values, tau), Q, y, optimize=True))
