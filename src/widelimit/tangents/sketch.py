"""Sketches of gradients: features whose inner products estimate a tangent kernel, kept in memory or in Zarr."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from widelimit import memory, validation
from widelimit.compute import linalg, threads
from widelimit.shapes import Float
from widelimit.tangents.batches import Batch
from widelimit.tangents.gradients import ROWS, Gradients
from widelimit.tangents.projection import Projection
from widelimit.tangents.rows import Output, TangentRows

KEY = "widelimit_sketch"
BESIDE = 2
"""Numbers beside the features of a value: the squared norm of its gradient, and the value."""
CLOSE = 1e-3
"""Relative difference up to which two sketches of a row are of one model: far above rounding in float32."""
ADVICE = "choose another path, or remove it. Nothing was changed."


@final
class Sketch(TangentRows):
    """phi(x)_a . phi(x')_b estimates df_a(x)/dtheta . df_b(x')/dtheta without bias; made by `Tangents.sketch`."""

    def __init__(self, model: Gradients, signature: Any, output: Output, columns: np.ndarray, made: Projection) -> None:
        self.model, self.output, self.projection = model, output, made
        self.signature = (*signature, made)
        k, (n, c, _) = made.size, columns.shape
        features = np.asarray(columns[:, :, :k], np.float64)
        self.features = features.reshape(n * c, k) if output == "full" else features.reshape(n, c * k) / c**0.5
        """(N, k) for "full", (n, c k) for "trace"; K is estimated by features features^T."""
        squares = np.asarray(columns[:, :, k], np.float64)
        self.squares = squares.ravel() if output == "full" else squares.mean(axis=1)
        """(N,): the exact diagonal of K."""
        self.values = np.ascontiguousarray(columns[:, :, k + 1])

    def diag(self) -> Float[np.ndarray, " N"]:
        return np.asarray(np.einsum("nk,nk->n", self.features, self.features))

    def matrix(self, other: Any = None) -> Float[np.ndarray, "N M"]:
        right = self if other is None else other
        self.require_same(right)
        memory.require(8.0 * self.size * right.size, "the kernel of these rows")
        out = threads.product(self.features, right.features.T)
        return (out + out.T) / 2 if other is None else out

    def times(self, v: Float[np.ndarray, "N s"]) -> Float[np.ndarray, "N s"]:
        return threads.product(self.features, threads.product(self.features.T, np.asarray(v, np.float64)))

    def spectrum(self) -> Float[np.ndarray, " r"] | None:
        few = self.features if self.features.shape[0] < self.features.shape[1] else self.features.T
        return linalg.eigenvalues(threads.product(few, few.T))

    def error(self, other: Any = None, *, confidence: float | None = None) -> Float[np.ndarray, "N M"]:
        """Compute the standard error of every entry of `matrix`, or a bound that holds with a confidence.

        The variance of an entry over seeds is at most (|u|^2 |v|^2 + (u.v)^2)/k for gradients u, v (see `Projection`),
        whose norms are known exactly. The standard error takes u.v from the sketch. The bound takes |u| |v| for it, and
        Chebyshev's inequality: sqrt(2/(k (1 - confidence))) |u| |v|, for one entry each. For "trace", |u|^2 is the mean
        over outputs.

        Args:
            other: other rows; these rows unless given.
            confidence: probability in (0, 1) that the bound holds; None for the standard error.
        """
        right = self if other is None else other
        self.require_same(right)
        squares = np.outer(self.squares, right.squares)
        if confidence is not None:
            rest = 1 - validation.finite_scalar("confidence", confidence, above=0.0)
            if rest <= 0:
                raise ValueError(f"confidence must be below 1, got {confidence}.")
            return np.asarray(np.sqrt(2 * squares / (self.projection.size * rest)))
        inner = squares if self.output == "trace" else np.minimum(np.square(self.matrix(other)), squares)
        return np.asarray(np.sqrt((squares + inner) / self.projection.size))


class _Job(NamedTuple):
    """The task is the sketch of a batch."""

    model: Gradients
    batch: Batch
    made: Projection

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Compute some rows: (r, c, size + 2)."""
        batch = self.batch.take(slice(start, stop))
        blocks = self.model.finite_gradients(batch, start)
        r, c, _ = blocks[0].shape
        out = np.zeros((r * c, self.made.size + BESIDE), blocks[0].dtype)
        first = 0
        for block in blocks:
            flat = block.reshape(r * c, -1)
            self.made.add(out[:, : self.made.size], flat, first)
            out[:, self.made.size] += np.einsum("np,np->n", flat, flat)
            first += flat.shape[1]
        out[:, self.made.size + 1] = self.model.outputs(batch).ravel()
        return out.reshape(r, c, -1)


