"""A convolution is an affine map of patches: they are made of the images when they are multiplied, not before."""

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch

from widelimit.kernels.empirical.factors import Affine


class Windows(NamedTuple):
    """The numbers say how a convolution moves its kernel, one an axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@final
@dataclass(frozen=True)
class Patched:
    """The parameter is the kernel of a convolution: images (n, channels, ...), backward signals G (n, c, S, O)."""

    signals: torch.Tensor
    backward: torch.Tensor
    windows: Windows

    def affine(self) -> Affine:
        """Return the factor with its patches, (n, S, I)."""
        return Affine(patches(self.windows, self.signals).flatten(2), self.backward)


def patches(windows: Windows, images: torch.Tensor) -> torch.Tensor:
    """Return the patches under a convolution's kernel, (n, S, channels, kernel); images without rows are as one."""
    w = windows
    axes = len(w.kernel)
    padding = [side for pair in zip(reversed(w.before), reversed(w.after), strict=True) for side in pair]
    x = torch.nn.functional.pad(images, padding) if any(padding) else images
    if x.ndim == 2 + axes:  # one input without an axis of rows
        x = x[:, None]
    sizes, strides = x.shape[-axes:], x.stride()
    places = [
        (size - d * (k - 1) - 1) // s + 1 for size, d, k, s in zip(sizes, w.dilation, w.kernel, w.stride, strict=True)
    ]
    moves = [s * own for s, own in zip(w.stride, strides[-axes:], strict=True)]
    inside = [d * own for d, own in zip(w.dilation, strides[-axes:], strict=True)]
    shape = (*x.shape[:2], *places, x.shape[2], math.prod(w.kernel))
    view = x.as_strided(
        (*x.shape[:2], *places, x.shape[2], *w.kernel), (*strides[:2], *moves, strides[2], *inside)
    ).reshape(shape)
    return view.flatten(1, 1 + axes)
