"""LayerNorm takes the mean over the width, and divides by the deviation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp

from widelimit.activations.base import Memo
from widelimit.architecture.state import (
    Layer,
    Mean,
    PairState,
    Params,
    Part,
    Parts,
    Ranges,
    Traits,
    as_it_is,
    merge,
)
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.series import safe_divide, safe_sqrt
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, variance_of, within


@final
@pytree
@dataclass(frozen=True)
class LayerNorm(Layer):
    """The map is a -> (a - m)/s with mean m and standard deviation s over the width; 0 where s = 0.

    Infinite width: rho <- (rho - m m'/(r r'))/(...), r the root mean square; nothing but the variance changes where the
    mean is 0. No epsilon is added to s, and there are no scales or shifts to train.
    """

    simple: ClassVar[bool] = True

    def __repr__(self) -> str:
        return "LayerNorm()"

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        return ()

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *sites width"]:
        centred = signals - jnp.mean(signals, axis=-1, keepdims=True)
        return safe_divide(centred, safe_sqrt(jnp.mean(centred**2, axis=-1, keepdims=True)))

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        one = jnp.where(signal.value > 0, jnp.ones_like(signal.value), 0)
        return variance_of(one), ()

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        after, _ = self.encode(signal)
        if mean is None:
            return after, None, ()
        share = mean()
        return after, None, (share, safe_sqrt(1 - share**2))

    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        if not x:
            return state
        spread = x[1] * y[1]
        return PairState(centre(state.correlation, x, y), safe_divide(state.tangent, spread))

    def merges(self, parts: Parts) -> bool:
        return any(part.mean is not None for part in parts)

    def encode_parts(self, parts: Parts) -> tuple[Parts, Any]:
        if len(parts) == 1 or self.merges(parts):
            return Layer.encode_parts(self, parts)
        return _over_the_width(parts, as_it_is), ((), ((),) * len(parts))

    def survey_parts(self, parts: Parts, path: tuple[Any, ...], ranges: Ranges) -> Parts:
        if len(parts) == 1 or self.merges(parts):
            return Layer.survey_parts(self, parts, path, ranges)
        return _over_the_width(parts, interpreted)

    def traits(self, before: Traits, path: str) -> Traits:
        return before._replace(centred=True, shares=before.shares if before.centred else (1.0,))

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        return Layer.survey(self, signal, None, path, ranges)


def _over_the_width(parts: Parts, run: Callable[[Any], Any]) -> Parts:
    """Divide every part, of mean 0, by the root mean square over the whole width."""
    ways = merge(parts, run)[1]
    roots = [way / math.sqrt(part.share) for way, part in zip(ways, parts, strict=True)]
    return tuple(Part(part.share, run(variance_of)(root), None) for part, root in zip(parts, roots, strict=True))


def centre(correlation: Correlation, x: tuple[jax.Array, jax.Array], y: tuple[jax.Array, jax.Array]) -> Correlation:
    """Compute the correlation of a - m from that of a: x and y are (mean, deviation) over the root mean square.

    1 - rho = ((1 - rho_a) - ((m - m')^2 + (s - s')^2)/2)/(s s'): nothing cancels where the means agree.
    """
    (m, s), (n, t) = x, y
    spread = s * t
    one_minus = safe_divide(correlation.one_minus - ((m - n) ** 2 + (s - t) ** 2) / 2, spread)
    one_plus = safe_divide(correlation.one_plus - ((m + n) ** 2 + (s - t) ** 2) / 2, spread)
    return Correlation(within(one_minus), within(one_plus))
