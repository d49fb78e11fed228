"""At initialisation, the law of a network of finite width differs from its limit by terms of order 1/width.

`finite_width` is the public function, `FiniteWidth` its result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np

from widelimit import validation
from widelimit.activations.base import Activation
from widelimit.architecture.builders import dense_chain
from widelimit.architecture.inputs import Rows
from widelimit.architecture.layers import Dense
from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.gaussian import REACH, normal_rule, panels
from widelimit.interpreter import interpreted
from widelimit.shapes import Float
from widelimit.validation import Array

_MOST = 1e100
"""Relative deviation over the error asked for, at most: its square is a width."""
_RESOLVED = 1e-4
"""Relative difference of two quadrature rules, at most: far below what the next order of 1/width adds."""


@final
@dataclass(frozen=True)
class FiniteWidth:
    """The law of one output of a random network at every input, to first order in 1/width. Made by `finite_width`."""

    width: tuple[int, ...]
    """The width of each hidden layer."""
    limit: Float[np.ndarray, " m"]
    """The variance in the limit, Sigma(x, x)."""
    variance: Float[np.ndarray, " m"]
    """The variance over networks of this width."""
    conditional: Float[np.ndarray, " m"]
    """The relative standard deviation of the output's variance given the layers before the last."""
    excess_kurtosis: Float[np.ndarray, " m"]
    """E f^4/(E f^2)^2 - 3, which is 0 in the limit."""
    tangent: Float[np.ndarray, " m"]
    """The tangent kernel in the limit, Theta(x, x); inf, with a NaN deviation, for an activation that jumps."""
    tangent_deviation: Float[np.ndarray, " m"]
    """The relative standard deviation of the empirical tangent kernel at (x, x), over networks."""

    def width_for(self, error: float) -> int:
        """Return the least width of all hidden layers at which both relative deviations are at most `error` everywhere.

        Hidden layers keep the ratios of their widths; the number is that of the narrowest.

        Raises: TypeError, ValueError: not a number > 0, or too small; an activation that jumps.
        """
        bound = float(validation.finite_scalar("error", error, above=0.0))
        if not self.width:
            return 1
        if np.isnan(self.tangent_deviation).any():
            raise ValueError("the tangent kernel of an activation that jumps has no limit: no width is enough.")
        worst = max(float(np.max(self.conditional)), float(np.max(self.tangent_deviation))) / bound
        if worst > _MOST:
            raise ValueError(f"error={bound:.3g} takes a width beyond float64's range; give a larger one.")
        return max(1, math.ceil(min(self.width) * worst**2))


class Step(NamedTuple):
    """A hidden layer is an activation and the dense layer after it."""

    phi: Activation
    after: Dense


class _Moments(NamedTuple):
    """The moments are those of q = phi(u)^2/E phi^2 and r = phi'(u)^2/E phi'^2 for Gaussian u, (m,) each."""

    square: np.ndarray
    """E phi^2."""
    slope: np.ndarray
    """d ln E phi^2/d ln K, K = Var u."""
    curvature: np.ndarray
    """K^2 d^2 E phi^2/dK^2, over E phi^2."""
    spread: np.ndarray
    """Var q."""
    gain: np.ndarray
    """E phi'^2."""
    gain_slope: np.ndarray
    """d ln E phi'^2/d ln K."""
    gain_spread: np.ndarray
    """Var[r g^2] = 3 E r^2 - 1, where g ~ N(0, 1) is the gradient by the layer after."""
    both: np.ndarray
    """Cov[q, r]."""


