"""The classes of empirical kernels of finite networks: `EmpiricalKernel`, `EmpiricalMatrixKernel` and others.

They differ in the axes of the outputs that they keep. `functions` makes them; `matrices` computes their matrices.
"""

import abc
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, Literal, Self, final

import jax
import numpy as np

from widelimit import validation
from widelimit.compute import tiles
from widelimit.kernels.base import Kernel
from widelimit.kernels.empirical.agreement import checked_plan
from widelimit.kernels.empirical.matrices import diagonal, matrices, matrix, plan_pairs
from widelimit.kernels.empirical.matvec import matvec
from widelimit.kernels.empirical.model import Model
from widelimit.kernels.empirical.outputs import Arranged, Axes
from widelimit.kernels.empirical.plan import ContractionPlan, KernelSettings, pairs_of, rate
from widelimit.kernels.empirical.rows import require_finite
from widelimit.kernels.matrix_valued import MatrixKernel
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.validation import Array


def _block(name: str) -> str:
    """Return a parameter's name up to its first number."""
    steps = name.split(".")
    last = next((k for k, step in enumerate(steps) if step.isdigit()), 0)
    return ".".join(steps[: last + 1])


LABELS: dict[str, Callable[[str], str]] = {
    "parameter": str,
    "layer": lambda name: name.rpartition(".")[0] or name,
    "block": _block,
}


class EmpiricalParts(abc.ABC):
    """An empirical kernel is a sum over layers, and is computed by the method that a plan chooses."""

    model: Model
    settings: KernelSettings

    def at(self, X: Any) -> Self:
        """Return the kernel for inputs of the form of X; it also takes rows in which these are packed."""
        f = self.model.at("X", X)
        return self if f.signature == self.model.signature else replace(self, model=f)  # type: ignore[type-var]

    def explain(self, X: Any, Y: Any = None) -> ContractionPlan:
        """Report flops, GiB and seconds of every method for gram(X), or cross(X, Y), and the one chosen, by layer.

        The speed of this machine is measured by one small product; seconds are right to a factor of two or three, and
        exclude compilation. As in `gram`, the function is first checked against automatic differentiation at a few
        rows.
        """
        f = self.model.at("X", X)
        x = f.points("X", X)
        whole = validation.two_blocks(x, x if Y is None else f.points("Y", Y))
        points = whole[:1] if Y is None else whole
        f, found = plan_pairs(f, self.settings, points)
        return checked_plan(f, self.settings, found, *points).timed(rate(points[0].dtype))

    def parts(
        self, X: Any, Y: Any = None, *, by: Literal["parameter", "layer", "block"] = "layer"
    ) -> dict[str, Float[np.ndarray, "n m *c"]]:
        """Compute the kernel of each layer separately, by name: their sum is gram(X), or cross(X, Y).

        Args:
            X: inputs.
            Y: inputs; X unless given.
            by: "parameter" for each parameter, such as "blocks.0.attention.weight"; "layer" for names without their
                last part, "blocks.0.attention"; "block" for names up to their first number, "blocks.0", or their first
                part.

        Raises: TypeError, ValueError, MemoryError: as `gram`; a kernel of second moments; all kernels do not fit.
        """
        validation.choice("by", by, tuple(LABELS))
        if self.settings.kind == "nngp":
            raise ValueError("an empirical NNGP kernel is no sum over layers: parts needs empirical_ntk.")
        return self._parts(X, X if Y is None else Y, LABELS[by])

    def _parts(self, X: Any, Y: Any, label: Callable[[str], str]) -> dict[str, np.ndarray]:
        return matrices(self.model, self.settings._replace(method="layerwise"), X, Y, label)


class EmpiricalProducts(EmpiricalParts, abc.ABC):
    """An empirical kernel can be multiplied by a vector without its matrix."""

    def matvec(
        self, X: Float[Array, "n d"], v: Float[Array, "m *k"], Y: Float[Array, "m d"] | None = None
    ) -> Float[np.ndarray, "n *k"]:
        """Compute K(X, Y) v without K: v^T df(Y)/dtheta, then the derivative of f(X) in that direction.

        Args:
            X: (n, d) inputs.
            v: (m, c) for output="full", which gives sum_jb K(x_i, y_j)[a, b] v[j, b], and for "diagonal", which gives
                sum_j K(x_i, y_j)[a, a] v[j, a]; (m,) or (m, k) for "trace". The result has the form of v.
            Y: (m, d) inputs; X unless given.

        Raises: TypeError, ValueError, MemoryError: as `gram`, and for v of another shape.
        """
        return matvec(self.model.at("X", X), self.settings, X, v, Y)


