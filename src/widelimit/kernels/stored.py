"""Gram matrices are streamed to disk, or to an object store, by one machine or many."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, final

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from widelimit import validation
from widelimit.compute import storage, stores
from widelimit.compute.places import Place, find_place, remote_errors
from widelimit.compute.plan import BUDGET
from widelimit.compute.workers import require_client
from widelimit.kernels.base import Kernel, require_kernel
from widelimit.progress import no_progress
from widelimit.shapes import Float

if TYPE_CHECKING:
    from distributed import Client

AGAIN = "Call stored_gram (or `widelimit kernel`) again with the same kernel and data:"
P = ParamSpec("P")
T = TypeVar("T")


class _MissingTile(ValueError):
    """This error is raised if the file of a tile that is read is missing."""


@final
class _Tiles(WrapperStore[Store]):
    """The store is that of a finished matrix: a tile that is not there is an error, where Zarr reads NaN."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read the bytes of a file. Raises: ValueError: it is a tile, and not there."""
        found = await self._store.get(key, prototype, byte_range)
        if found is None and key.startswith(stores.TILES):
            raise _MissingTile(f"{self.place().name}: the tile {key} is missing. {AGAIN} missing tiles are computed.")
        return found

    def place(self) -> Place:
        """Return where the files are."""
        return find_place(self._store.with_read_only(False))


def _place(store: Store) -> Place:
    return store.place() if isinstance(store, _Tiles) else find_place(store)


def _naming(read: Callable[Concatenate[StoredGram, P], T]) -> Callable[Concatenate[StoredGram, P], T]:
    """Return the same method, whose errors name the damaged tiles."""

    @wraps(read)
    def named(self: StoredGram, /, *args: P.args, **options: P.kwargs) -> T:
        try:
            return read(self, *args, **options)
        except _MissingTile:
            raise
        except ValueError as error:
            place = _place(self.store)
            broken = stores.find_damaged(place)
            if not broken:
                raise
            raise ValueError(
                f"{place.name}: {len(broken)} damaged tiles, {', '.join(broken[:3])}: {error} {AGAIN} damaged tiles "
                "are computed again."
            ) from None

    return named


@final
class StoredGram(zarr.Array[Any]):
    """The Zarr array names its damaged and missing tiles: returned by `stored_gram`."""

    get_basic_selection = _naming(zarr.Array.get_basic_selection)
    get_orthogonal_selection = _naming(zarr.Array.get_orthogonal_selection)
    get_coordinate_selection = _naming(zarr.Array.get_coordinate_selection)
    get_mask_selection = _naming(zarr.Array.get_mask_selection)
    get_block_selection = _naming(zarr.Array.get_block_selection)


def stored_gram(
    k: Kernel,
    X: Float[np.ndarray, "n d"],
    path: str | os.PathLike[str] | Store,
    client: Executor | Client | None = None,
    *,
    budget: float = BUDGET,
    progress: Callable[[int, int], None] = no_progress,
) -> zarr.Array[Any]:
    """Compute K(x_i, x_j) for all rows in a Zarr v3 array, tile by tile, on one machine or many, within a budget.

    Chunks are tiles, not compressed, each written once and with a checksum; tiles not yet computed read as NaN. A run
    that was interrupted or killed goes on where it ended when called again with the same kernel and data, with the same
    result to the bit; so does one whose files were damaged or lost: every tile is read and its checksum compared, and
    what fails is computed again. One process at a time may write to a path.

    Args:
        k: a kernel.
        X: (n, d) inputs as for `Kernel.gram`.
        path: the folder of the array, by convention NAME.zarr, made if it is not there; the URL of an object store,
            such as s3://bucket/NAME.zarr (needs obstore, of `widelimit[cluster]`); or a Zarr store.
        client: who computes: None (threads of this process); a `concurrent.futures.Executor`; a `distributed.Client` of
            Dask. The bits are the same, for any number of workers of one kind of processor.
        budget: bytes of memory for everything but X, and in each process of a client for everything.
        progress: called as progress(tiles done, all tiles) after every tile.

    Returns:
        The array, (n, n) in the dtype of X, open for reading; `zarr.open_array(path, mode="r")` opens it later. Reading
        a damaged or missing tile is an error that names it.

    Raises:
        TypeError, ValueError: k is not a kernel; as `Kernel.gram`.
        ValueError: the path holds something else, or the matrix of another kernel or of other data; nothing is changed
            then.
        TypeError, ValueError: the client is of another kind or closed; the kernel cannot be pickled for it.
        RuntimeError: a worker has another version of widelimit, JAX or NumPy, or another kind of processor.
        BrokenExecutor, ConnectionError: a process of the executor was killed; the scheduler is gone. Call again.
        TimeoutError: the scheduler does not answer, or no task has ended for an hour (docs/cluster.md). Call again.
        MemoryError: the budget is too small for one tile.
        OSError: the disk is full or not writable, or a store is not reached; finished tiles are kept.
    """
    k = require_kernel(k).at(X)
    place = find_place(path)
    require_client(client)
    validation.finite_scalar("budget", budget, above=0.0)
    validation.function("progress", progress, "a function of two numbers")
    inputs = validation.concrete_points("X", k.points("X", X))

    def report(_: str, done: float, total: float) -> None:
        progress(int(done), int(total))

    with remote_errors(place):
        storage.store_gram(k, k.prepared(inputs), inputs, place, budget=budget, report=report, client=client)
        return _open(place)


def _open(place: Place) -> StoredGram:
    return StoredGram(zarr.open_array(_Tiles(place.store.with_read_only(True)), mode="r").async_array)


def open_gram(path: str | os.PathLike[str], name: str = "matrix") -> StoredGram:
    """Open what `stored_gram` has written. Raises: ValueError: there is no array at the path."""
    place = find_place(path)
    try:
        return _open(place)
    except (OSError, ValueError) as error:
        shown = validation.shown(str(path))
        raise ValueError(f"{name}: {shown} is not the folder of a matrix that wl.stored_gram has written.") from error
