"""Kernels of images are averaged over mirror images and small shifts: `averaged`."""

from __future__ import annotations

import itertools
from dataclasses import field, replace
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.architecture.chain import Combined
from widelimit.architecture.convolution import Conv
from widelimit.architecture.inputs import Image
from widelimit.architecture.pooling import AveragePool
from widelimit.architecture.state import Layer
from widelimit.compute.tiles import PairKernel
from widelimit.kernels.base import Kernel, require_kernel
from widelimit.kernels.network import NNGP, NTK
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.validation import Array


@final
@pytree
class Averaged(Kernel):
    """K(x, x') = mean over g and h of k(g x, h x'), g and h the moves of an image; made by `averaged`.

    `once`: the moves are the identity and the mirror image, and k(g x, g x') = k(x, x'), so that the mean over g of
    k(g x, x') is the same.
    """

    kernel: PairKernel
    image: Image = field(metadata={"static": True})
    flips: bool = field(metadata={"static": True})
    shifts: int = field(metadata={"static": True})
    once: bool = field(metadata={"static": True})

    @property
    def operands(self) -> tuple[PairKernel, ...]:
        return (self.kernel,)

    @property
    def count(self) -> int:
        """Return the number of moves."""
        return int((1 + self.flips) * (2 * self.shifts + 1) ** len(self.image.sites))

    def numbers_per_input(self, d: int) -> int:
        return self.count * self.kernel.numbers_per_input(d)

    @property
    def numbers_per_pair(self) -> int:
        return self.count * (1 if self.once else self.count) * self.kernel.numbers_per_pair

    def prepared(self, *inputs: Float[Array, "n d"]) -> PairKernel:
        if not isinstance(self.kernel, Kernel | NNGP | NTK) or validation.traced(*inputs):
            return self
        blank = [np.zeros((1, self.image.size), inputs[0].dtype)] if self.shifts else []
        return replace(self, kernel=self.kernel.prepared(*inputs, *blank))

    def _moved(self, X: jax.Array) -> jax.Array:
        """Return all moves of every row, (n, count, d), the row itself first if there are no shifts."""
        images, margin = self.image.read(X), (self.shifts, self.shifts)
        starts = [[slice(k, k + size) for k in range(2 * self.shifts + 1)] for size in self.image.sites]
        found = []
        for mirrored in (images, jnp.flip(images, -2))[: 1 + self.flips]:
            padded = jnp.pad(mirrored, [(0, 0), *[margin] * len(starts), (0, 0)])
            found += [padded[:, *at].reshape(X.shape) for at in itertools.product(*starts)]
        return jnp.stack(found, axis=1)

    def encode(self, X: Float[jax.Array, "n d"]) -> Any:
        features = self.kernel.encode(self._moved(X).reshape(-1, X.shape[1]))
        return jax.tree.map(lambda leaf: leaf.reshape(len(X), self.count, *leaf.shape[1:]), features)

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        y = jax.tree.map(lambda leaf: leaf[:, :1], y) if self.once else y
        one, other = (jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), side) for side in (x, y))
        values = self.kernel.pairwise(one, other)
        blocks = values.reshape(len(values) // self.count, self.count, -1, 1 if self.once else self.count)
        return jnp.mean(blocks, axis=(1, 3))

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        def itself(one: Any) -> Any:
            return self.pairwise(*[jax.tree.map(lambda leaf: leaf[None], one)] * 2)[0, 0]

        if not self.eager:
            return jnp.asarray(jax.lax.map(itself, x))
        rows = range(len(jax.tree.leaves(x)[0]))
        return jnp.stack([itself(jax.tree.map(lambda leaf: leaf[i], x)) for i in rows])  # noqa: B023


def averaged(k: Kernel, *, flips: bool = False, shifts: int = 0) -> Averaged:
    """K(x, x') = mean over g and h of k(g x, h x'): the kernel of f(x) averaged over mirror images and small shifts.

    f ~ GP(0, k) gives mean_g f(g x) ~ GP(0, K), whose draws hardly change when an image is mirrored or moved. Haasdonk
    and Burkhardt 2007, Machine Learning 68; Li et al. 2019, arXiv 1911.00809.

    Args:
        k: a kernel of a network of images; or a sum, a product or a multiple with one in it.
        flips: True: an image and its mirror image, left and right (the last axis of sites). They are a group, so that
            a network whose layers do not tell left from right (patches of odd size and stride 1) costs 2 kernels a
            pair: k(x, x') and k(g x, x'); others cost 4.
        shifts: s >= 0: shifts by up to s sites along each axis, zeros moving in. They are no group, so that a pair
            costs (2 s + 1)^4 kernels (two axes), 4 times as many with flips.

    Raises:
        TypeError, ValueError: not a kernel, or none of images; no flips and no shifts; shifts of a whole image.
    """
    image = _image(require_kernel(k))
    flips, shifts = validation.flag("flips", flips), validation.integer("shifts", shifts, at_least=0)
    if not flips and not shifts:
        raise ValueError("averaged needs flips=True, or shifts >= 1: there is nothing to average over.")
    if shifts >= min(image.sites):
        raise ValueError(f"shifts={shifts} moves all of an image of {image.sites} sites out of sight; choose fewer.")
    once = not shifts and isinstance(k, NNGP | NTK) and all(map(_symmetric, _leaves(k.net.whole)))
    return Averaged(k, image, flips, shifts, once)


def _image(k: PairKernel) -> Image:
    """Return the images that a kernel reads. Raises: ValueError: none."""
    if isinstance(k, NNGP | NTK) and isinstance(k.net.inputs, Image):
        return k.net.inputs
    for part in k.operands:
        return _image(part)
    raise ValueError("averaged needs the kernel of a network of images: wl.nngp(wl.convnet(inputs=wl.Image(8, 8, 1))).")


def _leaves(layer: Layer) -> list[Layer]:
    found: list[Layer] = []

    def visit(inner: Layer, path: tuple[Any, ...]) -> Layer:
        found.append(inner)
        return inner.map_layers(visit, path) if isinstance(inner, Combined) else inner

    visit(layer, ())
    return found


def _symmetric(layer: Layer) -> bool:
    """Return True if windows along the last axis of sites fall on windows when it is mirrored."""
    if not isinstance(layer, Conv | AveragePool):
        return True
    placed = layer.placed
    (low, high), sites, stride = placed.margins[-1], placed.sites[-1], placed.stride[-1]
    return low == high and sites + low + high - placed.reach[-1] == (placed.after[-1] - 1) * stride
