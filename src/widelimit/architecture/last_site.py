"""The last site of a sequence is read alone, as causal networks do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp

from widelimit.activations.base import Memo
from widelimit.architecture.sites import Sites
from widelimit.architecture.state import Mean, PairState, Params, Ranges, Unweighted
from widelimit.architecture.structure import Structure
from widelimit.pytrees import changed, pytree
from widelimit.signals import Correlation, Variance


@final
@pytree
@dataclass(frozen=True)
class LastSite(Unweighted):
    """The map is a -> a(p), p the last site of the input that is there.

    Infinite width: Sigma and Theta at the last sites of both inputs; nothing is rounded.
    """

    length: int = field(default=0, metadata={"static": True}, init=False)
    """Set by `network`: the sites before the layer."""
    mixes_sites: ClassVar[bool] = True
    sitewise: ClassVar[bool] = False

    def __repr__(self) -> str:
        return "LastSite()"

    def place(self, sites: Sites, path: str) -> tuple[LastSite, Sites]:
        if len(sites.sizes) != 1:
            raise ValueError(f"{path}: LastSite needs sites in a row, inputs=wl.Sequence(length, features).")
        return changed(self, length=sites.sizes[0]), sites._replace(sizes=(1,))

    def _chosen(self, structure: Structure | None, count: int) -> jax.Array:
        """Return the last site of n inputs."""
        if structure is None:
            return jnp.full((count,), self.length - 1)
        return self.length - 1 - jnp.argmax(structure.mask[:, ::-1] > 0, axis=1)

    def structure_after(self, structure: Structure) -> None:
        """Return None: one site is left."""

    def apply(self, params: Params, signals: jax.Array) -> jax.Array:
        return self.apply_with(params, signals)

    def apply_with(
        self, params: Params, signals: jax.Array, structure: Structure | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        return jnp.take_along_axis(signals, self._chosen(structure, len(signals))[:, None, None], axis=1)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        chosen = self._chosen(signal.structure, signal.value.shape[1])
        after = Variance(*(jnp.take_along_axis(array, chosen[None], axis=0) for array in signal[:2]))
        return after, chosen[None]

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        after, chosen = self.encode(signal)
        return after, None if mean is None else lambda: jnp.take_along_axis(mean(), chosen, axis=0), chosen

    def pair(self, x: jax.Array, y: jax.Array, state: PairState) -> PairState:
        minus, plus, tangent = (
            jnp.take_along_axis(jnp.take_along_axis(array, x, axis=0), y, axis=1)
            for array in (*state.correlation, state.tangent)
        )
        return PairState(Correlation(minus, plus), tangent)

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        return signal, mean
