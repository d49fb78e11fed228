"""A task writes one tile of a stored Gram matrix and its mirror image; a worker keeps the kernel and encoded rows.

The kernel and the data are written once, beside the tiles, for workers in other processes: tasks hold their address.
"""

from __future__ import annotations

import json
import pickle
import uuid
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple, TypeVar, final

import numpy as np
import zarr
from zarr.storage import StorePath

from widelimit.arithmetic import arithmetic
from widelimit.compute import tiles
from widelimit.compute.places import Place
from widelimit.compute.plan import TilePlan
from widelimit.compute.stores import TileStore, metadata, open_tiles
from widelimit.fingerprints import sha256

FOLDER = "widelimit.work/"
"""Keys of the kernel and the data for other processes; they are there while the matrix is computed."""
PROBED = 8
"""Rows whose Gram matrix stands in the fingerprint: it distinguishes functions of one name, and processors."""
WORKS = 2
"""Matrices whose kernel and encoded rows a worker keeps."""
Key = tuple[int, int]
Result = TypeVar("Result")


@final
class Kept:
    """The last results of a function are kept, `count` of them; a thread waits for another that computes the same."""

    def __init__(self, count: int) -> None:
        self.count, self.lock = count, Lock()
        self.found: OrderedDict[Hashable, Future[Any]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """Return the result of this key, made if it is not there."""
        with self.lock:
            known = self.found.get(key)
            future = self.found[key] = known or Future()
            self.found.move_to_end(key)
            if len(self.found) > self.count:
                self.found.popitem(last=False)
        if known is None:
            try:
                future.set_result(make())
            except BaseException as error:
                with self.lock:
                    self.found.pop(key, None)
                future.set_exception(error)
        found: Result = future.result()
        return found


@final
@dataclass(frozen=True, eq=False)
class Work:
    """The tiles of a plan are those of a store: what a thread needs to compute one."""

    store: TileStore
    kernel: tiles.PairKernel
    X: Any
    """(n, d) rows: a NumPy array, or one of Zarr."""
    plan: TilePlan
    encoded: Kept

    def encode(self, i: int) -> tiles.EncodedBlock:
        """Encode block i of the rows, or find it."""
        rows = self.plan.rows(i)
        return self.encoded.get(i, lambda: tiles.encode_block(self.kernel, np.asarray(self.X[rows]), self.plan.edge))


def begin_work(store: TileStore, kernel: tiles.PairKernel, X: Any, plan: TilePlan) -> Work:
    """Return the work on a store; twice the plan's group of blocks are kept encoded, as its budget has it."""
    return Work(store, kernel, X, plan, Kept(2 * plan.group))


class Address(NamedTuple):
    """The address says where another process finds the work."""

    place: Place
    name: str
    call: str
    """A worker keeps the rows that it has encoded for one call: the next may have other data at the same path."""

    def load(self) -> Work:
        """Load the work, once a process."""
        return _loaded.get(self.call, lambda: _load(self))


_loaded = Kept(WORKS)


def _pickler() -> Any:
    """Return cloudpickle, which pickles functions of a user's script too, if it is installed; else pickle."""
    try:
        import cloudpickle
    except ImportError:
        return pickle
    return cloudpickle


def write_work(work: Work, values: str) -> Address:
    """Write kernel and data beside the tiles, unless they are there; `values` is the hash of `probe` here.

    Raises: TypeError: the kernel cannot be pickled.
    """
    try:
        packed = _pickler().dumps((work.kernel, work.plan))
    except Exception as error:
        raise TypeError(
            f"the kernel cannot be sent to other processes ({str(error)[:120]}): define its functions in a module, not "
            "in a function or in __main__, or install cloudpickle ('widelimit[cluster]'), or use threads."
        ) from error
    name, place = sha256(packed, values)[:16], work.store.place
    if place.read(f"{FOLDER}{name}.json") is None:
        chunks = min(work.plan.edge, len(work.X)), work.X.shape[1]
        place.write(f"{FOLDER}{name}/zarr.json", metadata(work.X.shape, chunks, work.X.dtype, {}))
        zarr.open_array(StorePath(place.store, f"{FOLDER}{name}"), mode="r+")[:] = work.X
        place.write(f"{FOLDER}{name}.pickle", packed)
        header = {"pickle": sha256(packed), "values": values}
        place.write(f"{FOLDER}{name}.json", json.dumps(header).encode())  # last: the rest is complete
    return Address(place, name, uuid.uuid4().hex)


def _load(address: Address) -> Work:
    place, name, _ = address
    header, packed = (place.read(f"{FOLDER}{name}.{kind}") for kind in ("json", "pickle"))
    if header is None or packed is None:
        raise OSError(
            f"a worker does not find {place.name}: the path must lead to the same files on every machine (a shared "
            "file system or an object store), or the matrix is finished, or was removed."
        )
    facts = json.loads(header)
    if sha256(packed) != facts["pickle"]:
        raise ValueError(f"{place.name}/{FOLDER}{name}.pickle is damaged; remove it and call again.")
    kernel, plan = pickle.loads(packed)
    stored = zarr.open_array(StorePath(place.store, f"{FOLDER}{name}"), mode="r")
    if probe(kernel, np.asarray(stored[:PROBED])) != facts["values"]:
        raise RuntimeError(
            "a worker computes other bits than the process that sends it tasks: another kind of processor, or other "
            "settings of JAX. Use workers of one kind, or set XLA_FLAGS=--xla_cpu_max_isa=AVX2 everywhere."
        )
    return begin_work(open_tiles(place), kernel, stored, plan)


def probe(kernel: tiles.PairKernel, X: np.ndarray) -> str:
    """Hash the Gram matrix of the first rows."""
    return sha256(np.ascontiguousarray(tiles.gram(kernel, X[:PROBED])).data)


def _work(source: Work | Address) -> Work:
    return source if isinstance(source, Work) else source.load()


def missing_in_row(source: Work | Address, i: int) -> list[Key]:
    """Return the tiles (i, j), j <= i, of which one triangle or both are missing or damaged; reads all there are."""
    store = _work(source).store
    return [(i, j) for j in range(i + 1) if not (store.whole(i, j) and (i == j or store.whole(j, i)))]


def write_tile(source: Work | Address, i: int, j: int) -> None:
    """Compute tile (i, j) and write it and its mirror image, as far as they are not there."""
    work = _work(source)
    missing = [at for at in {(i, j), (j, i)} if not work.store.whole(*at)]
    if not missing:
        return
    compiled = tiles.compile_ahead(work.kernel, work.plan.edge, work.X.shape[1], work.X.dtype)
    rows = work.encode(i)
    columns = rows if i == j else work.encode(j)  # one object, by which a tile on the diagonal is known
    compiled()
    with arithmetic(work.X.dtype == np.float64):
        tile = tiles.tile_of(work.kernel, rows, columns)
    for at in missing:
        work.store.write(*at, tile if at == (i, j) else tile.T)
