"""The base of all layers, and the state of signals between two of them."""

from __future__ import annotations

import abc
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp

from widelimit.activations.base import Activation, Memo, variance_after
from widelimit.architecture.sites import Sites, first_of_pair, second_of_pair
from widelimit.architecture.structure import Structure
from widelimit.interpreter import interpreted
from widelimit.series import safe_divide, safe_sqrt
from widelimit.shapes import Float
from widelimit.signals import EXPONENT_LIMIT, Correlation, Variance, add_variances, power_of_two, sum_signals, sum_terms

DEEPEST = 100_000
"""Layers of a network; every input takes some numbers for each."""
_NO_VALUE = -7
"""No variance and no 1 - rho has it, and NaN differs from it, too."""

Scalar = int | float | jax.Array
Params = Any


def as_it_is(value: Any) -> Any:
    """Return the value; of a function, where `interpreted` would have it run by NumPy."""
    return value


class PairState(NamedTuple):
    """The state of a pair of inputs between two layers is free of scale.

    `correlation` is that of the signals, `tangent` is Theta/(s s'), s and s' the root mean squares of the signals.
    """

    correlation: Correlation
    tangent: jax.Array


class Traits(NamedTuple):
    """The traits of signals decide which layers may follow."""

    gaussian: bool
    """The signals are Gaussian, as an activation needs them."""
    centred: bool
    """The mean of the signals over the width is 0."""
    random: bool
    """There are random weights between the last split and the signals."""
    shares: tuple[float, ...] = (1.0,)
    """Shares of the width of the parts that have different laws."""


Mean = Callable[[], jax.Array] | None
"""The mean of the signals over their root mean square, (n,), computed where it is needed; None: it is 0."""
Change = Callable[[Activation, tuple[Any, ...]], Activation]


@final
class Ranges(dict[tuple[Any, ...], tuple[float, float]]):
    """Smallest and largest standard deviation before each activation, by its place in the tree."""

    degree: float = 0.0
    """The largest sum of the weights of a node's edges in graphs."""


Shape = tuple[Any, ...]
"""(inputs, outputs) of a layer; one such entry for every layer of a branch, one of these for every branch of a sum."""


class Part(NamedTuple):
    """A part of the width holds signals of one law; after `Concatenate` there are several side by side."""

    share: float
    variance: Variance
    mean: Mean


Parts = tuple[Part, ...]


def merge(parts: Parts, run: Callable[[Any], Any] = as_it_is) -> tuple[Part, tuple[jax.Array, ...]]:
    """Return all parts as one, and the share of each in its root mean square; () for a single part."""
    if len(parts) == 1:
        return parts[0], ()
    total, ways = run(_total)([part.variance for part in parts], [part.share for part in parts])
    given = parts[0].variance
    total = total._replace(structure=given.structure)
    if given.among is not None:
        axes = given.value.ndim - 1
        first, second = ([of(way, axes, 1) for way in ways] for of in (first_of_pair, second_of_pair))
        total = total._replace(among=join(first, second, [part.variance.among for part in parts]))
    offsets = [(way * math.sqrt(p.share), p.mean) for way, p in zip(ways, parts, strict=True) if p.mean is not None]
    mean = functools.partial(weighted_sum, offsets) if offsets else None
    return Part(sum(part.share for part in parts), total, mean), tuple(ways)


def join(x: Sequence[jax.Array], y: Sequence[jax.Array], states: Sequence[PairState]) -> PairState:
    """Return the state of all parts as one, from their shares in both root mean squares (`merge`)."""
    if not x:
        return states[0]
    correlation = sum_signals(x, y, [state.correlation for state in states])
    return PairState(correlation, sum_terms([a * b * s.tangent for a, b, s in zip(x, y, states, strict=True)]))


def _total(variances: Sequence[Variance], shares: Sequence[Any]) -> tuple[Variance, list[jax.Array]]:
    return add_all([Variance(v.value * share, v.exponent) for v, share in zip(variances, shares, strict=True)])


def add_all(variances: Sequence[Variance]) -> tuple[Variance, list[jax.Array]]:
    """Return the variance of the sum of uncorrelated signals, and the share of each in its root."""
    if len(variances) == 2:  # in long chains of sums the squares of the shares must be 1 to the last digit
        total, *two = add_variances(*variances)
        return total, two
    powers = [jnp.where(part.value > 0, part.exponent, -2 * EXPONENT_LIMIT) for part in variances]
    exponent = functools.reduce(jnp.maximum, powers)
    parts = [v.value * power_of_two(2 * (p - exponent), v.value.dtype) for v, p in zip(variances, powers, strict=True)]
    whole = sum_terms(parts)
    shares = [safe_sqrt(safe_divide(part, whole)) for part in parts]
    shares[0] = jnp.where(whole > 0, shares[0], 1)
    return Variance(whole, exponent).normalise(), shares


@jax.custom_batching.custom_vmap
def _always(value: jax.Array) -> jax.Array:
    """Return True, from a value: XLA cannot know it beforehand."""
    return value != _NO_VALUE


