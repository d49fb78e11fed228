"""Networks of several widths are drawn, and their kernels are compared with those at infinite width."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, slope_check
from widelimit.claims.statistics import power_law, root_mean_and_error

KERNELS = ("K", "Theta")


@jax.jit
def finite(net: wl.Network, params: tuple[object, ...], rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute K, as its mean over last layers is given the hidden ones, and Theta of one finite network."""
    slopes = jax.jacrev(net.signals_of)(params, rows)
    flat = list(map(_rows, jax.tree.leaves(slopes)))
    last = list(map(_rows, jax.tree.leaves(slopes[-1])))
    return sum(row @ row.T for row in last), sum(row @ row.T for row in flat)  # type: ignore[return-value]


def _rows(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(len(leaf), -1)


def errors(
    make: Callable[[int], wl.Network],
    rows: np.ndarray,
    limits: wl.BothKernels,
    sizes: Iterable[tuple[int, int]],
    seed: int,
) -> np.ndarray:
    """Return rms relative errors of K and Theta and standard errors, (2, 2, widths).

    Args:
        make: function from a width to a network.
        rows: inputs, (n, d) float32.
        limits: K and Theta at infinite width, (n, n) each.
        sizes: widths, and how many networks of each.
        seed: seed of the first network; the next ones take the next integers.
    """
    found, inputs = [], jnp.asarray(rows)
    for width, networks in sizes:
        net = make(width)
        drawn = (net.init(seed + 1000 * width + k, width=width) for k in range(networks))
        squares = [
            [np.sum((np.asarray(own) - limit) ** 2) / np.sum(limit**2) for own, limit in zip(both, limits, strict=True)]
            for both in (finite(net, params, inputs) for params in drawn)
        ]
        found.append([root_mean_and_error(column) for column in np.array(squares).T])
    return np.array(found).transpose(1, 2, 0)


def slopes(widths: np.ndarray, found: np.ndarray, kind: str, name: str) -> list[Check]:
    """Check the exponents of the errors of K and Theta in the width."""
    return [
        slope_check(f"{kind}: error of {kernel} in the width, slope{name}", power_law(widths, *own), -0.5, 0.15)
        for kernel, own in zip(KERNELS, found, strict=True)
    ]


def draw(axes: Axes, widths: np.ndarray, found: Any, control: Any, kind: str) -> None:
    """Draw errors against the width, and those of the control."""
    for row, color in zip((0, 1), plots.palette(2), strict=True):
        label = KERNELS[row]
        axes.errorbar(widths, found[row][0], found[row][1], fmt="o", color=color, label=label)
        axes.plot(widths, control[row][0], "x", color=color, label=f"control: {label}")
    axes.plot(widths, found[0][0][0] * (widths / widths[0]) ** -0.5, color=plots.DATA, linewidth=0.8)
    axes.set(xscale="log", yscale="log")
    plots.finish(axes, xlabel="width", ylabel="relative error", title=f"{kind}; line: slope -1/2")
