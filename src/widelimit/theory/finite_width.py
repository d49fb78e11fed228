"""The law of a network of finite width departs from its limit by terms of order 1/width, at initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np

from widelimit import validation
from widelimit.activations.base import Activation
from widelimit.architecture.chain import branch_of
from widelimit.architecture.inputs import Rows
from widelimit.architecture.layers import Dense
from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.gaussian import normal_rule, panels
from widelimit.interpreter import interpreted
from widelimit.shapes import Float
from widelimit.validation import Array

_ACTIVATION = type(branch_of(["identity"], "layers")[0])


@final
@dataclass(frozen=True)
class FiniteWidth:
    """The law of one output of a random network at every input, to first order in 1/width. Made by `finite_width`."""

    width: tuple[int, ...]
    """Of each hidden layer."""
    limit: Float[np.ndarray, " m"]
    """The variance in the limit, Sigma(x, x)."""
    variance: Float[np.ndarray, " m"]
    """The variance over networks of this width."""
    conditional: Float[np.ndarray, " m"]
    """The relative standard deviation of the output's variance given the layers before the last."""
    excess_kurtosis: Float[np.ndarray, " m"]
    """E f^4/(E f^2)^2 - 3, which is 0 in the limit."""
    tangent: Float[np.ndarray, " m"]
    """The tangent kernel in the limit, Theta(x, x)."""
    tangent_deviation: Float[np.ndarray, " m"]
    """The relative standard deviation of the empirical tangent kernel at (x, x), over networks."""

    def width_for(self, error: float) -> int:
        """Return the least width of all hidden layers at which both relative deviations are at most `error` everywhere.

        Hidden layers keep the ratios of their widths; the number is that of the narrowest.

        Raises: TypeError, ValueError: not a number > 0.
        """
        bound = float(validation.finite_scalar("error", error, above=0.0))
        if not self.width:
            return 1
        worst = max(float(np.max(self.conditional)), float(np.max(self.tangent_deviation)))
        return max(1, math.ceil(min(self.width) * (worst / bound) ** 2))


class _Step(NamedTuple):
    """One hidden layer: an activation of signals of variance K, and the dense layer behind it."""

    phi: Activation
    after: Dense


class _Moments(NamedTuple):
    """Moments of an activation at Gaussian signals, and their derivatives by the variance."""

    square: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray
    spread: np.ndarray
    gain: np.ndarray
    gain_slope: np.ndarray
    gain_spread: np.ndarray
    both: np.ndarray


def finite_width(net: Network, X: Float[Array, "m d"], *, width: int | Sequence[int] = 512) -> FiniteWidth:
    """V' = w^4 Var[phi^2]/n + (w^2 dE[phi^2]/dK)^2 V: the variance of the conditional variance, layer after layer.

    At one input the conditional variance G of the signals of a layer is a Markov chain, G' = b^2 + w^2 mean_i
    phi(sqrt(G) g_i)^2. To first order in 1/n its mean moves by w^2 (m' M + m'' V/2), m(K) = E[phi^2], and the output
    has the fourth cumulant 3 V. For relu with w^2 = 2 and no bias, V/K^2 = 5 (L - 1)/n. The empirical tangent kernel is
    sum_l G_l D_l, with D_l the squared gradient by the signals of layer l, D_l = D_{l+1} (w^2/n) sum_j phi'_j^2 g_j^2.
    Sources: Yaida 2019 (arXiv 1910.00019); Hanin and Nica 2019 (arXiv 1909.05989); Roberts, Yaida and Hanin 2022.

    The next order is (depth/width)^2: below a width of some times the depth the figures are only an indication.

    Args:
        net: layers Dense, activation, Dense, .. in the NTK parameterisation, on rows.
        X: (m, d) inputs.
        width: of all hidden layers, or of each.

    Returns:
        A `FiniteWidth`, arrays (m,).

    Raises:
        TypeError, ValueError: another network, widths below 1, inputs that are not finite.
        ArithmeticError: a moment is not finite: the activation grows too fast.
    """
    first, steps = _chain(net)
    points = np.asarray(net.inputs.rows("X", X), np.float64)
    widths = _widths(width, len(steps))
    w, b = float(first.weight_std), float(first.bias_std)
    K = np.sum(points**2, axis=1) * (w**2 / points.shape[1]) + b**2
    if not np.isfinite(K).all():
        raise ValueError("the variance of the first layer leaves float64's range; scale X down.")
    moved, spread, states = np.zeros_like(K), np.zeros_like(K), [K]
    moments = []
    for step, n in zip(steps, widths, strict=True):
        found, w2 = _moments(step.phi, K), float(step.after.weight_std) ** 2
        moved = w2 * (found.slope * moved + found.curvature * spread / 2)
        spread = w2**2 * found.spread / n + (w2 * found.slope) ** 2 * spread
        K = w2 * found.square + float(step.after.bias_std) ** 2
        moments.append(found)
        states.append(K)
    theta, deviation = _tangent(first, steps, moments, states, widths)
    relative = np.divide(np.sqrt(spread), K, out=np.zeros_like(K), where=K > 0)
    return FiniteWidth(widths, K, K + moved, relative, 3 * relative**2, theta, deviation)