@_always.def_vmap
def _always_of_batch(_size: int, _batched: Any, values: jax.Array) -> tuple[jax.Array, bool]:
    """Return one True for a batch: a branch chosen by many is a selection, which JAX does not transpose."""
    return _always(values.ravel()[0]), False


def _taken(leaves: Sequence[jax.Array]) -> jax.Array:
    """Return the predicate of a branch that is always taken."""
    always: jax.Array = _always(jax.lax.stop_gradient(leaves[0].ravel()[0]))
    return always


def held(tree: Any) -> Any:
    """Return arrays from a branch that is always taken, across which XLA fuses nothing.

    It would write the work before it out again for each of many uses: a program of 3,000 operations grows to 50,000.
    """
    leaves, form = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        form, jax.lax.cond(_taken(leaves), lambda *x: x, lambda *x: jax.tree.map(jnp.zeros_like, x), *leaves)
    )


@jax.custom_jvp
def held_in_gradients(tree: Any) -> Any:
    """Return the arrays; where they are differentiated, `held`: forwards one fused loop is fastest."""
    return tree


@held_in_gradients.defjvp
def _held_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    both: tuple[Any, Any] = held((primals[0], tangents[0]))
    return both


def weighted_sum(offsets: Sequence[tuple[Any, Callable[[], Any]]]) -> Any:
    """Return the mean of a sum of signals, over its root mean square, from the share and the mean of each."""
    return functools.reduce(operator.add, [share * mean() for share, mean in offsets])


def after_layer(layer: Layer, x: Any, y: Any, states: tuple[PairState, ...]) -> tuple[PairState, ...]:
    """Return the states after a layer: of arrays with sites, on a processor, from a branch that is always taken.

    XLA fuses nothing across it. In one fused loop every sum over sites, and each of the three arrays of a state, would
    begin the work of all layers before it anew.
    """
    if states[0].tangent.ndim <= 2 or jax.default_backend() != "cpu":
        return layer.pair_parts(x, y, held_in_gradients(states))
    leaves, form = jax.tree.flatten((states, x, y))

    def run(*given: Any) -> Any:
        states, x, y = jax.tree.unflatten(form, given)
        return layer.pair_parts(x, y, states)

    traced, after = jax.make_jaxpr(run, return_shape=True)(*leaves)
    ends, form_after = jax.tree.flatten(after)
    found = jax.lax.cond(
        _taken(leaves),
        lambda *given: jax.core.eval_jaxpr(traced.jaxpr, traced.consts, *given),
        lambda *_: [jnp.zeros(end.shape, end.dtype) for end in ends],
        *leaves,
    )
    return jax.tree.unflatten(form_after, found)  # type: ignore[no-any-return]


