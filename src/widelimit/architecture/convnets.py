"""Networks of images by name: plain, residual, and those of published results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from widelimit import validation
from widelimit.architecture.builders import AnyActivation, network
from widelimit.architecture.chain import branch_of
from widelimit.architecture.combine import Frozen, Residual, Sum
from widelimit.architecture.convolution import Conv
from widelimit.architecture.inputs import Image
from widelimit.architecture.layers import Dense
from widelimit.architecture.network import Network
from widelimit.architecture.pooling import AveragePool, Flatten, GlobalAveragePool
from widelimit.architecture.repeat import Repeat
from widelimit.architecture.state import DEEPEST, Layer, Scalar

End = Literal["flatten", "pool"]
ENDS = {"flatten": Flatten, "pool": GlobalAveragePool}
MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}
"""Convolutions before the first pool, the second, and the last."""
PUBLISHED = ("convnet", "residual", "resnet32")
MNIST, CIFAR = Image(28, 28, 1), Image(32, 32, 3)
HE = math.sqrt(2)
"""The weight_std that keeps the variance of relu signals."""


def convnet(
    *,
    inputs: Image,
    depth: int = 3,
    size: int | tuple[int, ...] = 3,
    activation: AnyActivation = "relu",
    weight_std: Scalar = HE,
    bias_std: Scalar = 0.0,
    padding: str = "same",
    end: End = "flatten",
    parameterization: str = "ntk",
) -> Network:
    """f = affine o end o (phi o conv)^depth, a plain convolutional network.

    Args:
        inputs: `Image(height, width, channels)`.
        depth: >= 1, the number of convolutions; the dense layer at the end is one more affine layer.
        size: sites of a patch along each axis, as in `layers.Conv`.
        activation: a name, an `Activation` or a function, as in `mlp`.
        weight_std: sigma_w > 0 of all affine layers; sqrt(2) keeps the variance of relu signals.
        bias_std: beta >= 0 of all affine layers.
        padding: "same", "valid" or "circular".
        end: "flatten" (a weight for every site: kernels cost one number a site), or "pool" (the average over all sites:
            invariant to small shifts, and kernels cost one number for each pair of sites).
        parameterization: as in `mlp`.

    Raises:
        ValueError, TypeError: as `network`.
    """
    depth = validation.integer("depth", depth, at_least=1, below=DEEPEST)
    dense, phi = _affine(weight_std, bias_std, end), _activate(activation)
    conv = Conv(size, dense.weight_std, dense.bias_std, padding=padding)
    again = (Repeat((phi, conv), depth - 1),) if depth > 1 else ()
    return network(conv, *again, phi, ENDS[end](), dense, inputs=inputs, parameterization=parameterization)


def resnet(
    *,
    inputs: Image,
    blocks: Sequence[int] = (1, 1, 1),
    size: int | tuple[int, ...] = 3,
    activation: AnyActivation = "relu",
    weight_std: Scalar = HE,
    bias_std: Scalar = 0.0,
    end: End = "flatten",
    parameterization: str = "ntk",
) -> Network:
    """f = affine o end o phi o stages o conv; a block is a -> a + conv(phi(conv(phi(a)))).

    Pre-activation, He et al. 2016, arXiv 1603.05027. The first block of a stage has a convolution of size 1 in the
    place of the identity; from the second stage on it takes every second site.

    Args:
        inputs: `Image(height, width, channels)`.
        blocks: the number of blocks of each stage, >= 1; (5, 5, 5) is ResNet-32.
        size: sites of a patch along each axis.
        activation: as in `convnet`.
        weight_std: sigma_w > 0 of all affine layers.
        bias_std: beta >= 0 of all affine layers.
        end: as in `convnet`.
        parameterization: as in `mlp`.

    Raises:
        ValueError, TypeError: as `network`.
    """
    dense, phi = _affine(weight_std, bias_std, end), _activate(activation)
    layers = [*_stages(blocks, size, phi, dense), phi, ENDS[end](), dense]
    return network(*layers, inputs=inputs, parameterization=parameterization)


def myrtle(
    depth: int,
    *,
    inputs: Image = CIFAR,
    activation: AnyActivation = "relu",
    weight_std: Scalar = HE,
    bias_std: Scalar = 0.0,
    parameterization: str = "ntk",
) -> Network:
    """f = affine o average o (phi o conv)^c o pool o (phi o conv)^b o pool o (phi o conv)^a, Myrtle-5, -7 or -10.

    Convolutions of size 3, pools of 2 x 2; for 32 x 32 the last average is three more pools. Shankar et al. 2020, arXiv
    2003.02237.

    Args:
        depth: 5, 7 or 10: (a, b, c) is (2, 1, 1), (2, 2, 2) or (3, 3, 3).
        inputs: `Image(height, width, channels)`, at least 4 sites along each axis.
        activation: as in `convnet`.
        weight_std: sigma_w > 0 of all affine layers.
        bias_std: beta >= 0 of all affine layers.
        parameterization: as in `mlp`.

    Raises:
        ValueError, TypeError: another depth; as `network`.
    """
    if validation.integer("depth", depth, at_least=1) not in MYRTLE:
        raise ValueError(f"depth must be one of {', '.join(map(str, MYRTLE))}, got {validation.shown(depth)}.")
    dense, phi = _affine(weight_std, bias_std, "pool"), _activate(activation)
    conv, layers = Conv(3, dense.weight_std, dense.bias_std), []
    for count in MYRTLE[depth]:
        layers += [*(conv, phi) * count, AveragePool(2)]
    return network(*layers[:-1], GlobalAveragePool(), dense, inputs=inputs, parameterization=parameterization)


def garriga_alonso_2019(name: str, *, inputs: Image = MNIST, uncentred_sums: bool = False) -> Network:
    """Return a network with which Garriga-Alonso et al. 2019, arXiv 1808.05587, classify MNIST, its numbers included.

    Args:
        name: "convnet": 7 convolutions of 7 x 7 (published test error with `nngp`, 50,000 rows: 1.03 %). "residual": 8
            times a + relu(conv(a)) with 4 x 4 (0.96 %). "resnet32": `resnet` with blocks (5, 5, 5), then a convolution
            of all sites (0.84 %); strided patches are padded as XLA does, at the end, where the authors' begin one site
            earlier.
        inputs: `Image(height, width, channels)`.
        uncentred_sums: of "residual": relu signals have a mean, and the published kernel adds second moments as if they
            had none. True is that kernel, which is the limit of no network (`layers.Sum`); False is the limit. A frozen
            convolution of size 1 makes channels of the image first, as many as the sum needs.

    Raises:
        ValueError, TypeError: another name; `uncentred_sums` of a network that has no such sums; as `network`.
    """
    validation.choice("name", name, PUBLISHED)
    if validation.flag("uncentred_sums", uncentred_sums) and name != "residual":
        raise ValueError(f'uncentred_sums is for "residual", whose sums follow relu; leave it out of {name!r}.')
    if not isinstance(inputs, Image):
        raise TypeError(f"inputs must be wl.Image(height, width, channels), got {validation.shown(inputs)}.")
    if name == "convnet":
        weight, bias = math.sqrt(2.79), math.sqrt(7.86)
        conv, end = Conv(7, 7 * weight, bias), Dense(weight, bias)
        return network(conv, "relu", Repeat((conv, _activate("relu")), 6), Flatten(), end, inputs=inputs)
    if name == "residual":
        weight, bias = math.sqrt(7.27), math.sqrt(4.69)
        conv, end = Conv(4, 4 * weight, bias), Dense(weight, bias)
        block = Residual(conv, "relu", uncentred=uncentred_sums)
        return network(Frozen(Conv(1)), Repeat((block,), 8), conv, "relu", Flatten(), end, inputs=inputs)
    last = Conv(tuple(-(-n // 4) for n in inputs.sites), padding="valid")
    return network(*_stages((5, 5, 5), 3, _activate("relu"), Dense()), last, "relu", Flatten(), Dense(), inputs=inputs)


def _activate(activation: AnyActivation) -> Layer:
    """Return the layer of an activation. Raises: TypeError, ValueError: none."""
    return branch_of([activation], "activation")[0]


def _affine(weight_std: Any, bias_std: Any, end: Any) -> Dense:
    """Return the last layer. Raises: TypeError, ValueError: the scales, or no such end."""
    validation.choice("end", end, tuple(ENDS))
    return Dense(validation.deviation("weight_std", weight_std), validation.deviation("bias_std", bias_std, zero=True))


def _stages(blocks: Any, size: Any, phi: Layer, dense: Dense) -> list[Any]:
    """Return the layers of a residual network up to its last block."""
    if not isinstance(blocks, (list, tuple)) or not blocks:
        raise TypeError(
            f"blocks must be the number of blocks of each stage, as (2, 2, 2); got {validation.shown(blocks)}."
        )
    scales = dense.weight_std, dense.bias_std
    conv = Conv(size, *scales)
    layers: list[Any] = [conv]
    for i, count in enumerate(blocks):
        count, stride = validation.integer(f"blocks[{i}]", count, at_least=1, below=DEEPEST), 1 if i == 0 else 2
        layers += [phi, Sum([Conv(1, *scales, stride=stride)], [Conv(size, *scales, stride=stride), phi, conv])]
        layers += [Repeat((Residual(phi, conv, phi, conv),), count - 1)] if count > 1 else []
    return layers
