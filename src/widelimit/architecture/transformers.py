"""Transformers are built by name."""

from __future__ import annotations

import math
from typing import Any, Literal

from widelimit import validation
from widelimit.architecture.attention import Attention
from widelimit.architecture.builders import AnyActivation, network
from widelimit.architecture.chain import branch_of
from widelimit.architecture.combine import Residual
from widelimit.architecture.convnets import HE
from widelimit.architecture.last_site import LastSite
from widelimit.architecture.layers import Dense, Scale
from widelimit.architecture.network import Network
from widelimit.architecture.normalisation import LayerNorm
from widelimit.architecture.pooling import Flatten, GlobalAveragePool
from widelimit.architecture.positions import PositionalEncoding
from widelimit.architecture.repeat import Repeat
from widelimit.architecture.state import DEEPEST, Layer, Scalar

ENDS: dict[str, Any] = {"pool": GlobalAveragePool, "last": LastSite, "flatten": Flatten}


def transformer(
    *,
    inputs: Any,
    depth: int = 2,
    scores: str = "softmax",
    scaling: str = "d",
    activation: AnyActivation = "relu",
    norm: Literal["pre", "post"] = "pre",
    positions: Any = "sinusoidal",
    position_std: Scalar = 1.0,
    causal: bool = False,
    end: Literal["pool", "last", "flatten"] = "pool",
    branch_scale: Literal["one", "depth"] = "one",
    query_std: Scalar = 1.0,
    key_std: Scalar = 1.0,
    value_std: Scalar = 1.0,
    output_std: Scalar = 1.0,
    weight_std: Scalar = HE,
    bias_std: Scalar = 0.0,
    heads: int | None = None,
    head_size: int | None = None,
) -> Network:
    """f = affine o end o blocks o (a -> a + encoding) o affine; a block is attention, then two affine layers.

    norm="pre": a -> a + attention(LayerNorm(a)), a -> a + affine(phi(affine(LayerNorm(a)))), and a LayerNorm after the
    last block. norm="post": LayerNorm(a + attention(a)), LayerNorm(a + affine(phi(affine(a)))), as Vaswani et al. 2017.

    Args:
        inputs: `Sequence(length, features)`, or `Image` with positions that fit.
        depth: number of blocks, >= 1.
        scores: as in `layers.Attention`, and so are scaling and causal.
        scaling: "d" or "sqrt_d".
        activation: activation of the affine layers, as in `mlp`.
        norm: "pre" or "post".
        positions: as encoding of `layers.PositionalEncoding`; None: attention sees sets.
        position_std: std of that encoding.
        causal: sites read no later ones.
        end: "pool" (the average over all sites), "last" (the last site that is there), "flatten" (weights for each).
        branch_scale: "one", or "depth": 1/sqrt(2 depth) of every branch, whose kernels have a limit with the depth.
        query_std: of attention, and so are key_std, value_std and output_std.
        key_std: > 0.
        value_std: > 0.
        output_std: > 0.
        weight_std: sigma_w > 0 of all affine layers.
        bias_std: beta >= 0 of all affine layers and of attention.
        heads: number of heads of finite networks, as in `layers.Attention`.
        head_size: size of a head of finite networks.

    Raises:
        ValueError, TypeError: as `network` and the layers.
    """
    depth = validation.integer("depth", depth, at_least=1, below=DEEPEST)
    choices = ("norm", norm, ("pre", "post")), ("end", end, ENDS), ("branch_scale", branch_scale, ("one", "depth"))
    for name, value, allowed in choices:
        validation.choice(name, value, tuple(allowed))
    validation.deviation("position_std", position_std)
    dense = Dense(validation.deviation("weight_std", weight_std), validation.deviation("bias_std", bias_std, zero=True))
    attention = Attention(
        scores, scaling, query_std, key_std, value_std, output_std, bias_std, causal, heads=heads, head_size=head_size
    )
    scale = (Scale(1 / math.sqrt(2 * depth)),) if branch_scale == "depth" else ()
    branches = ((attention, *scale), (dense, *branch_of([activation], "activation"), dense, *scale))
    if norm == "pre":
        block: tuple[Layer, ...] = tuple(Residual(LayerNorm(), *branch) for branch in branches)
    else:
        block = tuple(layer for branch in branches for layer in (Residual(*branch), LayerNorm()))
    places = () if positions is None else (PositionalEncoding(positions, position_std),)
    last = (LayerNorm(),) if norm == "pre" else ()
    return network(dense, *places, Repeat(block, depth), *last, ENDS[end](), dense, inputs=inputs)
