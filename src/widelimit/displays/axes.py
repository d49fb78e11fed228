"""Displays draw on Axes of the caller, or on a new figure of pyplot, which a notebook then shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from widelimit.messages import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_NAME = 32
"""Characters of a name that are drawn."""


def axes_or_new(ax: Any, size: tuple[float, float]) -> Axes:
    """Return the Axes, or those of a new figure of this size in inches. Raises: TypeError."""
    from matplotlib.axes import Axes

    if ax is None:
        import matplotlib.pyplot as plt

        return plt.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be matplotlib Axes or None, got {shown(ax)}.")
    return ax


def figure_of(axes: Axes) -> Figure:
    """Return the whole figure that the Axes are part of. Raises: ValueError: they were removed from it."""
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("ax belongs to no figure: pass Axes that were not removed.")
    return figure


def label(text: Any, longest: int = LONGEST_NAME) -> str:
    """Return a text for a figure: on one line, at most so long, and no dollar sign begins a formula."""
    line = " ".join(str(text).split()) or " "
    if len(line) > longest:
        line = f"{line[: longest - longest // 3 - 1]}…{line[-(longest // 3) :]}"
    return line.replace("$", r"\$")
