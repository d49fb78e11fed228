"""Sequences and graphs say more than their signals: which sites are there, and which are joined."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import jax
import numpy as np

from widelimit import validation
from widelimit.shapes import Float


@final
class Structure(NamedTuple):
    """The structure of n inputs; the inputs are the first axis, in the finite map and in the infinite one."""

    mask: Float[jax.Array, "n t"]
    """1 at sites that are there, 0 at those that only fill the array and have no influence."""
    adjacency: Float[jax.Array, "n t t"] | None = None
    """Weights of the edges of graphs, 0 beside masked nodes; None: sequences."""

    def hide(self, signals: Float[jax.Array, "n t width"]) -> jax.Array:
        """Return finite signals with masked sites at 0."""
        return signals * self.mask[..., None].astype(signals.dtype)

    @property
    def sites(self) -> Float[jax.Array, " n"]:
        """Return the number of sites that are there, at least 1."""
        return self.mask.sum(axis=1).clip(1)


def joined(branches: Sequence[Structure], name: str) -> Structure:
    """Return which sites are there behind branches that meet site by site: those that all of them have.

    Raises: ValueError: none is left of an input.
    """
    masks: list[Any] = [structure.mask for structure in branches]
    mask = functools.reduce(lambda one, other: one * other, masks)
    if not validation.traced(mask) and not (there := np.asarray(mask).any(axis=1)).all():
        raise ValueError(
            f"X[{int(np.argmin(there))}] has no site that all branches of {name:.80} leave: it is too short. Leave the "
            f"input out, or let the branches read the same sites."
        )
    return branches[0]._replace(mask=mask)
