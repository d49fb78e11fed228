"""The page's numbers at infinite width: the prior, the trained mean and its spread, and the kernels on the circle.

The two kernel matrices of a network on all points of the page come from one call; everything else is computed from
them with `wl.precomputed`, so that moving a slider compiles nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

import widelimit as wl
from widelimit.architecture.network import Network
from widelimit.cli.explorer.settings import EDGE, MOST_POINTS, NetworkSettings, Settings
from widelimit.compute import linalg
from widelimit.shapes import Float

GRID = np.linspace(-EDGE, EDGE, 121)
"""Inputs at which functions are drawn."""
ANGLES = np.linspace(-np.pi, np.pi, 97)
"""Angles between two inputs of the unit circle, in radians."""
ORIGIN = len(ANGLES) // 2
TIMES = np.concatenate([[0.0], np.geomspace(0.03, 3000.0, 31), [np.inf]])
"""Training times, in the unit of d theta/dt = -grad C, C the mean squared error."""
DRAWS = 6
"""Networks that are drawn as lines."""
SEED = 0
ROUNDING = 1e-9
"""A draw may neglect this share of the largest variance: a twentieth of a pixel, above the error of every kernel."""

Arrays = dict[str, np.ndarray]


class Matrices(NamedTuple):
    """The matrices hold both kernels on GRID and the points, (N, N), and draws of the prior, (DRAWS, N)."""

    nngp: np.ndarray
    ntk: np.ndarray
    draws: np.ndarray


def build(of: NetworkSettings) -> Network:
    """Return the network. Raises: TypeError, ValueError: as `wl.mlp`."""
    return wl.mlp(depth=of.depth, activation=of.activation, weight_std=of.weight_std, bias_std=of.bias_std)


def embed(x: Float[np.ndarray, " n"], inputs: str) -> Float[np.ndarray, "n d"]:
    """Return x as inputs of the network: (n, 1) on the line, (n, 2) on the circle."""
    return np.stack([np.cos(x), np.sin(x)], axis=1) if inputs == "circle" else x[:, None]


@lru_cache(maxsize=32)
def matrices(of: NetworkSettings, x: tuple[float, ...]) -> Matrices:
    """Compute both kernels on GRID and x. The number of rows is always the same: unused ones are 0."""
    rows = np.concatenate([GRID, x, np.zeros(MOST_POINTS - len(x))])
    nngp, ntk = (np.asarray(matrix) for matrix in wl.limits(build(of)).gram(embed(rows, of.inputs)))
    error = ROUNDING * float(np.diagonal(nngp).max())
    draws = linalg.gaussian_draws(np.zeros((len(rows), 1)), nngp, error, DRAWS, SEED)[..., 0]
    return Matrices(nngp, ntk, draws)


@lru_cache(maxsize=32)
def circle(of: NetworkSettings) -> tuple[np.ndarray, np.ndarray]:
    """Compute Sigma and Theta between the point at angle 0 of the unit circle and those at ANGLES, (97,) each."""
    nngp, ntk = wl.limits(build(of)).gram(embed(ANGLES, "circle"))
    return np.asarray(nngp)[ORIGIN], np.asarray(ntk)[ORIGIN]


@lru_cache(maxsize=64)
def scene(of: Settings) -> Arrays:
    """Compute all arrays of the page that the limit gives.

    Returns:
        times (T,), one time 0 if there is no training in time; mean and sd (T, 121), samples (T, DRAWS, 121) of the
        outputs on x (121,); prior_sd (121,), prior_samples (DRAWS, 121); angles, nngp, ntk (97,). The k-th sample is
        one network before and after training. For Bayes' rule also evidence (), the log evidence.

    Raises: ValueError: two points with one x and different y without noise, as `wl.posterior`.
    """
    n, m = len(of.points), len(GRID)
    found = matrices(of.network, tuple(of.x.tolist()))
    nngp, ntk = circle(of.network)
    start, sd = found.draws[:, :m], np.sqrt(np.diagonal(found.nngp)[:m])
    shown = {"x": GRID, "prior_sd": sd, "prior_samples": start, "angles": ANGLES, "nngp": nngp, "ntk": ntk}
    if of.rule == "bayes" and of.noise_std == 0:
        _refuse_conflicts(of)
    if n == 0:
        learned = {"times": np.zeros(1), "mean": np.zeros((1, m)), "sd": sd[None], "samples": start[None]}
    elif of.rule == "bayes":
        learned = _posterior(of, found)
    else:
        learned = _descent(of, found)
    return shown | learned


def _refuse_conflicts(of: Settings) -> None:
    """Refuse two outputs at one input. Raises: ValueError."""
    known: dict[float, float] = {}
    for x, y in of.points:
        if known.setdefault(x, y) != y:
            raise ValueError(
                f"two points have the input {x:g} and different outputs, {known[x]:g} and {y:g}: without noise no "
                f"function goes through both. Raise the noise, or move one of them."
            )


def _targets(of: Settings, found: Matrices, noise: float) -> np.ndarray:
    """Return the targets y, and y + e - f_0(X) for every draw f_0 and its noise e: (n, 1 + DRAWS)."""
    n, m = len(of.points), len(GRID)
    errors = noise * np.random.default_rng(SEED + 1).standard_normal((DRAWS, MOST_POINTS))[:, :n]
    return np.concatenate([of.y[:, None], (of.y + errors - found.draws[:, m : m + n]).T], axis=1)


def indices(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of the points, (n, 1), and of GRID, (121, 1): the inputs of a precomputed kernel."""
    indices = np.arange(len(GRID) + count, dtype=np.float64)[:, None]
    return indices[len(GRID) :], indices[: len(GRID)]


def _posterior(of: Settings, found: Matrices) -> Arrays:
    """Compute Bayes' rule; a draw of the posterior is f_0 plus the posterior mean for the targets y + e - f_0(X)."""
    given, grid = indices(len(of.points))
    post = wl.posterior(wl.precomputed(found.nngp), given, _targets(of, found, of.noise_std), noise=of.noise_std**2)
    means, variance = post.predict(grid)
    mean, moved = np.asarray(means)[:, 0], np.asarray(means)[:, 1:].T
    alone = wl.posterior(wl.precomputed(found.nngp), given, of.y, noise=of.noise_std**2)
    return {
        "times": np.zeros(1),
        "mean": mean[None],
        "sd": np.sqrt(np.asarray(variance))[None],
        "samples": (found.draws[:, : len(GRID)] + moved)[None],
        "evidence": np.asarray(float(alone.log_marginal_likelihood())),
    }


def _descent(of: Settings, found: Matrices) -> Arrays:
    """Compute gradient descent: f_t = f_0 + the flow from 0 towards y - f_0(X), its mean and spread."""
    n = len(of.points)
    given, grid = indices(n)
    flow = wl.gradient_flow(wl.precomputed(found.ntk), given, _targets(of, found, 0.0))
    assert isinstance(flow, wl.GradientFlow)  # the closed form, of the squared error
    moved = np.asarray(flow.predict(grid, TIMES))
    vectors, places = np.asarray(flow.vectors), slice(len(GRID), len(GRID) + n)
    modes = vectors.T @ found.nngp[places, places] @ vectors
    ensemble = wl.TrainedEnsemble(flow, wl.precomputed(found.nngp), modes)
    return {
        "times": TIMES,
        "mean": moved[..., 0],
        "sd": np.sqrt(np.asarray(ensemble.variance(grid, TIMES))),
        "samples": found.draws[:, : len(GRID)] + np.moveaxis(moved[..., 1:], 2, 1),
    }
