"""Convolutions: the taps of a patch are independent signals, as each has weights of its own."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Memo
from widelimit.architecture.layers import Affine, Dense, written
from widelimit.architecture.sites import PADDINGS, Sites, Windows, sizes, windows
from widelimit.architecture.state import Mean, PairState, Params, Ranges, Scalar, Shape
from widelimit.architecture.structure import Structure
from widelimit.interpreter import interpreted
from widelimit.pytrees import changed, pytree
from widelimit.series import safe_divide, safe_sqrt
from widelimit.shapes import Float
from widelimit.signals import (
    EXPONENT_LIMIT,
    Correlation,
    Variance,
    deviation_of,
    power_of_two,
    relative_deviation,
    sum_terms,
    variance_of,
)


class _ConvMemo(NamedTuple):
    """At a tap the signal times the inverse is its share in the root of the patch's sum of squares."""

    signal: jax.Array
    """(*S before, n): root mean square at every site, over a power of two of the image."""
    inverse: jax.Array
    """(*S after, n): one over the root of the sum of squares over the patch; 0 where that is 0."""
    dense: Memo


@final
@pytree
@dataclass(frozen=True)
class Conv(Affine):
    """The map is a(p) -> weight_std/sqrt(taps channels) sum_t W_t a(p + t) + bias_std b, a convolution.

    Infinite width: Sigma(p, q) <- weight_std^2/taps sum_t Sigma(p + t, q + t) + bias_std^2, where sites outside are 0
    and the divisor is that of the whole patch; Theta <- weight_std^2/taps sum_t Theta(p + t, q + t) + Sigma after.
    Source: Novak et al. 2019, arXiv 1810.05148; Garriga-Alonso et al. 2019, arXiv 1808.05587; Arora et al. 2019,
    arXiv 1904.11955.

    Args:
        size: sites of a patch along each axis, an integer >= 1 or one for each axis.
        weight_std: > 0; bias_std: >= 0, as in `Dense`.
        stride: sites between two patches, as `size`.
        padding: "same" (zeros around, as XLA adds them), "valid" (patches inside the image), "circular".
        dilation: sites between two taps of a patch, as `size`.
    """

    size: int | tuple[int, ...] = field(metadata={"static": True})
    weight_std: Scalar = 1.0
    bias_std: Scalar = 0.0
    stride: int | tuple[int, ...] = field(default=1, metadata={"static": True})
    padding: str = field(default="same", metadata={"static": True})
    dilation: int | tuple[int, ...] = field(default=1, metadata={"static": True})
    standard: bool = field(default=False, metadata={"static": True}, init=False)
    trained: bool = field(default=True, metadata={"static": True}, init=False)
    windows: Windows | None = field(default=None, metadata={"static": True}, init=False)
    """Set by `network`, which knows the sites before the layer."""

    def __post_init__(self) -> None:
        for name in ("size", "stride", "dilation"):
            object.__setattr__(self, name, sizes(name, getattr(self, name)))
        validation.choice("padding", self.padding, PADDINGS)
        validation.finite_scalar("weight_std", self.weight_std, above=0.0)
        validation.finite_scalar("bias_std", self.bias_std, at_least=0.0)

    def __repr__(self) -> str:
        numbers = {"weight_std": (self.weight_std, 1.0), "bias_std": (self.bias_std, 0.0)}
        more = {"stride": (self.stride, 1), "padding": (self.padding, "same"), "dilation": (self.dilation, 1)}
        texts = [written("", numbers)[1:-1], *(f"{name}={v!r}" for name, (v, usual) in more.items() if v != usual)]
        text = f"Conv({', '.join([repr(self.size), *filter(None, texts)])})"
        return text if self.trained else f"Frozen({text})"

    sitewise: ClassVar[bool] = False

    @property
    def dense(self) -> Dense:
        """Return the affine map of a whole patch."""
        return Dense(self.weight_std, self.bias_std, self.standard, self.trained)

    @property
    def placed(self) -> Windows:
        """Return the windows on the sites of the network's inputs. Raises: ValueError: no network has set them."""
        if self.windows is None:
            raise ValueError("a convolution works within wl.network(..., inputs=wl.Image(height, width, channels)).")
        return self.windows

    def place(self, sites: Sites, path: str) -> tuple[Conv, Sites]:
        found = windows(sites, self.size, self.stride, self.padding, self.dilation, path, "Conv")
        return changed(self, windows=found), sites._replace(sizes=found.after)

    def structure_after(self, structure: Structure) -> Structure:
        return self.placed.structure_after(structure)

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        size = self.placed.size
        drawn = self.dense.init(key, inputs * math.prod(size), outputs, dtype)
        return drawn | {"weight": drawn["weight"].reshape(outputs, *size, inputs)}

    def apply(self, params: Params, signals: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        placed, axes = self.placed, "DHW"[3 - len(self.placed.sites) :]
        weight, bias = self.dense.scales(signals.shape[-1] * placed.count, params["bias"].shape[-1])
        params = params if self.trained else jax.lax.stop_gradient(params)
        sums = jax.lax.conv_general_dilated(
            placed.padded(signals, 1),
            params["weight"],
            placed.stride,
            "VALID",
            rhs_dilation=placed.dilation,
            dimension_numbers=(f"N{axes}C", f"O{axes}I", f"N{axes}C"),
            precision="highest",
        )
        return jnp.asarray(weight * sums + bias * params["bias"])

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        mean, own, inverse = _mean_of_taps(self.placed, signal)
        after, memo = self.dense.encode(mean)
        return after, _ConvMemo(own, inverse, memo)

    def pair(self, x: _ConvMemo, y: _ConvMemo, state: PairState) -> PairState:
        given = *state.correlation, state.tangent
        one_minus, one_plus, tangent = self.placed.sum_patches(x[:2], y[:2], given)
        return self.dense.pair(x.dense, y.dense, PairState(Correlation(one_minus, one_plus), tangent))

    @property
    def numbers_per_input(self) -> int:
        return 4

    def count(self, shape: Shape) -> int:
        return int((shape[0] * self.placed.count + 1) * shape[1])

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        outputs, *size, own = np.shape(params["weight"])[axes:]
        fits = tuple(size) == self.placed.size and np.shape(params["bias"])[axes:] == (outputs,)
        if not fits or (inputs is not None and own != inputs):
            raise ValueError("sizes that do not fit")
        return int(outputs)

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        """Return a grid of deviations after the layer: patches at the rim are smaller, and every mixture occurs."""
        deviations = interpreted(deviation_of)(signal)
        smallest = deviations.min() / math.sqrt(self.placed.count if self.placed.padding == "same" else 1)
        grid = np.linspace(smallest, deviations.max(), len(deviations)) if len(deviations) > 1 else deviations
        return interpreted(_after_dense)(self.dense, interpreted(variance_of)(grid)), None

    def freeze(self) -> Conv:
        return changed(self, trained=False)

    def standardise(self) -> Conv:
        return changed(self, standard=True)


def _after_dense(dense: Dense, signal: Variance) -> Variance:
    return dense.encode(signal)[0]


def _mean_of_taps(placed: Windows, signal: Variance) -> tuple[Variance, jax.Array, jax.Array]:
    """Return the mean of the variances over each patch, and the first two of `_ConvMemo`."""
    highest = placed.highest(signal)
    below = jnp.where(signal.value > 0, signal.exponent - highest, 0)
    far = below < np.finfo(signal.value.dtype).minexp // 3
    ways = functools.partial(_by_patches, placed), functools.partial(_at_once, placed)
    mean, power, inverse = placed.choose(far, *ways, signal.value, below)
    return Variance(mean, power + highest).normalise(), relative_deviation(signal, highest), inverse


def _at_once(placed: Windows, value: jax.Array, below: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return mean, its exponent, and one over the root of the sum, from variances value * 4^below."""
    total = placed.total(value * power_of_two(2 * below, value.dtype))
    return (
        total / placed.count,
        jnp.zeros(total.shape, below.dtype),
        safe_divide(jnp.ones_like(total), safe_sqrt(total)),
    )


def _by_patches(placed: Windows, value: jax.Array, below: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Do the work of `_at_once` with an exponent for every patch, where a site is so dark that its square is 0."""
    lowest = -2 * EXPONENT_LIMIT
    powers = jnp.stack(list(placed.each(jnp.where(value > 0, below, lowest) - lowest, 0))) + lowest
    exponent = jnp.max(powers, axis=0)
    values = jnp.stack(list(placed.each(value, 0)))
    total = sum_terms(list(values * power_of_two(2 * (powers - exponent), values.dtype)))
    beside = jnp.clip(-exponent, 0, np.finfo(values.dtype).maxexp - 3)
    inverse = safe_divide(power_of_two(beside, values.dtype), safe_sqrt(total))
    return total / placed.count, jnp.where(total > 0, exponent, 0), inverse
