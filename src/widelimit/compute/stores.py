"""A matrix on disk is a Zarr v3 array whose chunks are its tiles, each written once: a Gram matrix, or its factor.

A chunk takes its place by a rename, so that it is whole or not there: after a kill the finished tiles are found and the
others computed, and so are those that their checksum finds damaged. The array's attributes say of what it is; a store
of anything else is refused. A second copy of them serves where the first is damaged or missing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from widelimit import memory
from widelimit.compute.engines import NoAnswer
from widelimit.compute.places import Place, remote_errors
from widelimit.compute.tiles import mirror
from widelimit.version import __version__

FORMAT = 1
CHECKSUM_BYTES, SOUND = 4, 0x48674BC7
"""A CRC-32C ends every chunk; that of a chunk with its own at the end is this number."""
METADATA, COPY = "zarr.json", "widelimit.json"
"""Zarr's own metadata file, and this module's copy of it."""
UNFINISHED = re.compile(r"((zarr|widelimit)\.(json|[0-9a-f]+)|c/[0-9]+/[0-9]+\.[0-9a-f]+)\.partial")
"""Files that a kill leaves while this module, or Zarr, writes them. Others of that ending are the user's."""
TILES = "c/"
"""Keys of the tiles begin so."""
FORM, VERSION = ("format", "in another format"), ("widelimit", "written by another version of widelimit")


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


