"""Mean-field networks of one hidden layer tend to the flow of particles; deep linear ones have an exact flow."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_least, at_most, slope_check
from widelimit.claims.finite import parameters
from widelimit.claims.statistics import power_law, root_mean_and_error

SEED = 1804
TIME = 2.0
NET = wl.mlp(depth=2, activation="erf", weight_std=1.5, bias_std=0.3, parameterization="mean_field")
WIDTHS = {Effort.QUICK: np.array([64, 128, 256, 512]), Effort.FULL: np.array([64, 128, 256, 512, 1024, 2048])}
NEXT = 1.0
"""Over the width: how far the mean over networks may be from the limit, of order 1."""
DEEP, SCALE, MOMENTS = 3, 0.2, (0.2, 0.5, 1.0, 2.0, 4.0)


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return eight points in the plane, targets, and four other points."""
    rng = np.random.default_rng(SEED)
    X = rng.standard_normal((8, 2))
    return X, np.sin(2 * X[:, 0]) + X[:, 1], rng.standard_normal((4, 2))


@functools.lru_cache(maxsize=4)
def limit(effort: Effort) -> wl.MeanFieldFlow:
    """Follow the particles."""
    X, y, Z = problem()
    particles = effort.pick(quick=4096, full=16384)
    return wl.mean_field_flow(NET, X, y, times=[TIME], probes=Z, particles=particles, draws=12, seed=SEED)


@functools.lru_cache(maxsize=16)
def trained(width: int, count: int) -> np.ndarray:
    """Train networks of a width for width times TIME, and return their outputs at the other points, (count, m)."""
    X, y, Z = problem()
    params = parameters(NET, (2, width, 1), count=count, rng=np.random.default_rng((SEED, width)))
    flow = functools.partial(wl.train, flow_time=width * TIME, record_every=width * TIME, tolerance=1e-6)
    run = flow(NET.apply, params, X, y, ensemble=True, probes=Z, kernel_points=0, progress=False)
    return np.asarray(run.history.outputs[-1])


def against(expected: np.ndarray, error: np.ndarray, outputs: list[np.ndarray], widths: np.ndarray) -> list[Check]:
    """Check that networks tend to `expected`, whose standard errors are given."""
    gaps = [root_mean_and_error(np.mean((f - expected) ** 2, axis=1)) for f in outputs]
    line = power_law(widths.astype(float), *np.transpose(gaps))
    checks = [slope_check("slope of the root mean square gap in the width", line, -0.5, 0.1 + 3 * line.error)]
    for f, width in zip(outputs, widths.tolist(), strict=True):
        own = np.hypot(f.std(axis=0, ddof=1) / np.sqrt(len(f)), error)
        worst = np.max(abs(f.mean(axis=0) - expected) / (4 * own + NEXT / width))
        why = f"4 standard errors of {own.max():.2g} and {NEXT:g}/width"
        checks.append(at_most(f"width {width}: gap of the mean over its bound", worst, 1.0, why))
    return checks


def layers(lopsided: float = 1.0) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """Return a (3, 2) product and its three layers, balanced unless the first is `lopsided` times as large."""
    U, s, Vt = np.linalg.svd(SCALE * np.random.default_rng(SEED + 1).standard_normal((3, 2)), full_matrices=False)
    root = np.diag(s ** (1 / DEEP))
    own = [lopsided * U @ root, root, root @ Vt / lopsided]
    return U @ np.diag(s) @ Vt, [{"A": A} for A in own]


def product(params: Any, X: jax.Array) -> jax.Array:
    """Compute x A_1 A_2 A_3."""
    for own in params:
        X = jnp.matmul(X, own["A"], precision="highest")
    return X


def linear_gap(lopsided: float) -> tuple[float, dict[str, np.ndarray]]:
    """Compute how far trained layers are from the exact flow of their product at worst; and the curves."""
    rng = np.random.default_rng(SEED + 2)
    X = rng.standard_normal((10, 3))
    y = X @ rng.standard_normal((3, 2))
    start, own = layers(lopsided)
    flow = wl.deep_linear_flow(X, y, depth=DEEP, start=start, times=MOMENTS)
    losses, worst = [], 0.0
    for t, f in zip(MOMENTS, flow.outputs, strict=True):
        run = wl.train(product, own, X, y, flow_time=t, record_every=t, tolerance=1e-9, kernel_points=0, progress=False)
        found = X @ np.asarray(run.params[0]["A"]) @ np.asarray(run.params[1]["A"]) @ np.asarray(run.params[2]["A"])
        worst = max(worst, float(np.max(abs(found - f))))
        losses.append(np.mean(np.sum((found - y) ** 2, axis=1)))
    lazy = np.mean(np.sum((flow.lazy - y) ** 2, axis=2), axis=1)
    return worst, {"deep_trained": np.array(losses), "deep_exact": flow.loss, "deep_lazy": lazy}


