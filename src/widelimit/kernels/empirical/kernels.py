"""This module has the empirical NTK and NNGP kernel of any finite network."""

import abc
from dataclasses import field, replace
from typing import Any, Literal, Self, final, overload

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.compute import tiles
from widelimit.kernels.base import Kernel
from widelimit.kernels.empirical.matvec import matvec
from widelimit.kernels.empirical.model import Apply, Model, Names, Select, model
from widelimit.kernels.empirical.outputs import Output
from widelimit.kernels.empirical.plan import (
    ContractionPlan,
    KernelSettings,
    Method,
    PairSizes,
    block_rows,
    check_settings,
    pairs_of,
    plan,
)
from widelimit.kernels.empirical.rows import check_rows, require_finite
from widelimit.kernels.matrix_valued import MatrixKernel
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.validation import Array

_pairwise = jax.jit(lambda pair, x, y: pair.pairwise(x, y))
_diagonal = jax.jit(lambda pair, x: pair.diagonal(x))


class EmpiricalProducts(abc.ABC):
    """An empirical kernel chooses its algorithm by a plan, and multiplies without being formed."""

    model: Model
    settings: KernelSettings

    def at(self, X: Any) -> Self:
        """Return the kernel for inputs of the form of X, whose rows of numbers it then takes too."""
        f = self.model.at("X", X)
        return self if f is self.model else replace(self, model=f)  # type: ignore[type-var]

    def explain(self, X: Any, Y: Any = None) -> ContractionPlan:
        """Report flops and GiB of every method for gram(X), or cross(X, Y), and the one chosen; computes nothing."""
        f = self.model.at("X", X)
        x = f.points("X", X)
        whole = validation.two_blocks(x, x if Y is None else f.points("Y", Y))
        points = whole[:1] if Y is None else whole
        return _plan_pairs(f, self.settings, points)[1]

    def matvec(
        self, X: Float[Array, "n d"], v: Float[Array, "m *k"], Y: Float[Array, "m d"] | None = None
    ) -> Float[np.ndarray, "n *k"]:
        """Compute K(X, Y) v without K: v^T df(Y)/dtheta, then the derivative of f(X) along it. Y is X unless given.

        Args:
            X: (n, d) inputs.
            v: (m, c) for output="full", sum_jb K(x_i, y_j)[a, b] v[j, b], and for "diagonal", sum_j K(x_i, y_j)[a, a]
                v[j, a]; (m,) or (m, k) for "trace". The result has its form.
            Y: (m, d) inputs.

        Raises: TypeError, ValueError, MemoryError: as `gram`; v has another shape.
        """
        return matvec(self.model.at("X", X), self.settings, X, v, Y)


