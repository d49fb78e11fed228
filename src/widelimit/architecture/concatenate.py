"""Branches stand side by side, each with a share of the width."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import jax
import jax.numpy as jnp

from widelimit import validation
from widelimit.architecture.chain import Serial, written_call
from widelimit.architecture.combine import Branches, branches_of
from widelimit.architecture.state import Layer, PairState, Params, Parts, Shape, Traits
from widelimit.pytrees import pytree


@final
@pytree
@dataclass(frozen=True, init=False)
class Concatenate(Branches):
    """The outputs of the branches stand side by side: Sigma = sum_k share_k Sigma_k, and Theta likewise.

    Args:
        branches: as in `Sum`; they may share random weights before the split.
        shares: share of the width of each branch, positive, of sum 1; equal shares unless given. They stay as widths
            grow. A branch without random weights keeps the width of its input, and its share fixes the others: with
            shares (2/3, 1/3) 2 n signals beside themselves get n new ones.
    """

    branches: tuple[tuple[Layer, ...], ...]
    shares: tuple[float, ...] = field(metadata={"static": True})

    def __init__(self, *branches: Any, shares: Sequence[float] | None = None) -> None:
        found = branches_of(branches, "Concatenate")
        parts = validation.numbers_in("shares", shares) if shares is not None else (1 / len(found),) * len(found)
        for share in parts:
            validation.finite_scalar("each of shares", share, above=0.0)
        if len(parts) != len(found) or abs(sum(parts) - 1) > 1e-12:
            raise ValueError(f"shares must be {len(found)} positive numbers of sum 1, got {validation.shown(parts)}.")
        object.__setattr__(self, "branches", found)
        object.__setattr__(self, "shares", parts)

    def __repr__(self) -> str:
        equal = self.shares == (1 / len(self.shares),) * len(self.shares)
        more = {} if equal else {"shares": repr(tuple(map(float, self.shares)))}
        return written_call("Concatenate", self.parts, **more)

    @property
    def parts(self) -> tuple[Serial, ...]:
        return tuple(Serial(*branch) for branch in self.branches)

    def with_parts(self, parts: Sequence[Serial]) -> Concatenate:
        return Concatenate(*parts, shares=self.shares)

    def traits(self, before: Traits, path: str) -> Traits:
        after = self.traits_of_branches(before, path)
        kept = {share for share, part in zip(self.shares, self.parts, strict=True) if not part.random}
        if len(kept) > 1:
            raise ValueError(
                f"{path}: branches without random weights keep the width of their input, and must have equal shares; "
                f"got {sorted(kept)}."
            )
        return Traits(
            all(traits.gaussian for traits in after),
            all(traits.centred for traits in after),
            all(traits.random for traits in after),
            tuple(own * share for own, traits in zip(self.shares, after, strict=True) for share in traits.shares),
        )

    def join_parts(self, ends: Sequence[Parts], run: Callable[[Any], Any]) -> tuple[Parts, Any]:
        pairs = zip(self.shares, ends, strict=True)
        return tuple(part._replace(share=share * part.share) for share, end in pairs for part in end), ()

    def combine(self, x: Any, y: Any, ends: Sequence[tuple[PairState, ...]]) -> tuple[PairState, ...]:
        return tuple(state for end in ends for state in end)

    def shape(self, inputs: int, outputs: int, widths: Iterator[int]) -> tuple[Shape, int]:
        kept = [share for share, part in zip(self.shares, self.parts, strict=True) if not part.random]
        total = inputs / kept[0] if kept else outputs
        own = [round(share * total) for share in self.shares]
        if any(abs(n - share * total) > 1e-6 for n, share in zip(own, self.shares, strict=True)):
            raise ValueError(f"a width of {total:g} does not divide into the shares {self.shares} of Concatenate.")
        return tuple(part.shape(inputs, n, widths)[0] for part, n in zip(self.parts, own, strict=True)), sum(own)

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        return sum(int(part.check(own, inputs, axes) or 0) for part, own in zip(self.parts, params, strict=True))

    def _together(self, ends: list[jax.Array]) -> jax.Array:
        return jnp.concatenate(ends, axis=-1)
