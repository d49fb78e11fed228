"""The layers of `widelimit.network`: each states its finite map and its infinite one."""

from widelimit.architecture.aggregation import Aggregate
from widelimit.architecture.attention import Attention
from widelimit.architecture.chain import Serial
from widelimit.architecture.combine import Frozen, Residual, Sum
from widelimit.architecture.concatenate import Concatenate
from widelimit.architecture.convolution import Conv
from widelimit.architecture.fixed_maps import Mix, Resize, Select
from widelimit.architecture.last_site import LastSite
from widelimit.architecture.layers import Activate, Dense, Dropout, Scale
from widelimit.architecture.locally_connected import LocallyConnected, MaxPool
from widelimit.architecture.normalisation import LayerNorm
from widelimit.architecture.pooling import AveragePool, Flatten, GlobalAveragePool, GlobalSumPool
from widelimit.architecture.positions import PositionalEncoding
from widelimit.architecture.product import Product
from widelimit.architecture.recurrent import Recurrent
from widelimit.architecture.repeat import Repeat
from widelimit.architecture.state import Layer

__all__ = [
    "Activate",
    "Aggregate",
    "Attention",
    "AveragePool",
    "Concatenate",
    "Conv",
    "Dense",
    "Dropout",
    "Flatten",
    "Frozen",
    "GlobalAveragePool",
    "GlobalSumPool",
    "LastSite",
    "Layer",
    "LayerNorm",
    "LocallyConnected",
    "MaxPool",
    "Mix",
    "PositionalEncoding",
    "Product",
    "Recurrent",
    "Repeat",
    "Residual",
    "Resize",
    "Scale",
    "Select",
    "Serial",
    "Sum",
]
