"""The empirical kernels of PyTorch modules have the methods of all kernels, for inputs of any form.

`ModuleKernel`, `ModuleMatrixKernel` and `ModuleDiagonal` differ in the axes of the outputs that they keep; all call
`torch.module.ModuleJacobian`.
"""

import abc
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, final

import jax
import jax.numpy as jnp
import numpy as np
import torch

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.kernels.base import Kernel
from widelimit.kernels.empirical.signature import Signature
from widelimit.kernels.matrix_valued import MatrixKernel
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.torch.kept import keeping
from widelimit.torch.module import ModuleJacobian
from widelimit.torch.plan import ModulePlan
from widelimit.validation import Array

By = Literal["parameter", "layer", "block"]
BY: tuple[By, ...] = ("parameter", "layer", "block")
_ONE = threading.RLock()
"""Tiles of a matrix come from several threads, and one at a time stays within memory; a progress callback may call."""


def whole(_: str) -> str:
    """Return one label for all parameters."""
    return ""


def matrix(jacobian: ModuleJacobian, X: Any, Y: Any = None) -> np.ndarray:
    """Compute the kernel of all pairs of rows, (n, m, ...); symmetric to the bit where Y is None or X."""
    with _ONE:
        return jacobian.matrix(X, None if Y is X else Y, whole)[""]


def diagonal(jacobian: ModuleJacobian, X: Any) -> np.ndarray:
    """Compute the kernel of every row with itself, (n, ...)."""
    with _ONE:
        return jacobian.diagonal(X, whole)[""]


def labels(by: By, names: Mapping[str, Any]) -> Callable[[str], str]:
    """Return the function from a parameter's name to its label: itself, its layer, or its outermost numbered block."""
    if by == "parameter":
        return str
    if by == "layer":
        return lambda name: name.removesuffix(".original0").removesuffix(".original1").rpartition(".")[0] or name
    paths = {name: name.split(".") for name in names}

    def block(name: str) -> str:
        path = paths[name]
        numbered = next((i for i, part in enumerate(path[:-1]) if part.isdigit()), 0)
        return ".".join(path[: numbered + 1])

    return block


class _OfModule(abc.ABC):
    """The kernel is a sum over the parameters of a module."""

    jacobian: ModuleJacobian

    def parts(self, X: Any, Y: Any = None, *, by: By = "layer") -> dict[str, np.ndarray]:
        """Compute the kernels of parameters, layers or blocks, by name; their sum is the kernel. Raises: as `gram`."""
        validation.choice("by", by, BY)
        with _ONE:
            return self.jacobian.matrix(X, None if Y is X else Y, labels(by, self.jacobian.trained))

    def explain(self, X: Any, Y: Any = None) -> ModulePlan:
        """Report flops, bytes and seconds of gram(X), or cross(X, Y); one block is timed. Raises: as `gram`."""
        return self.jacobian.explain(X, Y)


class _OfForm(_OfModule, abc.ABC):
    """The kernel takes inputs of any form, or rows in which inputs of one form (`signature`) were packed."""

    signature: Signature | None

    def at(self, X: Any) -> Self:
        found = None if isinstance(X, torch.Tensor) else Signature.of("X", X)
        return self if found is None or found == self.signature else replace(self, signature=found)  # type: ignore[type-var]

    def points(self, name: str, X: Any) -> Array:
        if self.signature is None:
            return validation.points(name, X)
        return self.signature.rows(name, X, self.jacobian.dtype)

    def _own(self, X: Any) -> Any:
        """Return inputs as the module takes them."""
        if self.signature is None or isinstance(X, torch.Tensor):
            return X
        packed = (
            isinstance(X, np.ndarray | jax.Array)
            and X.ndim == 2
            and X.shape[1] == self.signature.width
            and X.dtype.kind == "f"
        )
        rows = np.asarray(X if packed else self.signature.rows("X", X, self.jacobian.dtype))
        with arithmetic(rows.dtype == np.float64):
            return jax.tree.map(np.asarray, self.signature.inputs(jnp.asarray(rows)))

    def _pairs(self, X: Any, Y: Any = None) -> np.ndarray:
        return matrix(self.jacobian, self._own(X), None if Y is None or Y is X else self._own(Y))

    def _alone(self, X: Any) -> np.ndarray:
        return diagonal(self.jacobian, self._own(X))


