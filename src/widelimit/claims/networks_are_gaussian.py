"""Theorem 2.6: wide random networks are Gaussian processes; the rate at which they become so is measured."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_least, at_most, slope_check
from widelimit.claims.finite import output_covariances, outputs
from widelimit.claims.statistics import Line, power_law, root_mean_and_error

SEED = 2601
POINTS = np.random.default_rng(SEED).standard_normal((4, 3))
"""Four inputs in three dimensions, looked at together."""
SLOPE = 0.1
KURTOSIS_SLOPE = 0.2
"""The fitted exponents may differ by this: next orders in depth/width, a few hundredths, and the statistical error."""
LEVEL = 5.0


def networks(effort: Effort) -> dict[str, wl.Network]:
    """Return networks by name, of several activations and depths; the weights keep the size of signals."""
    networks = {
        f"{name}, depth {depth}": wl.mlp(depth=depth, activation=name, weight_std=weight, bias_std=0.3)
        for name, weight in (("relu", 2**0.5), ("erf", 1.3), ("tanh", 1.3))
        for depth in (2, 3, 4, 5)
    }
    kept = ("relu, depth 2", "erf, depth 3", "tanh, depth 2")
    return effort.pick(quick={name: networks[name] for name in kept}, full=networks)


def widths(net: wl.Network, effort: Effort) -> np.ndarray:
    """Return widths of all hidden layers: from 16 for each of them on, as corrections are of order depth/width."""
    return 16 * (net.depth - 1) * effort.pick(quick=np.array([1, 2, 4]), full=np.array([1, 2, 4, 8]))


def study(
    net: wl.Network, effort: Effort, *, factor: float = 1.0, first: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute relative covariance errors and excess kurtoses, (2, widths) each: value and standard error.

    factor: on the limit's kernel, a planted error. first: the width at which the first hidden layer is left.
    """
    limit = factor * np.asarray(wl.nngp(net).gram(POINTS))
    direction = np.linalg.inv(np.linalg.cholesky(limit))
    count = effort.pick(quick=1000, full=1000)
    errors, kurtoses = [], []
    for width in widths(net, effort).tolist():
        sizes = (width if first is None else first, *([width] * (net.depth - 2)))
        K = output_covariances(net, POINTS, widths=sizes, count=count, seed=SEED + width)
        squares = np.sum((K - limit) ** 2, axis=(1, 2)) / np.sum(limit**2)
        errors.append(root_mean_and_error(squares))
        # Whitened outputs are N(0, M) given the hidden layers: E|u|^4/(d (d + 2)) - 1, Mardia's, 0 for a Gaussian.
        M = direction @ K @ direction.T
        trace = np.trace(M, axis1=1, axis2=2)
        fourth = (trace**2 + 2 * np.sum(M**2, axis=(1, 2))) / (len(limit) * (len(limit) + 2))
        second = trace / len(limit)
        ratio = fourth.mean() / second.mean() ** 2 - 1
        spread = np.std(fourth - 2 * fourth.mean() * second / second.mean(), ddof=1) / np.sqrt(count)
        kurtoses.append((ratio, spread / second.mean() ** 2))
    return np.array(errors).T, np.array(kurtoses).T


def fit_exponent(net: wl.Network, effort: Effort, values: np.ndarray) -> Line:
    """Fit the exponent in the width."""
    return power_law(widths(net, effort).astype(float), np.maximum(values[0], 1e-12), values[1])


def direct_kurtosis(net: wl.Network, effort: Effort) -> tuple[float, float]:
    """Compute excess kurtosis of one output at one input from drawn outputs of width 16, and that predicted by K_n.

    Both in units of the error of the former.
    """
    count = effort.pick(quick=20_000, full=200_000)
    f = outputs(net, POINTS[:1], widths=(16,) * (net.depth - 1), output_dim=1, count=count, seed=SEED)[:, 0, 0]
    K = output_covariances(net, POINTS[:1], widths=(16,) * (net.depth - 1), count=count, seed=SEED + 1)[:, 0, 0]
    predicted = 3 * np.mean(K**2) / np.mean(K) ** 2
    parts = np.array([np.mean(b**4) / np.mean(b**2) ** 2 for b in f.reshape(20, -1)])
    error = parts.std(ddof=1) / np.sqrt(20)
    return float((np.mean(f**4) / np.mean(f**2) ** 2 - predicted) / error), float((predicted - 3) / error)


