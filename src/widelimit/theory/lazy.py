"""`lazy_report` says whether a user's own model trains like its linearisation: then it is in the lazy regime."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import jax
import numpy as np

from widelimit import pages, validation
from widelimit.inference.gradient_descent import max_learning_rate
from widelimit.inference.training_set import evenly
from widelimit.kernels.empirical.expansion import linearize
from widelimit.kernels.empirical.functions import empirical_ntk
from widelimit.kernels.empirical.model import Apply
from widelimit.shapes import Float
from widelimit.training.history import History
from widelimit.training.train import train
from widelimit.validation import Array
from widelimit.writing import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KERNEL_ROWS = 32
"""Training rows on which the drift of the kernel is measured, at most."""
_RECORDS = 50
"""Times at which the training is recorded, about."""
_RATE_ROWS = 256
"""Training rows whose kernel bounds the learning rate, at most."""


@final
@dataclass(frozen=True)
class LazyReport:
    """The training of a model beside that of its linearisation. Made by `lazy_report`; `save` writes an HTML page."""

    times: Float[np.ndarray, " R"]
    """Times of the R records, in the unit of d theta/dt = -grad C, C the mean of |f - y|^2."""
    loss: Float[np.ndarray, " R"]
    linearized_loss: Float[np.ndarray, " R"]
    error: Float[np.ndarray, " R"]
    """|f_t - f_t^lin|/|f_t^lin - f_0|, with norms over probes and outputs; 0 at t = 0."""
    kernel_drift: Float[np.ndarray, " R"]
    """|Theta_t - Theta_0|/|Theta_0| (Frobenius), on at most 32 training rows."""
    tolerance: float
    scale: float
    """The factor on f - f_0 with which the error was measured to be at most `tolerance`; 1 if the model is lazy."""
    scaled_error: float
    """The largest error that was measured with that factor; NaN if no factor up to the largest was enough."""
    learning_rate: float
    steps: int

    @property
    def lazy(self) -> bool:
        """Return True if the error stays within the tolerance at all times."""
        return bool(np.max(self.error) <= self.tolerance)

    @property
    def verdict(self) -> str:
        """Return the result in one line of text."""
        worst = f"{100 * float(np.max(self.error)):.2g} % of the change of the outputs"
        if self.lazy:
            return f"Lazy: training is that of the tangent kernel at the start, to {worst}."
        end = "was not enough" if math.isnan(self.scaled_error) else "is lazy"
        return f"Not lazy: training leaves its linearisation by {worst}; f - f_0 times {self.scale:.3g} {end}."

    def figure(self) -> Figure:
        """Draw losses, and error and drift, over time."""
        from widelimit import plots

        figure, (one, two) = plots.panels(2)
        one.plot(self.times, self.loss, color=plots.DESCENT, label="model")
        one.plot(self.times, self.linearized_loss, color=plots.BAYES, linestyle="--", label="linearisation")
        two.plot(self.times, self.error, color=plots.DESCENT, label="error of the linearisation")
        two.plot(self.times, self.kernel_drift, color=plots.DATA, linestyle=":", label="drift of the kernel")
        two.axhline(self.tolerance, color=plots.BAYES, linewidth=0.8, label="tolerance")
        plots.finish(one, xlabel="time", ylabel="loss")
        plots.finish(two, xlabel="time", ylabel="relative")
        return figure

    def save(self, path: str | Path) -> None:
        """Write one HTML page with the figures and numbers. Raises: TypeError: no path; OSError: not written."""
        rows = [
            ("largest error of the linearisation", pages.digits(float(np.max(self.error)))),
            ("drift of the kernel at the end", pages.digits(float(self.kernel_drift[-1]))),
            ("loss at the end", f"{self.loss[-1]:.4g}; linearised {self.linearized_loss[-1]:.4g}"),
            ("factor on f - f_0 that makes it lazy", pages.digits(self.scale)),
            ("error measured with that factor", pages.digits(self.scaled_error)),
            ("training", f"{self.steps} steps of gradient descent, learning rate {self.learning_rate:.4g}"),
        ]
        what = "Loss of the model and of its linearisation over time; their distance, and the drift of the kernel"
        body = (
            f"<h1>Lazy training</h1><p><strong>{html.escape(self.verdict)}</strong></p>"
            f"{pages.picture(self.figure(), what)}{pages.table((), rows)}"
            "<p>In the lazy regime the outputs move as under the tangent kernel at the start, so this kernel predicts "
            "training, generalisation and error bars. Outside that regime the model learns features.</p>"
        )
        with atomic_write(validation.path("path", path)) as stream:
            stream.write(pages.document("Lazy training", body).encode())


def lazy_report(
    apply: Apply,
    params: Any,
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    probes: Float[Array, "m d"] | None = None,
    learning_rate: float | None = None,
    steps: int = 500,
    tolerance: float = 0.1,
    largest_scale: float = 100.0,
) -> LazyReport:
    """Train a model and its linearisation f_0 + df/dtheta|_0 (theta - theta_0) side by side, and compare their outputs.

    Both are trained by gradient descent on all rows, with the mean of |f - y|^2 as cost. If they differ, the model
    f_0 + a (f - f_0) is trained with the learning rate learning_rate/a^2, for growing factors a: its parameters need to
    move only 1/a as far, and the error falls like 1/a (Chizat, Oyallon and Bach 2019, arXiv 1812.07956). In the NTK
    parameterisation the error falls like 1/width.

    Args:
        apply: f(params, X), as for `train`.
        params: theta_0, as for `train`.
        X: (n, d) inputs of the parameters' dtype; a few hundred rows are enough.
        y: (n,) or (n, c) targets.
        probes: (m, d) inputs at which the outputs are compared; X unless given.
        learning_rate: eta > 0, time per step; unless given, half of the largest rate that is stable for the kernel at
            the start.
        steps: an integer >= 1.
        tolerance: the error in (0, 1) up to which a model counts as lazy.
        largest_scale: the largest factor a that is tried, > 1.

    Returns:
        A `LazyReport`.

    Raises:
        TypeError, ValueError: as by `train`; outputs that do not change in training; a loss that is not finite.
        MemoryError: as by `train`.
    """
    validation.integer("steps", steps, at_least=1)
    bound = float(validation.finite_scalar("tolerance", tolerance, above=0.0, at_most=1.0))
    largest = float(validation.finite_scalar("largest_scale", largest_scale, above=1.0))
    points = validation.concrete_points("X", X)
    rate = _learning_rate(apply, params, points) if learning_rate is None else learning_rate
    probing = points if probes is None else probes
    trained = partial(_trained, params, points, y, steps=steps, probes=probing)
    line = trained(linearize(apply, params), rate, 0)
    true = trained(apply, rate, KERNEL_ROWS)
    error = _distance(true, line)

    def scaled(factor: float) -> float:
        return float(np.max(_distance(trained(_scaled(apply, params, factor), rate / factor**2, 0), line)))

    factor, measured = _smallest(scaled, float(np.max(error)), bound, largest)
    return LazyReport(
        line.times,
        true.loss,
        line.loss,
        error,
        true.kernel_drift,
        bound,
        factor,
        measured if measured <= bound else math.nan,
        float(rate),
        steps,
    )


def _trained(params: Any, X: Any, y: Any, model: Apply, rate: float, rows: int, *, steps: int, probes: Any) -> History:
    """Train a model by the mean squared error; record the kernel at `rows` rows. Raises: ValueError: it diverges."""
    every = max(1, steps // _RECORDS)
    settings = {"learning_rate": rate, "kernel_points": rows, "steps": steps, "record_every": every, "probes": probes}
    history = train(model, params, X, y, progress=False, **settings).history
    if not np.isfinite(history.loss).all():
        raise ValueError(f"the loss is not finite with learning_rate={rate:.3g}; give a smaller one.")
    return history


def _smallest(error: Callable[[float], float], start: float, bound: float, largest: float) -> tuple[float, float]:
    """Return the first factor tried whose error is at most the bound, and that error; it falls like 1/factor.

    start: the error of the factor 1. The factor is `largest` if no smaller one is enough.
    """
    factor, found = 1.0, start
    while found > bound and factor < largest:
        factor = min(factor * max(1.5 * found / bound, 2.0), largest)
        found = error(factor)
    return factor, found


def _learning_rate(apply: Apply, params: Any, X: Any) -> float:
    """Return half of the largest learning rate that is stable for the kernel of some rows at the start."""
    kernel = empirical_ntk(apply, params, output="full")
    return 0.5 * float(max_learning_rate(kernel, X[evenly(len(X), _RATE_ROWS)]))


def _scaled(apply: Apply, params: Any, factor: float) -> Apply:
    """Return the model f_0 + factor (f - f_0)."""

    def model(now: Any, X: Any) -> Any:
        start = apply(params, X)
        return jax.tree.map(lambda f, f_0: f_0 + factor * (f - f_0), apply(now, X), start)

    return model


def _distance(history: History, line: History) -> np.ndarray:
    """Return |f_t - f_t^lin|/|f_t^lin - f_0|, (R,). Raises: ValueError: the linearisation does not move."""
    flat = [np.asarray(h.outputs, np.float64).reshape(len(h), -1) for h in (history, line)]
    moved = np.linalg.norm(flat[1] - flat[1][0], axis=1)
    if moved[-1] == 0:
        raise ValueError(
            "the outputs at the probes do not change in training: y equals the outputs at the start, the gradient of "
            "the model is 0 at the probes, or learning_rate is below rounding."
        )
    distance = np.linalg.norm(flat[0] - flat[1], axis=1)
    return np.asarray(np.divide(distance, moved, out=np.zeros_like(distance), where=moved > 0))
