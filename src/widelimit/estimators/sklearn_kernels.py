"""Kernels of this library become kernels of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.gaussian_process.kernels import Hyperparameter
from sklearn.gaussian_process.kernels import Kernel as ScikitKernel

from widelimit import lossless, memory, validation
from widelimit.arithmetic import arithmetic
from widelimit.inference.coordinates import leaf_builder
from widelimit.kernels.base import Kernel

STEP = 1e-4
"""Step of central differences in the logarithm: truncation error 1e-8; the tables' error of 1e-10 becomes 1e-6."""


class _Entry(NamedTuple):
    """A hyper-parameter is one number of a leaf of a kernel, flattened."""

    leaf: str
    place: int
    value: float


def _entries(kernel: Kernel) -> dict[str, _Entry]:
    """Find every number in the kernel's leaves, by path; matrices are data, not hyper-parameters."""
    found: dict[str, _Entry] = {}
    for name, leaf in leaf_builder(kernel)[1].items():
        values = np.asarray(leaf, np.float64)
        if values.ndim < 2:
            label = "{}" if values.ndim == 0 else "{}[{}]"
            found |= {label.format(name, j): _Entry(name, j, float(v)) for j, v in enumerate(values.ravel())}
    return found


def _with_values(kernel: Kernel, names: tuple[str, ...], values: np.ndarray) -> Kernel:
    builder, leaves = leaf_builder(kernel)
    arrays, entries = {name: np.array(leaf, np.float64) for name, leaf in leaves.items()}, _entries(kernel)
    for name, value in zip(names, values, strict=True):
        arrays[entries[name].leaf].flat[entries[name].place] = value
    return builder(**{name: array if array.ndim else float(array) for name, array in arrays.items()})


@jax.jit
def _slope(kernel: Kernel, tangent: Kernel, X: jax.Array) -> jax.Array:
    """Compute d K(X, X) along a direction in the space of hyper-parameters."""
    derivative: jax.Array = jax.jvp(lambda k: k.gram(X), (kernel,), (tangent,))[1]
    return derivative


@final
class SklearnKernel(ScikitKernel):
    """A `widelimit.Kernel` becomes a `sklearn.gaussian_process.kernels.Kernel`; made by `sklearn_kernel`.

    `values` are the free hyper-parameters and `names` their names; theta is log(values), as in scikit-learn.
    """

    def __init__(
        self, kernel: Kernel, names: tuple[str, ...], values: Any, values_bounds: Any, gradient: str = "autodiff"
    ) -> None:
        self.kernel = kernel
        self.names = names
        self.values = values
        self.values_bounds = values_bounds
        self.gradient = gradient

    @property
    def hyperparameter_values(self) -> Hyperparameter:
        """Return all free hyper-parameters, one vector."""
        return Hyperparameter("values", "numeric", self.values_bounds, len(self.names))

    @property
    def current(self) -> Kernel:
        """Return the kernel at `values`."""
        return self._at(np.atleast_1d(np.asarray(self.values, np.float64)))

    def _at(self, values: np.ndarray) -> Kernel:
        return _with_values(self.kernel, self.names, values)

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """Compute K(X, Y), (n, m), Y = X unless given; with `eval_gradient` also d K(X, X)/d theta, (n, n, p)."""
        X = _table(X)
        if Y is not None:
            if eval_gradient:
                raise ValueError("the gradient is that of K(X, X): leave Y out.")
            return np.asarray(self.current.cross(X, _table(Y)))
        matrix = np.asarray(self.current.gram(X))
        return (matrix, self._gradient(X)) if eval_gradient else matrix

    def _gradient(self, X: np.ndarray) -> np.ndarray:
        values = np.atleast_1d(np.asarray(self.values, np.float64))
        memory.require(8.0 * len(values) * len(X) ** 2, f"derivatives of a {len(X)} x {len(X)} kernel matrix")
        out = np.empty((len(X), len(X), len(values)))
        for i in range(len(values)):
            unit = np.eye(len(values))[i]
            if self.gradient == "autodiff":
                out[..., i] = values[i] * self._derivative(values, unit, X)
            else:
                up, down = (self._at(values * np.exp(step * unit)).gram(X) for step in (STEP, -STEP))
                out[..., i] = (np.asarray(up) - np.asarray(down)) / (2 * STEP)
        return out

    def _derivative(self, values: np.ndarray, unit: np.ndarray, X: np.ndarray) -> np.ndarray:
        with arithmetic(True):
            kernel = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), self._at(values))
            still = jax.tree.map(np.zeros_like, self.kernel)
            direction = _with_values(still, self.names, unit)
            tangent = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), direction)
            return np.asarray(_slope(kernel, tangent, jnp.asarray(X)))

    def diag(self, X: Any) -> np.ndarray:
        """Compute K(x, x) of every row: (n,)."""
        return np.asarray(self.current.diag(_table(X)))

    def is_stationary(self) -> bool:
        """Return True if K is known to depend on x - x' only."""
        return False

    def __repr__(self) -> str:
        values = np.atleast_1d(self.values)
        shown = ", ".join(f"{name}={value:.3g}" for name, value in zip(self.names, values, strict=True))
        return f"{type(self.kernel).__name__}({shown})"


