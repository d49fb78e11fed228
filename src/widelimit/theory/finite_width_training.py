"""Training at finite width differs from that of the limit by terms of order 1/width, predicted without training.

`finite_width_training` is the public function; `hierarchy` has the tensors behind it.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from widelimit import memory, validation
from widelimit.architecture.builders import dense_chain
from widelimit.architecture.inputs import Rows
from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.compute import linalg
from widelimit.inference.training_set import training_set
from widelimit.interpreter import interpreted
from widelimit.kernels.network import nngp, ntk
from widelimit.shapes import Float
from widelimit.theory.hierarchy import Expansion, kernels, tensors
from widelimit.theory.requests import finite_times, probes_beside, require_one_output
from widelimit.validation import Array

KERNELS = 16
"""Networks whose tangent kernel is computed, for each whose tensors are: kernels cost little."""

_NEAR = 1e-9
"""Slopes are compared at this distance on both sides of 0, where closed forms have their kink."""


@final
@dataclass(frozen=True)
class FiniteWidthTraining:
    """Means over random networks of one width under gradient flow, to first order in 1/width, at m points and T times.

    Made by `finite_width_training`. Every correction is proportional to 1/width.
    """

    width: int
    times: Float[np.ndarray, " T"]
    kernel: Float[np.ndarray, "m n"]
    """Theta of the limit, between the points and the training points."""
    kernel_drift: Float[np.ndarray, "T m n"]
    """E[Theta_t - Theta_0]."""
    kernel_drift_error: Float[np.ndarray, "T m n"]
    """The standard error of `kernel_drift`, from the random networks whose tensors were averaged."""
    limit: Float[np.ndarray, "T m"]
    """The mean output at infinite width."""
    initial: Float[np.ndarray, "T m"]
    """E[f_t^lin] - limit, f^lin trained with Theta_0: the part of the fluctuations and of the mean of Theta_0."""
    initial_error: Float[np.ndarray, "T m"]
    """The standard error of `initial`."""
    learned: Float[np.ndarray, "T m"]
    """E[f_t - f_t^lin]: the part of the drift of the kernel."""
    learned_error: Float[np.ndarray, "T m"]
    """The standard error of `learned`."""

    @property
    def output(self) -> Float[np.ndarray, "T m"]:
        """Return E[f_t] = limit + initial + learned."""
        return np.asarray(self.limit + self.initial + self.learned)


def finite_width_training(
    net: Network,
    X: Float[Array, "n d"],
    y: Float[Array, " n"],
    *,
    times: Any,
    width: int = 512,
    probes: Float[Array, "m d"] | None = None,
    draws: int = 64,
    sample_width: int = 64,
    seed: int = 0,
) -> FiniteWidthTraining:
    """dTheta/dt = -(2/n) O3 (f - y), dO3/dt = -(2/n) O4 (f - y): drift of kernel and outputs to first order in 1/width.

    These equations are the neural tangent hierarchy (Huang and Yau 2020, arXiv 1909.08156; Dyer and Gur-Ari 2020, arXiv
    1909.11304; Roberts, Yaida and Hanin 2022, arXiv 2106.10165, chapter 11). E[O3 f_0] and E[O4] are of order 1/width,
    and higher tensors smaller; the residual in them is that of the limit, and the integrals over time are closed forms.
    The tensors are means over random networks of `sample_width` at initialisation, with standard errors, computed by
    derivatives of their outputs; no network is trained. At depth 2 this mean is exact at every width, and for deeper
    networks to order 1/sample_width. The part of Theta_0 needs the second moments of its fluctuations, and from depth 3
    on their mean, whose standard error is large.

    The expansion holds if its corrections are far below the kernel and the targets; they grow with time, with y^2 and
    with the depth. Time and memory grow like n^4 and n^2 m: use it for some tens of points.

    Args:
        net: layers Dense, activation, Dense, .. on rows in the NTK parameterisation, of activations without kinks.
        X: (n, d) training inputs.
        y: (n,) targets of the one output.
        times: (T,) or one number, finite, >= 0, in the unit of d theta/dt = -grad C, C the mean of |f - y|^2.
        width: the width of all hidden layers for which to predict, >= 1.
        probes: (m, d) inputs at which to predict; X unless given.
        draws: number of random networks, >= 2.
        sample_width: width of these networks, >= 1.
        seed: seed of the first network, >= 0; the next ones take the next integers.

    Returns:
        A `FiniteWidthTraining`.

    Raises:
        TypeError, ValueError: another network, an activation with kinks (its second derivative is no function), more
            than one output, times that are not finite, corrections that overflow.
        MemoryError: the tensors do not fit.
    """
    _require(net)
    until = finite_times(times, "the expansion in 1/width holds at finite times only")
    n_width, at = (
        validation.integer(*given, at_least=1) for given in (("width", width), ("sample_width", sample_width))
    )
    count, first = validation.integer("draws", draws, at_least=2), validation.integer("seed", seed, at_least=0)
    data = training_set(ntk(net), X, y)
    require_one_output(data.y)
    rows, n = np.asarray(data.X, np.float64), len(data.X)
    points, asked = _points(net, rows, probes)
    size = 8.0 * len(points) * n**3 * (4 * count + 4 * n)
    memory.require(size, f"tensors of {count} networks at {len(points)} x {n}^3 points", remedy="use fewer points")
    expansion = Expansion(np.asarray(ntk(net).cross(points, rows)), np.asarray(nngp(net).gram(rows)), data.y[:, 0])
    found = tensors(net, points, trained=n, width=at, draws=count, seed=first)
    moved = _fluctuations(net, points, expansion, at, count, first)
    with linalg.ignore_overflow():
        results = [_at(expansion, found, moved, net.depth, 2 * t / n) for t in until]
    (drift, drift_error), (learned, learned_error), (initial, initial_error) = (
        [np.stack(values)[:, asked] for values in zip(*pairs, strict=True)] for pairs in zip(*results, strict=True)
    )
    limit = np.stack([expansion.limit(2 * t / n) for t in until])[:, asked]
    parts = (drift, drift_error, limit, initial * at, initial_error * at, learned, learned_error)
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError("the corrections leave the range of a float: the targets are too large; scale y down.")
    scaled = [part if part is limit else part / n_width for part in parts]
    return FiniteWidthTraining(n_width, until, expansion.theta[asked], *scaled)


def _points(net: Network, rows: np.ndarray, probes: Any) -> tuple[np.ndarray, slice]:
    """Return training rows and probes in one array, and the slice that is asked for. Raises: TypeError, ValueError."""
    if probes is None:
        return rows, slice(0, len(rows))
    return np.concatenate([rows, probes_beside(net, rows, probes)]), slice(len(rows), None)


def _at(expansion: Expansion, found: Any, moved: np.ndarray, depth: int, tau: float) -> list[tuple[Any, Any]]:
    """Return mean and standard error of kernel drift, learned part and initial part at tau = 2 t/n."""
    drift, learned = expansion.drift(tau, found)
    first, second = expansion.start(tau, moved)
    initial = second if depth == 2 else first + second  # E Theta_0 is that of the limit at depth 2
    return [_mean(values) for values in (drift, learned, initial)]


def _mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axis=0), values.std(axis=0, ddof=1) / math.sqrt(len(values))


def _fluctuations(
    net: Network, points: np.ndarray, expansion: Expansion, width: int, draws: int, first: int
) -> np.ndarray:
    """Compute Theta_0 - Theta of random networks, (E, p, t)."""
    starts = range(first, first + KERNELS * draws, draws)
    found = (kernels(net, points, width=width, seeds=range(start, start + draws)) for start in starts)
    n = expansion.theta.shape[1]
    return np.asarray(np.concatenate([theta[:, :, :n] for theta in found]) - expansion.theta)


def _require(net: Any) -> None:
    """Refuse other networks. Raises: TypeError, ValueError."""
    if not isinstance(net, Network):
        raise TypeError(f"net must be a network, as wl.mlp(depth=3) makes one, got {validation.shown(net)}.")
    usual = net.parameterization == "ntk" and net.learning_rates is None and isinstance(net.inputs, Rows)
    dense = dense_chain(net)
    if not (usual and dense and dense[-1].trained):
        raise TypeError(
            "finite_width_training needs a network of layers Dense, activation, Dense, .. on rows in the NTK "
            "parameterisation with one learning rate, as wl.mlp makes it."
        )
    for phi in net.activations():
        with arithmetic(True):
            sides = np.asarray(interpreted(phi.derivative)(np.array([-_NEAR, _NEAR])))
        if len(phi.kinks) or abs(np.diff(sides))[0] > 0.01 * np.max(abs(sides)):
            raise ValueError(
                f"{phi.name!r} has kinks, at which the network has no second derivative: its training has no "
                f"such expansion; take a smooth activation, such as gelu, softplus, tanh or erf."
            )