def finite_width(net: Network, X: Float[Array, "m d"], *, width: int | Sequence[int] = 512) -> FiniteWidth:
    """V' = w^4 Var[phi^2]/n + (w^2 dE[phi^2]/dK)^2 V: the variance of the conditional variance, layer after layer.

    At one input the conditional variance G of a layer's signals, given the layers before, is a Markov chain:
    G' = b^2 + w^2 mean_i phi(sqrt(G) g_i)^2, g_i ~ N(0, 1). To first order in 1/n, a shift M of its mean becomes
    w^2 (m' M + m'' V/2), m(K) = E[phi^2], and the output has the fourth cumulant 3 V. For relu with w^2 = 2 and no
    bias, V/K^2 = 5 (L - 1)/n. The empirical tangent kernel is sum_l G_l D_l, with D_l the squared gradient by the
    signals of layer l, D_l = D_{l+1} (w^2/n) sum_j phi'_j^2 g_j^2. Sources: Yaida 2019 (arXiv
    1910.00019); Hanin and Nica 2019 (arXiv 1909.05989); Roberts, Yaida and Hanin 2022.

    The next order is (depth/width)^2: for widths below a few times the depth the figures are only an indication.

    Args:
        net: layers Dense, activation, Dense, .. in the NTK parameterisation, on rows.
        X: (m, d) inputs.
        width: one number for all hidden layers, or one for each, >= 1.

    Returns:
        A `FiniteWidth`, whose arrays are (m,).

    Raises:
        TypeError, ValueError: another kind of network, widths below 1, inputs that are not finite.
        ArithmeticError: a moment is not resolved, as the activation grows too fast or oscillates.
    """
    first, steps = dense_steps(net)
    points = np.asarray(net.inputs.rows("X", X), np.float64)
    widths = hidden_widths(width, len(steps))
    w, b = float(first.weight_std), float(first.bias_std)
    with np.errstate(over="ignore"):
        K = np.sum(points**2, axis=1) * (w**2 / points.shape[1]) + b**2
    if not np.isfinite(K).all():
        raise ValueError("the variance of the first layer leaves float64's range; scale X down.")
    moved, spread, states, shares = np.zeros_like(K), np.zeros_like(K), [K], []
    moments = []
    for step, n in zip(steps, widths, strict=True):
        found = _moments(step.phi, K)
        signal = float(step.after.weight_std) ** 2 * found.square
        K = signal + float(step.after.bias_std) ** 2
        share = np.divide(signal, K, out=np.zeros_like(K), where=K > 0)
        moved = share * (found.slope * moved + found.curvature * spread / 2)
        spread = share**2 * (found.spread / n + found.slope**2 * spread)
        moments.append(found)
        states.append(K)
        shares.append(share)
    theta, deviation = _tangent(first, steps, moments, states, shares, widths)
    relative = np.sqrt(spread)
    return FiniteWidth(widths, K, K * (1 + moved), relative, 3 * relative**2, theta, deviation)