@final
@pytree
class EmpiricalKernel(EmpiricalProducts, Kernel):
    """The kernel is the mean over outputs of an empirical one, (1/c) sum_a K(x, x')[a, a]; made with output="trace"."""

    model: Model
    settings: KernelSettings = field(metadata={"static": True})

    def prepared(self, *inputs: Float[Array, "n d"]) -> tiles.PairKernel:
        f, found = plan_pairs(self.model, self.settings, inputs, whole=validation.is_jax(*inputs))
        found = checked_plan(f, self.settings, found, *inputs)
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
        return Kernel.gram(self, X) if validation.is_jax(X) else matrix(self.model, self.settings, X, X)

    def cross(self, X: Float[Array, "n d"], Y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        return Kernel.cross(self, X, Y) if validation.is_jax(X, Y) else matrix(self.model, self.settings, X, Y)

    def diag(self, X: Float[Array, "n d"]) -> Float[Array, " n"]:
        return Kernel.diag(self, X) if validation.is_jax(X) else diagonal(self.model, self.settings, X)

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
            raise ValueError("the number of a function's outputs depends on its inputs: take k.prepared(X).outputs.")
        return self.count

    def prepared(self, *inputs: Float[Array, "n d"]) -> Self:
        return replace(
            self, count=self.model.of_dtype(inputs[0].dtype).cost(inputs[0].shape[1], inputs[0].dtype).outputs
        )

    def points(self, name: str, X: Any) -> Array:
        return self.model.points(name, X)

    def cross(self, X: Any, Y: Any) -> Float[np.ndarray, "n m c c"]:
        return MatrixKernel.cross(self.at(X), X, Y)

    def block(self, X: np.ndarray, Y: np.ndarray) -> Float[np.ndarray, "n m c c"]:
        return matrix(self.model, self.settings, X, Y)

    def gram(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n n c c"]:
        return matrix(self.model, self.settings, X, X)

    def diag(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n c c"]:
        return diagonal(self.model, self.settings, X)


@final
@pytree
class EmpiricalDiagonal(EmpiricalProducts):
    """The kernels are K(x, x')[a, a], (n, m, c), one for each output; made with output="diagonal"."""

    model: Model
    settings: KernelSettings = field(metadata={"static": True})

    def gram(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n n c"]:
        """Compute K(x_i, x_j)[a, a]: (n, d) -> (n, n, c), symmetric to the bit. Raises: as `Kernel.gram`."""
        return matrix(self.model, self.settings, X, X)

    def cross(self, X: Float[Array, "n d"], Y: Float[Array, "m d"]) -> Float[np.ndarray, "n m c"]:
        """Compute K(x_i, y_j)[a, a]: (n, d), (m, d) -> (n, m, c). Raises: as `Kernel.gram`."""
        return matrix(self.model, self.settings, X, Y)

    def diag(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n c"]:
        """Compute K(x_i, x_i)[a, a]: (n, d) -> (n, c). Raises: as `Kernel.gram`."""
        return diagonal(self.model, self.settings, X)


@final
@pytree
class EmpiricalAxes(EmpiricalParts):
    """The kernels of outputs with several axes trace some axes and pair some with themselves; made with trace_axes.

    Results are trees like the outputs, of arrays (n, m, ...). The axes after n and m follow those of the output: none
    for an axis of trace_axes, one for an axis of diagonal_axes, and two for any other.
    """

    model: Model
    settings: KernelSettings = field(metadata={"static": True})
    trace: tuple[int, ...] = field(default=(), metadata={"static": True})
    paired: tuple[int, ...] = field(default=(), metadata={"static": True})

    def gram(self, X: Any) -> Any:
        """Compute the kernels of all pairs of rows. Raises: as `Kernel.gram`; ValueError: an output lacks an axis."""
        return self.cross(X, X)

    def cross(self, X: Any, Y: Any) -> Any:
        """Compute the kernels of rows of X with rows of Y. Raises: as `gram`."""
        return self._tree(X, lambda f, settings, axes: axes.zipped(matrix(f, settings, X, Y), 2))

    def diag(self, X: Any) -> Any:
        """Compute the kernels of every row with itself, (n, ...). Raises: as `gram`."""
        return self._tree(X, lambda f, settings, axes: axes.zipped(diagonal(f, settings, X), 1))

    def explain(self, X: Any, Y: Any = None) -> Any:
        """Report as `EmpiricalKernel.explain`, one plan for each output."""
        return self._tree(X, lambda f, settings, _: EmpiricalDiagonal(f, settings).explain(X, Y))

    def _parts(self, X: Any, Y: Any, label: Callable[[str], str]) -> dict[str, Any]:
        def parts(f: Model, settings: KernelSettings, axes: Axes) -> dict[str, np.ndarray]:
            found = matrices(f, settings._replace(method="layerwise"), X, Y, label)
            return {name: axes.zipped(values, 2) for name, values in found.items()}

        each, structure = self._each(X, parts)
        return {name: jax.tree.unflatten(structure, [found[name] for found in each]) for name in each[0]}

    def _tree(self, X: Any, compute: Callable[[Model, KernelSettings, Axes], Any]) -> Any:
        each, structure = self._each(X, compute)
        return jax.tree.unflatten(structure, each)

    def _each(self, X: Any, compute: Callable[[Model, KernelSettings, Axes], Any]) -> tuple[list[Any], Any]:
        """Return the results for all outputs, and the tree of which they are the leaves."""
        f = self.model.at("X", X)
        shapes, structure = f.output_shapes(f.points("X", X))
        found = []
        for k, shape in enumerate(shapes):
            axes = Axes.of(shape, self.trace, self.paired)
            there = replace(f, select=Arranged(f.select, k, axes.order))
            found.append(compute(there, self.settings._replace(output=axes.split), axes))
        return found, structure
