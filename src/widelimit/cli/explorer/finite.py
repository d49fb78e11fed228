"""The page's finite networks are drawn at random and trained on the points, fewer of them at larger widths."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

import widelimit as wl
from widelimit import validation
from widelimit.cli.explorer.scene import GRID, TIMES, Arrays, embed, indices, matrices
from widelimit.cli.explorer.settings import Settings


class Effort(NamedTuple):
    """The work that is done for networks of one width."""

    networks: int
    """Networks that are drawn, and trained at once."""
    steps: int
    """Steps of gradient descent on up to FEW points; with more points there are fewer steps."""


EFFORTS = {4: Effort(100, 2000), 16: Effort(100, 2000), 64: Effort(60, 1200), 256: Effort(20, 400), 512: Effort(8, 240)}
FEW = 16
FIRST = 100
"""Seed of the first network."""
EARLY = 24
"""States are shown after each of this number of first steps, and later at TIMES, to the nearest step."""
SHARE = 0.25
"""The learning rate, as a share of the largest that is stable in the limit: narrow networks have larger kernels."""


def finite(of: Settings, width: int) -> Arrays:
    """Compute outputs of E finite networks on GRID, at F times of training by gradient descent.

    Returns:
        times (F,) in the unit of d theta/dt = -grad C, outputs (F, E, 121), the learning rate () and the number of
        steps (). For Bayes' rule, and without points, only the networks at the start are returned: F = 1.

    Raises: TypeError, ValueError: a width that is not in EFFORTS.
    """
    if validation.integer("width", width, at_least=1) not in EFFORTS:
        raise ValueError(f"width must be one of {', '.join(map(str, EFFORTS))}; got {width}.")
    return _finite(of, width)


@lru_cache(maxsize=16)
def _finite(of: Settings, width: int) -> Arrays:
    probes = embed(GRID, of.network.inputs).astype(np.float32)
    start = _start(of, width, probes.shape[1])
    if of.rule == "bayes" or not of.points:
        parts = [_train(of, start, probes[:1], np.zeros(1, np.float32), probes, rate=1.0, steps=0, every=1)]
    else:
        parts = _trained(of, start, probes, steps=EFFORTS[width].steps * FEW // max(FEW, len(of.points)))
    first, *rest = [part.history for part in parts]
    taken = np.cumsum([first.steps[-1], *(late.steps[-1] for late in rest)])
    rate = float(first.times[-1] / first.steps[-1]) if first.steps[-1] else 0.0
    return {
        "times": np.concatenate([first.times, rate * taken[1:]]),
        "outputs": np.concatenate([first.outputs, *(late.outputs[-1:] for late in rest)]),
        "rate": np.asarray(rate),
        "steps": np.asarray(taken[-1], np.float64),
    }


def _start(of: Settings, width: int, input_dim: int) -> Any:
    """Draw the parameters of all networks; return them with the two scales, which are not trained."""
    net, count = wl.mlp(depth=of.network.depth, activation=of.network.activation), EFFORTS[width].networks
    scales = np.array([of.network.weight_std, of.network.bias_std], np.float32)
    return net.init_many(range(FIRST, FIRST + count), input_dim=input_dim, width=width), np.tile(scales, (count, 1))


@lru_cache(maxsize=64)
def _apply(depth: int, activation: str) -> Callable[[Any, Any], Any]:
    """Return f(params, X) with the scales as values, so that a slider compiles nothing."""

    def apply(params: Any, X: Any) -> Any:
        weights, scales = params
        weight_std, bias_std = jax.lax.stop_gradient(scales)
        net = wl.mlp(depth=depth, activation=activation, weight_std=weight_std, bias_std=bias_std)
        return net.apply(weights, X)

    return apply


def _trained(of: Settings, start: Any, probes: np.ndarray, *, steps: int) -> list[wl.Training]:
    """Train on the points, recording each of the first steps, then some; stop at a loss that is not finite."""
    given, _ = indices(len(of.points))
    known = matrices(of.network, tuple(of.x.tolist()))
    rate = SHARE * wl.max_learning_rate(wl.precomputed(known.ntk), given)
    X, y = embed(of.x, of.network.inputs).astype(np.float32), of.y.astype(np.float32)
    parts = [_train(of, start, X, y, probes, rate=rate, steps=EARLY, every=1)]
    marks = np.round(TIMES[np.isfinite(TIMES)] / rate).astype(int)
    for more in np.diff([EARLY, *marks[(marks > EARLY) & (marks <= steps)]]):
        if not parts[-1].finished:
            break
        parts.append(_train(of, parts[-1].params, X, y, probes, rate=rate, steps=int(more), every=int(more)))
    return parts


def _train(
    of: Settings, start: Any, X: np.ndarray, y: np.ndarray, probes: np.ndarray, *, rate: float, steps: int, every: int
) -> wl.Training:
    """Train all networks by full-batch gradient descent; `Training.finished` says whether they got to the end."""
    apply = _apply(of.network.depth, of.network.activation)
    options: dict[str, Any] = {"ensemble": True, "kernel_points": 0, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wl.train(
            apply, start, X, y, learning_rate=rate, steps=steps, record_every=every, probes=probes, **options
        )