@final
@pytree
class ModuleKernel(_OfForm, Kernel):
    """The kernel is the mean over outputs of a module's NTK; made with output="trace". JAX cannot differentiate it."""

    jacobian: ModuleJacobian = field(metadata={"static": True})
    signature: Signature | None = field(default=None, metadata={"static": True})
    """The form of inputs that were packed in rows, for kernels made of this one."""

    def gram(self, X: Any) -> Any:
        """Compute (n, ...) -> (n, n), inputs of any form. Raises: as `Kernel.gram`, and as `empirical_ntk` says."""
        return Kernel.gram(self, X) if isinstance(X, jax.Array) else self._pairs(X)

    def cross(self, X: Any, Y: Any) -> Any:
        """Compute (n, ...), (m, ...) -> (n, m). Raises: as `gram`."""
        return Kernel.cross(self, X, Y) if validation.is_jax(X, Y) else self._pairs(X, Y)

    def diag(self, X: Any) -> Any:
        """Compute (n, ...) -> (n,). Raises: as `gram`."""
        return Kernel.diag(self, X) if isinstance(X, jax.Array) else self._alone(X)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        with keeping(self.jacobian, _ONE):
            yield

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        def pairs(a: np.ndarray, b: np.ndarray, itself: np.ndarray) -> np.ndarray:
            return self._pairs(a, None if itself else b)

        return self._outside(pairs, (len(x), len(y)), x, y, jnp.asarray(same))  # tiles trace `same`

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        return self._outside(self._alone, (len(x),), x)

    def _outside(self, function: Callable[..., np.ndarray], shape: tuple[int, ...], *arrays: jax.Array) -> jax.Array:
        """Call a function of NumPy arrays from within a JAX computation."""
        result: Any = jax.ShapeDtypeStruct
        return jax.pure_callback(  # type: ignore[no-any-return]
            lambda *values: function(*(np.asarray(v) for v in values)), result(shape, arrays[0].dtype), *arrays
        )


@final
@dataclass(frozen=True)
class ModuleMatrixKernel(_OfForm, MatrixKernel):
    """The kernel is K(x, x')[a, b] of a module, (n, m, c, c), all outputs side by side; made with output="full"."""

    jacobian: ModuleJacobian
    signature: Signature | None = None
    count: int = 0

    @property
    def outputs(self) -> int:
        if self.count == 0:
            raise ValueError("the number of a module's outputs depends on its inputs: take k.prepared(X).outputs.")
        return self.count

    def prepared(self, *inputs: Any) -> Self:
        jacobian, (rows,) = self.jacobian.prepare(self.jacobian.rows("X", self._own(inputs[0])))
        return replace(self, count=self.jacobian.trial(jacobian, rows)[0].number)

    def block(self, X: Any, Y: Any) -> Float[np.ndarray, "n m c c"]:
        return self._pairs(X, Y)

    def gram(self, X: Any) -> Float[np.ndarray, "n n c c"]:
        """Compute (n, ...) -> (n, n, c, c), with gram[i, j] = gram[j, i]^T to the bit. Raises: as `empirical_ntk`."""
        return self._pairs(X)

    def cross(self, X: Any, Y: Any) -> Float[np.ndarray, "n m c c"]:
        """Compute (n, ...), (m, ...) -> (n, m, c, c). Raises: as `gram`."""
        return self._pairs(X, Y)

    def diag(self, X: Any) -> Float[np.ndarray, "n c c"]:
        """Compute (n, ...) -> (n, c, c). Raises: as `gram`."""
        return self._alone(X)


@final
@dataclass(frozen=True)
class ModuleDiagonal(_OfModule):
    """The kernels are (n, m, ...): one axis for an axis of the outputs paired with itself, none if traced, else two.

    Made with output="diagonal", K(x, x')[a, a], or with trace_axes and diagonal_axes.
    """

    jacobian: ModuleJacobian

    def gram(self, X: Any) -> Float[np.ndarray, "n n *c"]:
        """Compute (n, ...) -> (n, n, *axes). Raises: as `empirical_ntk` says."""
        return matrix(self.jacobian, X)

    def cross(self, X: Any, Y: Any) -> Float[np.ndarray, "n m *c"]:
        """Compute (n, ...), (m, ...) -> (n, m, *axes). Raises: as `gram`."""
        return matrix(self.jacobian, X, Y)

    def diag(self, X: Any) -> Float[np.ndarray, "n *c"]:
        """Compute (n, ...) -> (n, *axes). Raises: as `gram`."""
        return diagonal(self.jacobian, X)


AnyModuleKernel = ModuleMatrixKernel | ModuleKernel | ModuleDiagonal
