"""Gates: the outputs of independent branches are multiplied."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import jax
import numpy as np

from widelimit.architecture.chain import Serial, written_call
from widelimit.architecture.combine import Aligned, aligned, branches_of
from widelimit.architecture.state import PairState, Part, Parts, Traits
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.signals import Correlation, Variance, deviation_of, limit, variance_of


@final
@pytree
@dataclass(frozen=True, init=False)
class Product(Aligned):
    """The map is a -> f_1(a) f_2(a) .., signal by signal: gates. Each branch is given as in `Sum`.

    Infinite width: Sigma = Sigma_1 Sigma_2, Theta = Theta_1 Sigma_2 + Sigma_1 Theta_2, and likewise for more; a product
    of Gaussian signals is not Gaussian, so that a `Dense` layer stands before the next activation. Dauphin et al. 2017,
    arXiv 1612.08083, have the gated linear unit, Product(Dense(), [Dense(), "sigmoid"]).
    """

    branches: tuple[tuple[Any, ...], ...]

    def __init__(self, *branches: Any) -> None:
        object.__setattr__(self, "branches", branches_of(branches, "Product"))

    def __repr__(self) -> str:
        return written_call("Product", [Serial(*branch) for branch in self.branches])

    @property
    def parts(self) -> tuple[Serial, ...]:
        return tuple(Serial(*branch) for branch in self.branches)

    def with_parts(self, parts: Sequence[Serial]) -> Product:
        return Product(*parts)

    def traits(self, before: Traits, path: str) -> Traits:
        after, ends = self.joint_traits(before, path), self.traits_of_branches(before, path)
        return after._replace(
            gaussian=after.gaussian and len(self.parts) == 1, centred=any(traits.centred for traits in ends)
        )

    def join_parts(self, ends: Sequence[Parts], run: Callable[[Any], Any]) -> tuple[Parts, Any]:
        parts, places = [], []
        for size, place in aligned([tuple(part.share for part in end) for end in ends]):
            branches = [end[k] for end, k in zip(ends, place, strict=True)]
            variances = [branch.variance for branch in branches]
            total = _widest(variances) if run is interpreted else _multiplied(variances)
            means = [branch.mean for branch in branches if branch.mean is not None]
            mean = functools.partial(_product_of, means) if len(means) == len(branches) else None
            parts.append(Part(size, total, mean))
            places.append(place)
        return tuple(parts), _Places(tuple(places))

    def combine(self, x: Any, y: Any, ends: Sequence[tuple[PairState, ...]]) -> tuple[PairState, ...]:
        return tuple(
            functools.reduce(_product, [end[k] for end, k in zip(ends, place, strict=True)]) for place in x.places
        )

    def _together(self, ends: list[jax.Array]) -> jax.Array:
        return functools.reduce(operator.mul, ends)


@final
@pytree
class _Places:
    """Which part of each branch stands in each part of the width."""

    places: tuple[tuple[int, ...], ...] = field(metadata={"static": True})


def _product(x: PairState, y: PairState) -> PairState:
    """1 -+ rho rho' = ((1 - rho)(1 +- rho') + (1 + rho)(1 -+ rho'))/2: every term is positive."""
    (a, b), (c, d) = x.correlation, y.correlation
    tangent = x.tangent * y.correlation.rho + x.correlation.rho * y.tangent
    return PairState(Correlation((a * d + b * c) / 2, (b * d + a * c) / 2), tangent)


def _multiplied(variances: Sequence[Variance]) -> Variance:
    def times(first: Variance, second: Variance) -> Variance:
        return limit(Variance(first.value * second.value, first.exponent + second.exponent).normalise())

    return functools.reduce(times, variances)


def _widest(variances: Sequence[Variance]) -> Variance:
    """Return a grid of deviations from the product of the least to that of the largest."""
    grids = [interpreted(deviation_of)(variance) for variance in variances]
    low, high = (np.prod([of(grid) for grid in grids]) for of in (np.min, np.max))
    return interpreted(variance_of)(np.linspace(low, high, max(map(len, grids))))  # type: ignore[no-any-return]


def _product_of(means: Sequence[Callable[[], Any]]) -> Any:
    return functools.reduce(operator.mul, [mean() for mean in means])
