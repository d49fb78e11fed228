"""The positive numbers of a kernel are the hyper-parameters that another library learns."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from widelimit import validation
from widelimit.inference.coordinates import LeafBuilder, leaf_builder
from widelimit.kernels.base import Kernel


def learned(k: Kernel, fixed: Sequence[str]) -> tuple[LeafBuilder, dict[str, Any], dict[str, np.ndarray]]:
    """Return a function from leaves to the kernel, all leaves, and those to learn in float64, both by name.

    Learned are numbers and vectors that are positive and not in `fixed`: of a network weight_std and bias_std of its
    layers (a bias of 0 stays), of `scale_inputs` its scales.

    Raises:
        TypeError: k is no kernel; fixed is no sequence of names.
        ValueError: fixed has an unknown name.
    """
    if not isinstance(k, Kernel):
        raise TypeError(f"a kernel is needed, e.g. wl.nngp(net) or wl.ntk(net); got {validation.shown(k)}.")
    if not isinstance(fixed, (tuple, list, set)) or not all(isinstance(name, str) for name in fixed):
        raise TypeError(f"fixed must be a sequence of names, got {validation.shown(fixed)}.")
    builder, leaves = leaf_builder(k)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves.values()):
        raise TypeError("the numbers of this kernel are traced: make the kernel outside of jax.jit and jax.grad.")
    arrays = {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}
    found = {name: array for name, array in arrays.items() if array.ndim < 2 and array.size and (array > 0).all()}
    if unknown := sorted(set(fixed) - set(found)):
        raise ValueError(f"fixed names {unknown}; the hyper-parameters are {list(found)}.")
    return builder, leaves, {name: array for name, array in found.items() if name not in fixed}
