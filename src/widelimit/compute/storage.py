"""A matrix on disk is a Zarr v3 array whose chunks are the tiles, each written once: a Gram matrix, or its factor.

A chunk takes its place by a rename, so that it is whole or not there: after a kill the finished tiles are found and the
others computed, and so are those that their checksum finds damaged. The array's attributes say of what it is (a kernel
and data; a matrix and noise); a store of anything else is refused. A second copy of them serves where the first is
damaged or missing.
"""

import dataclasses
import errno
import functools
import inspect
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from widelimit import memory
from widelimit.compute import tiles
from widelimit.compute.plan import TilePlan
from widelimit.fingerprints import sha256
from widelimit.progress import Report
from widelimit.version import __version__
from widelimit.writing import atomic_write

FORMAT = 1
CHECKSUM_BYTES = 4
"""A CRC-32C ends every chunk; reading a damaged one is an error."""
METADATA, COPY = "zarr.json", "widelimit.json"
"""Zarr's own metadata file, and this module's copy of it."""
UNFINISHED = re.compile(r"((zarr|widelimit)\.(json|[0-9a-f]+)|c/[0-9]+/[0-9]+\.[0-9a-f]+)\.partial")
"""Files that a kill leaves while this module, or Zarr, writes them. Others of that ending are the user's."""
PROBED = 8
"""Rows whose Gram matrix stands in the fingerprint: it distinguishes functions that have the same name."""


@final
@dataclass(frozen=True)
class Contents:
    """The contents of a store are matrices of one kind, described by a manifest."""

    key: str
    """The attribute of the array that holds the manifest."""
    noun: str
    rows: str
    """The entry of the manifest that describes an array with one row for each of the matrix."""
    facts: tuple[tuple[str, str], ...]
    """Entries that must agree, and what a store is in which they do not."""
    share: float
    """The part of the matrix that is stored."""


VERSION = (("format", "in another format"), ("widelimit", "written by another version of widelimit"))
GRAM = Contents(
    "widelimit_gram",
    "a Gram matrix",
    "data",
    (
        VERSION[0],
        ("kernel", "of another kernel"),
        ("data", "of other data"),
        VERSION[1],
        ("values", "of a kernel with other values: another function of the same name, or another processor"),
    ),
    1.0,
)


def store_gram(
    kernel: tiles.PairKernel, prepared: tiles.PairKernel, X: np.ndarray, path: Path, *, budget: float, report: Report
) -> None:
    """Compute the tiles of K(X, X) that are not yet in the store at `path`, which is made if it is not there.

    `prepared` is the kernel that computes, `kernel` the one that is described. Raises: see `stored_gram`.
    """
    n, d = X.shape
    plan = tiles.plan_of(prepared, n, n, d, X.dtype, symmetric=True, budget=budget)
    manifest = {
        "kernel": description(kernel),
        "values": _hash(tiles.gram(prepared, X[:PROBED])),
        "data": description(X),
    }
    store = open_store(GRAM, manifest, TileStore(path, n, plan.edge, X.dtype))
    if store.edge > plan.edge:
        raise MemoryError(
            f"the tiles of {path} are {store.edge} x {store.edge}; the budget is enough for {plan.edge} x {plan.edge}."
        )
    _fill(store, replace(plan, edge=store.edge), prepared, X, report)


def open_store(kind: Contents, manifest: dict[str, Any], tiles: "TileStore") -> "TileStore":
    """Return the store at the path of `tiles`, made or described again where it must be, with the edge that it has.

    Raises: ValueError: the path holds something else; OSError: no room, or not writable. Nothing is changed then.
    """
    manifest = {"format": FORMAT, "widelimit": __version__, **manifest}
    if _has_content(tiles.path):
        tiles = replace(tiles, edge=_edge_of_same(tiles.path, kind, manifest))
    else:
        _require_disk(tiles.path, kind.share * tiles.n**2 * tiles.dtype.itemsize)
    _describe(tiles, kind, {**manifest, "tile": tiles.edge})
    for part in (*tiles.path.glob("*.partial"), *tiles.path.glob("c/*/*.partial")):
        if _is_unfinished(tiles.path, part):
            part.unlink()
    return tiles


def _hash(array: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(array).data)


