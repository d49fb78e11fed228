"""The gradients df_a(x)/dtheta of a model are computed for some rows at a time, and multiplied with vectors."""

import abc
from typing import Any

import numpy as np

from widelimit import memory
from widelimit.fingerprints import sha256
from widelimit.kernels.empirical.rows import NUDGE, ROUNDING, Probe, require_rowwise
from widelimit.messages import first_line
from widelimit.shapes import Float
from widelimit.tangents.batches import Batch

COPIES = 4
"""Copies of a row's gradients that are in memory at once: forward, backward, the result, its copy."""
ROWS = 64
"""Rows whose gradients are computed at once, at most."""
RANDOM = "Draw no numbers inside, and call dropout with training=False: tangents are those of one function."
"""Advice about a random model, at the end of errors."""
NAMES = ("margin", "log_probability")
"""Names of functions of outputs and labels, for of=."""


class Gradients(abc.ABC):
    """A model with parameters theta has outputs f(x), (n, c), and J = df/dtheta, (n c, P), never formed as a whole."""

    names: tuple[str, ...]
    """Names of the parameters, in the order of their gradients."""
    sizes: tuple[int, ...]
    of: Any
    memory: float
    """GiB for gradients; 0 for a share of what is free."""
    passed: set[Any]
    """Signatures of rows that were found not to mix."""

    @property
    def parameters(self) -> int:
        """Return P."""
        return sum(self.sizes)

    @abc.abstractmethod
    def require_unchanged(self) -> None:
        """Refuse a model that was trained in the meantime; every public call checks once. Raises: ValueError."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of the function and the parameters."""

    @abc.abstractmethod
    def dtype(self, batch: Batch) -> np.dtype[Any]:
        """Return the dtype of gradients at these rows. Raises: TypeError."""

    @abc.abstractmethod
    def outputs(self, batch: Batch) -> Float[np.ndarray, "r c"]:
        """Compute f at the rows. Raises: ValueError: the model fails on them, or gives another shape."""

    @abc.abstractmethod
    def classes(self, batch: Batch) -> int:
        """Return how many outputs a row has before `of`. Raises: ValueError: as `outputs`."""

    @abc.abstractmethod
    def gradients(self, batch: Batch) -> list[Float[np.ndarray, "r c p"]]:
        """Compute df_a(x)/dtheta, one array (r, c, p) for each parameter."""

    @abc.abstractmethod
    def pull(self, batch: Batch, u: Float[np.ndarray, "r c"]) -> Float[np.ndarray, " P"]:
        """Compute J^T u."""

    @abc.abstractmethod
    def push(self, batch: Batch, v: Float[np.ndarray, " P"]) -> Float[np.ndarray, "r c"]:
        """Compute J v."""

    def push_by_rows(self, batch: Batch, v: Float[np.ndarray, " P"]) -> Float[np.ndarray, "r c"]:
        """Compute J v from gradients of single rows, for models that have no forward derivatives."""
        cuts, step = np.split(v, np.cumsum(self.sizes)[:-1]), min(ROWS, self.rows(batch))
        found = []
        for i in range(0, batch.rows, step):
            blocks = self.gradients(batch.take(slice(i, i + step)))
            found.append(sum(block @ cut for block, cut in zip(blocks, cuts, strict=True)))
        return np.concatenate(found)

    def finite_outputs(self, batch: Batch) -> Float[np.ndarray, "n c"]:
        """Compute f at all rows, some at a time. Raises: ValueError: as `outputs`; NaN or infinite, with the row."""
        self.require_unchanged()
        parts = [self.outputs(batch.take(slice(i, i + ROWS))) for i in range(0, batch.rows, ROWS)]
        values = np.concatenate(parts)
        fine = np.isfinite(values).all(axis=1)
        if not fine.all():
            raise ValueError(
                f"the model gives NaN or infinite outputs at row {int(np.argmin(fine))} of X. Usual causes: a label "
                f"that is no class, log or a division at 0, an overflow."
            )
        return values

    def finite_gradients(self, batch: Batch, first: int) -> list[Float[np.ndarray, "r c p"]]:
        """Compute `gradients` of rows first, first + 1, ... Raises: ValueError: NaN or infinite, with row and name."""
        found = self.gradients(batch)
        for name, block in zip(self.names, found, strict=True):
            if not np.isfinite(block.sum()) and not np.isfinite(block).all():
                row = int(np.argmin(np.isfinite(block).all(axis=(1, 2))))
                raise ValueError(
                    f"the gradient with respect to {name} at row {first + row} of X is NaN or infinite. Usual causes: "
                    f"sqrt, norm or log at 0, a division by 0, an overflow."
                )
        return found

    def rows(self, batch: Batch) -> int:
        """Return how many rows' gradients fit in the budget, a power of 2. Raises: MemoryError: not even one row's."""
        outputs = self.outputs(batch.take(slice(0, 1))).shape[1]
        size = COPIES * self.dtype(batch).itemsize * outputs * self.parameters
        budget = memory.budget(self.memory)
        remedy = "pass another memory=GiB, float32, or of= with one number a row"
        memory.require(size, f"the gradients of one row, {COPIES} times,", limit=budget, remedy=remedy)
        return 1 << int(budget // size).bit_length() - 1


def require_separate_rows(model: Gradients, batch: Batch) -> None:
    """Refuse a model that is random or mixes rows, by its outputs at a few rows and the gradient of a sum of them.

    Raises: ValueError: it does or is.
    """
    if batch.signature in model.passed:
        return
    few = _different_rows(batch)
    weights = np.random.default_rng(0).standard_normal((few.rows, model.outputs(few).shape[1]))

    def probe(batch: Batch, groups: list[slice]) -> tuple[np.ndarray, np.ndarray]:
        parts = [batch.take(rows) for rows in groups]
        slopes = [model.pull(part, weights[rows]) for part, rows in zip(parts, groups, strict=True)]
        return np.concatenate([model.outputs(part) for part in parts]), np.asarray(sum(slopes))[None]

    single = [slice(i, i + 1) for i in range(few.rows)]
    first = probe(few, [slice(None)])
    model.require_unchanged()
    again = probe(few, [slice(None)])
    for values in zip(first, again, strict=True):
        require_repeated(*values, model.dtype(batch))
    many = batch.take(slice(0, ROWS))
    require_repeated(model.outputs(many), model.outputs(many), model.dtype(batch))
    found = first, probe(few, single), probe(_nudged(few), single)
    for kind in zip(*found, strict=True):
        require_rowwise("the model", Probe(*kind), model.dtype(batch))
    model.passed.add(batch.signature)


def require_repeated(first: np.ndarray, again: np.ndarray, dtype: Any) -> None:
    """Refuse a function that returns different values when it is called again. Raises: ValueError."""
    bound = ROUNDING * float(np.finfo(dtype).eps) * np.abs(np.where(np.isfinite(first), first, 0)).max(initial=0)
    with np.errstate(invalid="ignore"):
        apart = ~((first == again) | (np.abs(first - again) <= bound) | (np.isnan(first) & np.isnan(again)))
    if apart.any():
        i, k = np.argwhere(apart)[0]
        raise ValueError(
            f"the model is random: for the same rows it gives {first[i, k]:.6g} and then {again[i, k]:.6g}. {RANDOM}"
        )


def _different_rows(batch: Batch) -> Batch:
    """Return the first row and up to two that differ from it and from each other; where all are equal, one made."""
    kept: list[int] = []
    for i in range(min(batch.rows, 64)):
        if all(any((leaf[i] != leaf[j]).any() for leaf in batch.leaves) for j in kept):
            kept.append(i)
    if len(kept) > 1:
        return batch.take(np.array(kept[:3]))
    twice = batch.take(np.array([0, 0]))
    moved = [leaf * [[1], [0.7]] + [[0], [0.1]] if leaf.dtype.kind == "f" else leaf for leaf in _flat(twice)]
    return batch.with_leaves(
        [np.asarray(m, leaf.dtype).reshape(leaf.shape) for m, leaf in zip(moved, twice.leaves, strict=True)]
    )


def _flat(batch: Batch) -> list[np.ndarray]:
    return [leaf.reshape(len(leaf), -1) for leaf in batch.leaves]


def _nudged(batch: Batch) -> Batch:
    def moved(leaf: np.ndarray) -> np.ndarray:
        if leaf.dtype.kind != "f":
            return leaf
        signs = np.resize([1, -1], leaf.shape)
        return np.asarray(leaf * (1 + NUDGE * np.finfo(leaf.dtype).eps * signs), leaf.dtype)

    leaves = [moved(leaf) for leaf in batch.leaves]
    return batch.with_leaves(leaves)


def name_of(function: Any) -> str:
    """Return the name of a function in a fingerprint."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"


def hashed(function: Any, of: Any, names: Any, parameters: list[np.ndarray]) -> str:
    """Hash the model, the function of its outputs, and the parameters."""
    return sha256(name_of(function), of if isinstance(of, str) else name_of(of), str(names), *parameters)


def model_fails(batch: Batch, error: Exception) -> ValueError:
    """Return the error of a model that fails on rows."""
    shapes = [leaf.shape for leaf in batch.leaves]
    return ValueError(
        f"the model fails for X (and labels) of shapes {shapes}: {type(error).__name__}: {first_line(error)} Are X, "
        f"labels and `of` those of this model?"
    )
