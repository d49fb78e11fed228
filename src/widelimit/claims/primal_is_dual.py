"""Equations (3.6) to (3.8), corrected: descent on the weights is descent on the dual coefficients."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import EPS, Claim, Data, Effort, Measurement, at_most

SEED = 3601


def feature_map(X: jax.Array) -> jax.Array:
    """Return x, sin(2 x) and x_1 x, (n, 9): nonlinear, more than there are points."""
    return jnp.concatenate([X, jnp.sin(2 * X), X[:, :1] * X], axis=1)


MODEL = wl.LinearModel(feature_map)


def problem(effort: Effort) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, float]:
    """Return six points in three dimensions, standard normal labels, features, the steps and their learning rate."""
    rng = np.random.default_rng(SEED)
    X, y = rng.standard_normal((6, 3)), rng.standard_normal(6)
    rate = 0.9 * wl.max_learning_rate(MODEL.kernel(), X)
    return X, y, MODEL.features(X), effort.pick(quick=400, full=20_000), rate


def measure(effort: Effort) -> Measurement:
    """Measure both descents, and the function-space polynomial, step by step."""
    X, y, phi, steps, rate = problem(effort)
    primal = np.asarray(MODEL.primal_descent(X, y, learning_rate=rate, steps=steps))
    dual = np.asarray(MODEL.dual_descent(X, y, learning_rate=rate, steps=steps))
    size = np.abs(primal).max()
    gap = np.abs(dual @ phi - primal).max(axis=1) / size
    function = wl.gradient_descent(MODEL.kernel(), X, y, learning_rate=rate, steps=steps)
    outputs = np.abs(np.asarray(function.predict(X)) - phi @ primal[-1]).max() / np.abs(y).max()
    bound = 8 * steps * EPS
    checks = (
        at_most(f"largest |phi^T alpha - w| over {steps} steps", gap.max(), bound, "8 eps a step: 8 roundings"),
        at_most("outputs: weights against function space", outputs, 10 * bound, "the same, through a product with phi"),
    )
    return Measurement(checks, {"gap": gap})


def violate(effort: Effort) -> Measurement:
    """Use the update as printed: every alpha_i moves by the sum over i; and (3.7) with K(x_i, x_i) summed over i."""
    X, y, phi, steps, rate = problem(effort)
    primal = np.asarray(MODEL.primal_descent(X, y, learning_rate=rate, steps=steps))
    alpha, gap = np.zeros(len(X)), np.zeros(steps + 1)
    for s in range(steps):
        alpha = alpha - rate * (2 / len(X)) * np.sum(phi @ (phi.T @ alpha) - y)
        gap[s + 1] = np.abs(alpha @ phi - primal[s + 1]).max() / np.abs(primal).max()
        if not np.isfinite(gap[s + 1]) or gap[s + 1] > 1e6:
            gap[s + 1 :] = 1e6
            break
    bound = 8 * steps * EPS
    check = at_most("largest |phi^T alpha - w|, (3.6) as printed", gap.max(), bound, "as the measurement")
    return Measurement((check,), {"gap": gap})


def draw(data: Data, control: Data) -> Figure:
    """Draw the gap between the two descents, step by step."""
    figure, (axes,) = plots.panels(1)
    steps = np.arange(1, len(data["gap"]))
    axes.loglog(steps, 8 * steps * EPS, color=plots.BAYES, label="8 eps a step")
    floor = EPS / 16
    axes.loglog(steps, np.maximum(data["gap"][1:], floor), ".", color=plots.DATA, markersize=3, label="measured")
    axes.loglog(steps, np.maximum(control["gap"][1:], floor), "x", color=plots.DESCENT, markersize=3, label="printed")
    plots.finish(
        axes, xlabel="step", ylabel=r"$|\phi^T\alpha - w|$ / largest $|w|$", title="Weights and dual coefficients"
    )
    return figure


CLAIM = Claim(
    title="Descent on weights is descent on dual coefficients",
    statement="With w = phi(X)^T alpha, gradient descent on w is alpha_i <- alpha_i - (2 eta/n)(sum_j alpha_j K(x_i, "
    "x_j) - y_i), each alpha_i by its own residual. The paper prints a sum over i in (3.6) and sums over i, not j, in "
    "(3.7) and (3.8).",
    source="Equations (3.6) to (3.8) of the paper, corrected.",
    prediction="phi(X)^T alpha_s = w_s at every step, to rounding; outputs too, by the closed polynomial in the "
    "kernel.",
    tolerance="A step makes at most 8 roundings of the iterates' size, and the steps contract.",
    control="The update printed in (3.6), in which every coefficient moves by the sum of all residuals.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