@final
@dataclass(frozen=True, eq=False)
class TileStore:
    """The tiles of an (n, n) matrix are the chunks of the array at a place; tasks are sent it."""

    place: Place
    array: zarr.Array[Any]

    @property
    def n(self) -> int:
        """Return the rows of the matrix."""
        return int(self.array.shape[0])

    @property
    def edge(self) -> int:
        """Return the rows and columns of a tile; the last ones of the matrix may be smaller."""
        return int(self.array.chunks[0])

    @property
    def blocks(self) -> int:
        """Return the number of tiles in a row."""
        return -(-self.n // self.edge)

    @property
    def bytes_of_tile(self) -> int:
        """Return the bytes of a tile."""
        return self.edge**2 * int(self.array.dtype.itemsize)

    def rows(self, i: int) -> slice:
        """Return the rows of tiles (i, j), or the columns of tiles (j, i)."""
        return slice(i * self.edge, min((i + 1) * self.edge, self.n))

    def whole(self, i: int, j: int) -> bool:
        """Return True if the tile is there and has its checksum."""
        try:
            self.read(i, j)
        except (ValueError, OSError):
            return False
        return True

    def read(self, i: int, j: int) -> np.ndarray:
        """Read a tile, which cannot be written to. Raises: ValueError: it is damaged or missing."""
        key = f"{TILES}{i}/{j}"
        with remote_errors(self.place):
            data = self.place.read(key)  # Zarr takes a millisecond more, as long as a product of small tiles
        if data is None or len(data) != self.bytes_of_tile + CHECKSUM_BYTES or google_crc32c.value(data) != SOUND:
            raise ValueError(
                f"{self.place.name}: the tile {key} is {'missing' if data is None else 'damaged'}; call again what has "
                "written it: such tiles are computed again. Workers of other machines need a path to the same files."
            )
        found = np.frombuffer(data, self.array.dtype.newbyteorder("<"), self.edge**2).reshape(self.edge, self.edge)
        rows, columns = self.rows(i), self.rows(j)
        return found[: rows.stop - rows.start, : columns.stop - columns.start]

    def write(self, i: int, j: int, tile: np.ndarray) -> None:
        """Write a tile, whole or not at all: the bytes are Zarr's, which takes several copies, of a mirrored one slow.

        It is not synchronised with the disk: what a power failure leaves of it fails its checksum.
        """
        data = np.empty(self.bytes_of_tile + CHECKSUM_BYTES, np.uint8)
        chunk = data[:-CHECKSUM_BYTES].view(self.array.dtype.newbyteorder("<")).reshape(self.edge, self.edge)
        inside = chunk[: len(tile), : tile.shape[1]]
        if inside.shape != chunk.shape:
            chunk.fill(np.nan)
        if tile.strides[0] < tile.strides[1]:
            mirror(tile.T, inside)
        else:
            inside[:] = tile
        checksum = google_crc32c.value(data[:-CHECKSUM_BYTES]).to_bytes(CHECKSUM_BYTES, "little")
        data[-CHECKSUM_BYTES:] = np.frombuffer(checksum, np.uint8)
        with remote_errors(self.place):
            self.place.put(f"{TILES}{i}/{j}", data)

    def require_disk(self, tiles: int) -> None:
        """Refuse to write so many tiles where they do not fit. Raises: OSError."""
        require_disk(self.place, tiles * self.bytes_of_tile)


def open_store(
    place: Place, kind: Contents, manifest: dict[str, Any], *, n: int, edge: int, dtype: np.dtype, share: float
) -> TileStore:
    """Open the store at a place for writing; made, or described again, where it must be.

    Args:
        place: of the store.
        kind: of its contents.
        manifest: what it is of, in JSON.
        n: rows of the matrix.
        edge: rows of a tile, if the store has none yet.
        dtype: of the matrix.
        share: the part of the matrix that will be stored.

    Raises: ValueError: the place holds something else; nothing is changed. OSError: no room, or not writable.
    """
    manifest = {"format": FORMAT, "widelimit": __version__, **manifest, "tile": edge}
    if _has_content(place):
        manifest["tile"] = _edge_of_same(place, kind, manifest)
    else:
        require_disk(place, share * n**2 * dtype.itemsize)
    _describe(place, kind, manifest, n, dtype)
    _remove_unfinished(place)
    return open_tiles(place)


def open_tiles(place: Place) -> TileStore:
    """Open a store that is described already, for writing."""
    return TileStore(place, zarr.open_array(place.store, mode="r+", config={"write_empty_chunks": True}))


@contextlib.contextmanager
def kept(place: Place) -> Iterator[None]:
    """Say in errors of the store that what is finished is kept."""
    try:
        yield
    except NoAnswer as error:
        raise NoAnswer(f"{place.name}: {len(place.keys(TILES))} tiles are stored; {error}") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{error.strerror} while tiles were written to {place.name}; the finished ones are kept. Fix that (free"
            " space on the disk, for instance) and call again",
        ) from error


def _has_content(place: Place) -> bool:
    """Return False where there is nothing to lose: no folder, or only the files of an interrupted start."""
    if place.folder is not None and not place.folder.is_dir():
        return place.folder.exists()
    own = METADATA, COPY
    if any(_document(place, name) is not None for name in own):
        return True
    return place.find(lambda key: key not in own and not UNFINISHED.fullmatch(key)) is not None


def _remove_unfinished(place: Place) -> None:
    """Delete the files that were being written to a folder when their process was killed."""
    for part in (*place.folder.glob("*.partial"), *place.folder.glob("c/*/*.partial")) if place.folder else ():
        if UNFINISHED.fullmatch(part.relative_to(place.folder or "").as_posix()):
            part.unlink()


def _document(place: Place, name: str) -> Any:
    """Read the document of this name; None if it is missing or is no JSON."""
    try:
        return json.loads(place.read(name) or b"")
    except ValueError:
        return None


def metadata(shape: tuple[int, int], chunks: tuple[int, int], dtype: np.dtype, attributes: dict[str, Any]) -> bytes:
    """Return Zarr's metadata of an array whose chunks are not compressed and have checksums."""
    files: dict[str, Buffer] = {}
    zarr.create_array(
        MemoryStore(files),
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        compressors=Crc32cCodec(),  # the digits of a kernel do not compress
        fill_value=np.nan,
        attributes=attributes,
        config={"write_empty_chunks": True},
    )
    return files[METADATA].to_bytes()


def _describe(place: Place, kind: Contents, manifest: dict[str, Any], n: int, dtype: np.dtype) -> None:
    """Write both copies of the array's metadata where they are not there, or say something else.

    Attributes that a user has added stay, and the copy has them too.
    """
    attributes = {**_attributes(place, kind.key), kind.key: manifest}
    text = metadata((n, n), (manifest["tile"], manifest["tile"]), dtype, attributes)
    required = json.loads(text)
    copied = _document(place, COPY) == required
    described = _matches(_document(place, METADATA), required, kind.key)
    for name, written in ((COPY, copied), (METADATA, described)):
        if not written:
            place.write(name, text)


def _attributes(place: Place, key: str) -> dict[str, Any]:
    """Return all attributes of the array at a place, the user's too; from the copy where Zarr's own file is damaged."""
    for name in (METADATA, COPY):
        document = _document(place, name)
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


def require_disk(place: Place, size: float) -> None:
    """Refuse to write more bytes than are free at a place. Raises: OSError."""
    if size > (free := place.free()):
        raise OSError(
            errno.ENOSPC,
            f"the tiles that are left need {memory.text(size)} and {memory.text(free)} are free on the disk of "
            f"{place.name}; free space or choose another place. Nothing was computed",
        )


def _edge_of_same(place: Place, kind: Contents, manifest: dict[str, Any]) -> int:
    """Return the rows of a tile of the store at a place; refuses any store but one of these contents."""
    found = [_manifest_of(place, name, kind) for name in (METADATA, COPY)]
    known = [each for each in found if each is not None]
    same = [each for each in known if _difference(each, manifest, kind) is None]
    if not known:
        raise ValueError(
            f"{place.name} exists and is not {kind.noun} written by widelimit, or its {METADATA} is damaged and "
            "has no copy; choose another path, or remove it. Nothing was changed."
        )
    if not same:
        fact, what = _difference(known[0], manifest, kind) or ("", "")
        name, old, new = _first_difference(fact, known[0].get(fact), manifest[fact])
        raise ValueError(
            f"{place.name} is {kind.noun} {what}: it says {name} = {_short(old)}, and this is {_short(new)}; choose "
            "another path, or remove it. Nothing was changed."
        )
    return int(same[0]["tile"])


def _manifest_of(place: Place, name: str, kind: Contents) -> dict[str, Any] | None:
    """Read the manifest; None if it is damaged: it contradicts itself, or is none of this form."""
    document = _document(place, name)
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


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Descend in two different values of JSON to what differs first; returns its name and both."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in {**new, **old} if key not in old or key not in new or old[key] != new[key])
        return _first_difference(f"{name}.{key}", old.get(key), new.get(key))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        i = next(i for i in range(len(old)) if old[i] != new[i])
        if isinstance(old[i], dict | list):
            return _first_difference(f"{name}[{i}]", old[i], new[i])
    return name, old, new


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:80]} ..."


def find_damaged(place: Place) -> list[str]:
    """Find the tiles at a place, by their keys, whose checksum does not match."""
    store = TileStore(place, zarr.open_array(place.store, mode="r"))
    keys = sorted(filter(re.compile(r"c/[0-9]+/[0-9]+").fullmatch, place.keys(TILES)))
    return [key for key in keys if not store.whole(*map(int, key.split("/")[1:]))]
