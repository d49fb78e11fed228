"""Before a layer that takes the mean off, activations are computed less their mean, where digits would be lost."""

from dataclasses import replace

from widelimit.architecture.chain import Combined, Serial
from widelimit.architecture.combine import Branches, Residual, Sum
from widelimit.architecture.layers import Activate
from widelimit.architecture.normalisation import LayerNorm
from widelimit.architecture.repeat import Repeat
from widelimit.architecture.state import Layer, Traits

_START = Traits(gaussian=True, centred=True, random=True)
_ONE_PART = (1.0,)


def less_means(body: Serial) -> Serial:
    """Return layers of the same kernels, with `Activation.less_mean` where a `LayerNorm` behind takes the mean off.

    The signals between may be scaled, and added to others: an input's constant remains one. Not where the width has
    parts of several laws, whose constants differ.
    """
    return Serial(*_walk(body.layers, _START, False)[0]) if _has_norm(body) else body


def _has_norm(layer: Layer) -> bool:
    return isinstance(layer, LayerNorm) or (isinstance(layer, Combined) and any(map(_has_norm, layer.inner)))


def _walk(layers: tuple[Layer, ...], before: Traits, free: bool) -> tuple[tuple[Layer, ...], bool]:
    """Return the layers, and True if a constant added before them is taken off; `free`: so it is after them."""
    given = [before]
    for layer in layers:
        given.append(layer.traits(given[-1], ""))
    found: list[Layer] = []
    for layer, traits in zip(reversed(layers), reversed(given[:-1]), strict=True):
        layer, free = _changed(layer, traits, free)
        found.append(layer)
    return tuple(reversed(found)), free


def _changed(layer: Layer, before: Traits, free: bool) -> tuple[Layer, bool]:
    one = before.shares == _ONE_PART
    if layer.multiple is not None:
        return layer, free
    if isinstance(layer, LayerNorm):
        return layer, one and layer.sites is None
    if isinstance(layer, Activate) and free and one:
        return replace(layer, activation=layer.activation.less_mean()), False
    if isinstance(layer, Repeat):
        return _in_block(layer, before, free and one)
    if isinstance(layer, Branches):
        free = free and one and isinstance(layer, (Residual, Sum)) and not layer.uncentred
        split = before._replace(random=False)
        return layer.with_parts([Serial(*_walk(part.layers, split, free)[0]) for part in layer.parts]), False
    return layer, False


def _in_block(layer: Repeat, before: Traits, free: bool) -> tuple[Layer, bool]:
    """Do the work of `_changed`: what the block ends with is read by itself and by what follows."""
    if layer.times > 1:
        if Serial(*layer.block).traits(before, "").shares != before.shares:
            return layer, False
        first = next((own for own in layer.block if own.multiple is None), None)
        free = free and isinstance(first, LayerNorm) and first.sites is None
    block, free = _walk(layer.block, before, free)
    return replace(layer, block=block), free
