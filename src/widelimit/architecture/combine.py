"""Branches read the same signals, and are summed or stand side by side."""

from __future__ import annotations

import abc
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp

from widelimit import validation
from widelimit.activations.base import Activation, Memo
from widelimit.architecture.chain import Combined, Serial, branch_of, written_call
from widelimit.architecture.layers import Scale, centre
from widelimit.architecture.sites import Sites
from widelimit.architecture.state import Layer, Mean, PairState, Params, Ranges, Shape, Traits
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.series import safe_divide, safe_sqrt
from widelimit.shapes import Float
from widelimit.signals import Variance, add_variances, multiply, sum_signals, sum_terms


class _BranchMemo(NamedTuple):
    share: jax.Array
    """The root mean square of the branch over that of all."""
    mean: tuple[jax.Array, jax.Array] | None
    """(mean, deviation) of the branch over its root mean square, where means count."""
    memo: Memo


class _Branches(Combined, abc.ABC):
    """Branches read the same signals, and their outputs, independent given these, are put together."""

    shares: tuple[float, ...] | None = None
    """Of the width, where branches stand side by side: the product of two means is nowhere seen. None: they add."""

    @property
    @abc.abstractmethod
    def parts(self) -> tuple[Serial, ...]:
        """Return the branches."""

    @abc.abstractmethod
    def _with_parts(self, parts: Sequence[Serial]) -> Layer:
        """Return the same layer with other branches."""

    @property
    def random(self) -> bool:  # type: ignore[override]
        return all(part.random for part in self.parts)

    @property
    def hidden(self) -> int:
        return sum(part.hidden for part in self.parts)

    @property
    def numbers_per_input(self) -> int:
        return sum(3 + part.numbers_per_input for part in self.parts)

    @property
    def depth(self) -> int:
        return max(part.depth for part in self.parts)

    def activations(self) -> Iterator[Activation]:
        for part in self.parts:
            yield from part.activations()

    def map_layers(self, change: Callable[[Layer, tuple[Any, ...]], Layer], path: tuple[Any, ...]) -> Layer:
        return self._with_parts([part.map_layers(change, (*path, k)) for k, part in enumerate(self.parts)])

    def place(self, sites: Sites, path: str) -> tuple[Layer, Sites]:
        ends = [part.place(sites, f"{path}.branch[{k}]") for k, part in enumerate(self.parts)]
        after = {end[1].sizes for end in ends}
        if len(after) > 1:
            raise ValueError(f"{path}: the branches end with different sites, {', '.join(map(str, after))}.")
        return self._with_parts([end[0] for end in ends]), ends[0][1]

    @property
    def mixes_sites(self) -> bool:  # type: ignore[override]
        return any(part.mixes_sites for part in self.parts)

    def _traits(self, before: Traits, path: str) -> list[Traits]:
        """Return the traits after each branch. Raises: ValueError: branches that are not independent."""
        split = before._replace(random=False)
        after = [part.traits(split, f"{path}.branch[{k}]") for k, part in enumerate(self.parts)]
        fixed = [k for k, traits in enumerate(after) if not traits.random]
        if len(fixed) > 1:
            raise ValueError(
                f"{path}: the branches {fixed} are functions of the same signals without random weights of their own, "
                f"so that they are not independent; put a wl.layers.Dense() into all of them but one."
            )
        return after

    def draw(self, key: jax.Array, shape: Shape, dtype: Any) -> Params:
        keys = jax.random.split(key, len(self.parts))
        return tuple(part.draw(k, own, dtype) for part, k, own in zip(self.parts, keys, shape, strict=True))

    def count(self, shape: Shape) -> int:
        return sum(part.count(own) for part, own in zip(self.parts, shape, strict=True))

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        plain = signal._replace(among=None)
        ends = [part.encode_with_mean(signal if part.mixes_sites else plain, mean) for part in self.parts]
        total, after, shares, pairs = self._join([end[0] for end in ends], [end[1] for end in ends], _as_it_is)
        memo = tuple(_BranchMemo(*each) for each in zip(shares, pairs, (e[2] for e in ends), strict=True))
        return total, after, memo

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        ends = [part.survey(signal, mean, (*path, k), ranges) for k, part in enumerate(self.parts)]
        return self._join([end[0] for end in ends], [end[1] for end in ends], interpreted)[:2]

    def _join(
        self, variances: Sequence[Variance], means: Sequence[Mean], run: Callable[[Any], Any]
    ) -> tuple[Variance, Mean, list[Any], list[Any]]:
        """Return mean square and mean of all, the share of each, and (mean, deviation) of each where means count."""
        total, shares = run(_total)(self, variances)
        if self.shares is None and sum(mean is not None for mean in means) > 1:
            known = [None if mean is None else mean() for mean in means]
            total, shares, after, pairs = run(_sum)(total, shares, known)
            return total, lambda: after, shares, pairs
        widths = self.shares or (1.0,) * len(shares)
        offsets = [(a * math.sqrt(p), m) for a, p, m in zip(shares, widths, means, strict=True) if m is not None]
        return total, functools.partial(_weighted_sum, offsets) if offsets else None, shares, [None] * len(shares)

    def pair(self, x: Any, y: Any, state: PairState) -> PairState:
        return self._combine(x, y, [p.pair(a.memo, b.memo, state) for p, a, b in zip(self.parts, x, y, strict=True)])

    def itself(self, x: Any, state: PairState) -> PairState:
        return self._combine(x, x, [p.itself(a.memo, state) for p, a in zip(self.parts, x, strict=True)])

    def _combine(self, x: Any, y: Any, after: list[PairState]) -> PairState:
        """Add the signals of the branches, and their means as one signal that both inputs share."""
        ways = [(a.share, b.share) for a, b in zip(x, y, strict=True)]
        tangent = sum_terms([a * b * state.tangent for (a, b), state in zip(ways, after, strict=True)])
        shares: tuple[list[jax.Array], list[jax.Array]] = ([], [])
        shared: tuple[list[jax.Array], list[jax.Array]] = ([], [])
        correlations = []
        for way, u, v, state in zip(ways, x, y, after, strict=True):
            means = u.mean is not None
            correlations.append(centre(state.correlation, u.mean, v.mean) if means else state.correlation)
            for i, memo in enumerate((u, v)):
                shares[i].append(way[i] * memo.mean[1] if means else way[i])
                if means:
                    shared[i].append(way[i] * memo.mean[0])
        common = [[sum_terms(offsets)] if offsets else [] for offsets in shared]
        return PairState(sum_signals(shares[0] + common[0], shares[1] + common[1], correlations), tangent)


