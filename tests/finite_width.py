"""Kernels of finite networks, given their hidden layers, and their errors against the limits."""

import jax
import numpy as np

from widelimit.claims.statistics import root_mean_and_error
from widelimit.layers import Serial


@jax.jit
def kernels(net, params, points):
    """K given the hidden layers, whose mean over last layers it is, and Theta by plain Jacobians, of one network."""
    given = net.inputs.read(points), net.inputs.structure(points)
    signals = Serial(*net.units[:-1]).apply_with(params[:-1], *given).reshape(len(points), -1)
    K = net.units[-1].weight_std ** 2 * signals @ signals.T / signals.shape[1] + net.units[-1].bias_std ** 2
    leaves = jax.tree.leaves(jax.jacrev(net.signals_of)(params, points))
    rows = [leaf.reshape(len(points), -1) for leaf in leaves]
    return K, sum(row @ row.T for row in rows)


def relative_errors(limits, widths):
    """rms over networks of the relative errors of K and Theta, and its standard error, (2, widths) each.

    `widths` yields, for each width, the kernels (K, Theta) of some networks.
    """
    found = []
    for networks in widths:
        squares = [
            [np.sum((np.asarray(K) - limit) ** 2) / np.sum(limit**2) for K, limit in zip(pair, limits, strict=True)]
            for pair in networks
        ]
        found.append([root_mean_and_error(column) for column in np.array(squares).T])
    return np.array(found).transpose(1, 2, 0)
