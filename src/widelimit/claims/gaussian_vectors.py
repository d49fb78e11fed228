"""Definitions 2.1 and 2.2: X = A Z + mu has the covariance A A^T, whatever its rank, and a density on its support."""

import math

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import EPS, Claim, Data, Effort, Measurement, at_most, within

SEED = 2101
MIXING = np.array([[1.0, 0.5], [0.3, -1.2], [1.3, -0.7], [-0.7, -1.7]])
"""A, (4, 2): four coordinates of rank two, so that A A^T is degenerate."""
MEAN = np.array([1.0, -2.0, 0.5, 0.0])
LEVEL = 5.0
"""Largest of 14 normal deviates: beyond 5 with probability 8e-6."""
GRID = np.arange(-7, 7.01, 0.5)
"""Nodes in standard deviations: the trapezoidal rule errs by 2 exp(-2 pi^2/0.5^2) = 1e-34, the cut by 3e-12."""


def process(size: int) -> tuple[wl.GaussianProcess, np.ndarray]:
    """Return the first coordinates as a Gaussian process on their indices, and the indices."""
    k = wl.precomputed(MIXING[:size] @ MIXING[:size].T)
    return wl.GaussianProcess(k, mean=lambda index: MEAN[index[:, 0].astype(int)]), k.indices


def deviations(draws: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Compute sample means and covariances in standard errors about the predicted ones, (4 + 10,)."""
    count, centred = len(draws), draws - MEAN
    variances = np.diagonal(covariance)
    of_mean = centred.mean(axis=0) / np.sqrt(variances / count)
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / count)
    of_covariance = (centred.T @ centred / count - covariance) / error
    return np.concatenate([of_mean, of_covariance[np.triu_indices(4)]])


def integral(correction: float = 1.0) -> float:
    """Integrate the density of the first two coordinates over the plane."""
    root = np.linalg.cholesky(MIXING[:2] @ MIXING[:2].T)
    return correction * float(np.linalg.det(root)) * _sum_over_plane(root)


def integral_on_support() -> float:
    """Integrate the degenerate density over its support, a plane in four dimensions."""
    basis, upper = np.linalg.qr(MIXING)
    return abs(float(np.linalg.det(upper))) * _sum_over_plane(basis @ upper)


def _sum_over_plane(root: np.ndarray) -> float:
    """Integrate the density of the first coordinates over u, at mean + root u, (d, 2), by the trapezoidal rule."""
    gp, index = process(len(root))
    nodes = np.stack(np.meshgrid(GRID, GRID), axis=-1).reshape(-1, 2) @ root.T + MEAN[: len(root)]
    return 0.5**2 * sum(math.exp(gp.log_density(index, node)) for node in nodes)


def experiment(effort: Effort, *, stretch: float) -> tuple[np.ndarray, np.ndarray]:
    """Return draws, and their deviations from the prediction."""
    gp, index = process(4)
    draws = gp.sample(index, effort.pick(quick=20_000, full=500_000), seed=SEED)
    draws = MEAN + stretch * (draws - MEAN)
    return draws, deviations(draws, MIXING @ MIXING.T)


def measure(effort: Effort) -> Measurement:
    """Measure moments, rank, and both integrals."""
    draws, off = experiment(effort, stretch=1.0)
    gp, index = process(4)
    off_support = np.abs((draws - MEAN) @ np.linalg.svd(MIXING)[0][:, 2:]).max()
    whole, support = integral(), integral_on_support()
    checks = (
        at_most(
            "largest deviation of the moments", np.abs(off).max(), LEVEL, "standard errors; 4 means, 10 covariances"
        ),
        within("rank of A A^T", gp.rank(index), 2, 0, "A has two columns"),
        at_most("distance of draws from mu + im A", off_support, 1e3 * EPS, "rounding of a few products of size 10"),
        within("integral of the density", whole, 1.0, 1e-10, "cut at 7 standard deviations: 3e-12; rounding"),
        within("integral over the support, rank 2", support, 1.0, 1e-10, "the same"),
    )
    return Measurement(checks, {"draws": draws[:400, :3], "deviations": off, "integrals": np.array([whole, support])})


def violate(effort: Effort) -> Measurement:
    """Use draws 5 % too wide; and the density as printed."""
    _, off = experiment(effort, stretch=1.05)
    determinant = np.linalg.det(MIXING[:2] @ MIXING[:2].T)
    printed = integral((2 * np.pi * determinant**0.5) / (2 * np.pi * determinant))
    checks = (
        at_most("largest deviation, draws 5 % too wide", np.abs(off).max(), LEVEL, "standard errors"),
        within("integral, normalised by (2 pi det S)^(d/2)", printed, 1.0, 1e-10, "as printed in Definition 2.2"),
    )
    return Measurement(checks, {"deviations": off, "integrals": np.array([printed])})


def draw(data: Data, control: Data) -> Figure:
    """Draw points in their plane; deviations of the moments."""
    figure, (upper, lower) = plots.panels(2)
    angle = np.linspace(0, 2 * np.pi, 200)
    ellipse = MEAN[:2] + math.sqrt(-2 * math.log(0.05)) * np.stack([np.cos(angle), np.sin(angle)], 1) @ MIXING[:2].T
    upper.plot(*data["draws"][:, :2].T, ".", color=plots.DATA, markersize=3, alpha=0.6, label="draws")
    upper.plot(*ellipse.T, color=plots.BAYES, label="95 % of the law")
    plots.finish(upper, xlabel="$X_1$", ylabel="$X_2$", title="Two of four coordinates, rank 2")
    place = np.arange(len(data["deviations"]))
    lower.axhspan(-LEVEL, LEVEL, color=plots.BAYES, alpha=0.12, label="allowed")
    lower.plot(place, data["deviations"], "o", color=plots.DATA, markersize=4, label="measured")
    lower.plot(place, control["deviations"], "x", color=plots.DESCENT, markersize=5, label="control, 5 % too wide")
    xlabel, ylabel = "moment (4 means, 10 covariances)", "deviation / standard error"
    plots.finish(lower, xlabel=xlabel, ylabel=ylabel, title="Moments")
    return figure


CLAIM = Claim(
    title="Gaussian vectors, degenerate ones too",
    statement="If Z has independent standard normal entries, X = A Z + mu has mean mu and covariance A A^T, whatever "
    "the rank of A; where A A^T is invertible X has a density, which integrates to 1 if it is normalised by (2 "
    "pi)^(d/2) det(S)^(1/2). The paper prints (2 pi det S)^(d/2), which is wrong for d > 1.",
    source="Definitions 2.1 and 2.2 of the paper, the density corrected.",
    prediction="Sample moments within their standard errors; rank 2 for a 4 x 2 matrix A; both integrals 1, of the "
    "density in the plane and of that on the support of a degenerate vector.",
    tolerance="Sample moments are normal with known variances, (S_ii S_jj + S_ij^2)/N for a covariance; the "
    "quadrature is exact to 1e-11.",
    control="Draws stretched by 5 %, and the density with the printed normalisation.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
