"""Figures 1, 2 and 3 of Jacot et al. 2018 with their settings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binom
from sklearn.datasets import load_digits

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_most

SEED = 2018
BIAS = 0.1
"""beta of the paper's figures."""
DEEP = wl.mlp(depth=4, activation="relu", weight_std=1.0, bias_std=BIAS)
RATE = 0.5
"""Their learning rate 1 is on half the mean squared error: half of it on this library's cost."""
ANGLES = np.linspace(-np.pi, np.pi, 49)
"""gamma: kernels between (1, 0) and (cos gamma, sin gamma)."""
START = 0.5
"""Size of the component to be learned in Figure 3."""


def circle(angles: np.ndarray) -> np.ndarray:
    """Points of the unit circle, (k, 2) float32."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def kernels(width: int, inits: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Figure 1: Theta(x_0, x) at the start and after `steps` steps on x_1 x_2, (inits, 49) each."""
    rng = np.random.default_rng(SEED)
    X = rng.standard_normal((16, 2)).astype(np.float32)
    y = (X[:, 0] * X[:, 1]).astype(np.float32)
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    for i in range(inits):
        params = DEEP.init(SEED + i, input_dim=2, width=width)
        for params_at, found in ((params, before), (_trained(DEEP, params, X, y, RATE, steps), after)):
            k = wl.empirical_ntk(DEEP.apply, params_at, output="trace")
            found.append(np.asarray(k.cross(circle(np.zeros(1)), circle(ANGLES)))[0])
    return np.array(before), np.array(after)


def _trained(
    net: wl.Network, params: tuple[object, ...], X: np.ndarray, y: np.ndarray, rate: float, steps: int
) -> tuple[object, ...]:
    run = wl.train(
        net.apply,
        params,
        X,
        y,
        learning_rate=rate,
        steps=steps,
        record_every=max(steps, 1),
        kernel_points=0,
        progress=False,
    )
    found: tuple[object, ...] = run.params
    return found


def percentiles(width: int, inits: int, steps: int) -> np.ndarray:
    """Figure 2: outputs of trained networks on the circle, (inits, 49); four points are given."""
    X, y = circle(GIVEN), LABELS.astype(np.float32)
    params = DEEP.init_many([SEED + i for i in range(inits)], input_dim=2, width=width)
    run = wl.train(
        DEEP.apply,
        params,
        X,
        y,
        ensemble=True,
        learning_rate=RATE,
        steps=steps,
        record_every=steps,
        probes=circle(ANGLES),
        kernel_points=0,
        progress=False,
    )
    return np.asarray(run.history.outputs[-1], np.float64)


GIVEN = np.array([-2.4, -0.9, 0.4, 2.0])
LABELS = np.array([0.6, -0.4, 0.8, -0.5])


class Component(NamedTuple):
    """Figure 3 for one width: |g_t| along the second principal component and |h_t| across it, at each time."""

    along: np.ndarray
    across: np.ndarray


