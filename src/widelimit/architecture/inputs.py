"""The inputs of a network are rows, or arrays of sites with channels, as images are."""

from __future__ import annotations

import abc
import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.architecture.structure import Structure
from widelimit.lossless import refuse_masked
from widelimit.series import safe_divide, safe_sqrt
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, exponent_of, power_of_two
from widelimit.validation import Array

TOGETHER = 16
"""Channels that are added in one loop over pairs of sites."""


@final
@dataclass(frozen=True)
class Rows:
    """Inputs are vectors, (n, d)."""

    kind: ClassVar[str] = "rows"

    @property
    def sites(self) -> tuple[int, ...]:
        """Return the sizes of the axes of sites: none."""
        return ()

    def rows(self, name: str, X: Any) -> Array:
        """Return (n, d) floats. Raises: TypeError, ValueError: other data, or another shape."""
        return validation.points(name, X)

    def read(self, X: Float[jax.Array, "n d"]) -> jax.Array:
        """Return the signals before the first layer: the rows."""
        return X

    def structure(self, X: Any) -> Structure | None:
        """Return the structure of the inputs: none."""
        return None

    def degree(self, X: Any) -> float:
        """Return the largest degree in graphs, 0 of other inputs."""
        return 0.0

    def channels(self, given: int | None) -> int:
        """Return the inputs of the first layer. Raises: TypeError: the number of features is not given."""
        if given is None:
            raise TypeError("input_dim, the number of features, is needed: net.init(0, input_dim=X.shape[1]).")
        return given

    def __repr__(self) -> str:
        return "Rows()"


class Sited(abc.ABC):
    """Inputs are arrays of sites, with the same number of channels at each."""

    kind: ClassVar[str]
    """"image", "sequence" or "graph"."""
    shape: tuple[int, ...]
    """The sizes of the axes of sites, and the number of channels."""

    @property
    def sites(self) -> tuple[int, ...]:
        """Return the sizes of the axes of sites."""
        return self.shape[:-1]

    def channels(self, given: int | None) -> int:
        """Return the inputs of the first layer at each site. Raises: ValueError: another length of rows is given."""
        if given not in (None, self.size):
            raise ValueError(f"input_dim is {self.size} for {self}, got {validation.shown(given)}.")
        return self.shape[-1]

    @property
    def size(self) -> int:
        """Return the length of a packed row."""
        return math.prod(self.shape)

    @abc.abstractmethod
    def rows(self, name: str, X: Any) -> Array:
        """Return inputs as rows of floats, (n, size). Raises: TypeError, ValueError: other data, or another shape."""

    def read(self, X: Float[jax.Array, "n d"]) -> jax.Array:
        """Return the signals before the first layer, (n, *sites, channels)."""
        return X[:, : math.prod(self.shape)].reshape(len(X), *self.shape)

    def structure(self, X: Float[Array, "n d"]) -> Structure | None:
        """Return which sites of the inputs are there, and how they are joined; None: all are there, as in images."""
        return None

    def degree(self, X: Any) -> float:
        """Return the largest sum of the weights of a node's edges in graphs, 0 of other inputs."""
        return 0.0

    def deviations(self, X: np.ndarray) -> np.ndarray:
        """Compute the root mean square over the channels at every site that is there, as one vector of float64."""
        structure = self.structure(X)
        signals = np.asarray(self.read(X)).astype(np.float64)  # type: ignore[arg-type]
        channels = np.abs(signals.reshape(-1, self.shape[-1]) if structure is None else signals[structure.mask > 0])
        largest = np.max(channels, axis=1)
        scale = np.where(largest > 0, largest, 1)
        with np.errstate(under="ignore"):
            return np.asarray(scale * np.sqrt(np.mean((channels / scale[:, None]) ** 2, axis=1)))

    def embed(self, X: Float[jax.Array, "n d"]) -> tuple[jax.Array, Variance]:
        """Return unit vectors over the channels (n, *sites, channels), 0 at sites that are 0, and mean squares.

        The mean squares have the inputs last, as all signals: (*sites, n). Masked sites repeat the first that is
        there, so that their numbers are ordinary ones; no other site sees them.
        """
        images, structure = self.read(X), self.structure(X)
        if structure is not None:
            first = jnp.argmax(structure.mask, axis=1)[:, None, None]
            images = jnp.where(structure.mask[..., None] > 0, images, jnp.take_along_axis(images, first, 1))
        limit = 1000 if X.dtype == jnp.float64 else 120
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(images), axis=-1))
        exponent = jnp.clip(jnp.where(largest == 0, 0, exponent_of(largest)), -limit, limit)
        scaled = images * power_of_two(-exponent, X.dtype)[..., None]
        square = jnp.sum(scaled**2, axis=-1)
        units = scaled * safe_divide(jnp.ones_like(square), safe_sqrt(square))[..., None]
        mean = Variance(jnp.moveaxis(square / self.shape[-1], 0, -1), jnp.moveaxis(exponent, 0, -1))
        return units, mean.normalise()._replace(structure=structure)


