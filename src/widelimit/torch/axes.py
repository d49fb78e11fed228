"""In the kernel, each axis of a module's outputs is kept in full, paired with itself, or traced (averaged over)."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch

from widelimit.kernels.empirical import factors
from widelimit.kernels.empirical.factors import Affine, Explicit, Factor, Lookup
from widelimit.kernels.empirical.outputs import Axes, Output, axis_option

_SIDE_BY_SIDE = {"full": ((0,), (), ()), "diagonal": ((), (0,), ()), "trace": ((), (), (0,))}


class AxisSettings(NamedTuple):
    """The settings say what becomes of the axes of outputs (n, ...): `output` for all, else `trace`, `diagonal`."""

    output: Output | None
    trace: tuple[int, ...] = ()
    diagonal: tuple[int, ...] = ()

    def split(self, outputs: tuple[int, ...]) -> "OutputSplit":
        """Return how outputs of this shape are split. Raises: ValueError: an axis that they do not have, or twice."""
        if self.output is not None:
            return OutputSplit(Axes((math.prod(outputs),), *_SIDE_BY_SIDE[self.output]))
        return OutputSplit(Axes.of(outputs, self.trace, self.diagonal))


@final
@dataclass(frozen=True)
class OutputSplit:
    """The split of c outputs into full, diagonal and traced ones: kernels are (n, m, full, full, diagonal)."""

    axes: Axes

    @property
    def tail(self) -> tuple[int, int, int]:
        """Return the shape of one pair of rows."""
        full, diagonal, _ = self.axes.split
        return full, full, diagonal

    @property
    def table(self) -> np.ndarray:
        """Return the index of each output, (diagonal, full, traced)."""
        f, d, t = self.axes.split
        order = (*self.axes.diagonal, *self.axes.full, *self.axes.trace)
        return np.arange(math.prod(self.axes.shape)).reshape(self.axes.shape).transpose(order).reshape(d, f, t)

    @property
    def output(self) -> Output:
        """Return the contraction that takes most of the work: "full", "trace" or "diagonal"."""
        f, d, t = self.axes.split
        return "full" if f > 1 or d * t == 1 else ("trace" if t > 1 else "diagonal")

    @staticmethod
    def mirror(values: torch.Tensor) -> torch.Tensor:
        """Compute K(x', x) from K(x, x'), (n, m, *tail)."""
        return values.transpose(0, 1).transpose(2, 3)

    def contract(self, a: Factor, b: Factor, *, itself: bool = False) -> torch.Tensor:
        """Compute one parameter's kernel, (n, m, *tail), or (n, *tail) of rows with themselves."""
        f, d, t = self.axes.split
        form: Output | None = "trace" if f * d == 1 else "full" if d * t == 1 else "diagonal" if f * t == 1 else None
        if form is not None:
            found = factors.contract(a, b, form, torch, itself=itself)
        else:
            found = torch.stack([_paired(row, a, b, itself) for row in self.table], dim=-1)
        return (found / t if t > 1 else found).reshape(*found.shape[: 1 if itself else 2], *self.tail)


def _paired(places: np.ndarray, a: Factor, b: Factor, itself: bool) -> torch.Tensor:
    """Contract the outputs with these indices, (full, trace): all pairs of full ones, summed over those traced."""
    if len(places) == 1:
        x, y = (_chosen(part, places[0]) for part in (a, b))
        return factors.contract(x, y, "trace", torch, itself=itself)
    pairs = [(_chosen(a, index), _chosen(b, index)) for index in places.T]
    total: Any = sum(factors.contract(x, y, "full", torch, itself=itself) for x, y in pairs)
    return total


def _chosen(factor: Factor, outputs: np.ndarray) -> Factor:
    """Return the factor of some outputs."""
    index: Any = torch.as_tensor(outputs)
    if isinstance(factor, Explicit):
        return Explicit(factor.jacobian[:, index])
    if isinstance(factor, Affine):
        return Affine(factor.signals, factor.backward[:, index])
    return Lookup(factor.tokens, factor.backward[:, index], factor.rows)


def axes_of(output: Any, trace: Any, diagonal: Any) -> AxisSettings:
    """Check the options for axes. Raises: TypeError, ValueError."""
    if trace is None and diagonal is None:
        return AxisSettings(output)
    if output != "full":
        raise ValueError(f"output={output!r} and trace_axes or diagonal_axes set the same thing; pass one of them.")
    options = (("trace_axes", () if trace is None else trace), ("diagonal_axes", () if diagonal is None else diagonal))
    return AxisSettings(None, *(axis_option(name, (v,) if type(v) is int else v) for name, v in options))
