"""The axes of a module's outputs stand in full, on the diagonal, or under a mean in the kernel."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch

from widelimit.kernels.empirical import factors
from widelimit.kernels.empirical.factors import Affine, Explicit, Factor, Lookup
from widelimit.kernels.empirical.outputs import Output
from widelimit.validation import shown


class Axes(NamedTuple):
    """The settings name the axes: `output` for all at once, else two tuples of axes of the outputs (n, ...)."""

    output: Output | None
    trace: tuple[int, ...] = ()
    diagonal: tuple[int, ...] = ()

    def split(self, outputs: tuple[int, ...]) -> "Split":
        """Return the axes of outputs of this shape. Raises: ValueError: an axis that they do not have, or twice."""
        rank = len(outputs)
        if self.output is not None:
            kinds: list[str] = [self.output] * rank
        else:
            kinds = ["full"] * rank
            for kind, chosen in (("trace", self.trace), ("diagonal", self.diagonal)):
                for axis in chosen:
                    own = axis + rank if axis < 0 else axis
                    if not 0 <= own < rank or kinds[own] != "full":
                        raise ValueError(
                            f"{kind}_axes has {axis}; outputs of shape (n, {', '.join(map(str, outputs))}) have the "
                            f"axes {[*range(rank)]} after the rows, or {[*range(-rank, 0)]}, each taken once."
                        )
                    kinds[own] = kind
        parts = {name: [i for i in range(rank) if kinds[i] == name] for name in ("diagonal", "full", "trace")}
        sizes = {name: tuple(outputs[i] for i in found) for name, found in parts.items()}
        index = np.arange(int(np.prod(outputs))).reshape(outputs).transpose(*itertools.chain(*parts.values()))
        table = index.reshape([int(np.prod(sizes[name])) for name in parts])
        flat = self.output == "full"
        side = (int(np.prod(sizes["diagonal"])),) if self.output == "diagonal" else sizes["diagonal"]
        full = (int(np.prod(sizes["full"])),) if flat else sizes["full"]
        d, f = parts["diagonal"], parts["full"]
        places = [*range(len(side) + 2 * len(full))]
        if self.output is None:  # in the order of the outputs' axes, both of a pair side by side
            where = {axis: [i] for i, axis in enumerate(d)}
            where |= {axis: [len(d) + i, len(d) + len(f) + i] for i, axis in enumerate(f)}
            places = [place for axis in sorted(where) for place in where[axis]]
        return Split(table, (*side, *full, *full), len(full), tuple(places))


class Split(NamedTuple):
    """The outputs' numbers by (diagonal, full, trace) axes, and the shape of one pair of rows in the kernel."""

    table: np.ndarray
    tail: tuple[int, ...]
    full: int
    """Axes in full."""
    order: tuple[int, ...]
    """Places of `tail` in the result."""

    @property
    def output(self) -> Output:
        """Return the contraction that most of the work is."""
        d, f, t = self.table.shape
        return "full" if f > 1 or d * t == 1 else ("trace" if t > 1 else "diagonal")

    def mirror(self, values: torch.Tensor) -> torch.Tensor:
        """Compute K(x', x) from K(x, x'), (n, m, *tail)."""
        last = values.ndim - self.full
        first = last - self.full
        return values.permute(1, 0, *range(2, first), *range(last, values.ndim), *range(first, last))

    def result(self, values: np.ndarray, lead: int) -> np.ndarray:
        """Return the kernel with its axes in the order of the outputs' axes."""
        if self.order == tuple(range(len(self.tail))):
            return values
        return np.ascontiguousarray(values.transpose(*range(lead), *(lead + place for place in self.order)))

    def contract(self, a: Factor, b: Factor, *, itself: bool = False) -> torch.Tensor:
        """Compute one parameter's kernel, (n, m, *tail), or (n, *tail) of rows with themselves."""
        d, f, t = self.table.shape
        mean = 1 / t
        if d == 1 and f == 1:
            found = factors.contract(a, b, "trace", torch, itself=itself) * mean
        elif d == 1 and t == 1:
            found = factors.contract(a, b, "full", torch, itself=itself)
        elif f == 1 and t == 1:
            found = factors.contract(a, b, "diagonal", torch, itself=itself)
        else:
            found = torch.stack([self._row(row, a, b, itself) for row in self.table], dim=1 if itself else 2) * mean
        return found.reshape(*found.shape[: 1 if itself else 2], *self.tail)

    def _row(self, row: np.ndarray, a: Factor, b: Factor, itself: bool) -> torch.Tensor:
        if len(row) == 1:
            x, y = (_chosen(part, row[0]) for part in (a, b))
            return factors.contract(x, y, "trace", torch, itself=itself)
        pairs = [(_chosen(a, index), _chosen(b, index)) for index in row.T]
        total: Any = sum(factors.contract(x, y, "full", torch, itself=itself) for x, y in pairs)
        return total


def _chosen(factor: Factor, outputs: np.ndarray) -> Factor:
    """Return the factor of some outputs."""
    index: Any = torch.as_tensor(outputs)
    if isinstance(factor, Explicit):
        return Explicit(factor.jacobian[:, index])
    if isinstance(factor, Affine):
        return Affine(factor.signals, factor.backward[:, index])
    assert isinstance(factor, Lookup)
    return Lookup(factor.tokens, factor.backward[:, index], factor.rows)


def axes_of(output: Any, trace: Any, diagonal: Any) -> Axes:
    """Check the options for axes. Raises: TypeError, ValueError."""
    if trace is None and diagonal is None:
        return Axes(output)
    if output != "full":
        raise ValueError(f"output={output!r} and trace_axes or diagonal_axes say the same thing; pass one of them.")
    chosen = []
    for name, value in (("trace_axes", trace), ("diagonal_axes", diagonal)):
        value = () if value is None else (value,) if isinstance(value, int) else value
        if not isinstance(value, tuple | list) or any(type(axis) is not int for axis in value):
            raise TypeError(f"{name} must be a tuple of integers, got {shown(value)}.")
        chosen.append(tuple(value))
    return Axes(None, *chosen)
