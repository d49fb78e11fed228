"""A PyTorch module has an empirical NTK. Needs the extra: pip install "widelimit[torch]"."""

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, final, overload

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.kernels.base import Kernel
from widelimit.kernels.empirical.outputs import OUTPUTS, PAIRS, SELF, Output
from widelimit.kernels.empirical.rows import Probe, choose_rows, nudge, require_rowwise
from widelimit.kernels.matrix_valued import MatrixKernel
from widelimit.messages import first_line
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.validation import Array

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('widelimit.torch needs PyTorch: pip install "widelimit[torch]"') from error

COPIES = 4
"""Rows of the Jacobian held at once for each row asked for: of two blocks, and their copies on the way."""

_passed: weakref.WeakKeyDictionary[torch.nn.Module, set[Hashable]] = weakref.WeakKeyDictionary()
"""Modules that were found not to mix rows: their modes, names of parameters, and features of the inputs."""


@final
@dataclass(frozen=True, eq=False)
class ModuleJacobian:
    """The Jacobian of a module with respect to its trainable parameters is computed some rows at a time."""

    module: torch.nn.Module
    trained: dict[str, torch.Tensor]
    fixed: dict[str, torch.Tensor]
    memory: float

    def _cast(self, X: np.ndarray) -> tuple[Any, Any, Any]:
        """Return inputs and parameters as tensors of the inputs' dtype on the module's device."""
        dtype = torch.float64 if X.dtype == np.float64 else torch.float32
        first = next(iter(self.trained.values()))
        if first.dtype == torch.float64 and dtype == torch.float32:
            raise TypeError("X is float32 and the parameters are float64; pass X.astype('float64').")
        trained = {name: p.to(dtype) for name, p in self.trained.items()}
        fixed = {name: b.to(dtype) if b.is_floating_point() else b for name, b in self.fixed.items()}
        return torch.tensor(X, device=first.device), trained, fixed

    def _call(self, trained: Any, fixed: Any, X: Any) -> Any:
        values = torch.func.functional_call(self.module, {**trained, **fixed}, (X,))
        return values[:, None] if values.ndim == 1 else values

    def outputs(self, X: np.ndarray) -> int:
        """Return c, from the first row. Raises: ValueError: the module fails on it, or its shape is not (n, c)."""
        inputs, trained, fixed = self._cast(X[:1])
        try:
            with torch.no_grad():
                shape = tuple(self._call(trained, fixed, inputs).shape)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"the module fails for inputs of shape (1, {X.shape[1]}): {first_line(error)} Inputs of another form: "
                f"torch.nn.Sequential(torch.nn.Unflatten(1, shape), module)."
            ) from error
        if len(shape) != 2 or shape[0] != 1 or shape[1] == 0:
            raise ValueError(f"the module must map (n, d) inputs to (n, c) or (n,); it mapped one row to {shape}.")
        return int(shape[1])

    def require_rowwise(self, *inputs: np.ndarray) -> None:
        """Refuse a module that mixes rows, by its outputs at a few rows and the gradient of a sum of them.

        Raises: ValueError: it does.
        """
        modes = tuple(part.training for part in self.module.modules())
        names = *self.trained, None, *self.fixed
        seen_as = modes, names, inputs[0].shape[1], inputs[0].dtype.name
        passed = _passed.setdefault(self.module, set())
        if seen_as in passed:
            return
        self._compare_rows(choose_rows(*inputs))
        passed.add(seen_as)

    def _compare_rows(self, points: np.ndarray) -> None:
        weights = np.random.default_rng(0).standard_normal((len(points), self.outputs(points)))

        def probe(X: np.ndarray, groups: list[slice]) -> tuple[np.ndarray, np.ndarray]:
            parts = [self._gradient(X[rows], weights[rows]) for rows in groups]
            return np.concatenate([part[0] for part in parts]), np.asarray(sum(part[1] for part in parts))[None]

        single = [slice(i, i + 1) for i in range(len(points))]
        found = probe(points, [slice(None)]), probe(points, single), probe(nudge(points), single)
        for kind in zip(*found, strict=True):
            require_rowwise("the module", Probe(*kind), points.dtype)

    def _gradient(self, X: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute outputs (n, c), and the gradient of sum(weights * outputs) with respect to all parameters, (P,)."""
        inputs, trained, fixed = self._cast(X)
        trained = {name: p.detach().requires_grad_() for name, p in trained.items()}
        values = self._call(trained, fixed, inputs)
        total = (values * torch.as_tensor(weights, dtype=values.dtype, device=values.device)).sum()
        found = torch.autograd.grad(total, list(trained.values()), allow_unused=True, materialize_grads=True)
        return values.detach().cpu().numpy(), np.concatenate([g.cpu().numpy().ravel() for g in found])

    def rows(self, X: np.ndarray) -> int:
        """Return the rows whose Jacobian fits the budget. Raises: MemoryError: not one does."""
        size = X.dtype.itemsize * self.outputs(X) * sum(p.numel() for p in self.trained.values())
        budget = memory.budget(self.memory)
        remedy = "pass another memory=GiB, float32, or a module of fewer parameters"
        memory.require(COPIES * size, f"the Jacobian of one row, {COPIES} times,", limit=budget, remedy=remedy)
        return int(budget // (COPIES * size))

    def of(self, X: np.ndarray) -> list[torch.Tensor]:
        """Compute df_a(x)/dtheta, one tensor (n, c, size) a parameter."""
        inputs, trained, fixed = self._cast(X)

        def row(trained: Any, x: Any) -> Any:
            return self._call(trained, fixed, x[None])[0]

        found = torch.func.vmap(torch.func.jacrev(row), (None, 0))(trained, inputs)
        return [leaf.detach().flatten(2) for leaf in found.values()]

    def require_finite(self, values: Any, **inputs: Any) -> None:
        """Refuse values that are not finite: the error names the row of the inputs with such a Jacobian.

        Raises: ValueError: a value is not finite.
        """
        if validation.traced(values, *inputs.values()) or np.isfinite(np.asarray(values)).all():
            return
        for name, X in inputs.items():
            points = np.asarray(validation.points(name, X))
            rows = self.rows(points)
            for start in range(0, len(points), rows):
                found = self.of(points[start : start + rows])
                fine = torch.stack([torch.isfinite(leaf).flatten(1).all(1) for leaf in found]).all(0).cpu().numpy()
                if not fine.all():
                    row = start + int(np.argmin(fine))
                    raise ValueError(
                        f"the Jacobian of the module at row {row} of {name} is NaN or infinite. Usual causes: sqrt, "
                        f"norm or log at 0, a division by 0, an overflow."
                    )
        raise ValueError("the kernel overflows: scale the outputs of the module down, or pass X in float64.")

    def matrix(self, X: np.ndarray, Y: np.ndarray, output: Output) -> np.ndarray:
        """Compute the kernel of all pairs; where Y is X one triangle and its mirror."""
        c, rows = self.outputs(X), self.rows(X)
        tail = {"full": (c, c), "trace": (), "diagonal": (c,)}[output]
        memory.require(float(X.dtype.itemsize) * len(X) * len(Y) * int(np.prod(tail)), "the kernel")
        out = np.empty((len(X), len(Y), *tail), X.dtype)
        for i in range(0, len(X), rows):
            left = self.of(X[i : i + rows])
            for j in range(0, i + 1 if Y is X else len(Y), rows):
                right = left if Y is X and i == j else self.of(Y[j : j + rows])
                block = _contract(PAIRS[output], left, right, c if output == "trace" else 1)
                out[i : i + rows, j : j + rows] = block
                if Y is X:
                    mirror = block.transpose(1, 0, *range(block.ndim - 1, 1, -1))
                    out[j : j + rows, i : i + rows] = (block + mirror) / 2 if i == j else mirror
        return out

    def diagonal(self, X: np.ndarray, output: Output) -> np.ndarray:
        """Compute the kernel of every row with itself."""
        c, rows, parts = self.outputs(X), self.rows(X), []
        for i in range(0, len(X), rows):
            found = self.of(X[i : i + rows])
            parts.append(_contract(SELF[output], found, found, c if output == "trace" else 1))
        return np.concatenate(parts)

    def rowwise_matrix(self, X: np.ndarray, Y: np.ndarray, output: Output) -> np.ndarray:
        """Compute `matrix` of a module that does not mix rows.

        Raises: ValueError: it does; a Jacobian that is not finite.
        """
        self.require_rowwise(X, Y)
        values = self.matrix(X, Y, output)
        self.require_finite(values, X=X, Y=Y)
        return values

    def rowwise_diagonal(self, X: np.ndarray, output: Output) -> np.ndarray:
        """Compute `diagonal` of a module that does not mix rows. Raises: as `rowwise_matrix`."""
        self.require_rowwise(X)
        values = self.diagonal(X, output)
        self.require_finite(values, X=X)
        return values


def _contract(rule: str, left: list[torch.Tensor], right: list[torch.Tensor], divisor: int) -> np.ndarray:
    total: Any = sum(torch.einsum(rule, a, b) for a, b in zip(left, right, strict=True))
    return np.asarray((total / divisor).cpu().numpy())


@final
@pytree
class ModuleKernel(Kernel):
    """The kernel is the mean over outputs of a module's NTK; made with output="trace". JAX cannot differentiate it."""

    jacobian: ModuleJacobian = field(metadata={"static": True})

    def prepared(self, *inputs: Float[Array, "n d"]) -> Self:
        if not validation.traced(*inputs):
            self.jacobian.require_rowwise(*(np.asarray(X) for X in inputs))
        return self

    def _checked(self, values: Array, **inputs: Array) -> Array:
        self.jacobian.require_finite(values, **inputs)
        return values

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        def matrix(a: np.ndarray, b: np.ndarray, itself: np.ndarray) -> np.ndarray:
            return self.jacobian.matrix(a, a if itself else b, "trace")

        return self._outside(matrix, (len(x), len(y)), x, y, jnp.asarray(same))  # tiles trace `same`

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        return self._outside(lambda a: self.jacobian.diagonal(a, "trace"), (len(x),), x)

    def _outside(self, function: Callable[..., np.ndarray], shape: tuple[int, ...], *arrays: jax.Array) -> jax.Array:
        """Call a function of NumPy arrays from within a JAX computation."""
        result: Any = jax.ShapeDtypeStruct
        return jax.pure_callback(  # type: ignore[no-any-return]
            lambda *values: function(*(np.asarray(v) for v in values)), result(shape, arrays[0].dtype), *arrays
        )


@final
@dataclass(frozen=True)
class ModuleMatrixKernel(MatrixKernel):
    """The kernel is K(x, x')[a, b] of a module, (n, m, c, c); made with output="full"."""

    jacobian: ModuleJacobian
    count: int = 0

    @property
    def outputs(self) -> int:
        if self.count == 0:
            raise ValueError("how many outputs a module has is seen at inputs: take k.prepared(X).outputs.")
        return self.count

    def prepared(self, *inputs: Float[Array, "n d"]) -> Self:
        return replace(self, count=self.jacobian.outputs(np.asarray(inputs[0])))

    def block(self, X: np.ndarray, Y: np.ndarray) -> Float[np.ndarray, "n m c c"]:
        return self.jacobian.rowwise_matrix(*validation.two_blocks(X, Y), "full")

    def diag(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n c c"]:
        return self.jacobian.rowwise_diagonal(np.asarray(validation.points("X", X)), "full")


@final
@dataclass(frozen=True)
class ModuleDiagonal:
    """The kernels are K(x, x')[a, a] of a module, (n, m, c): one an output; made with output="diagonal"."""

    jacobian: ModuleJacobian

    def gram(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n n c"]:
        """Compute (n, d) -> (n, n, c). Raises: as `Kernel.gram`."""
        return self.cross(X, X)

    def cross(self, X: Float[Array, "n d"], Y: Float[Array, "m d"]) -> Float[np.ndarray, "n m c"]:
        """Compute (n, d), (m, d) -> (n, m, c). Raises: as `Kernel.gram`."""
        return self.jacobian.rowwise_matrix(*validation.two_blocks(X, Y), "diagonal")

    def diag(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n c"]:
        """Compute (n, d) -> (n, c). Raises: as `Kernel.gram`."""
        return self.jacobian.rowwise_diagonal(np.asarray(validation.points("X", X)), "diagonal")


AnyModuleKernel = ModuleMatrixKernel | ModuleKernel | ModuleDiagonal
_CLASSES: dict[Output, type[AnyModuleKernel]] = {
    "full": ModuleMatrixKernel,
    "trace": ModuleKernel,
    "diagonal": ModuleDiagonal,
}


@overload
def empirical_ntk(
    module: torch.nn.Module, *, output: Literal["full"] = "full", memory: float | None = None
) -> ModuleMatrixKernel: ...
@overload
def empirical_ntk(
    module: torch.nn.Module, *, output: Literal["trace"], memory: float | None = None
) -> ModuleKernel: ...
@overload
def empirical_ntk(
    module: torch.nn.Module, *, output: Literal["diagonal"], memory: float | None = None
) -> ModuleDiagonal: ...
def empirical_ntk(module: torch.nn.Module, *, output: Output = "full", memory: float | None = None) -> AnyModuleKernel:
    """Theta(x, x')[a, b] = sum_p df_a(x)/dtheta_p df_b(x')/dtheta_p, theta a PyTorch module's trainable parameters.

    By contraction of Jacobians, some rows at a time. The parameters are those of now: later training does not change
    the kernel. They are taken in the dtype of the inputs, which must keep their digits.

    Args:
        module: maps (n, d) tensors to (n, c) or (n,), one row's output a function of that row alone: call module.eval()
            where layers of it know a training mode. For inputs of another form pass
            torch.nn.Sequential(torch.nn.Unflatten(1, shape), module).
        output: "full", "trace" (mean over outputs) or "diagonal", as for `widelimit.empirical_ntk`.
        memory: GiB for the Jacobians; half of what is free unless given.

    Returns:
        A kernel with gram, cross and diag on NumPy inputs and results; "full" is a matrix-valued kernel, "trace" a
        scalar one, like all others.

    Raises:
        TypeError, ValueError: not a module, no trainable parameters, an unknown option, layers in training mode whose
            output depends on the batch or on chance; at inputs: a module that fails on them, returns another shape, or
            mixes rows; a Jacobian that is NaN, with its row.
        MemoryError: the Jacobian of one row is over the budget.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"a torch.nn.Module is needed, got {type(module).__name__}.")
    validation.choice("output", output, OUTPUTS)
    budget = 0.0 if memory is None else validation.finite_scalar("memory", memory, above=0.0)
    _check_mode(module)
    named = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError("the module has no trainable parameters: there is nothing to differentiate.")
    for name, p in named.items():
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"parameter {name} is {p.dtype}; float32 or float64 is needed: module.float().")
        if not torch.isfinite(p).all():
            raise ValueError(f"parameter {name} has entries that are NaN or infinite.")
    others = [*module.named_buffers(), *((n, p) for n, p in module.named_parameters() if not p.requires_grad)]
    return _CLASSES[output](ModuleJacobian(module, named, {n: b.detach().clone() for n, b in others}, budget))


def _check_mode(module: torch.nn.Module) -> None:
    """Refuse layers whose output for a row depends on other rows or on chance."""
    nn = torch.nn.modules
    for name, layer in module.named_modules():
        label = f"layer {name!r}, {type(layer).__name__}," if name else type(layer).__name__
        if isinstance(layer, (nn.batchnorm._BatchNorm, nn.dropout._DropoutNd)) and layer.training:
            raise ValueError(
                f"{label} is in training mode: its output for a row depends on the other rows or on chance, and a row "
                f"has no df/dtheta of its own. Call module.eval() first."
            )
        if isinstance(layer, nn.batchnorm._BatchNorm) and layer.running_mean is None:
            raise ValueError(f"{label} keeps no running statistics: a row's output depends on the other rows.")