@final
@pytree
class EmpiricalKernel(EmpiricalProducts, Kernel):
    """The kernel is the mean over outputs of an empirical one, (1/c) sum_a K(x, x')[a, a]; made with output="trace"."""

    model: Model
    settings: KernelSettings = field(metadata={"static": True})

    def prepared(self, *inputs: Float[Array, "n d"]) -> tiles.PairKernel:
        f, found = _plan_pairs(self.model, self.settings, inputs, whole=validation.is_jax(*inputs))
        check_rows(f, *inputs)
        return pairs_of(f, self.settings, found)

    def points(self, name: str, X: Any) -> Array:
        return self.model.points(name, X)

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        pair = self.prepared(x, y)
        return pair.pairwise(pair.encode(x), pair.encode(y), same=same is True)

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        pair = self.prepared(x)
        return pair.diagonal(pair.encode(x))

    def gram(self, X: Float[Array, "n d"]) -> Float[Array, "n n"]:
        return Kernel.gram(self, X) if validation.is_jax(X) else _matrix(self.model, self.settings, X, X)

    def cross(self, X: Float[Array, "n d"], Y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        return Kernel.cross(self, X, Y) if validation.is_jax(X, Y) else _matrix(self.model, self.settings, X, Y)

    def diag(self, X: Float[Array, "n d"]) -> Float[Array, " n"]:
        return Kernel.diag(self, X) if validation.is_jax(X) else _diag(self.model, self.settings, X)

    def _checked(self, values: Array, **inputs: Array) -> Array:
        require_finite(self.model, values, **inputs)
        return values


@final
@pytree
class EmpiricalMatrixKernel(EmpiricalProducts, MatrixKernel):
    """The kernel is K(x, x')[a, b] of an empirical kernel, (n, m, c, c); made with output="full"."""

    model: Model
    settings: KernelSettings = field(metadata={"static": True})
    count: int = field(default=0, metadata={"static": True})

    @property
    def outputs(self) -> int:
        if self.count == 0:
            raise ValueError("how many outputs a function has is seen at inputs: take k.prepared(X).outputs.")
        return self.count

    def prepared(self, *inputs: Float[Array, "n d"]) -> Self:
        return replace(
            self, count=self.model.of_dtype(inputs[0].dtype).cost(inputs[0].shape[1], inputs[0].dtype).outputs
        )

    def points(self, name: str, X: Any) -> Array:
        return self.model.points(name, X)

    def block(self, X: np.ndarray, Y: np.ndarray) -> Float[np.ndarray, "n m c c"]:
        return _matrix(self.model, self.settings, X, Y)

    def gram(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n n c c"]:
        return _matrix(self.model, self.settings, X, X)

    def diag(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n c c"]:
        return _diag(self.model, self.settings, X)


@final
@pytree
class EmpiricalDiagonal(EmpiricalProducts):
    """The kernels are K(x, x')[a, a], (n, m, c): one empirical kernel an output; made with output="diagonal"."""

    model: Model
    settings: KernelSettings = field(metadata={"static": True})

    def gram(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n n c"]:
        """Compute K(x_i, x_j)[a, a]: (n, d) -> (n, n, c), symmetric to the bit. Raises: as `Kernel.gram`."""
        return _matrix(self.model, self.settings, X, X)

    def cross(self, X: Float[Array, "n d"], Y: Float[Array, "m d"]) -> Float[np.ndarray, "n m c"]:
        """Compute K(x_i, y_j)[a, a]: (n, d), (m, d) -> (n, m, c). Raises: as `Kernel.gram`."""
        return _matrix(self.model, self.settings, X, Y)

    def diag(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n c"]:
        """Compute K(x_i, x_i)[a, a]: (n, d) -> (n, c). Raises: as `Kernel.gram`."""
        return _diag(self.model, self.settings, X)


AnyEmpirical = EmpiricalMatrixKernel | EmpiricalKernel | EmpiricalDiagonal
_CLASSES: dict[Output, type[AnyEmpirical]] = {
    "full": EmpiricalMatrixKernel,
    "trace": EmpiricalKernel,
    "diagonal": EmpiricalDiagonal,
}


@overload
def empirical_ntk(
    apply: Apply, params: Any, *, output: Literal["full"] = "full", method: Method = "auto", memory: float | None = None
) -> EmpiricalMatrixKernel: ...
@overload
def empirical_ntk(
    apply: Apply, params: Any, *, output: Literal["trace"], method: Method = "auto", memory: float | None = None
) -> EmpiricalKernel: ...
@overload
def empirical_ntk(
    apply: Apply, params: Any, *, output: Literal["diagonal"], method: Method = "auto", memory: float | None = None
) -> EmpiricalDiagonal: ...
def empirical_ntk(
    apply: Apply, params: Any, *, output: Output = "full", method: Method = "auto", memory: float | None = None
) -> AnyEmpirical:
    """Theta(x, x')[a, b] = sum_p df_a(x)/dtheta_p df_b(x')/dtheta_p, the neural tangent kernel of a finite network.

    Equation (3.3) of the paper: under gradient flow on theta the outputs move by it. At infinite width it tends to
    ntk(net) times the identity (Theorem 4.1).

    Args:
        apply: f(params, X), (n, d) -> (n, c) or (n,), written with jax.numpy, one row's output a function of that row
            alone: net.apply; a plain function; lambda m, X: jax.vmap(m)(X) for an Equinox module m; a Flax module by
            lambda p, X: module.apply({"params": p}, X). Inputs of another form are rows that `apply` reshapes.
        params: a pytree of float32 or float64 arrays, or an Equinox module, whose float arrays are the parameters.
            They are taken in the dtype of X, which must keep their digits.
        output: "full" for all c x c, a matrix-valued kernel; "trace" for the mean over outputs, a scalar kernel like
            all others; "diagonal" for Theta[a, a], one kernel an output.
        method: "jacobian" contracts Jacobians, some rows at a time; "vector_products" takes a column at a time, from a
            product with the Jacobian's transpose and one with the Jacobian; "layerwise", for networks of this library,
            multiplies the inner products of signals and of backward signals layer by layer; "auto" takes the one of
            fewest flops within `memory`. `explain(X)` of the kernel shows all. All have the same values.
        memory: GiB that one call may take, its result included; half of what is free unless given.

    Returns:
        An `EmpiricalMatrixKernel` ("full"), `EmpiricalKernel` ("trace") or `EmpiricalDiagonal`, each with gram, cross,
        diag, matvec and explain; float32 or float64 as X is.

    Raises:
        TypeError, ValueError: not a function, parameters that are not finite floats, an unknown option; at the inputs:
            a function that fails on them, returns another shape, or mixes rows (seen at a few of them, alone and
            together); a Jacobian that is NaN, with its row.
        MemoryError: at the inputs, before anything is computed: no method stays within the budget.
    """
    f = model(apply, params)
    chosen = check_settings("ntk", output, method, memory, f)
    return _CLASSES[output](f, chosen)


@overload
def empirical_nngp(
    apply: Apply, params: Any, *, output: Literal["full"] = "full", memory: float | None = None
) -> EmpiricalMatrixKernel: ...
@overload
def empirical_nngp(
    apply: Apply, params: Any, *, output: Literal["trace"], memory: float | None = None
) -> EmpiricalKernel: ...
@overload
def empirical_nngp(
    apply: Apply, params: Any, *, output: Literal["diagonal"], memory: float | None = None
) -> EmpiricalDiagonal: ...
def empirical_nngp(apply: Apply, params: Any, *, output: Output = "full", memory: float | None = None) -> AnyEmpirical:
    """K(x, x')[a, b] = f_a(x) f_b(x'), the second moments of the outputs; output="trace": (1/c) sum_a f_a(x) f_a(x').

    Over random parameters its mean is the covariance of the outputs; for net.apply and parameters of net.init, at
    infinite width, nngp(net) times the identity (Theorem 2.6 of the paper). One network estimates it by the trace
    over many outputs: output_dim = c has an error of order c^{-1/2}.

    Args, Returns, Raises: as `empirical_ntk`.
    """
    f = model(apply, params)
    chosen = check_settings("nngp", output, "auto", memory, f)
    return _CLASSES[output](f, chosen)


def _plan_pairs(
    f: Model, settings: KernelSettings, inputs: Any, *, whole: bool = False, diagonal: bool = False
) -> tuple[Model, ContractionPlan]:
    """Return the function in the dtype of the inputs, and the plan for all pairs of one or two arrays of them.

    Block by block unless `whole`; with `diagonal` only for K(x, x).
    """
    dtype = np.result_type(*(X.dtype for X in inputs))
    f = f.of_dtype(dtype)
    features = inputs[0].shape[1]
    n, m = len(inputs[0]), len(inputs[-1])
    c = 1 if settings.output == "trace" else f.cost(features, dtype).outputs
    down, across = (n, m) if whole else (block_rows(n, c), block_rows(m, c))
    return f, plan(f, settings, PairSizes(n, m, down, across, len(inputs) == 1, diagonal), features, dtype)


def _blocks(X: np.ndarray, rows: int) -> list[jax.Array]:
    filled = np.resize(X, (-(-len(X) // rows) * rows, X.shape[1]))
    return [jnp.asarray(filled[i : i + rows]) for i in range(0, len(filled), rows)]


def _matrix(f: Model, settings: KernelSettings, X: Any, Y: Any) -> np.ndarray:
    """Compute K(X, Y) block by block; where Y is X one triangle and its mirror, symmetric to the bit."""
    f = f.at("X", X)
    same, X = Y is X, f.points("X", X)
    X, Y = validation.two_blocks(X, X if same else f.points("Y", Y))
    f, found = _plan_pairs(f, settings, (X,) if same else (X, Y))
    check_rows(f, X, Y)
    pair, c = pairs_of(f, settings, found), found.cost.outputs
    down, across = found.sizes.down, found.sizes.across
    tail = {"full": (c, c), "trace": (), "diagonal": (c,)}[settings.output]
    out = np.empty((len(X), len(Y), *tail), X.dtype)
    with arithmetic(X.dtype == np.float64):
        rows = [pair.encode(block) for block in _blocks(X, down)]
        columns = rows if same else [pair.encode(block) for block in _blocks(Y, across)]
        for i, x in enumerate(rows):
            here = slice(i * down, (i + 1) * down)
            for j, y in enumerate(columns[: i + 1] if same else columns):
                there = slice(j * across, (j + 1) * across)
                target = out[here, there]
                values = np.asarray(_pairwise(pair, x, y))[: target.shape[0], : target.shape[1]]
                if same and i == j:
                    target[:] = (values + _mirror(values)) / 2
                    index = np.arange(len(target))
                    target[index, index] = _diagonal_block(pair, x)[: len(target)]
                elif same:
                    target[:], out[there, here] = values, _mirror(values)
                else:
                    target[:] = values
                require_finite(f, target, X=X[here], Y=Y[there])
    return out


def _mirror(values: np.ndarray) -> np.ndarray:
    """Compute K(x', x) from K(x, x')."""
    return np.swapaxes(values, 0, 1) if values.ndim < 4 else values.transpose(1, 0, 3, 2)


def _diag(f: Model, settings: KernelSettings, X: Any) -> np.ndarray:
    f = f.at("X", X)
    points = validation.concrete_points("X", f.points("X", X))
    f, found = _plan_pairs(f, settings, (points,), diagonal=True)
    check_rows(f, points)
    pair = pairs_of(f, settings, found)
    with arithmetic(points.dtype == np.float64):
        parts = [_diagonal_block(pair, pair.encode(block)) for block in _blocks(points, found.sizes.down)]
    values = np.concatenate(parts)[: len(points)]
    require_finite(f, values, X=points)
    return values


def _diagonal_block(pair: tiles.PairKernel, x: Any) -> np.ndarray:
    """Compute K(x, x) of a block of rows, (n, ...); c x c matrices symmetric to the bit."""
    values = np.asarray(_diagonal(pair, x))
    return (values + values.transpose(0, 2, 1)) / 2 if values.ndim == 3 else values
