"""The base of all layers, and the state of signals between two of them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import jax

from widelimit.activations.base import Activation, Memo, variance_after
from widelimit.architecture.sites import Sites
from widelimit.interpreter import interpreted
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance

Scalar = int | float | jax.Array
Params = Any


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
    """Their mean over the width is 0."""
    random: bool
    """Random weights stand between them and the last split."""


Mean = Callable[[], jax.Array] | None
"""The mean of the signals over their root mean square, (n,), computed where it is needed; None: it is 0."""
Change = Callable[[Activation, tuple[Any, ...]], Activation]
Ranges = dict[tuple[Any, ...], tuple[float, float]]
"""Smallest and largest standard deviation before each activation, by its place in the tree."""
Shape = tuple[Any, ...]
"""(inputs, outputs) of a layer; one such entry for every layer of a branch, one of these for every branch of a sum."""


class Layer(abc.ABC):
    """A layer of a network is a finite map on (n, width) signals and an infinite map on Gaussian signals.

    A new layer states `init`, `apply`, `encode` and `pair`; the other methods have defaults for a layer that keeps the
    width and the mean.
    """

    random: ClassVar[bool] = False
    """True for random weights over all signals: the layer sets the width, and its output depends on no single input."""

    simple: ClassVar[bool] = False
    """True for `Dense`, and layers without parameters: gradients pass through them one after the other."""

    mixes_sites: ClassVar[bool] = False
    """True for a layer that needs covariances between the sites of images."""

    @abc.abstractmethod
    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        """Draw random parameters (a pytree) of the finite layer."""

    @abc.abstractmethod
    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *after width2"]:
        """Apply the finite map."""

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
        return before

    def place(self, sites: Sites, path: str) -> tuple[Layer, Sites]:
        """Return the layer for inputs with these sites, and the sites after it. Raises: ValueError: they do not fit."""
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
