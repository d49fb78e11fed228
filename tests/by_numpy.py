"""Kernels of networks without XLA: for laws of which the programs are beside 60 digits in another test."""

import jax
import numpy as np

from widelimit.interpreter import interpreted
from widelimit.kernels.network import _Both


def gram(kernel, data):
    """K(X, X) in float64; its diagonal is the kernel's own."""
    X = kernel.net.inputs.rows("X", data)
    with jax.enable_x64():
        k = kernel.prepared(X)
        x = interpreted(_encode)(k, X)
        K = np.array(interpreted(_pairwise)(k, x))
        np.fill_diagonal(K, interpreted(_diagonal)(k, x))
    return K


def limits(net, data):
    """Sigma and Theta."""
    K = gram(_Both(net), data)
    return K.real, K.imag


def _encode(kernel, X):
    return kernel.encode(X)


def _pairwise(kernel, x):
    return kernel.pairwise(x, x, same=True)


def _diagonal(kernel, x):
    return kernel.diagonal(x)
