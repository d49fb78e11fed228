"""Proposition 3.4 and Corollary 3.5: gradient descent on a linear model finds the shortest solution."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import EPS, Claim, Data, Effort, Measurement, at_least, at_most

SEED = 3401


def feature_map(X: jax.Array) -> jax.Array:
    """Return x, cos(x) and x_1 x, (n, 12): more features than points."""
    return jnp.concatenate([X, jnp.cos(X), X[:, :1] * X], axis=1)


MODEL = wl.LinearModel(feature_map)


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs (6, 4), labels, features (6, 12)."""
    rng = np.random.default_rng(SEED)
    X, y = rng.standard_normal((6, 4)), rng.standard_normal(6)
    return X, y, MODEL.features(X)


def outside_span(w: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Return the size of the part of each w (..., p) outside of im(phi^T), relative to w."""
    basis = np.linalg.qr(phi.T)[0]
    rest = w - (w @ basis) @ basis.T
    return np.asarray(np.linalg.norm(rest, axis=-1) / np.maximum(np.linalg.norm(w, axis=-1), 1e-300))


def distance(w: np.ndarray, best: np.ndarray) -> float:
    """Return |w - w*|/|w*|."""
    return float(np.linalg.norm(w - best) / np.linalg.norm(best))


def descend(steps: int, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute norms of the iterates from w_0 = start, (steps + 1,), and the iterates: w_0 + descent on y - phi w_0."""
    X, y, phi = problem()
    rate = 0.9 * wl.max_learning_rate(MODEL.kernel(), X)
    path = start + np.asarray(MODEL.primal_descent(X, y - phi @ start, learning_rate=rate, steps=steps))
    return np.linalg.norm(path, axis=1), path


def measure(effort: Effort) -> Measurement:
    """Measure the iterates' place and the limit's norm among other solutions."""
    X, y, phi = problem()
    steps = effort.pick(quick=20_000, full=200_000)
    norms, path = descend(steps, np.zeros(phi.shape[1]))
    best = np.asarray(MODEL.minimum_norm(X, y))
    null = np.linalg.svd(phi)[2][len(X) :]
    others = best + np.random.default_rng(SEED).standard_normal((200, len(null))) @ null
    missed = np.abs(others @ phi.T - y).max() / np.abs(y).max()
    lengths, nearest = np.linalg.norm(others, axis=1), min(distance(row, best) for row in phi)
    checks = (
        at_most("w* outside of the span of the phi(x_i)", float(outside_span(best, phi)), 1e4 * EPS, "condition 1e2"),
        at_most("iterates outside of it", outside_span(path[1:], phi).max(), 1e4 * EPS, "the same"),
        at_most("|w_s - w*|/|w*| at the end", distance(path[-1], best), 1e-9, "converged"),
        at_most("200 other solutions: residual", missed, 1e4 * EPS, "they interpolate too"),
        at_least("smallest norm among them, over |w*|", lengths.min() / norms[-1], 1.0, "none is shorter"),
        at_least("distance of w* to the nearest phi(x_i), over |w*|", nearest, 0.1, "in their span, not one of them"),
    )
    return Measurement(checks, {"norms": norms, "best": np.array(np.linalg.norm(best)), "others": lengths})


def violate(effort: Effort) -> Measurement:
    """Use descent from a start outside of the span."""
    X, y, phi = problem()
    start = np.linalg.svd(phi)[2][-1]
    norms, path = descend(effort.pick(quick=20_000, full=200_000), start)
    best = np.asarray(MODEL.minimum_norm(X, y))
    checks = (
        at_most("iterates outside of the span, w_0 outside", outside_span(path, phi).max(), 1e4 * EPS, "as above"),
        at_most("|w_s - w*|/|w*| at the end", distance(path[-1], best), 1e-9, "as above"),
    )
    return Measurement(checks, {"norms": norms})


def draw(data: Data, control: Data) -> Figure:
    """Draw norms along the two descents."""
    figure, (axes,) = plots.panels(1)
    best = float(data["best"])
    axes.axhline(best, color=plots.BAYES, label="$|w^*|$, minimum norm")
    for norms, color, marker, label in (
        (data["norms"], plots.DATA, "o", "from $w_0 = 0$"),
        (control["norms"], plots.DESCENT, "x", "control: $w_0$ outside of the span"),
    ):
        places = np.unique(np.geomspace(1, len(norms) - 1, 40).astype(int))
        axes.semilogx(places, norms[places], marker, color=color, markersize=4, label=label)
    plots.finish(
        axes, xlabel="step", ylabel="$|w_s|$", title="Gradient descent on a linear model, 12 features, 6 points"
    )
    return figure


CLAIM = Claim(
    title="Gradient descent finds the shortest weights",
    statement="Of all w with phi(X) w = y there is exactly one in the span of the phi(x_i), and it is the shortest. "
    "Descent from w = 0 never leaves the span, so it ends there. (The paper prints that w* is one of the phi(x_i).)",
    source="Proposition 3.4, corrected, and Corollary 3.5 of the paper.",
    prediction="The iterates have no part outside of the span; the last is w*; none of 200 other solutions is "
    "shorter; w* is far from every phi(x_i).",
    tolerance="Rounding, magnified by the condition of phi (below 1e2); descent is run until its slowest mode is "
    "below 1e-9.",
    control="The same descent from a unit vector orthogonal to the span: it interpolates, but neither stays in the "
    "span nor reaches w*.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