def _table(X: Any) -> np.ndarray:
    lossless.refuse_masked("X", X)
    if np.ndim(X) == 0:
        raise ValueError(f"X must be a table of numbers, got {validation.shown(X)}.")
    return np.asarray(validation.points("X", np.atleast_2d(X)), np.float64)


def sklearn_kernel(
    k: Kernel,
    *,
    fixed: Sequence[str] = (),
    bounds: tuple[float, float] = (1e-3, 1e3),
    gradient: Literal["autodiff", "differences"] = "autodiff",
) -> SklearnKernel:
    """Make K(x, x') for scikit-learn's GaussianProcessRegressor and GaussianProcessClassifier, SVC, SVR, KernelRidge.

    Every positive number in the kernel (for nngp(net): weight_std and bias_std of the first and of the repeated layers)
    is a hyper-parameter that scikit-learn's optimisers may fit, in logarithms, by exact derivatives. Those that are 0
    stay so. Products and sums with scikit-learn's own kernels (ConstantKernel, WhiteKernel) work.

    Args:
        k: a kernel.
        fixed: names of hyper-parameters that are not to be fitted, as the representation of the result shows them.
        bounds: (low, high), > 0, of every hyper-parameter.
        gradient: "autodiff", or "differences" for kernels that JAX cannot trace (tabulated activations such as tanh).

    Raises:
        TypeError: k is no kernel.
        ValueError: an unknown name in fixed; bounds or gradient that are none.
    """
    if not isinstance(k, Kernel):
        raise TypeError(f"a kernel is needed, e.g. wl.nngp(net) or wl.ntk(net); got {type(k).__name__}.")
    validation.choice("gradient", gradient, ("autodiff", "differences"))
    if not isinstance(fixed, (tuple, list, set)) or not all(isinstance(name, str) for name in fixed):
        raise TypeError(f"fixed must be a sequence of names, got {validation.shown(fixed)}.")
    if not isinstance(bounds, (tuple, list, np.ndarray)) or len(bounds) != 2:
        raise ValueError(f"bounds must be (low, high), got {validation.shown(bounds)}.")
    low, high = (validation.finite_scalar("each of bounds", bound, above=0.0) for bound in bounds)
    if not low < high:
        raise ValueError(f"bounds must be (low, high) with low < high, got {validation.shown(bounds)}.")
    entries = {name: entry for name, entry in _entries(k).items() if entry.value > 0}
    unknown = set(fixed) - set(entries)
    if unknown:
        raise ValueError(f"fixed names {sorted(unknown)}; the hyper-parameters are {list(entries)}.")
    free = {name: entry.value for name, entry in entries.items() if name not in fixed}
    return SklearnKernel(k, tuple(free), np.array(list(free.values())), (float(low), float(high)), gradient)