def _tangent(
    first: Dense,
    steps: list[Step],
    moments: list[_Moments],
    states: list[np.ndarray],
    signals: list[np.ndarray],
    widths: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Return Theta(x, x) in the limit, and the relative deviation of the empirical tangent kernel, (m,) each.

    To first order d ln Theta = sum_l (a_l eps_l + c_l eta_l), where eps_l and eta_l are the relative deviations of
    layer l's means of phi^2 and of phi'^2 g^2 from their expectations; the a_l and c_l are found from the last layer
    back. signals: the share of phi's signal in the variance of the next layer, the rest being its bias.
    """
    if not all(step.phi.has_ntk for step in steps):
        return np.full_like(states[0], np.inf), np.full_like(states[0], np.nan)
    trained = [float(layer.trained) for layer in (first, *(step.after for step in steps))]
    gradients = [np.ones_like(states[0])]  # the squared gradient D_l, from the last layer back
    for found, step in zip(reversed(moments), reversed(steps), strict=True):
        gradients.insert(0, float(step.after.weight_std) ** 2 * found.gain * gradients[0])
    parts = np.array([on * state * D for on, state, D in zip(trained, states, gradients, strict=True)])
    theta = np.sum(parts, axis=0)
    parts = np.divide(parts, theta, out=np.zeros_like(parts), where=theta > 0)
    variance, by_state = np.zeros_like(theta), parts[-1]
    passing = np.cumsum(parts, axis=0)  # of the layers up to l, whose gradients pass through layer l
    for i in reversed(range(len(steps))):
        found, a, c = moments[i], by_state * signals[i], passing[i]
        variance += (a**2 * found.spread + 2 * a * c * found.both + c**2 * found.gain_spread) / widths[i]
        by_state = a * found.slope + c * found.gain_slope + parts[i]
    return theta, np.sqrt(np.maximum(variance, 0))


def _moments(phi: Activation, K: np.ndarray) -> _Moments:
    """Compute the moments by two rules. Raises: ValueError: K is 0; ArithmeticError: the rules differ."""
    if not np.all(K > 0):
        raise ValueError("the signals of a layer are 0 at an input; leave out inputs that are 0, or give a bias.")
    with np.errstate(all="ignore"):
        (found, tail), (finer, _) = (_moments_by(phi, np.sqrt(K), halved) for halved in (False, True))
        sizes: list[Any] = [abs(finer.square), 1, 1, 1, abs(finer.gain), 1, 1, 1]
        gaps = [abs(a - b) / np.maximum(abs(a), size) for a, b, size in zip(found, finer, sizes, strict=True)]
    same = np.array(found) == np.array(finer)
    if not np.all(np.where(same, tail, np.maximum(gaps, tail)) <= _RESOLVED):
        raise ArithmeticError(
            f"the fourth moment of {phi!r} is not resolved for signals of variance {K.max():.3g}: the activation grows "
            f"too fast, or oscillates; scale X or weight_std down."
        )
    return found


def _moments_by(phi: Activation, deviation: np.ndarray, halved: bool) -> tuple[_Moments, float]:
    """Compute the moments, and the share of the outermost nodes in the fourth powers: the error of the cut."""
    grid = panels(phi.kinks, 2.0 ** math.ceil(math.log2(max(float(np.max(deviation)), 1.0))))
    z, weights = normal_rule(deviation, grid, halved=halved)
    u = deviation[:, None] * z
    with arithmetic(True):
        square, gain = (np.asarray(interpreted(f)(u)) ** 2 for f in (phi, phi.derivative))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.sum(weights * values, axis=1))

    m, c = mean(square), mean(gain)
    q, r = (values / np.where(size > 0, size, 1)[:, None] for values, size in ((square, m), (gain, c)))
    by_variance, by_both = (z**2 - 1) / 2, (z**4 - 6 * z**2 + 3) / 4
    tail = max(float(np.max(mean(v**2 * (abs(z) > REACH - 1)) / np.maximum(mean(v**2), 1))) for v in (q, r))
    spread = 3 * mean(r**2) - 1, mean(q * r) - 1
    slopes = mean(by_variance * q), mean(by_both * q)
    return _Moments(m, *slopes, mean(q**2) - 1, c, mean(by_variance * r), *spread), tail


def dense_steps(net: Any) -> tuple[Dense, list[Step]]:
    """Return the first dense layer, and each activation with the dense layer after it. Raises: TypeError."""
    if not isinstance(net, Network):
        raise TypeError(f"net must be a network, as wl.mlp(depth=3) makes one, got {validation.shown(net)}.")
    dense = dense_chain(net)
    usual = net.parameterization == "ntk" and net.learning_rates is None and isinstance(net.inputs, Rows)
    if not (usual and dense):
        raise TypeError(
            "net must have layers Dense, activation, Dense, .. on rows in the NTK parameterisation with one learning "
            "rate, as wl.mlp makes it: theory at finite width covers no other networks."
        )
    phis = (next(unit.activations()) for unit in net.units[1::2])
    return dense[0], [Step(phi, after) for phi, after in zip(phis, dense[1:], strict=True)]


def hidden_widths(width: Any, hidden: int) -> tuple[int, ...]:
    """Return the width of each hidden layer, from one number or one each. Raises: TypeError, ValueError."""
    if isinstance(width, (int, np.integer)) or np.ndim(width) == 0:
        return (validation.integer("width", width, at_least=1),) * hidden
    found = tuple(validation.integer("each width", n, at_least=1) for n in width)
    if len(found) != hidden:
        raise ValueError(f"width must have one number for each of {hidden} hidden layers, got {len(found)} numbers.")
    return found
