"""`coordinate_check` measures how far the signals of every layer move in training at several widths."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.architecture.inputs import Rows
from widelimit.architecture.layers import Activate
from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.shapes import Float, Int
from widelimit.validation import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@final
@dataclass(frozen=True)
class CoordinateCheck:
    """This result says how far the signals of each layer with weights moved, at W widths; see `coordinate_check`."""

    widths: Int[np.ndarray, " W"]
    layers: tuple[str, ...]
    """The text of each of the L layers; the last is the output."""
    movement: Float[np.ndarray, "W L"]
    """The root of the mean of |h_t - h_0|^2 over rows, units and networks; inf if training left float64's range."""
    error: Float[np.ndarray, "W L"]
    """The standard error of `movement` over networks; inf where that is."""
    slopes: Float[np.ndarray, " L"]
    """Slopes of log movement in log width, by least squares: 0 with maximal updates; inf where a movement is inf."""

    def holds(self, tolerance: float = 0.2) -> bool:
        """Return True if |slope| is at most `tolerance` > 0 in all layers. Raises: TypeError, ValueError."""
        bound = float(validation.finite_scalar("tolerance", tolerance, above=0.0))
        return bool(np.max(abs(self.slopes)) <= bound)

    def plot(self, ax: Any = None) -> "Axes":
        """Draw the movement over the width, one line for each layer, on logarithmic axes. Raises: TypeError: ax."""
        from widelimit import plots
        from widelimit.displays.axes import axes_or_new

        axes = axes_or_new(ax, (6.0, 3.4))
        for i, color in enumerate(plots.palette(len(self.layers))):
            seen = np.isfinite(self.movement[:, i])
            label = f"layer {i + 1}, slope {self.slopes[i]:.2f}"
            axes.loglog(self.widths[seen], self.movement[seen, i], "o-", color=color, markersize=3, label=label)
        return plots.finish(axes, xlabel="width", ylabel="movement of signals")


def coordinate_check(
    net: Network,
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    learning_rate: float,
    widths: Sequence[int] = (64, 128, 256, 512),
    steps: int = 3,
    draws: int = 4,
    seed: int = 0,
) -> CoordinateCheck:
    """|h_t - h_0| ~ width^0: measure how far each layer's signals move in a few steps of gradient descent.

    In the maximal update parameterisation, with one learning rate, the signals of every layer move equally far at every
    width: features are learned, and the learning rate that is best at one width is near the best at others (Yang and Hu
    2021, arXiv 2011.14522; Yang et al. 2022, arXiv 2203.03466). With "ntk" hidden signals move by width^(-1/2); with
    "standard" training leaves float64's range at large width. The cost is the mean of |f - y|^2 over all rows.

    Args:
        net: a network on rows, of any parameterisation.
        X: (n, d) inputs.
        y: (n,) or (n, c) targets.
        learning_rate: eta > 0, the same at all widths.
        widths: two or more different widths, each for all hidden layers.
        steps: number of steps of gradient descent, >= 1.
        draws: number of networks of each width, >= 2.
        seed: seed of the first network of each width, >= 0; the next ones take the next integers.

    Returns:
        A `CoordinateCheck`.

    Raises:
        TypeError, ValueError: bad arguments; a network of depth 1, or not of rows. MemoryError: networks do not fit.
    """
    if not isinstance(net, Network):
        raise TypeError(f"net must be a network, as wl.mlp(depth=3) makes one, got {validation.shown(net)}.")
    if not isinstance(net.inputs, Rows) or net.depth == 1:
        raise ValueError("net must be a network of rows of depth 2 or more: coordinate_check measures hidden signals.")
    rate = float(validation.finite_scalar("learning_rate", learning_rate, above=0.0))
    sizes = _sizes(widths)
    count, many = validation.integer("steps", steps, at_least=1), validation.integer("draws", draws, at_least=2)
    first = validation.integer("seed", seed, at_least=0)
    rows = np.asarray(net.rows("X", validation.concrete_points("X", X)), np.float64)
    targets = validation.targets("y", y, len(rows)).reshape(len(rows), -1)
    made = functools.partial(net.init_many, range(first, first + many), input_dim=rows.shape[1], dtype=np.float64)
    found = []
    for width in sizes.tolist():
        params = made(width=width, output_dim=targets.shape[1])
        with arithmetic(True):
            moved = _moved(net, params, jnp.asarray(rows), jnp.asarray(targets), rate, steps=count)
        found.append(np.where(np.isfinite(moved), moved, np.inf))
    return _summary(net, sizes, np.array(found))


def _sizes(widths: Any) -> np.ndarray:
    """Return the widths, ascending. Raises: TypeError, ValueError: not two different ones at least."""
    if isinstance(widths, (str, bytes)) or np.ndim(widths) != 1:
        raise TypeError(f"widths must be two or more integers, as [64, 128, 256]; got {validation.shown(widths)}.")
    found = sorted({validation.integer("each of widths", n, at_least=1) for n in widths})
    if len(found) < 2:
        raise ValueError(f"widths must be two or more different integers, got {validation.shown(widths)}.")
    return np.array(found)


def _summary(net: Network, sizes: np.ndarray, squares: np.ndarray) -> CoordinateCheck:
    """Summarise mean squares of the movements, (W, E, L)."""
    with np.errstate(invalid="ignore"):
        movement = np.sqrt(squares.mean(axis=1))
        spread = squares.std(axis=1, ddof=1) / math.sqrt(squares.shape[1]) / (2 * np.maximum(movement, 1e-300))
    good = np.isfinite(movement)
    logs = np.log(np.where(good, np.maximum(movement, 1e-300), 1))
    slopes = np.where(good.all(axis=0), np.polyfit(np.log(sizes), logs, 1)[0], np.inf)
    names = tuple(repr(unit) for unit in net.units if not isinstance(unit, Activate))
    return CoordinateCheck(sizes, names, movement, np.where(good, spread, np.inf), slopes)


@functools.partial(jax.jit, static_argnames="steps")
def _moved(net: Network, params: Any, X: jax.Array, y: jax.Array, rate: float, *, steps: int) -> jax.Array:
    """Compute the mean square of every layer's movement, (E, L)."""

    def signals(own: Any) -> list[jax.Array]:
        found, now = [], X
        for unit, part in zip(net.units, own, strict=True):
            now = unit.apply(part, now)
            if not isinstance(unit, Activate):
                found.append(now)
        return [*found[:-1], net.output_scale(own) * found[-1]]

    def step(_: Any, own: Any) -> Any:
        slope = jax.grad(lambda own: jnp.mean(jnp.sum((net.signals_of(own, X) - y) ** 2, axis=1)))(own)
        return jax.tree.map(lambda leaf, by: leaf - rate * by, own, slope)

    def member(start: Any) -> jax.Array:
        end = jax.lax.fori_loop(0, steps, step, start)
        return jnp.stack([jnp.mean((b - a) ** 2) for a, b in zip(signals(start), signals(end), strict=True)])

    return jnp.asarray(jax.lax.map(member, params))
