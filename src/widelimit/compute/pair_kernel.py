"""Kernel matrices are computed in two phases: every input is encoded once, then a pure function sees pairs."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax

from widelimit.compute import plan

Features = Any


class PairKernel(abc.ABC):
    """A pair kernel is a pytree with the two phases of a kernel, `encode` and `pairwise`, as pure JAX functions."""

    @property
    def operands(self) -> tuple[PairKernel, ...]:
        """Return the kernels that this one is made of, whose features it holds."""
        return ()

    @property
    def traceable(self) -> bool:
        """Return True if `encode` may be compiled, as it calls no user's function that is written for NumPy."""
        return all(part.traceable for part in self.operands)

    @property
    def eager(self) -> bool:
        """Return True if values are computed at once, by machine code of the kernel's own: JAX cannot trace them."""
        return any(part.eager for part in self.operands)

    @property
    def largest_tile(self) -> int:
        """Return the rows of a tile at most, where a pair takes long."""
        return min((part.largest_tile for part in self.operands), default=plan.LARGEST)

    def quick_in(self, dtype: Any) -> bool:
        """Return True if XLA's older emitters, which compile in half of the time, make no slower program of a tile."""
        return False

    @property
    def light(self) -> bool:
        """Return True if `encode` does little: for a small block of rows it is compiled without optimisation."""
        return False

    def numbers_per_input(self, d: int) -> int:
        """Return the numbers that `encode` makes of an input with d features: plans and refusals follow from it."""
        return sum(part.numbers_per_input(d) for part in self.operands) or d + plan.BESIDE

    @property
    def numbers_per_pair(self) -> int:
        """Return the numbers that a pair takes while its value is computed."""
        return max((part.numbers_per_pair for part in self.operands), default=1)

    def result_dtype(self, dtype: Any) -> Any:
        """Return the dtype of the kernel's values for inputs of this dtype."""
        return dtype

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Let a kernel keep, within this context, what it computes of rows for the other tiles of one matrix."""
        with ExitStack() as stack:
            for part in self.operands:
                stack.enter_context(part.keeping())
            yield

    def encode(self, X: jax.Array) -> Features:
        """Compute the data of single inputs that pairs need, (n, d) -> pytree of arrays (n, ..); X by default."""
        return X

    @abc.abstractmethod
    def pairwise(self, x: Features, y: Features, *, same: bool | jax.Array = False) -> jax.Array:
        """Compute the kernel of every pair of two blocks of encoded inputs, (n, m).

        With `same`, x is y and (i, i) an input with itself; if `same` is traced, that is known only at run time. Values
        at (i, i) are then not used.
        """

    @abc.abstractmethod
    def diagonal(self, x: Features) -> jax.Array:
        """Compute the kernel of each encoded input with itself, (n,)."""
