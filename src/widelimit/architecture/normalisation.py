"""LayerNorm takes the mean over the width, and divides by the deviation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final, get_args

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Memo
from widelimit.architecture.pooling import Flatten
from widelimit.architecture.sites import Sites
from widelimit.architecture.state import (
    Layer,
    Mean,
    PairState,
    Params,
    Part,
    Parts,
    Ranges,
    Traits,
    Unweighted,
    as_it_is,
    merge,
)
from widelimit.interpreter import interpreted
from widelimit.pytrees import changed, pytree
from widelimit.series import safe_divide, safe_sqrt
from widelimit.shapes import Float
from widelimit.signals import (
    Correlation,
    Variance,
    exponent_of,
    power_of_two,
    sum_signals,
    sum_terms,
    variance_of,
    within,
)

Over = Literal["channels", "all"]
SPREAD = "spread"
"""A survey has, by this name, the least variance over mean square of the grid, and of all but its first deviation."""


@final
@pytree
@dataclass(frozen=True)
class LayerNorm(Unweighted):
    """The map is a -> (a - m)/s with mean m and standard deviation s over the width; 0 where s = 0.

    Infinite width: rho <- (rho - m m'/(r r'))/(...), r the root mean square; nothing but the variance changes where the
    mean is 0. No epsilon is added to s, and there are no scales or shifts to train.

    Args:
        over: "channels", those of a site; "all": m and s^2 are of all sites and channels of an image, s^2 the mean over
            the sites of Sigma(p, p), less m^2.
    """

    over: Over = field(default="channels", metadata={"static": True})
    sites: Sites | None = field(default=None, metadata={"static": True}, init=False)
    """Set by `network` for "all": the sites before the layer."""
    simple: ClassVar[bool] = True
    on_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        validation.choice("over", self.over, get_args(Over))

    def __repr__(self) -> str:
        return "LayerNorm()" if self.over == "channels" else f"LayerNorm(over={self.over!r})"

    def place(self, sites: Sites, path: str) -> tuple[Layer, Sites]:
        if self.over == "channels":
            return self, sites
        if sites.kind in ("sequence", "graph"):
            raise ValueError(f'{path}: LayerNorm(over="all") is for images; of a {sites.kind} normalise each site.')
        if not sites.sizes:
            raise ValueError(
                f'{path}: LayerNorm(over="all") needs images, inputs=wl.Image(height, width, channels); over the width '
                f"of rows it is LayerNorm()."
            )
        return changed(self, sites=sites), sites

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *sites width"]:
        axes = -1 if self.over == "channels" else tuple(range(1, signals.ndim))
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(signals), axis=axes, keepdims=True))
        limit = 1000 if signals.dtype == jnp.float64 else 120
        power = jnp.clip(jnp.where(largest == 0, 0, exponent_of(largest)), -limit, limit)
        scaled = signals * power_of_two(-power, signals.dtype)  # squares of any signals are in range
        near = scaled - jnp.mean(scaled, axis=axes, keepdims=True)
        centred = near - jnp.mean(near, axis=axes, keepdims=True)  # without the rounding of a large mean
        square = jnp.mean(centred**2, axis=axes, keepdims=True)
        return safe_divide(centred, jnp.where(square > 0, safe_sqrt(square), square))  # NaN stays

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        one = jnp.where(signal.value > 0, jnp.ones_like(signal.value), 0)
        return variance_of(one), ()

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        after, _ = self.encode(signal)
        if mean is None:
            return after, None, ()
        share = mean()
        spread = safe_sqrt(1 - share**2)
        return after._replace(value=jnp.where(spread > 0, after.value, 0)), None, (share, spread)

    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        if not x:
            return state
        if len(x) == 3:
            inner = centre(state.correlation, x[0], y[0])
            return PairState(sum_signals(x[1], y[1], (inner,)), x[2] * y[2] * state.tangent)
        spread = x[1] * y[1]
        return PairState(centre(state.correlation, x, y), safe_divide(state.tangent, spread))

    def encode_parts(self, parts: Parts) -> tuple[Parts, Any]:
        if self.sites is not None:
            after, memos = _over_sites(parts, self.sites)
        elif len(parts) == 1:
            return Layer.encode_parts(self, parts)
        else:
            after, memos = _over_the_width(parts, as_it_is)
        return after, ((), memos)

    def survey_parts(self, parts: Parts, path: tuple[Any, ...], ranges: Ranges) -> Parts:
        if self.sites is not None:
            return tuple(_grid_at_sites(part, self.sites) for part in parts)
        if len(parts) == 1:
            return Layer.survey_parts(self, parts, path, ranges)
        _enter_spread(merge(parts, interpreted)[0].mean, path, ranges)
        return _over_the_width(parts, interpreted)[0]

    def traits(self, before: Traits, path: str) -> Traits:
        return before._replace(centred=before.centred or (len(before.shares) == 1 and self.sites is None))

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        _enter_spread(mean, path, ranges)
        return Layer.survey(self, signal, None, path, ranges)


def _enter_spread(mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> None:
    """Enter the least variance over mean square before a norm, from the mean over the root mean square."""
    if mean is not None:
        spread, known = 1 - np.asarray(mean()) ** 2, ranges.get((*path, SPREAD), (1.0, 1.0))
        ranges[*path, SPREAD] = min(known[0], spread.min()), min(known[1], spread[1:].min(initial=1))


def _over_the_width(parts: Parts, run: Callable[[Any], Any]) -> tuple[Parts, tuple[Memo, ...]]:
    """Take the mean over the whole width from every part, divide by the deviation, and return what pairs need."""
    whole, ways = merge(parts, run)
    some = whole.variance.value > 0
    roots = [some * way / math.sqrt(part.share) for way, part in zip(ways, parts, strict=True)]
    return _normalised(parts, roots, (), run)


def _over_sites(parts: Parts, sites: Sites) -> tuple[Parts, tuple[Memo, ...]]:
    """Take the mean over width and sites from every part, divide by the deviation, and return what pairs need."""
    whole, ways = merge(parts)
    shares = changed(Flatten(), sites=sites).encode(whole.variance)[1] * math.sqrt(math.prod(sites.sizes))
    roots = [shares * way / math.sqrt(part.share) for way, part in zip(ways or [1.0], parts, strict=True)]
    return _normalised(parts, roots, tuple(range(len(sites.sizes))), as_it_is)


def _grid_at_sites(part: Part, sites: Sites) -> Part:
    """Return a grid of deviations at a site: from 0 to those of a site that holds all of the variance."""
    grid = np.linspace(0, math.sqrt(math.prod(sites.sizes) / part.share), len(part.variance.value))
    mean = None if part.mean is None else functools.partial(as_it_is, np.ones_like(grid))
    return Part(part.share, interpreted(variance_of)(grid), mean)


def _normalised(parts: Parts, roots: list[Any], axes: tuple[int, ...], run: Any) -> tuple[Parts, tuple[Memo, ...]]:
    """Normalise parts with these root mean squares over that of the width, and of the axes of sites."""
    if all(part.mean is None for part in parts):
        sizes, means, memos = roots, [None] * len(parts), ((),) * len(parts)
    else:
        known = [part.mean() if part.mean is not None else root * 0 for part, root in zip(parts, roots, strict=True)]
        sizes, means, memos = run(functools.partial(_centred, axes=axes))(roots, known, [part.share for part in parts])
    after = [
        Part(part.share, run(variance_of)(size), None if mean is None else functools.partial(as_it_is, mean))
        for part, size, mean in zip(parts, sizes, means, strict=True)
    ]
    return tuple(after), tuple(memos)


def _centred(roots: Any, means: Any, shares: Any, *, axes: tuple[int, ...]) -> tuple[list[Any], list[Any], list[Memo]]:
    """Return root mean squares and means of the parts, and memos, from root mean squares over that of the width.

    A part is a centred signal and what its mean differs from that of the width, one more signal of all inputs.
    """

    def average(values: list[Any]) -> Any:
        total = sum_terms([share * value for share, value in zip(shares, values, strict=True)])
        return jnp.mean(total, axis=axes, keepdims=True) if axes else total

    middle = average([root * mean for root, mean in zip(roots, means, strict=True)])
    spreads = [safe_sqrt(1 - mean**2) for mean in means]
    inner = [root * spread for root, spread in zip(roots, spreads, strict=True)]
    offsets = [root * mean - middle for root, mean in zip(roots, means, strict=True)]
    own = [safe_sqrt(a**2 + b**2) for a, b in zip(inner, offsets, strict=True)]
    whole = safe_sqrt(average([size**2 for size in own]))
    memos = [
        ((mean, spread), (safe_divide(a, size), safe_divide(b, size)), safe_divide(root, size))
        for mean, spread, a, b, size, root in zip(means, spreads, inner, offsets, own, roots, strict=True)
    ]
    return [safe_divide(size, whole) for size in own], [memo[1][1] for memo in memos], memos


def centre(correlation: Correlation, x: tuple[jax.Array, jax.Array], y: tuple[jax.Array, jax.Array]) -> Correlation:
    """Compute the correlation of a - m from that of a: x and y are (mean, deviation) over the root mean square.

    1 - rho = ((1 - rho_a) - ((m - m')^2 + (s - s')^2)/2)/(s s'): nothing cancels where the means agree.
    """
    (m, s), (n, t) = x, y
    spread = s * t
    one_minus = safe_divide(correlation.one_minus - ((m - n) ** 2 + (s - t) ** 2) / 2, spread)
    one_plus = safe_divide(correlation.one_plus - ((m + n) ** 2 + (s - t) ** 2) / 2, spread)
    return Correlation(within(one_minus), within(one_plus))