def _weighted_sum(offsets: Sequence[tuple[Any, Callable[[], Any]]]) -> Any:
    return functools.reduce(operator.add, [share * mean() for share, mean in offsets])


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _total(layer: _Branches, ends: Sequence[Variance]) -> tuple[Variance, list[jax.Array]]:
    """Return the mean square after the layer as if all means were 0, and the share of each branch in its root."""
    parts = ends
    if layer.shares is not None:
        parts = [multiply(end, math.sqrt(share)) for end, share in zip(ends, layer.shares, strict=True)]
    total, shares = parts[0], [jnp.ones_like(parts[0].value)]
    for part in parts[1:]:
        total, before, own = add_variances(total, part)
        shares = [share * before for share in shares] + [own]
    return total, shares


def _sum(total: Variance, shares: Sequence[Any], means: Sequence[Any]) -> tuple[Any, ...]:
    """Return mean square, shares, mean and (mean, deviation) by branch of a sum, from those as if all means were 0."""
    offsets = [share * mean for share, mean in zip(shares, means, strict=True) if mean is not None]
    together = sum_terms(offsets)
    factor = 1 + (together**2 - sum_terms([offset**2 for offset in offsets]))  # E[(sum)^2] over the sum of E[..^2]
    root = safe_sqrt(factor)
    after = Variance(total.value * factor, total.exponent).normalise()
    pairs = [None if mean is None else (mean, safe_sqrt(1 - mean**2)) for mean in means]
    return after, [safe_divide(share, root) for share in shares], safe_divide(together, root), pairs


class _Sum(_Branches, abc.ABC):
    """The outputs of the branches are added: Sigma and Theta are the sums of theirs, where all but one have mean 0.

    Two branches with means m, m' (after activations) add m_1(x) m_2(x') + m_2(x) m_1(x') to Sigma.
    """

    def traits(self, before: Traits, path: str) -> Traits:
        after = self._traits(before, path)
        return Traits(
            all(traits.gaussian for traits in after),
            all(traits.centred for traits in after),
            before.random or any(traits.random for traits in after),
        )

    def shape(self, inputs: int, outputs: int, widths: Iterator[int]) -> tuple[Shape, int]:
        outputs = outputs if self.random else inputs
        return tuple(part.shape(inputs, outputs, widths)[0] for part in self.parts), outputs

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        found = {part.check(own, inputs, axes) for part, own in zip(self.parts, params, strict=True)}
        if len(found) > 1:
            raise ValueError("branches of different widths")
        return found.pop()

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *after width2"]:
        return sum_terms([part.apply(own, signals) for part, own in zip(self.parts, params, strict=True)])


@final
@pytree
@dataclass(frozen=True, init=False)
class Residual(_Sum):
    """The map is a -> a + f(a), f the layers in order."""

    branch: tuple[Layer, ...]

    def __init__(self, *layers: Any) -> None:
        object.__setattr__(self, "branch", branch_of(layers, "Residual"))

    def __repr__(self) -> str:
        return written_call("Residual", self.branch)

    @property
    def parts(self) -> tuple[Serial, ...]:
        return Serial(), Serial(*self.branch)

    def _with_parts(self, parts: Sequence[Serial]) -> Residual:
        return Residual(*parts[1].layers)


