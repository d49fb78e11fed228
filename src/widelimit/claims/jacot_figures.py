"""This claim reproduces Figures 1, 2 and 3 of Jacot et al. 2018 with their settings."""

import functools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_most
from widelimit.claims.finite import one_network, parameters, train_many
from widelimit.claims.images import MNIST_LEAST, Images, digits
from widelimit.fingerprints import sha256

SEED = 2018
BIAS = 0.1
"""beta of the paper's figures."""
DEEP = wl.mlp(depth=4, activation="relu", weight_std=1.0, bias_std=BIAS)
RATE = 0.5
"""The learning rate on this library's cost: the paper's rate 1 is for half the mean squared error."""
ANGLES = np.linspace(-np.pi, np.pi, 49)
"""gamma: kernels between (1, 0) and (cos gamma, sin gamma)."""
NEAR_CONVERGENCE = {Effort.QUICK: (500, 20), Effort.FULL: (1000, 30)}
"""Steps and initialisations of Figure 2."""
IMAGES = {Effort.QUICK: 128, Effort.FULL: MNIST_LEAST}
"""Images of Figure 3."""
START = 0.5
"""Size of the component to be learned in Figure 3."""
COLORS = (plots.DESCENT, plots.DATA)
GAMMA = r"angle $\gamma$ (radians)"
NINETY = 1.2815515655446004
"""The 90 % quantile of N(0, 1)."""


def circle(angles: np.ndarray) -> np.ndarray:
    """Return points of the unit circle, (k, 2) float32."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class Sample(NamedTuple):
    """These are the numbers of networks of Figure 1."""

    width: int
    inits: int
    trained: int
    """The number of networks that are trained."""


def kernels(of: Sample, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute Figure 1: Theta(x_0, x) at the start, (inits, 49), and after `steps` steps on x_1 x_2, (trained, 49)."""
    rng = np.random.default_rng(SEED)
    X = rng.standard_normal((16, 2)).astype(np.float32)
    y = (X[:, 0] * X[:, 1]).astype(np.float32)
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    for i in range(of.inits):
        params = one_network(DEEP, _sizes(2, of.width), rng=rng, dtype=np.float32)
        before.append(_on_the_circle(params))
        if i < of.trained:
            run = train_many(DEEP, params, X, y, stacked=False, learning_rate=RATE, steps=steps, record_every=steps)
            after.append(_on_the_circle(run.params))
    return np.array(before), np.array(after)


def _on_the_circle(params: Any) -> np.ndarray:
    k = wl.empirical_ntk(DEEP.apply, params, output="trace")
    row: np.ndarray = np.asarray(k.cross(circle(np.zeros(1)), circle(ANGLES)))[0]
    return row


def _sizes(inputs: int, width: int) -> tuple[int, ...]:
    return (inputs, *[width] * (DEEP.depth - 1), 1)


def percentiles(width: int, inits: int, steps: int) -> np.ndarray:
    """Compute Figure 2: outputs of trained networks on the circle, (inits, 49); four points are given."""
    X, y = circle(GIVEN), LABELS.astype(np.float32)
    rng = np.random.default_rng(SEED + width)
    params = parameters(DEEP, _sizes(2, width), count=inits, rng=rng, dtype=np.float32)
    run = train_many(DEEP, params, X, y, learning_rate=RATE, steps=steps, record_every=steps, probes=circle(ANGLES))
    return np.asarray(run.history.outputs[-1], np.float64)


GIVEN = np.array([-2.4, -0.9, 0.4, 2.0])
LABELS = np.array([0.6, -0.4, 0.8, -0.5])


class Component(NamedTuple):
    """Figure 3 for one width has |g_t| along the second principal component and |h_t| orthogonal to it, over time."""

    along: np.ndarray
    across: np.ndarray


class Principal(NamedTuple):
    """These are the limiting kernel's principal components on n images."""

    X: np.ndarray
    """(n, d) grey values in [0, 1]."""
    values: np.ndarray
    """The leading eigenvalues over n."""
    second: np.ndarray
    """The second eigenvector, of mean square 1."""