def description(value: Any) -> Any:
    """Describe the value in JSON: classes and functions by their names, arrays by their hashes."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: description(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, (tuple, list)):
        return [description(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        named = value if inspect.isroutine(value) or isinstance(value, type) else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    array = np.asarray(value)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": _hash(array)}


def _has_content(path: Path) -> bool:
    """Return False where there is nothing to lose: no folder, or only the files of an interrupted start."""
    if not path.is_dir():
        return path.exists()
    own = {path / name for name in (METADATA, COPY)}
    found = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)  # until one is foreign
    foreign = (file for file in found if file not in own and not _is_unfinished(path, file))
    return next(foreign, None) is not None or any(_document(file) is not None for file in own)


def _is_unfinished(path: Path, file: Path) -> bool:
    """Return True for a file that was being written to the store at `path` when its process was killed."""
    return UNFINISHED.fullmatch(file.relative_to(path).as_posix()) is not None


def _document(file: Path) -> Any:
    """Read the file's document; None if it is missing or is no JSON."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _describe(tiles: "TileStore", kind: Contents, manifest: dict[str, Any]) -> None:
    """Write both copies of the array's metadata where they are not there, or say something else.

    Attributes that a user has added stay, and the copy has them too.
    """
    path, files = tiles.path, dict[str, Buffer]()
    zarr.create_array(
        MemoryStore(files),
        shape=(tiles.n, tiles.n),
        chunks=(tiles.edge, tiles.edge),
        dtype=tiles.dtype,
        compressors=Crc32cCodec(),  # the digits of a kernel do not compress
        fill_value=np.nan,
        attributes={**_attributes(path, kind.key), kind.key: manifest},
        config={"write_empty_chunks": True},
    )
    text = files[METADATA].to_bytes()
    required = json.loads(text)
    path.mkdir(parents=True, exist_ok=True)
    copied = _document(path / COPY) == required
    described = _matches(_document(path / METADATA), required, kind.key)
    for name, written in ((COPY, copied), (METADATA, described)):
        if not written:
            with atomic_write(path / name, unfinished=f"{name}.partial") as file:
                file.write(text)


def _attributes(path: Path, key: str) -> dict[str, Any]:
    """Return all attributes of the array at `path`, the user's too; from the copy where Zarr's own file is damaged."""
    for name in (METADATA, COPY):
        document = _document(path / name)
        attributes = document.get("attributes") if isinstance(document, dict) else None
        if isinstance(attributes, dict) and key in attributes:
            return attributes
    return {}


def _matches(document: Any, required: dict[str, Any], key: str) -> bool:
    """Return True if the metadata have all required fields; what a user, or a later Zarr, has added may stay."""
    if not isinstance(document, dict) or not isinstance(document.get("attributes"), dict):
        return False
    same = all(document.get(name) == value for name, value in required.items() if name != "attributes")
    return bool(same and document["attributes"].get(key) == required["attributes"][key])


def _require_disk(path: Path, size: float) -> None:
    place = path.resolve()
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
    if size > free:
        raise OSError(
            errno.ENOSPC,
            f"the tiles that are left need {memory.text(size)} and {memory.text(free)} are free on the disk of "
            f"{path}; free space or choose another place. Nothing was computed",
        )


def _edge_of_same(path: Path, kind: Contents, manifest: dict[str, Any]) -> int:
    """Return the rows of a tile of the store at `path`; refuses any store but one of these contents."""
    found = [_manifest_of(path / name, kind) for name in (METADATA, COPY)]
    known = [each for each in found if each is not None]
    same = [each for each in known if _difference(each, manifest, kind) is None]
    if not known:
        raise ValueError(
            f"{path} exists and is not {kind.noun} written by widelimit, or its {METADATA} is damaged and has no "
            "copy; choose another path, or remove it. Nothing was changed."
        )
    if not same:
        name, what = _difference(known[0], manifest, kind) or ("", "")
        raise ValueError(
            f"{path} is {kind.noun} {what}: it says {name} = {_short(known[0].get(name))}, and this is "
            f"{_short(manifest[name])}; choose another path, or remove it. Nothing was changed."
        )
    return int(same[0]["tile"])


def _manifest_of(file: Path, kind: Contents) -> dict[str, Any] | None:
    """Read the manifest; None if it is damaged: it contradicts itself, or is none of this form."""
    document = _document(file)
    try:
        found = document["attributes"][kind.key]
        edge, chunks = found["tile"], document["chunk_grid"]["configuration"]["chunk_shape"]
        sides, rows = document["shape"], found[kind.rows]["shape"][0]
    except (KeyError, TypeError, IndexError):
        return None
    sound = isinstance(edge, int) and edge > 0 and chunks == [edge, edge] and sides == [rows, rows]
    return found if sound else None


