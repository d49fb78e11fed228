"""Sequences and graphs say more than their signals: which sites are there, and which are joined."""

from __future__ import annotations

from typing import NamedTuple, final

import jax

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
