"""Convolutions without shared weights, and pooling by maxima, which has no limit that can be computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.activations.base import Memo
from widelimit.architecture.convolution import Conv
from widelimit.architecture.layers import Affine
from widelimit.architecture.sites import Sites, pairs_of_equal_sites
from widelimit.architecture.state import Mean, PairState, Params, Ranges, Scalar, Shape
from widelimit.architecture.structure import Structure
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance


@final
@pytree
@dataclass(frozen=True, init=False)
class LocallyConnected(Affine):
    """The map is a -> weight_std/sqrt(taps channels) sum_t W_pt a(p + t) + bias_std b_p, other weights at every site p.

    Infinite width: Sigma(p, p) and Theta(p, p) are those of `Conv`, and 0 between two sites, which share no weights.
    Before `Flatten` it is `Conv` in the limit; an average over sites is another. Novak et al. 2019, arXiv 1810.05148.

    Args:
        size, weight_std, bias_std, stride, padding, dilation: as of `Conv`.
    """

    conv: Conv
    sitewise: ClassVar[bool] = False

    def __init__(
        self,
        size: int | tuple[int, ...],
        weight_std: Scalar = 1.0,
        bias_std: Scalar = 0.0,
        *,
        stride: int | tuple[int, ...] = 1,
        padding: str = "same",
        dilation: int | tuple[int, ...] = 1,
    ) -> None:
        object.__setattr__(self, "conv", Conv(size, weight_std, bias_std, stride, padding, dilation))

    def __repr__(self) -> str:
        return repr(self.conv).replace("Conv(", "LocallyConnected(", 1)

    def _of(self, conv: Conv) -> LocallyConnected:
        made = object.__new__(LocallyConnected)
        object.__setattr__(made, "conv", conv)
        return made

    def place(self, sites: Sites, path: str) -> tuple[LocallyConnected, Sites]:
        conv, after = self.conv.place(sites, path)
        return self._of(conv), after

    def structure_after(self, structure: Structure) -> Structure:
        return self.conv.structure_after(structure)

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        placed = self.conv.placed
        one = self.conv.dense.init
        keys = jax.random.split(key, int(np.prod(placed.after)))
        drawn = jax.vmap(lambda k: one(k, inputs * placed.count, outputs, dtype), out_axes=1)(keys)
        weight = drawn["weight"].reshape(outputs, *placed.after, placed.count, inputs)
        return {"weight": weight, "bias": drawn["bias"].reshape(outputs, *placed.after)}

    def apply(self, params: Params, signals: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        placed = self.conv.placed
        weight, bias = self.conv.dense.scales(signals.shape[-1] * placed.count, params["bias"].shape[-1])
        params = params if self.conv.trained else jax.lax.stop_gradient(params)
        taps = jnp.stack(list(placed.each(signals, 1)), axis=-2)  # (n, *S, taps, channels)
        sums = jnp.einsum("n...tc,o...tc->n...o", taps, params["weight"], precision="highest")
        return jnp.asarray(weight * sums + bias * jnp.moveaxis(params["bias"], 0, -1))

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return self.conv.encode(signal)

    def pair(self, x: Any, y: Any, state: PairState) -> PairState:
        after = self.conv.pair(x, y, state)
        if not self.conv.placed.across:
            return after
        own = pairs_of_equal_sites(self.conv.placed.after, after.tangent.ndim)
        sides = (jnp.where(own, side, 1) for side in after.correlation)
        return PairState(Correlation(*sides), jnp.where(own, after.tangent, 0))

    @property
    def numbers_per_input(self) -> int:
        return self.conv.numbers_per_input

    def count(self, shape: Shape) -> int:
        return self.conv.count(shape) * int(np.prod(self.conv.placed.after))

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        placed = self.conv.placed
        outputs, *own = np.shape(params["weight"])[axes:]
        fits = np.shape(params["bias"])[axes:] == (outputs, *placed.after)
        if not fits or own[:-1] != [*placed.after, placed.count] or inputs not in (None, own[-1]):
            raise ValueError("sizes that do not fit")
        return int(outputs)

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        return self.conv.survey(signal, mean, path, ranges)

    def freeze(self) -> LocallyConnected:
        return self._of(self.conv.freeze())

    def standardise(self) -> LocallyConnected:
        return self._of(self.conv.standardise())


def MaxPool(size: Any = 2, stride: Any = None, padding: str = "valid") -> NoReturn:
    """Raise ValueError: maxima of Gaussian signals have covariances that are integrals over both whole windows.

    E[max_i u_i max_j v_j] over two windows of 2 x 2 sites is an integral over 8 correlated Gaussians for each pair of
    sites of each pair of images, without a closed form.
    """
    raise ValueError(
        f"MaxPool is not supported: at infinite width the covariance of two maxima is an integral over all signals of "
        f"both windows (8 numbers for 2 x 2), for each pair of sites and of images, without a closed form. Use "
        f"wl.layers.AveragePool({size!r}, stride={stride!r}, padding={padding!r}), or a strided wl.layers.Conv."
    )