class Layer(abc.ABC):
    """A layer of a network is a finite map on (n, width) signals and an infinite map on Gaussian signals.

    A new layer states `init`, `apply`, `encode` and `pair`; the other methods have defaults for a layer that keeps the
    width and the mean.
    """

    random: ClassVar[bool] = False
    """True for random weights over all signals: the layer sets the width, and its output depends on no single input."""

    simple: ClassVar[bool] = False
    """True if a row of the output depends on its own row alone, and no parameters are there but those of `Dense`."""

    on_inputs: ClassVar[bool] = False
    """True for a layer without parameters that may stand before the first `Dense`: it changes the inputs as given."""

    mixes_sites: ClassVar[bool] = False
    """True for a layer that needs covariances between the sites of an input."""

    sitewise: ClassVar[bool] = True
    """False for a layer whose output at a site depends on other sites: before it, masked sites are set to 0."""

    on_sites: ClassVar[bool] = False
    """True for a linear layer without parameters that may stand before the first weights of a network with sites."""

    @abc.abstractmethod
    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        """Draw random parameters (a pytree) of the finite layer."""

    @abc.abstractmethod
    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *after width2"]:
        """Apply the finite map."""

    @property
    def multiple(self) -> Scalar | None:
        """Return c of a layer a -> c a, else None."""
        return None

    @property
    def masks(self) -> bool:
        """Return True if `draw_and_apply` is random: the layer drops signals in training."""
        return False

    def draw_and_apply(self, params: Params, signals: Float[jax.Array, "n *sites width"], key: jax.Array) -> jax.Array:
        """Apply the finite map as in training, with masks drawn by the key."""
        return self.apply(params, signals)

    def apply_with(
        self,
        params: Params,
        signals: Float[jax.Array, "n *sites width"],
        structure: Structure | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Apply the finite map to inputs with a structure (None: images and rows); with a key as in training.

        A layer that needs mask or adjacency overrides this; in the infinite map it finds them in `signal.structure`.
        """
        return self.apply(params, signals) if key is None else self.draw_and_apply(params, signals, key)

    def structure_after(self, structure: Structure) -> Structure | None:
        """Return the structure of the signals after the layer; None: a single site, or sites that are all there."""
        return structure

    @abc.abstractmethod
    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        """Return the mean square after the layer, and the data of the input that `pair` needs."""

    @abc.abstractmethod
    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        """Apply the infinite map to pairs; elementwise on arrays that broadcast."""

    def itself(self, x: Memo, state: PairState) -> PairState:
        """Apply `pair` to every input with itself."""
        return self.pair(x, x, state)

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        """Do the work of `encode`, with the mean before and after the layer."""
        after, memo = self.encode(signal)
        return after, mean, memo

    def merges(self, parts: Parts) -> bool:
        """Return True if the layer needs parts of several laws as one: it is not elementwise."""
        return self.random

    def encode_parts(self, parts: Parts) -> tuple[Parts, Any]:
        """Do the work of `encode_with_mean` for every part of the width."""
        whole, ways = merge(parts) if self.merges(parts) else (None, ())
        parts = parts if whole is None else (whole,)
        ends = [self.encode_with_mean(part.variance, part.mean) for part in parts]
        after = tuple(Part(part.share, *end[:2]) for part, end in zip(parts, ends, strict=True))
        return after, (ways, tuple(end[2] for end in ends))

    def pair_parts(self, x: Any, y: Any, states: tuple[PairState, ...]) -> tuple[PairState, ...]:
        """Do the work of `pair` for every part of the width."""
        states = (join(x[0], y[0], states),) if x[0] else states
        return tuple(self.pair(a, b, state) for a, b, state in zip(x[1], y[1], states, strict=True))

    def itself_parts(self, x: Any, states: tuple[PairState, ...]) -> tuple[PairState, ...]:
        """Do the work of `itself` for every part of the width."""
        states = (join(x[0], x[0], states),) if x[0] else states
        return tuple(self.itself(memo, state) for memo, state in zip(x[1], states, strict=True))

    def survey_parts(self, parts: Parts, path: tuple[Any, ...], ranges: Ranges) -> Parts:
        """Do the work of `survey` for every part of the width."""
        parts = (merge(parts, interpreted)[0],) if self.merges(parts) else parts
        return tuple(Part(part.share, *self.survey(part.variance, part.mean, path, ranges)) for part in parts)

    @property
    def numbers_per_input(self) -> int:
        """Return about how many numbers a memo holds; kernels state their sizes from it."""
        return 2

    @property
    def depth(self) -> int:
        """Return the number of affine layers on the longest path."""
        return 0

    @property
    def hidden(self) -> int:
        """Return the number of widths within the finite layer, beside that of its output."""
        return 0

    @property
    def units(self) -> tuple[Layer, ...]:
        """Return the layers that have an entry in the parameters, in order."""
        return (self,)

    def activations(self) -> Iterator[Activation]:
        """Yield the activations in the layer."""
        yield from ()

    def traits(self, before: Traits, path: str) -> Traits:
        """Return the traits of signals after the layer. Raises: ValueError: it has no limit after such signals."""
        return before._replace(shares=(1.0,)) if self.random else before

    def place(self, sites: Sites, path: str) -> tuple[Layer, Sites]:
        """Return the layer for inputs with these sites, and the sites after it. Raises: ValueError: they do not fit."""
        given: Any = fields(self) if is_dataclass(self) else ()
        for own in given:
            value = getattr(self, own.name)
            if own.metadata.get("internal") and own.name != "trained" and value != own.default:
                raise ValueError(
                    f"{path}: {own.name}={value!r} is set by the network for its layers; leave it out, and give "
                    f"wl.network its parameterization, base_width or learning_rates."
                )
        return self, sites

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        """Return variance and mean after the layer, by NumPy, and enter the ranges before the activations in it."""
        return interpreted(variance_after)(self, signal), None if self.random else mean

    def map_activations(self, change: Change, path: tuple[Any, ...]) -> Layer:
        """Return the layer with other activations, each from the old one and its place."""
        return self

    def shape(self, inputs: int, outputs: int, widths: Iterator[int]) -> tuple[Shape, int]:
        """Return the sizes of the finite layer, and its width; widths within it are taken from `widths`."""
        return (inputs, outputs), outputs if self.random else inputs

    def draw(self, key: jax.Array, shape: Shape, dtype: Any) -> Params:
        """Draw random parameters for these sizes."""
        inputs, outputs = shape
        return self.init(key, inputs, outputs, dtype)

    def count(self, shape: Shape) -> int:
        """Return the number of parameters for these sizes."""
        return 0

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        """Return the width after the layer. Raises: ValueError, TypeError, KeyError, IndexError: not its parameters."""
        return inputs

    def standardise(self) -> Layer:
        """Return the layer with its finite map in the standard parameterisation."""
        return self

    def freeze(self) -> Layer:
        """Return the layer without training."""
        return self

    def without_refinement(self) -> Layer:
        """Return the layer for networks of one activation, which need no `Activation.refine`."""
        return self


class Unweighted(Layer, abc.ABC):
    """The layer has no parameters."""

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        return ()


def through(layers: tuple[Layer, ...], X: jax.Array) -> jax.Array:
    """Return inputs after layers without parameters."""
    return functools.reduce(lambda X, layer: layer.apply((), X), layers, X)
