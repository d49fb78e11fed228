"""The mean-field limit of networks with one hidden layer: its units are particles that move under a common gradient."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import numpy as np

from widelimit import memory, validation
from widelimit.activations.base import Activation
from widelimit.architecture.builders import dense_chain
from widelimit.architecture.inputs import Rows
from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.inference.gradient_flow import gradient_flow
from widelimit.interpreter import interpreted
from widelimit.kernels.network import ntk
from widelimit.shapes import Float
from widelimit.theory.ode import integrate
from widelimit.theory.requests import finite_times, probes_beside, require_one_output
from widelimit.validation import Array

TOLERANCE = 1e-8
"""Relative tolerance of the particles' paths."""


@final
@dataclass(frozen=True)
class MeanFieldFlow:
    """The training of an infinitely wide mean-field network, at T times and m points. Made by `mean_field_flow`."""

    times: Float[np.ndarray, " T"]
    outputs: Float[np.ndarray, "T m"]
    """The outputs, means over independent systems of particles."""
    error: Float[np.ndarray, "T m"]
    """The standard error of `outputs` over systems; finitely many particles also add a bias of order 1/particles."""
    loss: Float[np.ndarray, " T"]
    """The cost on the training points, the mean over systems."""
    movement: Float[np.ndarray, " T"]
    """The root mean square distance of a unit's incoming parameters from their start; they start with variance 1."""
    lazy: Float[np.ndarray, "T m"]
    """The outputs that a constant tangent kernel, that at the start, predicts."""
    units: Float[np.ndarray, "E N p"]
    """Outgoing weight, d incoming weights and bias of every particle at the last time (p = d + 2)."""


class Particles(NamedTuple):
    """E systems of N particles have outgoing weights, d + 1 incoming parameters each, and a bias of the output."""

    out: Float[np.ndarray, "E N"]
    into: Float[np.ndarray, "E N p"]
    bias: Float[np.ndarray, " E"]


class ParticleLaw(NamedTuple):
    """f(x) = (w/N) sum_i a_i phi(v_i . x) + g defines the equations of motion; x has the first layer's scales in it."""

    phi: Activation
    w: float
    bias_std: float
    rows: Float[np.ndarray, "n p"]
    y: Float[np.ndarray, " n"]

    def outputs(self, now: Particles, rows: np.ndarray) -> Float[np.ndarray, "E m"]:
        """Compute f at rows, (E, m)."""
        values, _ = _curve(self.phi, now.into @ rows.T)
        return self._sum(now, values)

    def speed(self, now: Particles) -> Particles:
        """Compute the speeds of all particles: N times the negative gradient of C, the mean of (f - y)^2."""
        values, slopes = _curve(self.phi, now.into @ self.rows.T)
        force = -2 / len(self.y) * (self._sum(now, values) - self.y)
        out = self.w * np.einsum("eni,ei->en", values, force)
        into = self.w * now.out[:, :, None] * ((slopes * force[:, None, :]) @ self.rows)
        return Particles(out, into, self.bias_std**2 * force.sum(axis=1))

    def move(self, now: Particles, span: float) -> Particles:
        """Return the particles after a time `span`. Raises: ArithmeticError: no step is small enough."""
        shapes = [part.shape for part in now]
        ends = np.cumsum([part.size for part in now])[:-1]

        def whole(state: np.ndarray) -> Particles:
            return Particles(*(part.reshape(shape) for part, shape in zip(np.split(state, ends), shapes, strict=True)))

        def rate(state: np.ndarray) -> np.ndarray:
            return _flat(self.speed(whole(state)))

        return whole(integrate(rate, _flat(now), span, TOLERANCE))

    def _sum(self, now: Particles, values: np.ndarray) -> np.ndarray:
        return np.asarray(self.w * np.einsum("en,eni->ei", now.out, values) / now.out.shape[1] + now.bias[:, None])


