"""Finite widths change kernel and outputs in training by terms that are predicted without training any network."""

import functools
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_most, slope_check, within
from widelimit.claims.finite import parameters
from widelimit.claims.statistics import Line, mean_and_error, power_law
from widelimit.theory.hierarchy import Expansion, kernels_of

SEED = 2503
TIME = 3.0
PROBLEMS = {
    "softplus": (411, [-1.0, 2.5, 0.5, 1.0]),
    "erf": (SEED, [2.0, -1.5, 1.0]),
}
"""The seed of the points and the targets for each activation. How the outputs move is checked with softplus only:
with erf its prediction has a standard error of some 15 %."""
WIDTHS = {Effort.QUICK: np.array([64, 128, 256]), Effort.FULL: np.array([64, 128, 256, 512, 1024])}
NEXT = 4.0
"""Over the width: how far the next order may move a ratio that is 1 to first order."""
SLOPE = 0.25


def problem(name: str) -> tuple[wl.Network, np.ndarray, np.ndarray]:
    """Return a network of depth 2, three or four points and large targets."""
    seed, y = PROBLEMS[name]
    X = np.random.default_rng(seed).standard_normal((len(y), 2))
    return wl.mlp(depth=2, activation=name, weight_std=1.0, bias_std=0.1), X, np.array(y)


def predict(name: str, effort: Effort, share: float = 1.0) -> Any:
    """Predict the corrections at width 1, for targets times `share`."""
    net, X, y = problem(name)
    draws = effort.pick(quick=400, full=1600)
    return wl.finite_width_training(net, X, share * y, times=TIME, width=1, draws=draws, sample_width=64)


