"""The layers of `widelimit.network`: each states its finite map and its infinite one."""

from widelimit.architecture.chain import Repeat, Serial
from widelimit.architecture.combine import Concatenate, Frozen, Residual, Sum
from widelimit.architecture.layers import Activate, Dense, Dropout, Scale
from widelimit.architecture.normalisation import LayerNorm
from widelimit.architecture.state import Layer

__all__ = [
    "Activate",
    "Concatenate",
    "Dense",
    "Dropout",
    "Frozen",
    "Layer",
    "LayerNorm",
    "Repeat",
    "Residual",
    "Scale",
    "Serial",
    "Sum",
]
