"""Branches read the same signals, and are summed or stand side by side."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import jax
import numpy as np

from widelimit import validation
from widelimit.architecture.chain import Combined, Serial, branch_of, written_call
from widelimit.architecture.layers import Scale
from widelimit.architecture.normalisation import centre
from widelimit.architecture.sites import Sites
from widelimit.architecture.state import (
    Layer,
    PairState,
    Params,
    Part,
    Parts,
    Ranges,
    Scalar,
    Shape,
    Traits,
    add_all,
    as_it_is,
    weighted_sum,
)
from widelimit.architecture.structure import Structure, joined
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.series import safe_divide, safe_sqrt
from widelimit.signals import Variance, sum_signals, sum_terms


@final
@pytree
class _Joint:
    """The branches of a sum have these shares and means where its width has one law."""

    places: tuple[int, ...] = field(metadata={"static": True})
    """Which part of each branch it is."""
    shares: tuple[jax.Array, ...]
    """The root mean square of each branch over that of all."""
    means: tuple[tuple[jax.Array, jax.Array] | None, ...]
    """(mean, deviation) of each branch over its root mean square, where means count."""


class Branches(Combined, abc.ABC):
    """Branches read the same signals, and their outputs, independent given these, are put together."""

    @property
    @abc.abstractmethod
    def parts(self) -> tuple[Serial, ...]:
        """Return the branches."""

    @abc.abstractmethod
    def with_parts(self, parts: Sequence[Serial]) -> Layer:
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

    @property
    def inner(self) -> tuple[Layer, ...]:
        return self.parts

    def map_layers(self, change: Callable[[Layer, tuple[Any, ...]], Layer], path: tuple[Any, ...]) -> Layer:
        return self.with_parts([part.map_layers(change, (*path, k)) for k, part in enumerate(self.parts)])

    def place(self, sites: Sites, path: str) -> tuple[Layer, Sites]:
        ends = [part.place(sites, f"{path}.branch[{k}]") for k, part in enumerate(self.parts)]
        after = {end[1].sizes for end in ends}
        if len(after) > 1:
            raise ValueError(f"{path}: the branches end with different sites, {', '.join(map(str, after))}.")
        return self.with_parts([end[0] for end in ends]), ends[0][1]

    @abc.abstractmethod
    def join_parts(self, ends: Sequence[Parts], run: Callable[[Any], Any]) -> tuple[Parts, Any]:
        """Return the parts of the width after the layer from those after each branch, and what pairs need."""

    @abc.abstractmethod
    def combine(self, x: Any, y: Any, ends: Sequence[tuple[PairState, ...]]) -> tuple[PairState, ...]:
        """Return the states of pairs after the layer."""

    def traits_of_branches(self, before: Traits, path: str) -> list[Traits]:
        split = before._replace(random=False)
        return [part.traits(split, f"{path}.branch[{k}]") for k, part in enumerate(self.parts)]

    def draw(self, key: jax.Array, shape: Shape, dtype: Any) -> Params:
        keys = jax.random.split(key, len(self.parts))
        return tuple(part.draw(k, own, dtype) for part, k, own in zip(self.parts, keys, shape, strict=True))

    @abc.abstractmethod
    def _together(self, ends: list[jax.Array]) -> jax.Array:
        """Put the finite signals of the branches together."""

    def apply_with(
        self, params: Params, signals: jax.Array, structure: Structure | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        keys = [None] * len(self.parts) if key is None else jax.random.split(key, len(self.parts))
        parts = zip(self.parts, params, keys, strict=True)
        return self._together([part.apply_with(own, signals, structure, k) for part, own, k in parts])

    def structure_after(self, structure: Structure) -> Structure | None:
        found = [part.structure_after(structure) for part in self.parts]
        after = [one for one in found if one is not None]  # None beside others: one site, which all inputs have
        return joined(after, repr(self)) if after else None

    def count(self, shape: Shape) -> int:
        return sum(part.count(own) for part, own in zip(self.parts, shape, strict=True))

    def encode_parts(self, parts: Parts) -> tuple[Parts, Any]:
        plain = tuple(part._replace(variance=part.variance._replace(among=None)) for part in parts)
        ends = [part.encode_parts(parts if part.mixes_sites else plain) for part in self.parts]
        after, joint = self.join_parts([end[0] for end in ends], as_it_is)
        return after, (tuple(end[1] for end in ends), joint)

    def survey_parts(self, parts: Parts, path: tuple[Any, ...], ranges: Ranges) -> Parts:
        ends = [part.survey_parts(parts, (*path, k), ranges) for k, part in enumerate(self.parts)]
        return self.join_parts(ends, interpreted)[0]

    def pair_parts(self, x: Any, y: Any, states: tuple[PairState, ...]) -> tuple[PairState, ...]:
        ends = [part.pair_parts(a, b, states) for part, a, b in zip(self.parts, x[0], y[0], strict=True)]
        return self.combine(x[1], y[1], ends)

    def itself_parts(self, x: Any, states: tuple[PairState, ...]) -> tuple[PairState, ...]:
        ends = [part.itself_parts(memo, states) for part, memo in zip(self.parts, x[0], strict=True)]
        return self.combine(x[1], x[1], ends)


def _add(x: _Joint, y: _Joint, after: Sequence[PairState]) -> PairState:
    """Add the signals of the branches, and their means as one signal that both inputs share."""
    tangent = sum_terms([a * b * state.tangent for a, b, state in zip(x.shares, y.shares, after, strict=True)])
    shares: tuple[list[jax.Array], list[jax.Array]] = ([], [])
    shared: tuple[list[jax.Array], list[jax.Array]] = ([], [])
    correlations = []
    for k, state in enumerate(after):
        u, v = x.means[k], y.means[k]
        correlations.append(state.correlation if u is None or v is None else centre(state.correlation, u, v))
        for i, (way, mean) in enumerate(((x.shares[k], u), (y.shares[k], v))):
            shares[i].append(way if mean is None else way * mean[1])
            if mean is not None:
                shared[i].append(way * mean[0])
    common = [[sum_terms(offsets)] if offsets else [] for offsets in shared]
    return PairState(sum_signals(shares[0] + common[0], shares[1] + common[1], correlations), tangent)


def aligned(shares: Sequence[tuple[float, ...]]) -> list[tuple[float, tuple[int, ...]]]:
    """Return the parts of the width in which no branch changes its law: (share, the part of each branch)."""
    ends = [np.cumsum(own) for own in shares]
    cuts = np.unique(np.round(np.concatenate(ends), 9))
    middles = (np.concatenate([[0.0], cuts[:-1]]) + cuts) / 2
    sizes = np.diff(cuts, prepend=0.0) if len(cuts) > 1 else np.ones(1)
    return [
        (float(size), tuple(int(np.searchsorted(end, at)) for end in ends))
        for size, at in zip(sizes, middles, strict=True)
    ]


def _sum(total: Variance, shares: Sequence[Any], means: Sequence[Any]) -> tuple[Any, ...]:
    """Return mean square, shares, mean and (mean, deviation) by branch of a sum, from those as if all means were 0."""
    offsets = [share * mean for share, mean in zip(shares, means, strict=True) if mean is not None]
    together = sum_terms(offsets)
    factor = 1 + (together**2 - sum_terms([offset**2 for offset in offsets]))  # E[(sum)^2] over the sum of E[..^2]
    root = safe_sqrt(factor)
    after = Variance(total.value * factor, total.exponent).normalise()
    pairs = [None if mean is None else (mean, safe_sqrt(1 - mean**2)) for mean in means]
    return after, [safe_divide(share, root) for share in shares], safe_divide(together, root), pairs


class Aligned(Branches, abc.ABC):
    """The outputs of the branches meet signal by signal; all but one have random weights of their own."""

    def joint_traits(self, before: Traits, path: str) -> Traits:
        """Return the traits as of a sum. Raises: ValueError: branches that are not independent."""
        after = self.traits_of_branches(before, path)
        fixed = [k for k, traits in enumerate(after) if not traits.random]
        if len(fixed) > 1:
            raise ValueError(f"{path}: {self.too_few_weights(fixed)}")
        return Traits(
            all(traits.gaussian for traits in after),
            all(traits.centred for traits in after),
            before.random or all(traits.random for traits in after),
            tuple(share for share, _ in aligned([traits.shares for traits in after])),
        )

    def too_few_weights(self, fixed: list[int]) -> str:
        """Return the message for branches that are not independent."""
        return (
            f"the branches {fixed} are functions of the same signals without random weights of their own, so that they "
            f"are not independent; put a wl.layers.Dense() into all of them but one."
        )

    def shape(self, inputs: int, outputs: int, widths: Iterator[int]) -> tuple[Shape, int]:
        shapes = [part.shape(inputs, outputs if self.random else inputs, widths) for part in self.parts]
        found = [width for _, width in shapes]
        if len(set(found)) > 1:
            raise ValueError(
                f"the branches of {self!r:.80} have the widths {found}, and meet signal by signal: make them equal."
            )
        return tuple(shape for shape, _ in shapes), found[0]

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        found = {part.check(own, inputs, axes) for part, own in zip(self.parts, params, strict=True)}
        if len(found) > 1:
            raise ValueError("branches of different widths")
        return found.pop()

    @property
    def multiple(self) -> Scalar | None:
        return self.parts[0].multiple if len(self.parts) == 1 else None


class _Sum(Aligned, abc.ABC):
    """The outputs of the branches are added: Sigma and Theta are the sums of theirs, where all but one have mean 0.

    Two branches with means m, m' (after activations) add m_1(x) m_2(x') + m_2(x) m_1(x') to Sigma.
    """

    uncentred: bool
    """Second moments are added as if all means were 0: the kernel of a publication, and the limit of no network."""

    def traits(self, before: Traits, path: str) -> Traits:
        return self.joint_traits(before, path)

    def join_parts(self, ends: Sequence[Parts], run: Callable[[Any], Any]) -> tuple[Parts, tuple[_Joint, ...]]:
        parts, joints = [], []
        if self.uncentred:
            ends = [tuple(part._replace(mean=None) for part in end) for end in ends]
        for size, places in aligned([tuple(part.share for part in end) for end in ends]):
            branches = [end[place] for end, place in zip(ends, places, strict=True)]
            total, shares = run(add_all)([branch.variance for branch in branches])
            means, after, pairs = [branch.mean for branch in branches], None, (None,) * len(branches)
            if sum(mean is not None for mean in means) > 1:
                known = [None if mean is None else mean() for mean in means]
                total, shares, together, pairs = run(_sum)(total, shares, known)
                after = functools.partial(as_it_is, together)
            elif any(means):
                offsets = [(share, mean) for share, mean in zip(shares, means, strict=True) if mean is not None]
                after = functools.partial(weighted_sum, offsets)
            parts.append(Part(size, total, after))
            joints.append(_Joint(places, tuple(shares), tuple(pairs)))
        return tuple(parts), tuple(joints)

    def combine(
        self, x: tuple[_Joint, ...], y: tuple[_Joint, ...], ends: Sequence[tuple[PairState, ...]]
    ) -> tuple[PairState, ...]:
        return tuple(
            _add(a, b, [end[place] for end, place in zip(ends, a.places, strict=True)])
            for a, b in zip(x, y, strict=True)
        )

    def _together(self, ends: list[jax.Array]) -> jax.Array:
        return sum_terms(ends)


@final
@pytree
@dataclass(frozen=True, init=False)
class Residual(_Sum):
    """The map is a -> a + f(a), f the layers in order. `uncentred`: as in `Sum`."""

    branch: tuple[Layer, ...]
    uncentred: bool = field(default=False, metadata={"static": True})

    def __init__(self, *layers: Any, uncentred: bool = False) -> None:
        object.__setattr__(self, "branch", branch_of(layers, "Residual"))
        object.__setattr__(self, "uncentred", validation.flag("uncentred", uncentred))

    def __repr__(self) -> str:
        return written_call("Residual", self.branch, **_said(self.uncentred))

    def too_few_weights(self, fixed: list[int]) -> str:
        layers = ", ".join([*map(repr, self.branch), "Dense()"])
        return (
            f"{self!r:.80} adds signals to a function of themselves, from which they are not independent: the branch "
            f"needs random weights, as Residual({layers:.80})."
        )

    @property
    def parts(self) -> tuple[Serial, ...]:
        return _flattened([Serial(), Serial(*self.branch)], self.uncentred)

    def with_parts(self, parts: Sequence[Serial]) -> _Sum:
        if len(parts) == 2 and not parts[0].layers:
            return Residual(*parts[1].layers, uncentred=self.uncentred)
        return Sum(*parts, uncentred=self.uncentred)


@final
@pytree
@dataclass(frozen=True, init=False)
class Sum(_Sum):
    """The map is a -> f_1(a) + f_2(a) + ...; each branch a layer, `Serial(...)`, or a list of layers.

    `uncentred`: second moments are added as if all means were 0, as a published kernel does (`garriga_alonso_2019`);
    after activations with a mean that is the limit of no network.
    """

    branches: tuple[tuple[Layer, ...], ...]
    uncentred: bool = field(default=False, metadata={"static": True})

    def __init__(self, *branches: Any, uncentred: bool = False) -> None:
        object.__setattr__(self, "branches", branches_of(branches, "Sum"))
        object.__setattr__(self, "uncentred", validation.flag("uncentred", uncentred))

    def __repr__(self) -> str:
        return written_call("Sum", [Serial(*branch) for branch in self.branches], **_said(self.uncentred))

    @property
    def parts(self) -> tuple[Serial, ...]:
        return _flattened([Serial(*branch) for branch in self.branches], self.uncentred)

    def with_parts(self, parts: Sequence[Serial]) -> Sum:
        return Sum(*parts, uncentred=self.uncentred)


def branches_of(given: Sequence[Any], name: str) -> tuple[tuple[Layer, ...], ...]:
    """Return the layers of each branch. Raises: TypeError, ValueError: none, or no layers."""
    if not given:
        raise ValueError(f"{name} needs at least one branch.")
    return tuple(
        branch_of(branch if isinstance(branch, (list, tuple)) else [branch], f"{name}.branch[{k}]")
        for k, branch in enumerate(given)
    )


def _said(uncentred: bool) -> dict[str, str]:
    return {"uncentred": "True"} if uncentred else {}


def _flattened(branches: Sequence[Serial], uncentred: bool) -> tuple[Serial, ...]:
    """Return the terms of a sum: those of sums in it one by one, multiples of the input as one, as x + x is 2 x."""
    terms: list[Serial] = []
    for branch in branches:
        inner = branch.layers[0] if len(branch.layers) == 1 else None
        terms += inner.parts if isinstance(inner, _Sum) and inner.uncentred == uncentred else [branch]
    factors = [factor for term in terms if (factor := term.multiple) is not None]
    if len(factors) < 2:
        return tuple(terms)
    return Serial(Scale(sum(factors, 0.0))), *(term for term in terms if term.multiple is None)


def Frozen(layer: Any) -> Layer:
    """Return the layer(s) with random weights that are not trained: they add nothing to Theta, and get no gradient.

    Raises:
        TypeError: not a layer.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"a layer is needed, e.g. wl.layers.Frozen(wl.layers.Dense()); got {type(layer).__name__}.")
    return layer.freeze()