def measure(effort: Effort) -> Measurement:
    """Measure slopes for every network; drawn outputs against the conditional covariance."""
    checks: list[Check] = []
    data: dict[str, np.ndarray] = {}
    for name, net in networks(effort).items():
        errors, kurtoses = study(net, effort)
        line, decay = fit_exponent(net, effort, errors), fit_exponent(net, effort, kurtoses)
        checks += [
            slope_check(f"{name}: slope of the covariance error", line, -0.5, SLOPE),
            slope_check(f"{name}: slope of the kurtosis", decay, -1.0, KURTOSIS_SLOPE),
        ]
        data |= {f"{name}/widths": widths(net, effort), f"{name}/errors": errors, f"{name}/kurtoses": kurtoses}
    off, signal = direct_kurtosis(wl.mlp(depth=3, weight_std=2**0.5, bias_std=0.3), effort)
    checks += [
        at_most("kurtosis of drawn outputs against that of K_n", abs(off), LEVEL, "standard errors, batches of draws"),
        at_least("... and how far it is from a Gaussian's", signal, LEVEL, "width 16 is not Gaussian: power"),
    ]
    return Measurement(tuple(checks), data)


def violate(effort: Effort) -> Measurement:
    """Use the limit's kernel times 1.5; and a first layer that stays narrow."""
    net = wl.mlp(depth=3, activation="relu", weight_std=2**0.5, bias_std=0.3)
    off, _ = study(net, effort, factor=1.5)
    _, kurtoses = study(net, effort, first=8)
    line, decay = fit_exponent(net, effort, off), fit_exponent(net, effort, kurtoses)
    checks = (
        slope_check("slope of the covariance error, kernel times 1.5", line, -0.5, SLOPE),
        slope_check("slope of the kurtosis, first layer of width 8", decay, -1.0, KURTOSIS_SLOPE),
    )
    return Measurement(checks, {"widths": widths(net, effort), "errors": off, "kurtoses": kurtoses})


def draw(data: Data, control: Data) -> Figure:
    """Draw errors and kurtoses against width, with the slopes of the theory."""
    figure, panels = plots.panels(2)
    for axes, kind, slope, title in (
        (panels[0], "errors", -0.5, "Relative error of the covariance"),
        (panels[1], "kurtoses", -1.0, "Excess kurtosis, four inputs jointly"),
    ):
        names = [key.removesuffix(f"/{kind}") for key in data if key.endswith(f"/{kind}")]
        for name, color in zip(names, plots.palette(len(names)), strict=True):
            x, value = data[f"{name}/widths"], data[f"{name}/{kind}"][0]
            axes.plot(x, value[0] * (x / x[0]) ** slope, color=color, linewidth=0.8)
            plots.error_bars(axes, x, data[f"{name}/{kind}"], color=color, label=name)
        plots.error_bars(axes, control["widths"], control[kind], "x", label="control")
        seen = np.unique(np.concatenate([data[f"{name}/widths"] for name in names]))
        plots.finish_over_widths(axes, seen, ylabel=title, title=f"Lines: width$^{{{slope:g}}}$")
    return figure


CLAIM = Claim(
    title="Wide random networks are Gaussian processes",
    statement="As the hidden widths grow, the outputs of a random network at any inputs tend in law to N(0, Sigma^L). "
    "At width n the covariance given the hidden layers is off by about n^-1/2, and the outputs' excess kurtosis is of "
    "order 1/n.",
    source="Theorem 2.6 of the paper; Jacot et al. 2018, Proposition 1.",
    prediction="Slopes in log width of -1/2 for the relative error of the conditional covariance and -1 for the joint "
    "excess kurtosis over four inputs (Mardia's), for relu, erf and tanh, depth 2 to 5.",
    tolerance="Reported statistical errors of the fits, and next orders in 1/width, together below 0.1 and 0.2.",
    control="The limit's kernel times 1.5; a first hidden layer that stays at width 8 while the next grows.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