def sketch_rows(
    model: Gradients, batch: Batch, output: Output, made: Projection, path: Path | None, progress: Callable[..., None]
) -> Sketch:
    """Compute the sketch of a batch, or what is missing of it at `path`. Raises: see `Tangents.sketch`."""
    n, c = batch.rows, model.outputs(batch.take(slice(0, 1))).shape[1]
    dtype, width = model.dtype(batch), made.size + BESIDE
    memory.require(float(dtype.itemsize + 8) * n * c * width, "the sketch of these rows")
    model.finite_outputs(batch)
    job, step = _Job(model, batch, made), min(ROWS, model.rows(batch))
    if path is None:
        columns = np.empty((n, c, width), dtype)
        for i in range(0, n, step):
            columns[i : i + step] = job.columns(i, i + step)
            progress(min(i + step, n), n)
    else:
        array = _open(path, job, (n, c, width), dtype)
        _require_same_values(path, array, job)
        columns = _fill(path, array, job, step, progress)
    return Sketch(model, batch.signature, output, columns, made)


def _open(path: Path, job: _Job, shape: tuple[int, ...], dtype: Any) -> Any:
    """Open the array at `path`, made if it is not there. Raises: ValueError: it is of something else."""
    import zarr
    from zarr.codecs import Crc32cCodec

    manifest = {
        "format": 1,
        "model": job.model.fingerprint(),
        "data": job.batch.fingerprint(),
        "size": job.made.size,
        "seed": job.made.seed,
        "shape": list(shape),
        "dtype": np.dtype(dtype).name,
    }
    kept = [file for file in path.iterdir() if file.suffix != ".partial"] if path.is_dir() else [path]
    if path.exists() and kept:  # a kill at the start leaves a part of a file, no more
        return _existing(path, manifest)
    return zarr.create_array(
        path,
        shape=shape,
        chunks=(min(ROWS, shape[0]), *shape[1:]),
        dtype=dtype,
        compressors=Crc32cCodec(),
        fill_value=np.nan,
        attributes={KEY: manifest},
        config={"write_empty_chunks": True},
    )


def _existing(path: Path, manifest: dict[str, Any]) -> Any:
    import zarr

    try:
        array = zarr.open_array(path, mode="r+", config={"write_empty_chunks": True})
        known: Any = array.attrs.get(KEY)
    except Exception as error:
        raise ValueError(f"{path} exists and is not a sketch, or its zarr.json is damaged; {ADVICE}") from error
    if not isinstance(known, dict):
        raise ValueError(f"{path} exists and is not a sketch written by widelimit; {ADVICE}")
    words = {"model": "of another model or other parameters", "data": "of other data", "seed": "of another seed"}
    for name, value in manifest.items():
        if known.get(name) != value:
            what = words.get(name, f"of another {name}")
            raise ValueError(
                f"{path} is a sketch {what}: it says {name} = {known.get(name)!s:.40}, not {value}; {ADVICE}"
            )
    return array


def _whole(array: Any, i: int, rows: int) -> np.ndarray | None:
    """Read a chunk of rows; None if it is missing or damaged."""
    try:
        values = np.asarray(array[i : i + rows])
    except (ValueError, OSError):
        return None
    return None if np.isnan(values).any() else values


def _require_same_values(path: Path, array: Any, job: _Job) -> None:
    """Refuse a store of another function of the same name, by the first row that it holds. Raises: ValueError."""
    rows = array.chunks[0]
    for i in range(0, job.batch.rows, rows):
        found = _whole(array, i, rows)
        if found is not None:
            again = job.columns(i, i + 1)
            if np.abs(found[:1] - again).max() > CLOSE * np.abs(again).max():
                raise ValueError(
                    f"{path} is a sketch of another function of the same name: row {i} has other values; {ADVICE}"
                )
            return


def _fill(path: Path, array: Any, job: _Job, step: int, progress: Callable[..., None]) -> np.ndarray:
    """Compute and write the chunks that are missing or damaged; return all columns."""
    columns, rows, n = np.empty(array.shape, array.dtype), array.chunks[0], array.shape[0]
    for i in range(0, n, rows):
        end = min(i + rows, n)
        found = _whole(array, i, rows)
        if found is None:
            found = np.concatenate([job.columns(j, min(j + step, end)) for j in range(i, end, step)])
            try:
                array[i:end] = found
            except OSError as error:
                text = f"{error.strerror} while rows were written to {path}; the finished ones are kept. Call again"
                raise OSError(error.errno or errno.EIO, text) from error
        columns[i:end] = found
        progress(end, n)
    return columns
