"""Sums over the neighbours of a node: the layer of graph networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Memo
from widelimit.architecture.mixing import MixMemo, mix, mix_pairs, mixed_mean
from widelimit.architecture.sites import Sites
from widelimit.architecture.state import Mean, PairState, Params, Ranges, Unweighted
from widelimit.architecture.structure import Structure
from widelimit.interpreter import interpreted
from widelimit.pytrees import changed, pytree
from widelimit.series import safe_divide, safe_sqrt
from widelimit.signals import Variance, deviation_of, variance_of

Normalize = Literal["mean", "symmetric"] | None
NORMALIZATIONS = (None, "mean", "symmetric")


@final
@pytree
@dataclass(frozen=True)
class Aggregate(Unweighted):
    """The map is a_i -> sum_j B_ij a_j over the nodes of a graph, B of its adjacency A: no parameters.

    Infinite width: Sigma <- B Sigma B'^T and Theta <- B Theta B'^T, two products of matrices a pair of graphs. 1 - rho
    is right to the rounding of the gaps between nodes, as in `AveragePool`.
    Source: Du et al. 2019, arXiv 1905.13192 ("mean" with self loops is their scaling by degree, None by 1); Kipf and
    Welling 2017, arXiv 1609.02907 ("symmetric").

    Args:
        normalize: None: B = A; "mean": B = D^-1 A; "symmetric": B = D^-1/2 A D^-1/2, D the sums of the rows of A. Nodes
            without neighbours get 0.
        self_loops: A + I stands in the place of A, so that a node is its own neighbour.
    """

    normalize: Normalize = field(default=None, metadata={"static": True}, kw_only=True)
    self_loops: bool = field(default=True, metadata={"static": True}, kw_only=True)
    nodes: int = field(default=0, metadata={"static": True}, init=False)
    """Set by `network`: the most nodes of a graph."""
    weighted: bool = field(default=True, metadata={"static": True}, init=False)
    """Set by `network`: Theta may be other than 0 before the layer."""
    mixes_sites: ClassVar[bool] = True
    sitewise: ClassVar[bool] = False
    on_sites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        validation.choice("normalize", self.normalize, NORMALIZATIONS)
        validation.flag("self_loops", self.self_loops)

    def __repr__(self) -> str:
        usual = {"normalize": None, "self_loops": True}
        more = [f"{name}={getattr(self, name)!r}" for name in usual if getattr(self, name) != usual[name]]
        return f"Aggregate({', '.join(more)})"

    def place(self, sites: Sites, path: str) -> tuple[Aggregate, Sites]:
        if sites.kind != "graph":
            raise ValueError(f"{path}: Aggregate needs graphs; pass inputs=wl.Graph(nodes, features) to wl.network.")
        if len(sites.sizes) != 1 or (sites.sizes[0] == 1 and self.nodes > 1):
            raise ValueError(f"{path}: Aggregate stands before the readout, where there are nodes.")
        return changed(self, nodes=sites.sizes[0], weighted=sites.weighted), sites

    def matrix(self, structure: Structure | None) -> jax.Array:
        """Return B, (n, nodes, nodes). Raises: ValueError: no network has given the graphs."""
        if structure is None or structure.adjacency is None:
            raise ValueError("Aggregate works within wl.network(..., inputs=wl.Graph(nodes, features)).")
        A = jnp.asarray(structure.adjacency)
        if self.self_loops:
            A = A + jnp.eye(A.shape[1], dtype=A.dtype) * structure.mask[:, None]
        degree = jnp.sum(A, axis=2)
        if self.normalize is None:
            return A
        power = degree if self.normalize == "mean" else safe_sqrt(degree)
        inverse = safe_divide(jnp.ones_like(power), power)
        return inverse[:, :, None] * A * (1 if self.normalize == "mean" else inverse[:, None])

    def apply(self, params: Params, signals: jax.Array) -> jax.Array:
        return self.apply_with(params, signals)

    def apply_with(
        self, params: Params, signals: jax.Array, structure: Structure | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        return jnp.matmul(self.matrix(structure).astype(signals.dtype), signals, precision="highest")

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return mix(signal, self.matrix(signal.structure).T)

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        after, memo = self.encode(signal)
        return after, None if mean is None else lambda: mixed_mean(memo, mean()), memo

    def pair(self, x: MixMemo, y: MixMemo, state: PairState) -> PairState:
        return mix_pairs(x, y, state, tangent=self.weighted)

    @property
    def numbers_per_input(self) -> int:
        return 2 + self.nodes

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        """Return a grid of deviations after the layer: from 0 to the most that edges of these weights give."""
        most = {None: ranges.degree + self.self_loops, "mean": 1, "symmetric": math.sqrt(self.nodes)}[self.normalize]
        deviations = interpreted(deviation_of)(signal)
        return interpreted(variance_of)(np.linspace(0, deviations.max() * most, len(deviations))), mean
