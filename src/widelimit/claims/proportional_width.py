"""With as many hidden units as rows, the kernel of the networks' posterior is the limit's times a random scale."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.special
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_most, slope_check
from widelimit.claims.statistics import power_law

SEED = 2021
NOISE, WEIGHT = 0.3, 1.1
ROWS, FEATURES, POINTS = 8, 12, 6
BATCH = 10_000
LINEAR = {"one hidden layer": (6,), "two hidden layers": (8, 8)}
WIDTHS = np.array([4, 8, 16, 32])
OTHERS = {"relu": (lambda u: np.maximum(u, 0.0)), "erf": scipy.special.erf}
ALPHA = (8, 16, 32, 64, 128)
"""Rows, and hidden units, of the problems that grow towards the proportional limit."""
Phi = Callable[[np.ndarray], np.ndarray]


class Sampled(NamedTuple):
    """Networks drawn from the prior give posterior moments at the points, with standard errors."""

    mean: np.ndarray
    mean_error: np.ndarray
    variance: np.ndarray
    variance_error: np.ndarray
    evidence: float
    """p(y) and its standard error."""
    evidence_error: float


def problem(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, targets of twice the prior's size, and other points."""
    rng = np.random.default_rng((SEED, rows))
    X = rng.standard_normal((rows, FEATURES * rows // ROWS))
    Z = rng.standard_normal((POINTS, X.shape[1]))
    return X, 2 * rng.standard_normal(rows), Z


def net(activation: str, hidden: int = 1) -> wl.Network:
    """Return a network without biases."""
    return wl.mlp(depth=hidden + 1, activation=activation, weight_std=WEIGHT)


def sampled(widths: tuple[int, ...], phi: Phi, draws: int) -> Sampled:
    """Draw hidden weights from the prior; given them the posterior is Gaussian, and p(y | weights) is their weight."""
    X, y, Z = problem()
    A, n = np.vstack([X, Z]), len(X)
    logs, means, squares = [], [], []
    for part in range(draws // BATCH):
        rng = np.random.default_rng((SEED, *widths, part))
        h = A
        for into in widths:
            W = rng.standard_normal((BATCH, h.shape[-1], into))
            h = phi(WEIGHT / np.sqrt(h.shape[-1]) * h @ W)
        K = WEIGHT**2 / widths[-1] * h @ h.transpose(0, 2, 1)
        C, cross = K[:, :n, :n] + NOISE * np.eye(n), K[:, n:, :n]
        solved = np.linalg.solve(
            C, np.concatenate([np.broadcast_to(y[:, None], (BATCH, n, 1)), cross.swapaxes(1, 2)], 2)
        )
        logs.append(-(np.linalg.slogdet(C)[1] + solved[:, :, 0] @ y + n * np.log(2 * np.pi)) / 2)
        means.append(np.einsum("bmn,bn->bm", cross, solved[:, :, 0]))
        own = np.diagonal(K[:, n:, n:], axis1=1, axis2=2) - np.einsum("bmn,bnm->bm", cross, solved[:, :, 1:])
        squares.append(own + means[-1] ** 2)
    return _moments(*(np.concatenate(part) for part in (logs, means, squares)))


def _moments(logs: np.ndarray, means: np.ndarray, squares: np.ndarray) -> Sampled:
    p = np.exp(logs)
    evidence, error = float(p.mean()), float(p.std() / np.sqrt(len(p)))
    p /= p.sum()
    mean = p @ means
    central = squares - 2 * mean * means + mean**2
    variance = p @ central
    errors = [np.sqrt(p**2 @ (values - centre) ** 2) for values, centre in ((means, mean), (central, variance))]
    return Sampled(mean, errors[0], variance, errors[1], evidence, error)


@functools.lru_cache(maxsize=16)
def networks(activation: str, widths: tuple[int, ...], draws: int) -> Sampled:
    """Draw networks of an activation."""
    return sampled(widths, OTHERS.get(activation, lambda u: u), draws)


def predicted(activation: str, widths: tuple[int, ...]) -> wl.ProportionalPosterior:
    """Predict the same moments by `proportional_posterior`."""
    X, y, Z = problem()
    return wl.proportional_posterior(net(activation, len(widths)), X, y, width=widths, noise=NOISE, probes=Z)


def scores(found: Sampled, mean: np.ndarray, variance: np.ndarray) -> float:
    """Compute the largest gap of means and variances in standard errors."""
    return float(
        np.max(abs(np.r_[mean - found.mean, variance - found.variance]) / np.r_[found.mean_error, found.variance_error])
    )


def linear(draws: int, infinite: bool) -> list[Check]:
    """Compare deep linear networks with the prediction, or with that of infinite width."""
    checks = []
    for name, widths in LINEAR.items():
        found, law = networks("identity", widths, draws), predicted("identity", widths)
        mean, variance = map(np.asarray, law.infinite if infinite else (law.mean, law.variance))
        gap = scores(found, mean, variance)
        checks.append(at_most(f"linear, {name}: largest gap in standard errors", gap, 4.5, "24 numbers, 99.98 %"))
        if not infinite:
            gap = abs(np.exp(law.log_evidence) - found.evidence) / found.evidence_error
            checks.append(at_most(f"linear, {name}: evidence, in standard errors", gap, 4.0, "one number, 99.99 %"))
    return checks


def other(activation: str, draws: int) -> np.ndarray:
    """Return the root mean square gaps of the mean at all widths: of the prediction and of infinite width, (2, W)."""
    gaps = []
    for width in WIDTHS.tolist():
        found, law = networks(activation, (width,), draws), predicted(activation, (width,))
        gaps.append([np.sqrt(np.mean((mean - found.mean) ** 2)) for mean in (law.mean, law.infinite.mean)])
    return np.array(gaps).T


@functools.lru_cache(maxsize=4)
def towards_the_limit() -> np.ndarray:
    """Return how far the posterior's scale is from the solution of the equation, with as many units as rows."""
    gaps = []
    for rows in ALPHA:
        X, y, Z = problem(rows)
        law = wl.proportional_posterior(net("identity", 2), X, y, width=rows, noise=NOISE, probes=Z)
        gaps.append(abs(law.scale - np.prod(law.order_parameters)))
    return np.array(gaps)


def limit_check(gaps: np.ndarray) -> Check:
    """Check the slope of the gap in the width."""
    line = power_law(np.array(ALPHA, float), gaps, 0.1 * gaps)
    return slope_check("two hidden layers: slope of E Q - Q of the limit", line, -1.0, 0.35)


def measure(effort: Effort) -> Measurement:
    """Draw linear, relu and erf networks."""
    draws = effort.pick(quick=300_000, full=3_000_000)
    gaps = towards_the_limit()
    checks = [*linear(draws, infinite=False), limit_check(gaps)]
    data = {"limit_gaps": gaps}
    for activation in OTHERS:
        data[activation] = other(activation, draws)
        share = float(np.max(data[activation][0, 1:] / data[activation][1, 1:]))
        checks.append(at_most(f"{activation}: gap over that of infinite width", share, 0.5, "an approximation"))
    return Measurement(tuple(checks), data)


def violate(effort: Effort) -> Measurement:
    """Take the prediction of infinite width for that of networks with as many units as rows."""
    checks = linear(effort.pick(quick=300_000, full=3_000_000), infinite=True)
    return Measurement(tuple(checks), {"sigmas": np.array([check.measured for check in checks])})


def draw(data: Data, _: Data) -> Figure:
    """Draw the gaps of other activations over the width, and the approach to the proportional limit."""
    figure, (one, two) = plots.panels(2)
    for activation, marker in zip(OTHERS, "os", strict=True):
        ours, infinite = data[activation]
        one.loglog(WIDTHS, ours, marker + "-", color=plots.DATA, label=f"{activation}: renormalised kernel")
        one.loglog(WIDTHS, infinite, marker + ":", color=plots.BAYES, label=f"{activation}: infinite width")
    plots.finish(one, xlabel="width", ylabel="rms gap of the mean", title=f"One hidden layer, {ROWS} rows")
    rows = np.array(ALPHA, float)
    two.loglog(rows, data["limit_gaps"], "o", color=plots.DATA, label="linear, two hidden layers")
    two.loglog(rows, data["limit_gaps"][0] * rows[0] / rows, color=plots.DESCENT, label="1/width")
    plots.finish(two, xlabel="width = rows", ylabel="|E[Q | y] - Q|", title="To the proportional limit")
    return figure


CLAIM = Claim(
    title="At proportional width the posterior is that of a renormalised kernel",
    statement="The output of a deep linear network of any width is a Gaussian process of the infinite width times a "
    "random scale, so that its posterior is an average over that scale; where widths and rows grow together the scale "
    "tends to the solution of one equation. With other activations the same is an approximation.",
    source="Li and Sompolinsky 2021, PRX 11, 031059; Hanin and Zlokapa 2023, arXiv 2212.14457; Pacelli et al. 2023, "
    "arXiv 2209.04882.",
    prediction="Mean, variance and evidence of linear networks drawn from the prior and weighed by p(y | weights); the "
    "slope -1 of the distance to the limit; with relu and erf means that are nearer than those of infinite width.",
    tolerance="4.5 standard errors; the slope 0.35; 0.5 of the distance to infinite width.",
    control="The posterior at infinite width in place of the prediction: it must be outside.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