def _difference(found: dict[str, Any], manifest: dict[str, Any], kind: Contents) -> tuple[str, str] | None:
    """Return the first fact in which they differ, and how."""
    return next(((name, what) for name, what in kind.facts if found.get(name) != manifest.get(name)), None)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:80]} ..."


@final
@dataclass(frozen=True)
class TileStore:
    """The tiles of a symmetric or triangular (n, n) matrix are the chunks of the array at `path`."""

    path: Path
    n: int
    edge: int
    """Rows and columns of a tile; the last ones of the matrix may be smaller."""
    dtype: np.dtype

    @property
    def blocks(self) -> int:
        """Return the number of tiles in a row."""
        return -(-self.n // self.edge)

    def rows(self, i: int) -> slice:
        """Return the rows of tiles (i, j), or the columns of tiles (j, i)."""
        return slice(i * self.edge, min((i + 1) * self.edge, self.n))

    def whole(self, i: int, j: int) -> bool:
        """Return True if the tile is there and has its checksum."""
        chunk = self._chunk(i, j)
        size = self.edge**2 * self.dtype.itemsize + CHECKSUM_BYTES
        if not chunk.is_file() or chunk.stat().st_size != size:
            return False
        try:
            self._array[self.rows(i), self.rows(j)]
        except (ValueError, OSError):
            return False
        return True

    def read(self, i: int, j: int) -> np.ndarray:
        """Read a tile. Raises: ValueError: it is damaged or missing."""
        try:
            if self._chunk(i, j).is_file():
                return np.asarray(self._array[self.rows(i), self.rows(j)])
            cause = "is missing"
        except ValueError as error:
            cause = f"is damaged ({error})"
        raise ValueError(
            f"{self.path}: the tile c/{i}/{j} {cause}; call again what has written it: such tiles are computed again."
        )

    def write(self, i: int, j: int, tile: np.ndarray) -> None:
        """Write a tile, whole or not at all. Raises: OSError: no room; what is finished is kept."""
        try:
            self._array[self.rows(i), self.rows(j)] = tile
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror} while tiles were written to {self.path}; the finished ones are kept. Fix that (free"
                " space on the disk, for instance) and call again",
            ) from error

    def require_room(self, tiles: int) -> None:
        """Refuse to write so many tiles where they do not fit. Raises: OSError."""
        _require_disk(self.path, tiles * self.edge**2 * self.dtype.itemsize)

    @property
    def _array(self) -> zarr.Array[Any]:
        return _open(self)

    def _chunk(self, i: int, j: int) -> Path:
        return self.path / "c" / str(i) / str(j)


@functools.lru_cache(maxsize=4)  # to open an array takes a millisecond, a tile some tens
def _open(store: TileStore) -> zarr.Array[Any]:
    return zarr.open_array(store.path, mode="r+", config={"write_empty_chunks": True})


def _fill(store: TileStore, plan: TilePlan, kernel: tiles.PairKernel, X: np.ndarray, report: Report) -> None:
    """Compute and write what is missing or damaged."""
    blocks = range(store.blocks)
    missing = {(i, j) for i in blocks for j in blocks if not store.whole(i, j)}
    store.require_room(len(missing))

    def write(i: int, j: int, tile: np.ndarray) -> None:
        for at, block in {(i, j): tile, (j, i): tile.T}.items():
            if at in missing:
                store.write(*at, block)

    def incomplete(i: int, j: int) -> bool:
        return (i, j) in missing or (j, i) in missing

    tiles.compute(kernel, X, X, plan, write, required=incomplete, report=report)


def find_damaged(path: Path) -> list[str]:
    """Find the tiles of a store, by their files, whose checksum does not match."""
    array = zarr.open_array(path, mode="r")
    shape = array.chunks
    found = []
    for chunk in sorted(path.glob("c/*/*[0-9]")):
        i, j = (int(name) * edge for name, edge in zip(chunk.parts[-2:], shape, strict=True))
        try:
            array[i : i + shape[0], j : j + shape[1]]
        except (ValueError, OSError):
            found.append("/".join(chunk.parts[-3:]))
    return found
