"""Training data as every inference takes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.kernels.base import Kernel
from widelimit.validation import Array


class TrainingSet(NamedTuple):
    """Validated training data: X (n, d) and y (n, c) in float64; `single` says that y came as (n,)."""

    kernel: Kernel
    X: np.ndarray
    y: np.ndarray
    single: bool

    def inputs(self, Z: Any) -> np.ndarray:
        """Test inputs (m, d) in float64, checked against X."""
        Z = validation.points("Z", validation.concrete("Z", Z))
        validation.same_features("Z", Z, "X", self.X)
        return np.asarray(Z, np.float64)

    def gram(self) -> np.ndarray:
        """K(X, X), (n, n), checked: a kernel that leaves float64's range is refused."""
        diagonal = np.asarray(self.kernel.diag(self.X))
        if not np.isfinite(diagonal).all():
            raise ValueError(f"K(x, x) is {diagonal.max()} at row {int(np.argmax(diagonal))} of X; scale X down.")
        if not diagonal.any() and self.X.any():
            raise ValueError("K(x, x) underflows to 0 at every row of X; scale X up.")
        return np.asarray(self.kernel.gram(self.X))

    def cross(self, points: np.ndarray) -> np.ndarray:
        """K(Z, X) for (m, d) test inputs, (m, n)."""
        return np.asarray(self.kernel.cross(points, self.X))

    def outputs(self, values: np.ndarray, Z: Any) -> Array:
        """(..., c) results without the last axis if y had none, as a JAX array where Z is one."""
        return like(values[..., 0] if self.single else values, Z)


def like(values: np.ndarray, Z: Any) -> Array:
    """The values as a JAX array where Z is one (of its dtype), else as they are."""
    if not validation.is_jax(Z):
        return values
    with jax.enable_x64(Z.dtype == np.float64):
        return jnp.asarray(values, Z.dtype)


def training_set(kernel: Kernel, X: Any, y: Any) -> TrainingSet:
    """Check everything that training needs. Raises: TypeError, ValueError, as `Kernel.gram`."""
    if not isinstance(kernel, Kernel):
        raise TypeError(f"a kernel is needed, e.g. wl.nngp(net) or wl.ntk(net); got {type(kernel).__name__}.")
    X = np.asarray(validation.points("X", validation.concrete("X", X)), np.float64)
    targets = validation.targets("y", y, len(X))
    return TrainingSet(kernel, X, targets.reshape(len(X), -1), targets.ndim == 1)
