"""Section 2.4: the posterior is the prior conditioned on the data."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Claim, Data, Effort, Measurement, at_most
from widelimit.claims.finite import output_covariances
from widelimit.claims.statistics import mean_and_error

SEED = 2402
NET = wl.mlp(depth=2, activation="erf", weight_std=1.5, bias_std=0.5)
X, Y = np.array([[-1.0], [0.6]]), np.array([0.4, -0.3])
Z = np.linspace(-2, 2, 9)[:, None]
WINDOW = 0.1
"""Half the width in which a draw counts as having gone through a point; a bias of order WINDOW^2/6 in the mean."""
NOISE = 0.02
WIDTH = 4000
"""Random features of the network whose last layer alone is trained."""
LEVEL = 5.0
"""Largest of 18 normal deviates: beyond 5 with probability 1e-5."""


def rejection(count: int, *, stretch: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Compute mean and variance at Z of prior draws that pass within WINDOW of both points, and count them.

    The prior is f + uniform noise on [-WINDOW, WINDOW] at the data, so that the prediction is made for that noise's
    variance: WINDOW^2/3.
    """
    gp = wl.GaussianProcess(wl.nngp(NET))
    draws = gp.sample(np.vstack([X, Z]), count, seed=SEED)
    kept = np.asarray(draws)[(np.abs(np.asarray(draws)[:, :2] - Y) < WINDOW).all(axis=1)][:, 2:] * stretch
    return kept.mean(axis=0), kept.var(axis=0, ddof=1), len(kept)


def last_layer(repeats: int) -> np.ndarray:
    """Compute ridge predictions at Z of wide random networks whose last layer alone is trained, (repeats, 9).

    The output layer's weights and bias have independent N(0, 1) priors: its ridge solution is the posterior mean of the
    kernel of its features, which tends to the NNGP kernel.
    """
    kernels = output_covariances(NET, np.vstack([X, Z]), widths=(WIDTH,), count=repeats, seed=SEED)
    return np.array([K[2:, :2] @ np.linalg.solve(K[:2, :2] + NOISE * np.eye(2), Y) for K in kernels])


def compare(effort: Effort, *, stretch: float, noise: float) -> Measurement:
    """Make the two comparisons with the posterior formula."""
    mean, variance, kept = rejection(effort.pick(quick=300_000, full=3_000_000), stretch=stretch)
    post = wl.posterior(wl.nngp(NET), X, Y, noise=WINDOW**2 / 3)
    expected, spread = np.asarray(post.mean(Z)), np.asarray(post.variance(Z))
    of_mean = (mean - expected) / np.sqrt(spread / kept)
    of_variance = (variance - spread) / (spread * np.sqrt(2 / kept))
    found, error = mean_and_error(last_layer(effort.pick(quick=32, full=128)))
    limit = np.asarray(wl.posterior(wl.nngp(NET), X, Y, noise=noise).mean(Z))
    # Features of finite width bias the ridge solution by order 1/width, below a tenth of the error here.
    off = (found - limit) / error
    checks = (
        at_most("rejection, mean: largest deviation", np.abs(of_mean).max(), LEVEL, f"{kept} draws were kept"),
        at_most("rejection, variance: largest", np.abs(of_variance).max(), LEVEL, "error sqrt(2/kept)"),
        at_most("trained last layer: largest deviation", np.abs(off).max(), LEVEL, "standard errors"),
    )
    data = {"mean": mean, "variance": variance, "layer": found, "expected": expected, "spread": spread}
    return Measurement(checks, data)


def measure(effort: Effort) -> Measurement:
    """Measure rejection, and wide networks with a trained last layer."""
    return compare(effort, stretch=1.0, noise=NOISE)


def violate(effort: Effort) -> Measurement:
    """Use draws 10 % too large, and twice the noise in the formula."""
    return compare(effort, stretch=1.1, noise=2 * NOISE)


def draw(data: Data, control: Data) -> Figure:
    """Draw posterior, and measured values."""
    figure, (axes,) = plots.panels(1)
    fine = np.linspace(-2, 2, 101)[:, None]
    post = wl.posterior(wl.nngp(NET), X, Y, noise=WINDOW**2 / 3)
    plots.posterior(post, fine, axes=axes)
    deviation = np.sqrt(data["variance"])
    found = np.stack([data["mean"], plots.NORMAL_QUANTILE * deviation])
    plots.error_bars(axes, Z[:, 0], found, "s", label="draws through the data, 95 %")
    axes.plot(Z[:, 0], control["mean"], "x", color=plots.DESCENT, label="control: draws 10 % too large")
    plots.finish(axes, xlabel="input x", ylabel="output f(x)", title="Conditioning by formula and by rejection")
    return figure


CLAIM = Claim(
    title="Bayesian inference with an infinitely wide network",
    statement="Given f(X) + noise = y, a Gaussian process is again one, with mean K_ZX (K_XX + noise)^-1 y and "
    "covariance K_ZZ - K_ZX (K_XX + noise)^-1 K_XZ. It is what remains of the prior when all draws that miss the data "
    "are thrown away, and what a wide network predicts whose last layer alone is trained.",
    source="Section 2.4 of the paper; Lee et al. 2018, arXiv 1711.00165.",
    prediction="Mean and variance of the draws that pass within 0.1 of both points equal the formula's, with 0.1^2 / 3 "
    "for the noise; the mean over random networks of the ridge solution of their last layer equals the posterior mean.",
    tolerance="Normal standard errors of the mean and the variance of the draws kept, and of the mean over networks.",
    control="Draws enlarged by 10 % and a noise twice as large in the formula.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