@final
@dataclass(frozen=True, init=False)
class Image(Sited):
    """Inputs are images: `Image(32, 32, 3)` is height, width, channels.

    Data are arrays (n, height, width, channels), or rows (n, height*width*channels) in that order. Signals have one
    axis of sites or three with `Image(length, channels)` and `Image(depth, height, width, channels)`.

    Raises: TypeError, ValueError: not 2 to 4 integers >= 1.
    """

    kind: ClassVar[str] = "image"
    shape: tuple[int, ...]

    def __init__(self, *shape: int) -> None:
        if not 2 <= len(shape) <= 4:
            raise ValueError(
                f"Image takes one to three sizes and the number of channels, as Image(32, 32, 3) for height, width, "
                f"channels; got {validation.shown(shape)}."
            )
        sizes = tuple(validation.integer("each size of Image", n, at_least=1, below=2**20) for n in shape)
        if len(sizes) == 3 and sizes[0] in (1, 3) and sizes[1] == sizes[2] > 4:
            warnings.warn(
                f"Image{sizes} has height {sizes[0]} and {sizes[2]} channels; if the first size counts channels, write "
                f"Image{(*sizes[1:], sizes[0])}, and move the axis of the data: np.moveaxis(X, 1, -1).",
                stacklevel=2,
            )
        object.__setattr__(self, "shape", sizes)

    def __repr__(self) -> str:
        return f"Image{self.shape}"

    def rows(self, name: str, X: Any) -> Array:
        """Return (n, size) floats, with a warning of bytes. Raises: TypeError, ValueError: other data, or shape."""
        if isinstance(X, np.ndarray) and X.dtype == np.uint8 and X.max(initial=0) > 1:
            warnings.warn(
                f"{name} holds bytes (uint8, up to {X.max()}), taken as the numbers they are: biases are small beside "
                f"them. Pass {name} / 255, or standardised channels.",
                stacklevel=5,
            )
        if np.ndim(X) > 2:
            X = self._flat(name, X)
        points = validation.points(name, X)
        if points.shape[1] != self.size:
            whole = " x ".join(map(str, self.shape))
            raise ValueError(
                f"{name} has rows of {points.shape[1]} numbers, and an image of the network has {whole} = {self.size}; "
                f"pass arrays (n, {', '.join(map(str, self.shape))}), or those reshaped to rows, channels last."
            )
        return points

    def _flat(self, name: str, X: Any) -> Any:
        refuse_masked(name, X)
        array: Any = X if isinstance(X, jax.Array) else np.asarray(X)
        shape, grey = array.shape[1:], self.sites if self.shape[-1] == 1 else self.shape
        if shape in (self.shape, grey):
            return array.reshape(len(array), self.size)
        advice = "check them, or make another wl.Image"
        if (*shape[1:], shape[0]) == self.shape:
            advice = f"move the channels to the end: np.moveaxis({name}, 1, -1)"
        elif array.shape in (self.shape, grey):
            advice = f"one image is {name}[None]"
        raise ValueError(f"{name} has images of shape {shape}, the network {self.shape}; {advice}.")


Inputs = Rows | Sited


def correlate_sites(u: jax.Array, v: jax.Array) -> Correlation:
    """Compute the correlation of unit vectors on the first axis, from |u -+ v|^2/2: each side right to rounding.

    Where one of two vectors is 0 both sides are 1/2, so that rho is 0.
    """

    def add(sums: Any, channel: Any) -> tuple[Any, None]:
        a, b = channel
        return (sums[0] + (a - b) ** 2, sums[1] + (a + b) ** 2), None

    start = jnp.zeros(jnp.broadcast_shapes(u.shape[1:], v.shape[1:]), u.dtype)
    # XLA's sum over an axis is no vector code: it takes five times as long.
    minus, plus = jax.lax.scan(add, (start, start), (u, v), unroll=min(len(u), TOGETHER))[0]
    return Correlation(minus / 2, plus / 2)


def float_dtype(dtype: Any) -> np.dtype:
    """Return float32 or float64. Raises: TypeError."""
    try:
        kind: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError):
        kind = np.dtype(object)
    if dtype is None or kind not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {validation.shown(dtype)}.")
    return kind
