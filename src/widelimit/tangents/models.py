"""`tangents` takes the gradients of a function of JAX; `Tangents` serves those of any model."""

import os
from collections.abc import Callable
from dataclasses import field
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.kernels.empirical.model import Apply, Model, Names, model
from widelimit.progress import no_progress
from widelimit.pytrees import leaf_names, pytree
from widelimit.shapes import Float
from widelimit.tangents.batches import Batch, batch, class_labels, require_below
from widelimit.tangents.gradients import NAMES, ROWS, Gradients, hashed, model_fails, require_separate_rows
from widelimit.tangents.projection import Projection
from widelimit.tangents.rows import ExactRows, Output
from widelimit.tangents.sketch import Sketch, sketch_rows

FEW = 4
"""Fewer rows are padded to this number, so that checks of one row and of three use one program."""


@final
class Tangents:
    """A model's tangents J = df/dtheta at its parameters of now; made by `tangents`."""

    def __init__(self, gradients: Gradients) -> None:
        self.gradients = gradients

    def at(self, X: Any, labels: Any = None, *, output: Output = "full") -> ExactRows:
        """Take rows of data, for what needs their kernel K = J J^T or products with it; computes outputs only.

        Args:
            X: n rows as the model takes them: an array of any rank, or a tuple or dictionary of arrays.
            labels: n labels, for `of` functions that need them.
            output: "full" for all outputs, K (n c, n c); "trace" for the mean over them, (n, n).

        Raises: TypeError, ValueError: bad arrays, a model that fails on them or mixes rows; MemoryError.
        """
        rows = self._checked(X, labels, output)
        step = min(ROWS, self.gradients.rows(rows))
        return ExactRows(self.gradients, rows, output, self.gradients.finite_outputs(rows), step)

    def sketch(
        self,
        X: Any,
        labels: Any = None,
        *,
        size: int = 4096,
        seed: int = 0,
        output: Output = "full",
        path: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] = no_progress,
    ) -> Sketch:
        """Project the gradients of rows to `size` dimensions: features whose inner products estimate K.

        A sparse Johnson-Lindenstrauss transform (`Projection`), P operations a gradient. Rows of one model, size and
        seed go together, whenever they are sketched. `error` of the result bounds what the estimate misses.

        Args:
            X: n rows, as `at`.
            labels: n labels, as `at`.
            output: "full" or "trace", as `at`; the store is the same for both.
            size: dimensions, >= 1; errors fall as size^(-1/2).
            seed: seed of the projection, >= 0.
            path: a folder for a Zarr array, made if it is not there: a call that was killed goes on where it ended,
                and damaged chunks are computed again.
            progress: called as progress(rows done, all rows).

        Raises:
            TypeError, ValueError: as `at`; NaN gradients, with row and parameter; a path that holds something else, or
                a sketch of another model, data, size or seed; nothing is changed then.
            MemoryError: the gradients of one row, or the sketch, do not fit.
            OSError: the disk is full; finished chunks are kept.
        """
        made = Projection(validation.integer("size", size, at_least=1), validation.integer("seed", seed, at_least=0))
        place = None if path is None else validation.path("path", path)
        validation.function("progress", progress, "a function of two numbers")
        return sketch_rows(self.gradients, self._checked(X, labels, output), output, made, place, progress)

    def _checked(self, X: Any, labels: Any, output: Any) -> Batch:
        validation.choice("output", output, ("full", "trace"))
        rows = batch(X, labels)
        if isinstance(self.gradients.of, str):
            if labels is None:
                raise ValueError(f"of={self.gradients.of!r} needs labels, one a row: pass labels=.")
            rows = Batch(rows.inputs, class_labels(rows.labels, rows.rows))
            require_below(rows.labels, self.gradients.classes(rows.take(slice(0, 1))))
        require_separate_rows(self.gradients, rows)
        return rows


def check_of(of: Any) -> Any:
    """Return a function of outputs, or the name of one. Raises: TypeError, ValueError."""
    if of is None or isinstance(of, str):
        return validation.choice("of", of, (*NAMES, None))
    return validation.function("of", of, f"None, a function of (outputs, labels or X), or one of {', '.join(NAMES)}")


def tangents(
    apply: Apply, params: Any, *, of: Any = None, parameters: Names | None = None, memory: float | None = None
) -> Tangents:
    """Take the tangents df/dtheta of a function at its parameters, for sketches, products, and what is made of them.

    Args:
        apply: f(params, X), as for `empirical_ntk`; X of any form with one leading length.
        params: a pytree of float32 or float64 arrays, or an Equinox module.
        of: what of the outputs is differentiated: None for all; "margin", log p/(1 - p) of the label's softmax
            probability p; "log_probability", log p; or a function of (outputs, labels), of (outputs, X) where no labels
            are given, to (n,) or (n, c) numbers, a row's of that row alone.
        parameters: those that are differentiated, by shell patterns over dotted names or a function of the name; all
            unless given.
        memory: GiB for gradients of rows; half of what is free unless given.

    Raises: TypeError, ValueError: not a function, parameters that are not finite floats, an unknown `of`, a pattern
    that names no parameter.
    """
    budget = 0.0 if memory is None else validation.finite_scalar("memory", memory, above=0.0)
    return Tangents(FunctionGradients(model(apply, params, parameters), check_of(of), budget))