def _tangent(
    first: Dense, steps: list[_Step], moments: list[_Moments], states: list[np.ndarray], widths: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return Theta(x, x) in the limit, and its relative deviation: the part of each layer's signals in it, squared.

    By the adjoint: d Theta = sum_l (a_l eps_l + c_l eta_l), with eps_l, eta_l the deviations of layer l's means of
    phi^2 and phi'^2 g^2 from their expectations.
    """
    trained = [float(layer.trained) for layer in (first, *(step.after for step in steps))]
    last = len(steps)
    weights = [float(step.after.weight_std) ** 2 for step in steps]
    gradients = [np.ones_like(states[0])]  # D_l, from the last layer back
    for found, w2 in zip(reversed(moments), reversed(weights), strict=True):
        gradients.insert(0, w2 * found.gain * gradients[0])
    shares = [on * state * gradient for on, state, gradient in zip(trained, states, gradients, strict=True)]
    theta = np.sum(shares, axis=0)
    variance, by_signal = np.zeros_like(theta), trained[last] * gradients[last]
    before = np.cumsum(shares, axis=0)  # of the layers up to l, whose gradients pass through layer l
    for i in reversed(range(last)):
        found, w2, n = moments[i], weights[i], widths[i]
        passing = np.divide(before[i], found.gain, out=np.zeros_like(theta), where=found.gain > 0)
        variance += (
            (by_signal * w2) ** 2 * found.spread
            + 2 * by_signal * w2 * passing * found.both
            + passing**2 * found.gain_spread
        ) / n
        by_signal = by_signal * w2 * found.slope + passing * found.gain_slope + trained[i] * gradients[i]
    return theta, np.divide(np.sqrt(np.maximum(variance, 0)), theta, out=np.zeros_like(theta), where=theta > 0)


def _moments(phi: Activation, K: np.ndarray) -> _Moments:
    deviation = np.sqrt(np.where(K > 0, K, 1.0))
    grid = panels(phi.kinks, 2.0 ** math.ceil(math.log2(max(float(np.max(deviation)), 1.0))))
    z, weights = normal_rule(deviation, grid)
    u = deviation[:, None] * z
    with arithmetic(True):
        square, gain = (np.asarray(interpreted(f)(u)) ** 2 for f in (phi, phi.derivative))
    hermite = (z**2 - 1) / 2, (z**4 - 6 * z**2 + 3) / 4

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.sum(weights * values, axis=1))

    m, c, scale = mean(square), mean(gain), deviation**2
    found = _Moments(
        m,
        mean(hermite[0] * square) / scale,
        mean(hermite[1] * square) / scale**2,
        mean(square**2) - m**2,
        c,
        mean(hermite[0] * gain) / scale,
        3 * mean(gain**2) - c**2,
        mean(square * gain) - m * c,
    )
    if not all(np.isfinite(values).all() for values in found):
        raise ArithmeticError(f"a moment of {phi!r} is not finite: it grows too fast for the fourth power.")
    if not np.all(K > 0):
        raise ValueError("the signals of a layer are 0 at an input; leave out inputs that are 0, or give a bias.")
    return found


def _chain(net: Any) -> tuple[Dense, list[_Step]]:
    """Return the first dense layer, and each activation with the dense layer behind it. Raises: TypeError."""
    if not isinstance(net, Network):
        raise TypeError(f"net must be a network, as wl.mlp(depth=3) makes one, got {validation.shown(net)}.")
    first, *rest = net.whole.units
    steps = [
        _Step(next(a.activations()), d)
        for a, d in zip(rest[::2], rest[1::2], strict=False)
        if isinstance(a, _ACTIVATION) and isinstance(d, Dense)
    ]
    usual = net.parameterization == "ntk" and net.learning_rates is None and isinstance(net.inputs, Rows)
    if not (usual and isinstance(first, Dense) and 2 * len(steps) == len(rest)):
        raise TypeError(
            "finite_width takes layers Dense, activation, Dense, .. on rows in the NTK parameterisation with one "
            "learning rate, as wl.mlp makes them."
        )
    return first, steps


def _widths(width: Any, hidden: int) -> tuple[int, ...]:
    if isinstance(width, (int, np.integer)) or np.ndim(width) == 0:
        return (validation.integer("width", width, at_least=1),) * hidden
    found = tuple(validation.integer("each width", n, at_least=1) for n in width)
    if len(found) != hidden:
        raise ValueError(f"width has {len(found)} numbers, and the network {hidden} hidden layers.")
    return found