def principal(images: np.ndarray) -> Principal:
    """Compute components of Theta^4 on images, (n, d)."""
    X = images.astype(np.float64)
    values, vectors = np.linalg.eigh(np.asarray(wl.ntk(DEEP).gram(X)))
    return Principal(X, values[::-1][:3] / len(X), vectors[:, -2] * np.sqrt(len(X)))


def component(width: int, times: np.ndarray, of: Principal) -> Component:
    """Train towards f_0 + 0.5 f^(2), whose distance to the goal should decay as exp(-2 lambda_2 t)."""
    rng, X = np.random.default_rng(SEED + width), of.X.astype(np.float32)
    params = one_network(DEEP, _sizes(X.shape[1], width), rng=rng, dtype=np.float32)
    start = np.asarray(DEEP.apply(params, X), np.float64)[:, 0]
    # Half the rate at which the largest component is at its goal in one step.
    interval = max(1, math.ceil(float(times[1] - times[0]) / (0.25 / of.values[0])))
    goal, rate = start + START * of.second, float(times[1] - times[0]) / interval
    y, steps = goal.astype(np.float32), interval * (len(times) - 1)
    run = train_many(
        DEEP, params, X, y, stacked=False, learning_rate=rate, steps=steps, record_every=interval, probes=X
    )
    rest = np.asarray(run.history.outputs, np.float64) - goal
    along = rest @ of.second / len(X)
    across = rest - along[:, None] * of.second
    return Component(np.abs(along), np.sqrt(np.mean(across**2, axis=1)))


def figure_one(effort: Effort) -> tuple[list[Check], dict[str, np.ndarray]]:
    """Check that spread over initialisations and change in training fall with width."""
    narrow, wide = effort.pick(
        quick=(Sample(100, 20, 3), Sample(1000, 20, 3)), full=(Sample(500, 30, 5), Sample(10_000, 10, 1))
    )
    limit = np.asarray(wl.ntk(DEEP).cross(circle(np.zeros(1)), circle(ANGLES)))[0].astype(np.float64)
    data: dict[str, np.ndarray] = {"limit": limit, "kernel widths": np.array([narrow.width, wide.width])}
    off, moved = [], []
    for place, sample in enumerate((narrow, wide)):
        before, after = kernels(sample, effort.pick(quick=50, full=200))
        data |= {f"before {place}": before, f"after {place}": after}
        off.append(float(np.sqrt(np.mean((before - limit) ** 2)) / limit.max()))
        moved.append(float(np.sqrt(np.mean((after - before[: sample.trained]) ** 2)) / limit.max()))
    ratio = wide.width / narrow.width
    # A mean of n squares of one dominating deviation has a relative error of sqrt(2/n), its root half of that.
    spread = math.exp(3 * math.sqrt(0.5 / narrow.inits + 0.5 / wide.inits))
    root, narrow_over_wide = math.sqrt(ratio), "the root of the widths' ratio, three standard errors"
    bounds = "between the bound width^-1/2 and its usual order 1/width"
    name = "Figure 1: distance to the limit, narrow over wide"
    checks = [
        Check(name, off[0] / off[1], root / spread, root * spread, narrow_over_wide),
        Check("Figure 1: change in training, narrow over wide", moved[0] / moved[1], root / 2, 2 * ratio, bounds),
        at_most("Figure 1: distance to the limit, wide, over its largest value", off[1], 0.15, "on the limit's curve"),
    ]
    return checks, data