def mean_field_flow(
    net: Network,
    X: Float[Array, "n d"],
    y: Float[Array, " n"],
    *,
    times: Any,
    probes: Float[Array, "m d"] | None = None,
    particles: int = 1024,
    draws: int = 4,
    seed: int = 0,
) -> MeanFieldFlow:
    """d theta_i/dt = -grad V(theta_i; rho_t): train a network of one hidden layer in the limit that learns features.

    f(x) = w int a phi(v . x) drho_t(a, v) + g, where the law rho_t of the units follows the gradient flow of C, the
    mean of (f - y)^2, in the Wasserstein metric. N particles that start from rho_0 = N(0, 1) approximate it. They are
    also a network of width N with `parameterization="mean_field"`, which tends to the limit with fluctuations of order
    N^(-1/2) and a bias of order 1/N. For every particle there is one with the opposite outgoing weight, so that f_0 = 0
    as in the limit. Sources: Mei, Montanari and Nguyen 2018 (arXiv 1804.06561); Chizat and Bach 2018 (arXiv
    1805.09545); Rotskoff and Vanden-Eijnden 2018 (arXiv 1805.00915).

    Args:
        net: Dense, activation, Dense on rows, with parameterization="mean_field".
        X: (n, d) training inputs.
        y: (n,) targets of the one output.
        times: (T,) or one number, finite, >= 0. In the unit of d theta/dt = -grad C, a network of width N with
            parameterization="mean_field" has then been trained for N times this time, and one with
            parameterization="mup" and no base_width for this time.
        probes: (m, d) inputs at which the outputs are computed; X unless given.
        particles: N, the number of particles of a system; an odd number is raised by one.
        draws: number of independent systems, >= 2.
        seed: seed of the draws of all systems, >= 0.

    Returns:
        A `MeanFieldFlow`.

    Raises:
        TypeError, ValueError: another network, more than one output, times that are not finite.
        ArithmeticError: the particles move too fast for the integrator.
        MemoryError: the particles do not fit.
    """
    _require(net)
    until = finite_times(times, "the paths of particles are integrated step by step")
    count = validation.integer("particles", particles, at_least=2)
    many, first = validation.integer("draws", draws, at_least=2), validation.integer("seed", seed, at_least=0)
    lazy = gradient_flow(ntk(replace(net, parameterization="ntk")), X, y)
    rows = np.asarray(net.rows("X", validation.concrete_points("X", X)), np.float64)
    targets = np.asarray(validation.targets("y", y, len(rows)), np.float64).reshape(len(rows), -1)
    require_one_output(targets)
    points = rows if probes is None else probes_beside(net, rows, probes)
    size = 8.0 * many * (count + 1) * (4 * (len(rows) + len(points)) + 16 * (rows.shape[1] + 2))
    memory.require(size, f"{many} systems of {count} particles", remedy="use fewer particles")
    law = particle_law(net, rows, targets[:, 0])
    start = _drawn((count + 1) // 2, many, rows.shape[1], first)
    outputs, error, loss, movement, units = _follow(law, start, scaled_rows(net, points), until)
    predicted = np.asarray(lazy.predict(points, until)).reshape(len(until), -1)
    return MeanFieldFlow(until, outputs, error, loss, movement, predicted, units)


def particle_law(net: Network, rows: np.ndarray, y: np.ndarray) -> ParticleLaw:
    """Return the equations of motion of the units of a network of one hidden layer."""
    (phi,), (_, last) = net.activations(), dense_chain(net)
    return ParticleLaw(phi, float(last.weight_std), float(last.bias_std), scaled_rows(net, rows), y)


def scaled_rows(net: Network, rows: np.ndarray) -> Float[np.ndarray, "m p"]:
    """Return rows times the scales of the first layer, and the scale of its bias as a last column."""
    first, _ = dense_chain(net)
    bias = np.full((len(rows), 1), float(first.bias_std))
    return np.hstack([float(first.weight_std) / math.sqrt(rows.shape[1]) * rows, bias])


def _drawn(half: int, draws: int, features: int, seed: int) -> Particles:
    """Draw systems of 2 half particles, in pairs of opposite outgoing weights: f_0 = 0."""
    rng = np.random.default_rng(seed)
    out, into = rng.standard_normal((draws, half)), rng.standard_normal((draws, half, features + 1))
    return Particles(np.concatenate([out, -out], axis=1), np.concatenate([into, into], axis=1), np.zeros(draws))


def _follow(law: ParticleLaw, start: Particles, points: np.ndarray, until: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return outputs, errors, losses, movement at all times, and the units at the last one in the order given."""
    found: dict[float, tuple[Any, ...]] = {}
    now, at = start, 0.0
    for t in np.unique(until).tolist():
        now, at = law.move(now, t - at), t
        f, train = law.outputs(now, points), law.outputs(now, law.rows)
        error = f.std(axis=0, ddof=1) / math.sqrt(len(f))
        moved = math.sqrt(np.mean(np.sum((now.into - start.into) ** 2, axis=2)))
        found[t] = f.mean(axis=0), error, np.mean((train - law.y) ** 2), moved
    parts = (np.array(part) for part in zip(*(found[t] for t in until.tolist()), strict=True))
    return *parts, np.concatenate([now.out[:, :, None], now.into], axis=2)


def _flat(now: Particles) -> np.ndarray:
    return np.concatenate([part.ravel() for part in now])


def _value_and_slope(phi: Activation, u: Any) -> tuple[Any, Any]:
    return phi(u), phi.derivative(u)


def _curve(phi: Activation, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute phi(u) and phi'(u) in float64, without compilation."""
    with arithmetic(True):
        values, slopes = interpreted(_value_and_slope)(phi, u)
    return np.asarray(values), np.asarray(slopes)


def _require(net: Any) -> None:
    """Refuse other networks. Raises: TypeError."""
    if not isinstance(net, Network):
        raise TypeError(
            'net must be a network, as wl.mlp(depth=2, parameterization="mean_field") makes one, got '
            f"{validation.shown(net)}."
        )
    dense = dense_chain(net)
    layers = len(dense) == 2 and all(unit.trained for unit in dense)
    usual = net.parameterization == "mean_field" and net.learning_rates is None and isinstance(net.inputs, Rows)
    if not (layers and usual):
        raise TypeError(
            "mean_field_flow needs a network of layers Dense, activation, Dense on rows with one learning rate, as "
            'wl.mlp(depth=2, parameterization="mean_field") makes it.'
        )
