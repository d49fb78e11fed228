"""The axes of outputs are kept in full, traced, or paired with themselves: the forms of an empirical kernel."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation

Output = Literal["full", "trace", "diagonal"]
OUTPUTS: tuple[Output, ...] = ("full", "trace", "diagonal")
PAIRS = {"full": "nap,mbp->nmab", "trace": "nap,map->nm", "diagonal": "nap,map->nma"}
SELF = {"full": "nap,nbp->nab", "trace": "nap,nap->n", "diagonal": "nap,nap->na"}


class Split(NamedTuple):
    """Outputs (n, c) are (n, full, diagonal, trace); the kernel is (n, m, full, full, diagonal), a mean over trace."""

    full: int
    diagonal: int
    trace: int

    def numbers(self) -> int:
        """Return how many numbers the kernel has for one pair of rows."""
        return self.full**2 * self.diagonal

    @property
    def contraction(self) -> tuple[Output, int, int]:
        """Return the form in which outputs are contracted, how many at once, and how many times."""
        return (
            ("trace", self.trace, self.diagonal) if self.full == 1 else ("full", self.full, self.diagonal * self.trace)
        )


@final
@dataclass(frozen=True)
class Arranged:
    """The function returns one leaf of the outputs, its axes in another order, as (n, c)."""

    select: Callable[[Any, Any], Any] | None
    leaf: int
    order: tuple[int, ...]

    def __call__(self, outputs: Any, X: Any) -> Any:
        values = jnp.asarray(jax.tree.leaves(outputs if self.select is None else self.select(outputs, X))[self.leaf])
        return jnp.transpose(values, (0, *(1 + k for k in self.order))).reshape(len(values), -1)


@final
@dataclass(frozen=True)
class Axes:
    """The axes of one output, without that of the rows, are kept in full, paired with themselves, or traced."""

    shape: tuple[int, ...]
    full: tuple[int, ...]
    diagonal: tuple[int, ...]
    trace: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], trace: tuple[int, ...], diagonal: tuple[int, ...]) -> Self:
        """Sort the axes of an output of this shape. Raises: ValueError: an axis that it lacks, or named twice."""
        count, found = len(shape), []
        for name, axes in (("trace_axes", trace), ("diagonal_axes", diagonal)):
            wrong = [k for k in axes if not -count <= k < count]
            if wrong:
                raise ValueError(
                    f"{name} has {wrong[0]}, but an output has the shape {shape} after the axis of the rows, which is "
                    f"not counted."
                )
            found.append(tuple(sorted(k % count for k in axes)))
        if len({*found[0], *found[1]}) != len(trace) + len(diagonal):
            raise ValueError(f"trace_axes={trace} and diagonal_axes={diagonal} name an axis twice.")
        return cls(shape, tuple(k for k in range(count) if k not in (*found[0], *found[1])), found[1], found[0])

    @property
    def order(self) -> tuple[int, ...]:
        """Return the axes in the order full, diagonal, trace."""
        return *self.full, *self.diagonal, *self.trace

    @property
    def split(self) -> Split:
        """Return the numbers of outputs of each kind."""
        return Split(*(math.prod(self.shape[k] for k in axes) for axes in (self.full, self.diagonal, self.trace)))

    def zipped(self, values: np.ndarray, rows: int) -> np.ndarray:
        """Reorder (n, m, full, full, diagonal) like the output's axes, two for each full one; rows: 1 without m."""
        full, paired = ([self.shape[k] for k in axes] for axes in (self.full, self.diagonal))
        values = values.reshape(*values.shape[:rows], *full, *full, *paired)
        places: dict[int, tuple[int, ...]] = {k: (i, len(full) + i) for i, k in enumerate(self.full)}
        places |= {k: (2 * len(full) + i,) for i, k in enumerate(self.diagonal)}
        order = [rows + place for k in sorted(places) for place in places[k]]
        return np.ascontiguousarray(np.transpose(values, (*range(rows), *order)))


def axis_option(name: str, given: Any) -> tuple[int, ...]:
    """Return the axes that an option names. Raises: TypeError, ValueError."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"{name} must be axes as a tuple, such as (-1,), got {validation.shown(given)}.")
    return tuple(validation.integer(f"each of {name}", k, at_least=-32) for k in given)