def principal(points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits, their kernel's leading eigenvalues over n, and the second eigenvector with mean square 1."""
    X = (load_digits().data[:points] / 16).astype(np.float64)
    values, vectors = np.linalg.eigh(np.asarray(wl.ntk(DEEP).gram(X)))
    return X, values[::-1][:3] / points, vectors[:, -2] * np.sqrt(points)


def component(width: int, times: np.ndarray, points: int) -> Component:
    """Training towards f_0 + 0.5 f^(2), whose distance to the goal should decay as exp(-2 lambda_2 t)."""
    X, values, second = principal(points)
    params = DEEP.init(SEED, input_dim=X.shape[1], width=width)
    X32 = X.astype(np.float32)
    start = np.asarray(DEEP.apply(params, X32), np.float64)[:, 0]
    rate = 0.25 / values[0]
    every = max(1, round(float(times[1] - times[0]) / rate))
    run = wl.train(
        DEEP.apply,
        params,
        X32,
        (start + START * second).astype(np.float32),
        learning_rate=rate,
        steps=every * (len(times) - 1),
        record_every=every,
        probes=X32,
        kernel_points=0,
        progress=False,
    )
    rest = np.asarray(run.history.outputs, np.float64) - (start + START * second)
    along = rest @ second / points
    across = rest - along[:, None] * second
    return Component(np.abs(along), np.sqrt(np.mean(across**2, axis=1)))


def figure_one(effort: Effort) -> tuple[list[Check], dict[str, np.ndarray]]:
    """Spread over initialisations and change in training fall with width."""
    sizes = effort.pick(quick=((100, 5), (1000, 3)), full=((500, 10), (10_000, 2)))
    limit = np.asarray(wl.ntk(DEEP).cross(circle(np.zeros(1)), circle(ANGLES)))[0].astype(np.float64)
    data: dict[str, np.ndarray] = {"limit": limit, "kernel widths": np.array([n for n, _ in sizes])}
    off, moved = [], []
    for place, (width, inits) in enumerate(sizes):
        before, after = kernels(width, inits, effort.pick(quick=50, full=200))
        data |= {f"before {place}": before, f"after {place}": after}
        off.append(float(np.sqrt(np.mean((before - limit) ** 2)) / limit.max()))
        moved.append(float(np.sqrt(np.mean((after - before) ** 2)) / limit.max()))
    checks = [
        Check(
            "Figure 1: distance to the limit, narrow over wide",
            off[0] / off[1],
            *_root(sizes),
            "root of the widths' ratio",
        ),
        Check("Figure 1: change in training, narrow over wide", moved[0] / moved[1], *_root(sizes), "the same"),
        at_most("Figure 1: distance to the limit, wide, over its largest value", off[1], 0.15, "on the limit's curve"),
    ]
    return checks, data


def _root(sizes: tuple[tuple[int, int], ...]) -> tuple[float, float]:
    """The interval about the square root of the ratio of two widths: a factor of two for few initialisations."""
    ratio = float(np.sqrt(sizes[1][0] / sizes[0][0]))
    return ratio / 2, ratio * 2


def figure_two(effort: Effort, *, slower: float = 1.0) -> tuple[list[Check], dict[str, np.ndarray]]:
    """Outputs near convergence against the percentiles of the limit's law; `slower`: on its standard deviation."""
    widths = effort.pick(quick=(50, 200), full=(50, 1000))
    steps, inits = effort.pick(quick=(500, 20), full=(1000, 50))
    law = wl.trained_ensemble(DEEP, circle(GIVEN).astype(float), LABELS)
    Z = circle(ANGLES).astype(float)
    mean, spread = np.asarray(law.mean(Z, RATE * steps)), np.sqrt(np.asarray(law.variance(Z, RATE * steps))) / slower
    data: dict[str, np.ndarray] = {"mean": mean, "spread": spread, "output widths": np.array(widths)}
    checks = []
    # One angle in the widest gap: the count there is binomial, as initialisations are independent.
    place = int(np.argmax(spread))
    for i, width in enumerate(widths):
        found = percentiles(width, inits, steps)
        data[f"outputs {i}"] = found
        inside = int(np.sum(np.abs(found[:, place] - mean[place]) < 1.2815515655446004 * spread[place]))
        low, high = (float(q) for q in binom.interval(1 - 1e-4, inits, 0.8))
        checks.append(
            Check(
                f"Figure 2, width {width}: outputs within 10 to 90 %, of {inits}",
                float(inside),
                low,
                high,
                "binomial, 1e-4",
            )
        )
        if i == 1:
            shift = np.abs((found.mean(axis=0) - mean) / np.maximum(spread, 0.01)).max() * np.sqrt(inits)
            checks.append(
                at_most(
                    f"Figure 2, width {width}: largest deviation of the mean",
                    float(shift),
                    6.0,
                    "standard errors; width adds a little",
                )
            )
    return checks, data


def figure_three(effort: Effort, *, other: int = 1) -> tuple[list[Check], dict[str, np.ndarray]]:
    """Decay along the second principal component; `other`: whose eigenvalue is used, 1 for the second."""
    points = effort.pick(quick=128, full=512)
    values = principal(points)[1]
    times = np.linspace(0, 1.5 / (2 * values[1]), 16)
    theory = START * np.exp(-2 * values[other] * times)
    widths = effort.pick(quick=(100, 1000), full=(100, 1000, 4000))
    found = [component(n, times, points) for n in widths]
    gap = [float(np.abs(c.along - theory).max()) for c in found]
    across = [float(c.across.max()) for c in found]
    data = {
        "times": times,
        "theory": theory,
        "component widths": np.array(widths),
        "along": np.array([c.along for c in found]),
        "across": np.array([c.across for c in found]),
    }
    checks = [
        at_most(
            f"Figure 3, width {widths[-1]}: |g_t| off 0.5 exp(-2 lambda_2 t)", gap[-1], 0.05, "a tenth of its start"
        ),
        at_most(
            f"Figure 3: largest |h_t|, width {widths[-1]} over width 100",
            across[-1] / across[0],
            0.6,
            "it falls with width",
        ),
    ]
    return checks, data


def measure(effort: Effort) -> Measurement:
    """The three figures."""
    parts = [figure_one(effort), figure_two(effort), figure_three(effort)]
    return Measurement(
        tuple(check for checks, _ in parts for check in checks), {k: v for _, data in parts for k, v in data.items()}
    )


def violate(effort: Effort) -> Measurement:
    """A law a tenth as wide; the first component's eigenvalue for the second's."""
    two, _ = figure_two(effort, slower=10.0)
    three, data = figure_three(effort, other=0)
    return Measurement((two[1], three[0]), {"theory": data["theory"]})


def draw(data: Data, control: Data) -> Figure:
    """The three figures, theory as lines."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    one, two, three = figure.subplots(1, 3)
    colors = (plots.DESCENT, plots.DATA)
    for i, (width, color) in enumerate(zip(data["kernel widths"], colors, strict=True)):
        one.plot(ANGLES, data[f"before {i}"].T, ".", color=color, markersize=1.5)
        one.plot([], [], ".", color=color, label=f"width {width}, t = 0")
        one.plot(ANGLES, data[f"after {i}"].T, "x", color=color, markersize=1.5, alpha=0.6)
        one.plot([], [], "x", color=color, label=f"width {width}, trained")
    one.plot(ANGLES, data["limit"], color=plots.BAYES, label="limit")
    one.set(xlabel=r"angle $\gamma$", ylabel=r"$\Theta(x_0, x)$", title="Figure 1: the kernel on the circle")
    for i, (width, color) in enumerate(zip(data["output widths"], colors, strict=True)):
        two.plot(ANGLES, data[f"outputs {i}"].T, color=color, linewidth=0.4, alpha=0.5)
        two.plot([], [], color=color, label=f"width {width}")
    for factor, style in ((-1.2816, "--"), (0.0, "-"), (1.2816, "--")):
        two.plot(ANGLES, data["mean"] + factor * data["spread"], style, color=plots.BAYES, linewidth=1.5)
    two.plot([], [], "--", color=plots.BAYES, label="limit: 10, 50, 90 %")
    two.plot(GIVEN, LABELS, "o", color="white", markeredgecolor=plots.DATA)
    two.set(xlabel=r"angle $\gamma$", ylabel="f", title="Figure 2: near convergence")
    three.plot(data["times"], data["theory"], color=plots.BAYES, label=r"$0.5\,e^{-2\lambda_2 t}$")
    three.plot(data["times"], control["theory"], ":", color=plots.BAYES, label=r"control: $\lambda_1$")
    shades = plots.palette(len(data["along"]))
    for values, across, width, shade in zip(
        data["along"], data["across"], data["component widths"], shades, strict=True
    ):
        three.plot(data["times"], values, "o", color=shade, markersize=3, label=f"$|g_t|$, width {width}")
        three.plot(data["times"], across, "x", color=shade, markersize=3, label=f"$|h_t|$, width {width}")
    three.set(
        xlabel="time t of d theta/dt = -grad C",
        ylabel="distance to the goal",
        title="Figure 3: digits, second component",
    )
    for axes in (one, two, three):
        axes.legend(frameon=False, fontsize=6)
        plots.dress(axes)
    return figure


CLAIM = Claim(
    title="The figures of Jacot et al.",
    statement="The three figures of the paper that introduced the kernel: Theta^4 on the circle for two widths before "
    "and after training; outputs of trained networks against the percentiles of the limit; decay along the second "
    "kernel principal component of images, here of the digits that scikit-learn ships.",
    source="Jacot et al. 2018, arXiv 1806.07572, Figures 1 to 3 (beta = 0.1, L = 4, learning rate 1 in Figures 1 and "
    "2).",
    prediction="Distance to the limit and change in training fall by the root of the widths' ratio; 80 % of trained "
    "outputs lie between the 10th and 90th percentile; |g_t| = 0.5 exp(-2 lambda_2 t) in this library's time, and "
    "|h_t| falls with width.",
    tolerance="A factor of two for ratios of few initialisations; binomial counts; a tenth of the start for the decay.",
    control="A law a tenth as wide; the eigenvalue of the first component for the second's.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
