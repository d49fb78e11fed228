"""Graph networks by name: aggregation, layers at every node, a readout."""

from __future__ import annotations

import math
from typing import Any, Literal

from widelimit import validation
from widelimit.architecture.aggregation import Aggregate, Normalize
from widelimit.architecture.builders import AnyActivation, network
from widelimit.architecture.chain import Serial, branch_of
from widelimit.architecture.combine import Frozen, Sum
from widelimit.architecture.convnets import HE
from widelimit.architecture.layers import Dense
from widelimit.architecture.network import Network
from widelimit.architecture.pooling import GlobalAveragePool, GlobalSumPool
from widelimit.architecture.sequences import Graph
from widelimit.architecture.state import DEEPEST, Layer, Scalar

READOUTS = {"sum": GlobalSumPool, "mean": GlobalAveragePool}
SCALES: dict[str, Normalize] = {"uniform": None, "degree": "mean"}
MOST_BLOCKS = 40
"""Blocks of a network whose readouts are added: each stands in a branch of the one before."""


def gnn(
    *,
    inputs: Graph,
    blocks: int = 2,
    mlp_layers: int = 1,
    activation: AnyActivation = "relu",
    weight_std: Scalar = HE,
    bias_std: Scalar = 0.0,
    normalize: Normalize = "mean",
    self_loops: bool = True,
    readout: Literal["sum", "mean"] = "sum",
    jumping_knowledge: bool = False,
    parameterization: str = "ntk",
) -> Network:
    """f = affine o readout o ((phi o affine)^mlp_layers o aggregate)^blocks, a graph network.

    Args:
        inputs: `Graph(nodes, features)`.
        blocks: >= 1, the number of aggregations, each followed by `mlp_layers` >= 1 dense layers at every node.
        mlp_layers: see there.
        activation: a name, an `Activation` or a function, as in `mlp`.
        weight_std: sigma_w > 0 of all affine layers; bias_std: beta >= 0.
        bias_std: see there.
        normalize: as in `layers.Aggregate`, and so is `self_loops`; None is a sum over neighbours (GIN, Xu et al.
            2019, arXiv 1810.00826), "symmetric" that of Kipf and Welling 2017.
        self_loops: see there.
        readout: "sum" or "mean" over the nodes.
        jumping_knowledge: the readouts of all blocks are added before the last layer, not that of the last block alone
            (Xu et al. 2018, arXiv 1806.03536).
        parameterization: as in `mlp`.

    Raises:
        ValueError, TypeError: as `network`; `inputs` are no graphs; a readout by attention, which has no limit.
    """
    _require_graphs(inputs)
    if str(readout) == "attention":
        raise ValueError(
            'readout="attention" has no closed limit: random scores of the nodes weigh all channels alike, and the sum '
            'is not Gaussian; take "sum" or "mean", behind layers.Attention() (docs/sequences_and_graphs.md).'
        )
    validation.choice("readout", readout, tuple(READOUTS))
    dense = Dense(validation.deviation("weight_std", weight_std), validation.deviation("bias_std", bias_std, zero=True))
    per_node = [dense, branch_of([activation], "activation")[0]]
    times = validation.integer("mlp_layers", mlp_layers, at_least=1, below=DEEPEST)
    block = [Aggregate(normalize=normalize, self_loops=self_loops), *per_node * times]
    end = READOUTS[readout]()
    body = _blocks(block, block, end, _count(blocks, jumping_knowledge), jumping_knowledge)
    return network(*body, dense, inputs=inputs, parameterization=parameterization)


def du_2019(
    *,
    inputs: Graph,
    blocks: int = 2,
    mlp_layers: int = 1,
    scale: Literal["uniform", "degree"] = "degree",
    jumping_knowledge: bool = True,
) -> Network:
    """Return the network whose `ntk` is the GNTK of Du et al. 2019, arXiv 1905.13192, in the scaling of their code.

    Relu with weight_std sqrt(2), inputs x.x' without a division by the number of features, a readout by sums of affine
    signals, and twice the kernel; `jumping_knowledge` adds the kernels of the readouts of all blocks and of the inputs.
    The finite network has independent signals at the readouts, which are added.

    Args:
        inputs: `Graph(nodes, features)`; pass adjacencies without self loops, which the network adds.
        blocks: >= 1, aggregations; their `num_layers` is blocks + 1.
        mlp_layers: >= 1, dense layers of a block.
        scale: scale of the sum over neighbours, "uniform" (1) or "degree" (1 / the number of neighbours and the node).
        jumping_knowledge: see above.

    Raises:
        ValueError, TypeError: as `gnn`.
    """
    _require_graphs(inputs)
    validation.choice("scale", scale, tuple(SCALES))
    aggregate, he = Aggregate(normalize=SCALES[scale]), Dense(HE)
    first, relu = Dense(math.sqrt(inputs.features)), branch_of(["relu"], "activation")[0]
    layers = [relu, he] * validation.integer("mlp_layers", mlp_layers, at_least=1, below=DEEPEST)
    count = _count(blocks, jumping_knowledge)
    body = _blocks([aggregate, first, *layers], [aggregate, *layers], GlobalSumPool(), count, jumping_knowledge)
    if jumping_knowledge:
        body = [Sum([GlobalSumPool(), first], body)]
    return network(*body, Frozen(he), inputs=inputs)


def _require_graphs(inputs: Any) -> None:
    if not isinstance(inputs, Graph):
        raise TypeError(f"inputs must be wl.Graph(nodes, features), got {validation.shown(inputs)}.")


def _count(blocks: Any, jumping_knowledge: Any) -> int:
    most = MOST_BLOCKS if validation.flag("jumping_knowledge", jumping_knowledge) else DEEPEST
    return validation.integer("blocks", blocks, at_least=1, below=most)


def _blocks(first: list[Any], block: list[Any], end: Layer, count: int, summed: bool) -> list[Any]:
    """Return blocks and the readout, of the last or of every block: the others stand in a branch beside a readout."""
    if not summed:
        return [*first, *block * (count - 1), end]
    rest: list[Any] = [end]
    for own in [block] * (count - 1):
        rest = [Sum([end], Serial(*own, *rest))]
    return [*first, *rest]