def law(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute, for Figure 2, mean and deviation of infinitely wide networks after `steps` steps, (49,) each."""
    ensemble = wl.trained_ensemble(DEEP, circle(GIVEN).astype(float), LABELS)
    Z, time = circle(ANGLES).astype(float), RATE * steps
    return np.asarray(ensemble.mean(Z, time)), np.sqrt(np.asarray(ensemble.variance(Z, time)))


def coverage(found: np.ndarray, mean: np.ndarray, spread: np.ndarray, name: str) -> Check:
    """Check the count of networks' outputs between the law's 10th and 90th percentiles, at one angle.

    The angle is that of the largest spread; the count is binomial, as initialisations are independent.
    """
    place = int(np.argmax(spread))
    inside = int(np.sum(np.abs(found[:, place] - mean[place]) < NINETY * spread[place]))
    low, high = (float(q) for q in binom.interval(1 - 1e-4, len(found), 0.8))
    return Check(
        f"Figure 2, {name}: outputs within 10 to 90 %, of {len(found)}", float(inside), low, high, "binomial, 1e-4"
    )


def figure_two(effort: Effort) -> tuple[list[Check], dict[str, np.ndarray]]:
    """Compare outputs near convergence with the percentiles of the limit's law."""
    widths = effort.pick(quick=(50, 200), full=(50, 1000))
    steps, inits = NEAR_CONVERGENCE[effort]
    mean, spread = law(steps)
    found = [percentiles(width, inits, steps) for width in widths]
    shift = np.abs((found[1].mean(axis=0) - mean) / np.maximum(spread, 0.01)).max() * np.sqrt(inits)
    checks = [coverage(f, mean, spread, f"width {width}") for f, width in zip(found, widths, strict=True)]
    name = f"Figure 2, width {widths[1]}: largest deviation of the mean"
    checks.append(at_most(name, shift, 6.0, "standard errors; width adds a little"))
    data = {"mean": mean, "spread": spread, "output widths": np.array(widths)}
    return checks, data | {"outputs 0": found[0], "outputs 1": found[1]}


def schedule(of: Principal) -> np.ndarray:
    """Return times of Figure 3: until the second component has lost 1.5 logarithms."""
    return np.linspace(0, 1.5 / (2 * of.values[1]), 16)


def off_theory(found: Component, times: np.ndarray, value: float, name: str) -> Check:
    """Check the distance of the component along f^(2) from 0.5 exp(-2 value t)."""
    gap = np.abs(found.along - START * np.exp(-2 * value * times)).max()
    return at_most(f"Figure 3, {name}: |g_t| off 0.5 exp(-2 lambda_2 t)", gap, 0.05, "a tenth of its start")


def figure_three(effort: Effort, images: Images) -> tuple[list[Check], dict[str, np.ndarray]]:
    """Measure decay along the second principal component, and the disturbance of the rest."""
    of = principal(images.pixels[: IMAGES[effort]])
    times, widths = schedule(of), effort.pick(quick=(100, 1000), full=(100, 1000, 4000))
    found = [component(n, times, of) for n in widths]
    fall = found[-1].across.max() / found[0].across.max()
    checks = [
        off_theory(found[-1], times, of.values[1], f"width {widths[-1]}"),
        at_most(f"Figure 3: largest |h_t|, width {widths[-1]} over width 100", fall, 0.6, "it falls with width"),
    ]
    data = {
        "times": times,
        "theory": START * np.exp(-2 * of.values[1] * times),
        "component widths": np.array(widths),
        "along": np.array([c.along for c in found]),
        "across": np.array([c.across for c in found]),
        "is MNIST": np.array(images.is_mnist),
    }
    return checks, data


def measure(effort: Effort, images: Images) -> Measurement:
    """Measure the three figures."""
    parts = [figure_one(effort), figure_two(effort), figure_three(effort, images)]
    return Measurement(
        tuple(check for checks, _ in parts for check in checks), {k: v for _, data in parts for k, v in data.items()}
    )


def violate(effort: Effort, images: Images) -> Measurement:
    """Use a law a tenth as wide, for the narrow networks; and the first component's eigenvalue for the second's."""
    steps, inits = NEAR_CONVERGENCE[effort]
    mean, spread = law(steps)
    of = principal(images.pixels[: IMAGES[effort]])
    times, width = schedule(of), effort.pick(quick=100, full=1000)
    checks = (
        coverage(percentiles(50, inits, steps), mean, spread / 10, "a law a tenth as wide, width 50"),
        off_theory(component(width, times, of), times, of.values[0], f"lambda_1 for lambda_2, width {width}"),
    )
    return Measurement(checks, {"theory": START * np.exp(-2 * of.values[0] * times)})


def draw(data: Data, control: Data) -> Figure:
    """Draw the three figures, theory as lines."""
    figure, (one, two, three) = plots.panels(3)
    _draw_kernels(one, data)
    _draw_outputs(two, data)
    _draw_decay(three, data, control)
    return figure


def _draw_kernels(axes: Axes, data: Data) -> None:
    for i, (width, color) in enumerate(zip(data["kernel widths"], COLORS, strict=True)):
        start = data[f"before {i}"]
        mean, deviation = start.mean(axis=0)[i::2], start.std(axis=0, ddof=1)[i::2]
        label = f"width {width}, t = 0, mean and sd"
        axes.errorbar(ANGLES[i::2], mean, deviation, fmt=".", color=color, capsize=2, label=label)
        trained = data[f"after {i}"].mean(axis=0)
        axes.plot(ANGLES, trained, "x", color=color, markersize=4, label=f"width {width}, trained")
    axes.plot(ANGLES, data["limit"], color=plots.BAYES, label="limit")
    plots.finish(axes, xlabel=GAMMA, ylabel=r"$\Theta(x_0, x)$", title="Figure 1: the kernel on the circle")


def _draw_outputs(axes: Axes, data: Data) -> None:
    for i, (width, color) in enumerate(zip(data["output widths"], COLORS, strict=True)):
        axes.plot(ANGLES, data[f"outputs {i}"].T, color=color, linewidth=0.4, alpha=0.5)
        axes.plot([], [], color=color, label=f"width {width}")
    for factor, style in ((-NINETY, "--"), (0.0, "-"), (NINETY, "--")):
        axes.plot(ANGLES, data["mean"] + factor * data["spread"], style, color=plots.BAYES, linewidth=1.5)
    axes.plot([], [], "--", color=plots.BAYES, label="limit: 10, 50, 90 %")
    axes.plot(GIVEN, LABELS, "o", color="white", markeredgecolor=plots.DATA, label="the four points given")
    plots.finish(axes, xlabel=GAMMA, ylabel=r"output $f(\cos\gamma, \sin\gamma)$", title="Figure 2: near convergence")


def _draw_decay(axes: Axes, data: Data, control: Data) -> None:
    axes.plot(data["times"], data["theory"], color=plots.BAYES, label=r"$0.5\,e^{-2\lambda_2 t}$")
    axes.plot(data["times"], control["theory"], ":", color=plots.BAYES, label=r"control: $\lambda_1$")
    shades = plots.palette(len(data["along"]))
    for values, across, width, shade in zip(
        data["along"], data["across"], data["component widths"], shades, strict=True
    ):
        axes.plot(data["times"], values, "o", color=shade, markersize=3, label=f"$|g_t|$, width {width}")
        axes.plot(data["times"], across, "x", color=shade, markersize=3, label=f"$|h_t|$, width {width}")
    title = f"Figure 3: {'MNIST' if data['is MNIST'] else 'digits'}, second component"
    plots.finish(axes, xlabel="time t of d theta/dt = -grad C", ylabel="rms distance to the goal", title=title)


def claim(images: Images) -> Claim:
    """Return the claim, with Figure 3 for these images."""
    digest = sha256(images.pixels[:MNIST_LEAST].tobytes())
    return replace(
        CLAIM,
        reads=f"images {digest[:16]}",
        measure=functools.partial(measure, images=images),
        violate=functools.partial(violate, images=images),
    )


CLAIM = Claim(
    title="The figures of Jacot et al.",
    statement="The three figures of the paper that introduced the kernel: Theta^4 on the circle for two widths before "
    "and after training; outputs of trained networks against the percentiles of the limit; decay along the second "
    "kernel principal component of images: the digits that scikit-learn ships, or MNIST where its file is given.",
    source="Jacot et al. 2018, arXiv 1806.07572, Figures 1 to 3 (beta = 0.1, L = 4, learning rate 1 in Figures 1 and "
    "2).",
    prediction="The distance to the limit falls by the root of the widths' ratio, the change in training at least by "
    "it; 80 % of trained outputs lie between the 10th and 90th percentile; |g_t| = 0.5 exp(-2 lambda_2 t) in this "
    "library's time, and |h_t| falls with width.",
    tolerance="Three standard errors of the distances' ratio, a factor of two for the few that are trained; binomial "
    "counts; a tenth of the start for the decay.",
    control="A law a tenth as wide; the eigenvalue of the first component for the second's.",
    seed=SEED,
    measure=lambda effort: measure(effort, digits()),
    violate=lambda effort: violate(effort, digits()),
    draw=draw,
)