def measure(effort: Effort) -> Measurement:
    """Train networks of several widths, and layers of a deep linear network."""
    widths = WIDTHS[effort]
    flow = limit(effort)
    outputs = [trained(n, effort.pick(quick=50, full=200)) for n in widths.tolist()]
    gap, curves = linear_gap(1.0)
    off = float(np.max(abs(flow.lazy[0] - flow.outputs[0])))
    relative = float(abs(curves["deep_lazy"] - curves["deep_exact"]).max() / curves["deep_exact"].max())
    checks = [
        *against(flow.outputs[0], flow.error[0], outputs, widths),
        at_least("root mean square movement of the units", flow.movement[0], 0.3, "of order 1: features are learned"),
        at_least(
            "tangent kernel's prediction is off by", off, 10 * flow.error.max(), "10 standard errors of the limit"
        ),
        at_most("deep linear: trained layers and the exact flow, largest gap", gap, 1e-6, "the solvers' tolerances"),
        at_least("deep linear: the tangent kernel's loss is off by, over the first", relative, 0.1, "a small start"),
    ]
    mean = np.array([root_mean_and_error(np.mean((f - flow.outputs[0]) ** 2, axis=1)) for f in outputs]).T
    wrong = np.array([root_mean_and_error(np.mean((f - flow.lazy[0]) ** 2, axis=1)) for f in outputs]).T
    return Measurement(tuple(checks), {"widths": widths, "gaps": mean, "lazy_gaps": wrong} | curves)


def violate(effort: Effort) -> Measurement:
    """Compare networks with the tangent kernel's prediction, and train layers that are not balanced."""
    widths = WIDTHS[effort]
    flow = limit(effort)
    outputs = [trained(n, effort.pick(quick=50, full=200)) for n in widths.tolist()]
    slope, *means = against(flow.lazy[0], 0 * flow.error[0], outputs, widths)
    gap, _ = linear_gap(2.0)
    unbalanced = at_most("layers that are not balanced: largest gap", gap, 1e-6, "as for balanced ones")
    return Measurement((slope, *means, unbalanced), {"unbalanced": np.array([gap])})


def draw(data: Data, _: Data) -> Figure:
    """Draw the gaps over the width, and losses of the deep linear network."""
    figure, (one, two) = plots.panels(2)
    x = data["widths"].astype(float)
    plots.error_bars(one, x, data["gaps"], color=plots.DATA, label="to the mean-field limit")
    plots.error_bars(one, x, data["lazy_gaps"], "x", color=plots.BAYES, label="control: to the NTK's prediction")
    one.loglog(x, data["gaps"][0, 0] * (x / x[0]) ** -0.5, color=plots.DESCENT, label="width^(-1/2)")
    plots.finish(one, xlabel="width", ylabel="root mean square gap", title="One hidden layer, mean-field scaling")
    two.semilogx(MOMENTS, data["deep_exact"], color=plots.DESCENT, label="exact flow of the product")
    two.semilogx(MOMENTS, data["deep_trained"], "o", color=plots.DATA, label="trained layers")
    two.semilogx(MOMENTS, data["deep_lazy"], ":", color=plots.BAYES, label="NTK's prediction")
    plots.finish(two, xlabel="time t", ylabel="loss", title=f"Deep linear network, {DEEP} layers")
    return figure


CLAIM = Claim(
    title="Where features are learned, particles and products of layers are the limit",
    statement="Networks of one hidden layer of width n in the mean-field scaling, trained for a time n t, tend to the "
    "gradient flow of the law of their units, with fluctuations of order n^(-1/2); their units move by order 1. The "
    "product of the balanced layers of a deep linear network follows a closed equation. The tangent kernel at the "
    "start describes neither.",
    source="Mei, Montanari and Nguyen 2018, arXiv 1804.06561; Chizat and Bach 2018, arXiv 1805.09545; Arora, Cohen and "
    "Hazan 2018, arXiv 1802.06509; Saxe, McClelland and Ganguli 2014, arXiv 1312.6120.",
    prediction="Outputs of trained networks at new points: a gap to the particles' flow that falls with the slope -1/2 "
    "in the width, and means that agree; trained linear layers agree to the solvers' tolerance.",
    tolerance="The slope 0.1 and 3 standard errors; means 4 standard errors and 1/width for the bias.",
    control="The tangent kernel's prediction instead of the limit, and layers with the same product that are not "
    "balanced: both must be outside.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