@final
@pytree
@dataclass(frozen=True, init=False)
class Sum(_Sum):
    """The map is a -> f_1(a) + f_2(a) + ...; each branch a layer, `Serial(...)`, or a list of layers."""

    branches: tuple[tuple[Layer, ...], ...]

    def __init__(self, *branches: Any) -> None:
        object.__setattr__(self, "branches", _merged(_branches(branches, "Sum")))

    def __repr__(self) -> str:
        return written_call("Sum", [Serial(*branch) for branch in self.branches])

    @property
    def parts(self) -> tuple[Serial, ...]:
        return tuple(Serial(*branch) for branch in self.branches)

    def _with_parts(self, parts: Sequence[Serial]) -> Sum:
        return Sum(*parts)


def _branches(given: Sequence[Any], name: str) -> tuple[tuple[Layer, ...], ...]:
    if not given:
        raise ValueError(f"{name} needs at least one branch.")
    return tuple(
        branch_of(branch if isinstance(branch, (list, tuple)) else [branch], f"{name}.branch[{k}]")
        for k, branch in enumerate(given)
    )


def _merged(branches: tuple[tuple[Layer, ...], ...]) -> tuple[tuple[Layer, ...], ...]:
    """Add branches that are multiples of the input to one, which is exact: x + x is 2 x."""
    multiples = [branch for branch in branches if all(isinstance(layer, Scale) for layer in branch)]
    if len(multiples) < 2:
        return branches
    factor = sum(math.prod([layer.factor for layer in branch]) for branch in multiples)  # type: ignore[attr-defined,misc]
    others = tuple(branch for branch in branches if branch not in multiples)
    return ((Scale(factor),), *others)


@final
@pytree
@dataclass(frozen=True, init=False)
class Concatenate(_Branches):
    """The outputs of the branches stand side by side: Sigma = sum_k share_k Sigma_k, and Theta likewise.

    Args:
        branches: as in `Sum`; all have random weights.
        shares: of the width that each branch has, positive, of sum 1; equal ones unless given. They stay as widths
            grow. The next layer must be `Dense` (or `Concatenate`, `Scale`): signals of several laws are not Gaussian.
    """

    branches: tuple[tuple[Layer, ...], ...]
    shares: tuple[float, ...] = field(metadata={"static": True})

    def __init__(self, *branches: Any, shares: Sequence[float] | None = None) -> None:
        found = _branches(branches, "Concatenate")
        parts = tuple(shares) if shares is not None else (1 / len(found),) * len(found)
        for share in parts:
            validation.finite_scalar("each of shares", share, above=0.0)
        if len(parts) != len(found) or abs(sum(parts) - 1) > 1e-12:
            raise ValueError(f"shares must be {len(found)} positive numbers of sum 1, got {validation.shown(parts)}.")
        object.__setattr__(self, "branches", found)
        object.__setattr__(self, "shares", parts)

    def __repr__(self) -> str:
        equal = self.shares == (1 / len(self.shares),) * len(self.shares)
        more = {} if equal else {"shares": repr(self.shares)}
        return written_call("Concatenate", self.parts, **more)

    @property
    def parts(self) -> tuple[Serial, ...]:
        return tuple(Serial(*branch) for branch in self.branches)

    def _with_parts(self, parts: Sequence[Serial]) -> Concatenate:
        return Concatenate(*parts, shares=self.shares)

    def traits(self, before: Traits, path: str) -> Traits:
        after = self._traits(before, path)
        if not self.random:
            raise ValueError(
                f"{path}: a branch without random weights keeps the width of its input, which is no share of a width "
                f"that grows; put a wl.layers.Dense() into it."
            )
        return Traits(False, all(traits.centred for traits in after), True)

    def shape(self, inputs: int, outputs: int, widths: Iterator[int]) -> tuple[Shape, int]:
        own = [round(share * outputs) for share in self.shares]
        if any(abs(n - share * outputs) > 1e-6 for n, share in zip(own, self.shares, strict=True)):
            raise ValueError(f"a width of {outputs} does not divide into the shares {self.shares} of Concatenate.")
        return tuple(part.shape(inputs, n, widths)[0] for part, n in zip(self.parts, own, strict=True)), outputs

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        return sum(int(part.check(own, inputs, axes) or 0) for part, own in zip(self.parts, params, strict=True))

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *after width2"]:
        ends = [part.apply(own, signals) for part, own in zip(self.parts, params, strict=True)]
        return jnp.concatenate(ends, axis=-1)


def Frozen(layer: Any) -> Layer:
    """Return the layer(s) with random weights that are not trained: they add nothing to Theta, and get no gradient.

    Raises:
        TypeError: not a layer.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"a layer is needed, e.g. wl.layers.Frozen(wl.layers.Dense()); got {type(layer).__name__}.")
    return layer.freeze()