@functools.lru_cache(maxsize=32)
def trained(name: str, width: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute Theta_t - Theta_0, and f_t - f_t^lin, of trained networks, (pairs, n, n) and (pairs, n).

    A network and the one with its last layer negated have the same Theta_0 and opposite f_0: one value is their mean.
    """
    net, X, y = problem(name)
    rng = np.random.default_rng((PROBLEMS[name][0], 2, width))
    params = parameters(net, (2, width, 1), count=pairs, rng=rng)
    signs = (*[1] * (len(params) - 1), -1)
    both = tuple(
        jax.tree.map(lambda leaf, sign=sign: np.concatenate([leaf, sign * leaf]), own)
        for own, sign in zip(params, signs, strict=True)
    )
    flow = functools.partial(wl.train, flow_time=TIME, record_every=TIME, tolerance=1e-6, probes=X, kernel_points=0)
    run = flow(net.apply, both, X, y, ensemble=True, progress=False)
    start, end = (kernels_of(net, own, X) for own in (both, run.params))
    f_0, f_t = run.history.outputs[0], run.history.outputs[-1]
    lines = [f + Expansion(K, K, y - f).limit(2 * TIME / len(X)) for K, f in zip(start, f_0, strict=True)]
    return tuple((part[:pairs] + part[pairs:]) / 2 for part in (end - start, f_t - np.array(lines)))


def study(name: str, effort: Effort, share: float = 1.0) -> dict[str, np.ndarray]:
    """Compute, for kernel and outputs, width times the measured part along the prediction over it, and its error.

    1 to first order; arrays (2, 2, widths): quantities, value and standard error. And z, (2, widths).
    """
    found, pairs = predict(name, effort, share), effort.pick(quick=100, full=400)
    ratios, z = [], []
    for width in WIDTHS[effort].tolist():
        for measured, predicted, error in zip(
            trained(name, width, pairs),
            (found.kernel_drift[0], found.learned[0]),
            (found.kernel_drift_error[0], found.learned_error[0]),
            strict=True,
        ):
            share_of = predicted / error**2 / np.sum((predicted / error) ** 2)  # entries by their own precision
            mean, own = mean_and_error(width * np.sum((measured * share_of).reshape(pairs, -1), axis=1))
            ratios.append((mean, np.hypot(own, np.sum(abs(share_of) * error))))
            mean, own = mean_and_error(width * measured)
            z.append(np.max(abs(mean - predicted) / np.hypot(own, error)))
    count = len(WIDTHS[effort])
    shaped = np.array(ratios).reshape(count, 2, 2).transpose(1, 2, 0)
    return {"ratio": shaped, "z": np.array(z).reshape(count, 2).T}


def compare(effort: Effort, share: float, label: str) -> tuple[list[Check], dict[str, np.ndarray], list[Line]]:
    """Compare measured with predicted corrections at every width."""
    checks, data, lines = [], {"widths": WIDTHS[effort]}, []
    for name in PROBLEMS:
        found = study(name, effort, share)
        for what, (mean, error) in zip(("kernel", "outputs"), found["ratio"], strict=True):
            if (name, what) == ("erf", "outputs"):
                continue
            for width, value, one in zip(WIDTHS[effort].tolist(), mean, error, strict=True):
                reason = f"4 standard errors of {one:.2g}, and {NEXT:g}/width for the next order"
                place = f"{label}{name}, width {width}: {what}, measured over predicted"
                checks.append(within(place, value, 1.0, 4 * one + NEXT / width, reason))
        mean, error = found["ratio"][0]
        lines.append(power_law(WIDTHS[effort].astype(float), abs(mean) / WIDTHS[effort], error / WIDTHS[effort]))
        data |= {f"{key}_{name}": value for key, value in found.items()}
    return checks, data, lines


def measure(effort: Effort) -> Measurement:
    """Train networks of several widths, and predict how they leave the limit."""
    checks, data, lines = compare(effort, 1.0, "")
    for name, line in zip(PROBLEMS, lines, strict=True):
        checks.append(slope_check(f"{name}: slope of the kernel's drift in the width", line, -1.0, SLOPE))
        worst = data[f"z_{name}"][:, -1].max()
        checks.append(at_most(f"{name}: largest z of an entry at the largest width", worst, 4.0, "4 sigma"))
    return Measurement(tuple(checks), data)


def violate(effort: Effort) -> Measurement:
    """Predict for targets half as large."""
    checks, data, _ = compare(effort, 0.5, "half targets, ")
    seen = [check for check in checks if "erf" in check.name or "outputs" in check.name]
    return Measurement(tuple(seen), data)


def draw(data: Data, control: Data) -> Figure:
    """Draw the ratios over the width."""
    figure, panels = plots.panels(2)
    x = data["widths"].astype(float)
    for axes, i, what in zip(panels, range(2), ("Theta_t - Theta_0", "f_t - f_t^{lin}"), strict=True):
        axes.axhline(1.0, color=plots.BAYES, linewidth=0.8, label="predicted, first order")
        for name, color in zip(list(PROBLEMS)[: 2 - i], (plots.DESCENT, plots.DATA), strict=False):
            plots.error_bars(axes, x, data[f"ratio_{name}"][i], color=color, label=f"trained, {name}")
        if i == 0:
            plots.error_bars(axes, 1.05 * x, control["ratio_softplus"][0], "x", color=plots.BAYES, label="control")
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{width:g}" for width in x])
        axes.set_xticks([], minor=True)
        plots.finish(axes, xlabel="width", ylabel="measured/predicted", title=f"Mean of ${what}$ over networks")
    return figure


CLAIM = Claim(
    title="What a finite width changes in training is predicted",
    statement="During training the mean tangent kernel of networks of width n moves by C/n, and their mean outputs "
    "leave those of the linearised networks by C'/n. Both coefficients follow from derivatives of the outputs of "
    "random networks, E[O3 f_0] and E[O4], none of which is trained.",
    source="Huang and Yau 2020, arXiv 1909.08156; Dyer and Gur-Ari 2020, arXiv 1909.11304; Roberts, Yaida and Hanin "
    "2022, arXiv 2106.10165, chapter 11.",
    prediction="The measured means over trained softplus and erf networks of depth 2, times the width, along the "
    "predicted ones: 1 to first order; the drift falls with a slope of -1.",
    tolerance="4 standard errors, of the trained networks and of the prediction, and 4/width for the next order.",
    control="Prediction for targets half as large: the drift of the kernel with erf, and the outputs "
    "with softplus, must be outside (with softplus E[O3 f_0] decides the drift, which does not depend on the targets).",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
