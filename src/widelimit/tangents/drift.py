"""The kernel of a network drifts while it trains; a callback follows it on a few rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, final

import numpy as np

from widelimit import validation
from widelimit.displays.axes import axes_or_new, figure_of
from widelimit.shapes import Float
from widelimit.tangents.batches import batch
from widelimit.tangents.models import Tangents
from widelimit.tangents.rows import Output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@final
class KernelDrift:
    """Follows the tangent kernel on a few rows through a training loop: drift(wl.tangents(apply, params), step).

    The first call keeps the kernel K_0 that the others are compared with. A network in the kernel regime keeps it
    (changes of order width^(-1/2)); one that learns features does not.

    Args:
        X, labels, output: some 16 to 64 rows, as `Tangents.at` takes them.

    Attributes:
        steps: when each call was made: the step given, or the number of the call.
        change: |K_t - K_0|/|K_0|, norms of Frobenius; 0 where both kernels are 0, infinite where K_0 alone is.
        alignment: <K_t, K_0>/(|K_t| |K_0|), 1 where K_t is a multiple of K_0; 1 where both are 0, 0 where one is.
        ax_, figure_: the Axes and the figure of the last `plot`.
    """

    ax_: Axes
    figure_: Figure

    def __init__(self, X: Any, labels: Any = None, *, output: Output = "full") -> None:
        self.X, self.labels = batch(X, labels)
        self.output = validation.choice("output", output, ("full", "trace"))
        self.steps: list[float] = []
        self.change: list[float] = []
        self.alignment: list[float] = []
        self._first: Float[np.ndarray, "N N"] | None = None

    def __call__(self, tangents: Tangents, step: float | None = None) -> Self:
        """Record the current kernel.

        Args:
            tangents: the current tangents, from `wl.tangents(apply, params)` or `widelimit.torch.tangents(module)`.
            step: when, a number for the axis of the plot.

        Raises: TypeError, ValueError: as `Tangents.at`; a model with other outputs than before.
        """
        if not isinstance(tangents, Tangents):
            raise TypeError(f"tangents(apply, params) are needed, got {validation.shown(tangents)}.")
        when = len(self.steps) if step is None else validation.finite_scalar("step", step)
        matrix = tangents.at(self.X, self.labels, output=self.output).matrix()
        first = matrix if self._first is None else self._first
        if matrix.shape != first.shape:
            raise ValueError(f"the kernel is {matrix.shape} now and was {first.shape}: another model or outputs.")
        self._first = first
        change, alignment = _compared(matrix, first)
        self.steps.append(float(when))
        self.change.append(change)
        self.alignment.append(alignment)
        return self

    def plot(self, ax: Any = None) -> Self:
        """Draw change and alignment over steps. Raises: TypeError: ax; ValueError: nothing was recorded."""
        if not self.steps:
            raise ValueError("nothing was recorded: call drift(tangents(apply, params)) in the training loop first.")
        from widelimit import plots

        self.ax_ = axes = axes_or_new(ax, (6.0, 3.4))
        self.figure_ = figure_of(axes)
        axes.plot(self.steps, self.change, color=plots.BAYES, label="relative change of the kernel")
        axes.plot(self.steps, self.alignment, color=plots.DATA, linestyle="--", label="alignment with the first")
        plots.finish(axes, xlabel="step of training")
        return self


def _compared(matrix: np.ndarray, first: np.ndarray) -> tuple[float, float]:
    """Return change and alignment, defined also for kernels that are 0 everywhere."""
    start, now = float(np.linalg.norm(first)), float(np.linalg.norm(matrix))
    if start == 0 or now == 0:
        return (0.0, 1.0) if start == now else (np.inf if start == 0 else 1.0, 0.0)
    return float(np.linalg.norm(matrix - first)) / start, float(np.sum(matrix / now * (first / start)))