@final
@pytree
class _Function:
    """f(params, X, labels) -> (n, c)."""

    model: Model
    of: Any = field(metadata={"static": True})

    def __call__(self, params: Any, batch: Batch) -> jax.Array:
        outputs = self.model.apply(self.model.whole(params), batch.inputs)
        n = len(batch.leaves[0])
        if isinstance(self.of, str):
            outputs = named(self.of, outputs, batch.labels)
        elif self.of is not None:
            outputs = self.of(outputs, batch.inputs if batch.labels is None else batch.labels)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(outputs)]
        if any(shape[:1] != (n,) for shape in shapes):
            raise ValueError(f"a row of outputs is needed for each of {n} rows; shapes {shapes} were returned.")
        return jnp.concatenate([jnp.reshape(leaf, (n, -1)) for leaf in jax.tree.leaves(outputs)], axis=1)

    def row(self, params: Any, row: Batch) -> jax.Array:
        """Compute f at one row."""
        return self(params, jax.tree.map(lambda leaf: leaf[None], row))[0]


def named(of: str, outputs: Any, labels: Any) -> jax.Array:
    """Compute log p of the label under softmax, or log p/(1 - p)."""
    chosen = jnp.take_along_axis(outputs, labels[:, None], axis=1)[:, 0]
    if of == "log_probability":
        return jnp.asarray(chosen - jax.nn.logsumexp(outputs, axis=1))
    others = jnp.where(jnp.arange(outputs.shape[1]) == labels[:, None], -jnp.inf, outputs)
    return jnp.asarray(chosen - jax.nn.logsumexp(others, axis=1))


_outputs = jax.jit(lambda f, batch: f(f.model.params, batch))
_gradients = jax.jit(
    lambda f, batch: [
        leaf.reshape(*leaf.shape[:2], -1)
        for leaf in jax.tree.leaves(jax.vmap(jax.jacrev(f.row), (None, 0))(f.model.params, batch))
    ]
)
_pull = jax.jit(lambda f, batch, u: jax.vjp(lambda params: f(params, batch), f.model.params)[1](u)[0])
_push = jax.jit(lambda f, batch, v: jax.jvp(lambda params: f(params, batch), (f.model.params,), (v,))[1])


@final
class FunctionGradients(Gradients):
    """The gradients are those of a function of JAX."""

    def __init__(self, function: Model, of: Any, memory: float) -> None:
        self.model, self.of, self.memory, self.passed = function, of, memory, set()
        self.names, self.backward_only = leaf_names(function.params), False
        self.sizes = tuple(int(leaf.size) for leaf in jax.tree.leaves(function.params))

    def require_unchanged(self) -> None:
        pass  # arrays of JAX do not change

    def fingerprint(self) -> str:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((self.model.params, self.model.fixed))]
        return hashed(self.model.apply, self.of, self.names, leaves)

    def dtype(self, batch: Batch) -> np.dtype[Any]:
        return batch.dtype(np.result_type(*(leaf.dtype for leaf in jax.tree.leaves(self.model.params))))

    def outputs(self, batch: Batch) -> Float[np.ndarray, "r c"]:
        self.dtype(batch)
        try:
            return np.asarray(self._call(_outputs, batch))[: batch.rows]
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise model_fails(batch, error) from error

    def classes(self, batch: Batch) -> int:
        plain = FunctionGradients(self.model, None, self.memory)
        return int(plain.outputs(Batch(batch.inputs, None)).shape[1])

    def gradients(self, batch: Batch) -> list[Float[np.ndarray, "r c p"]]:
        return [np.asarray(leaf)[: batch.rows] for leaf in self._call(_gradients, batch)]

    def pull(self, batch: Batch, u: Float[np.ndarray, "r c"]) -> Float[np.ndarray, " P"]:
        more = padded(max(batch.rows, FEW)) - batch.rows
        found = self._call(_pull, batch, np.pad(u, ((0, more), (0, 0))))
        return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(found)])

    def push(self, batch: Batch, v: Float[np.ndarray, " P"]) -> Float[np.ndarray, "r c"]:
        leaves, structure = jax.tree.flatten(self.model.params)
        cuts = np.split(v, np.cumsum(self.sizes)[:-1])
        along = [part.reshape(leaf.shape) for part, leaf in zip(cuts, leaves, strict=True)]
        if not self.backward_only:
            try:
                return np.asarray(self._call(_push, batch, jax.tree.unflatten(structure, along)))[: batch.rows]
            except TypeError as error:
                if "forward-mode" not in str(error):
                    raise
                self.backward_only = True  # a jax.custom_vjp
        return self.push_by_rows(batch, v)

    def _call(self, program: Any, batch: Batch, *more: Any) -> Any:
        """Run a program at the rows, filled up with the last one: few shapes are compiled.

        Outputs of one row are those of one row alone, as its gradients are: that shows a model that counts its rows.
        """
        alone = program is _gradients or (program is _outputs and batch.rows == 1)
        count = batch.rows if alone else max(batch.rows, FEW)
        dtype, filled = self.dtype(batch), np.minimum(np.arange(padded(count)), batch.rows - 1)
        with arithmetic(dtype == np.float64):
            function = _Function(self.model.of_dtype(dtype), self.of)
            cast = jax.tree.map(
                lambda leaf: jnp.asarray(leaf, dtype if leaf.dtype.kind == "f" else None), batch.take(filled)
            )
            return program(function, cast, *(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), m) for m in more))


def padded(rows: int) -> int:
    """Return the next power of 2."""
    return 1 << (rows - 1).bit_length()
