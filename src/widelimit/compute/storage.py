"""A Gram matrix on disk is a Zarr v3 array whose chunks are the tiles, each written once.

A chunk takes its place by a rename, so that it is whole or not there: after a kill the finished tiles are found and the
others computed, and so are those that their checksum finds damaged. The array's attributes say of which kernel and data
it is; a store of anything else is refused. A second copy of them serves where the first is damaged or missing.
"""

import contextlib
import dataclasses
import errno
import inspect
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import zarr

from widelimit import memory
from widelimit.compute import tile_tasks, tiles, workers
from widelimit.compute.places import Place
from widelimit.compute.plan import TilePlan
from widelimit.compute.tile_tasks import Address, Work
from widelimit.compute.workers import Task
from widelimit.fingerprints import sha256
from widelimit.progress import KERNEL, Report
from widelimit.version import __version__

KEY = "widelimit_gram"
FORMAT = 1
METADATA, COPY = "zarr.json", "widelimit.json"
"""Zarr's own metadata file, and this module's copy of it."""
UNFINISHED = re.compile(r"((zarr|widelimit)\.(json|[0-9a-f]+)|c/[0-9]+/[0-9]+\.[0-9a-f]+)\.partial")
"""Files that a kill leaves while this module, or Zarr, writes them. Others of that ending are the user's."""
TILES = "c/"
"""Keys of the tiles begin so."""


def store_gram(
    kernel: tiles.PairKernel,
    prepared: tiles.PairKernel,
    X: np.ndarray,
    place: Place,
    *,
    budget: float,
    report: Report,
    client: Any = None,
) -> None:
    """Compute the tiles of K(X, X) that are not yet at the place, which is made if it is not there.

    `prepared` is the kernel that computes, `kernel` the one that is described. Raises: see `stored_gram`.
    """
    n, d = X.shape
    plan = tiles.plan_of(prepared, n, n, d, X.dtype, symmetric=True, budget=budget)
    manifest = _manifest(kernel, prepared, X, plan.edge)
    if _has_content(place):
        edge = _same_store(place, manifest, plan)
        plan, manifest = replace(plan, edge=edge), {**manifest, "tile": edge}
    else:
        _require_disk(place, plan.n**2 * X.dtype.itemsize)
    _describe(place, manifest, plan, X.dtype)
    _remove_unfinished(place)
    work = tile_tasks.open_work(place, prepared, X, plan)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_kept(place))
        if client is None:
            client = stack.enter_context(ThreadPoolExecutor(plan.workers))
        source = work if isinstance(client, ThreadPoolExecutor) else tile_tasks.write_work(work, manifest["values"])
        _fill(work, source, client, report)
    place.clear(tile_tasks.FOLDER)


def _fill(work: Work, source: Work | Address, client: Any, report: Report) -> None:
    """Compute and write what is missing or damaged."""
    plan = work.plan
    missing = {(i, j) for i in range(plan.row_blocks) for j in range(i + 1)}
    if work.place.keys(TILES):
        rows = workers.gather(tile_tasks.missing_in_row, [(source, i) for i in range(plan.row_blocks)], client)
        missing = {at for row in rows for at in row}
    _require_disk(work.place, sum(1 + (i != j) for i, j in missing) * plan.edge**2 * work.array.dtype.itemsize)
    todo = [at for _, _, group in plan.groups() for at in group if at in missing]
    tasks = {f"tile-{i}-{j}": Task(tile_tasks.write_tile, (source, i, j)) for i, j in todo}
    known = plan.count - len(todo)
    workers.run(tasks, client, report=lambda _, done, __: report(KERNEL, known + done, plan.count))
    there = set(work.place.keys(TILES))
    if lost := [at for at in todo if f"{TILES}{at[0]}/{at[1]}" not in there]:
        raise OSError(
            errno.ENOENT,
            f"{len(lost)} tiles were computed and are not in {work.place.name}: workers on other machines need a path "
            "that leads to the same files everywhere (a shared file system or an object store)",
        )


@contextlib.contextmanager
def _kept(place: Place) -> Iterator[None]:
    """Say in errors of the store that what is finished is kept."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{error.strerror} while tiles were written to {place.name}; the finished ones are kept. Fix that (free"
            " space on the disk, for instance) and call again",
        ) from error


def _manifest(kernel: tiles.PairKernel, prepared: tiles.PairKernel, X: np.ndarray, edge: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "widelimit": __version__,
        "kernel": _description(kernel),
        "values": tile_tasks.probe(prepared, X),
        "data": _description(X),
        "tile": edge,
    }


def _hash(array: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(array).data)


def _description(value: Any) -> Any:
    """Describe the value in JSON: classes and functions by their names, arrays by their hashes."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: _description(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, (tuple, list)):
        return [_description(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        named = value if inspect.isroutine(value) or isinstance(value, type) else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    array = np.asarray(value)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": _hash(array)}


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


def _describe(place: Place, manifest: dict[str, Any], plan: TilePlan, dtype: np.dtype) -> None:
    """Write both copies of the array's metadata where they are not there, or say something else.

    Attributes that a user has added stay, and the copy has them too.
    """
    attributes = {**_attributes(place), KEY: manifest}
    text = tile_tasks.metadata((plan.n, plan.n), (plan.edge, plan.edge), dtype, attributes)
    required = json.loads(text)
    copied = _document(place, COPY) == required
    described = _matches(_document(place, METADATA), required)
    for name, written in ((COPY, copied), (METADATA, described)):
        if not written:
            place.write(name, text)


def _attributes(place: Place) -> dict[str, Any]:
    """Return all attributes of the array at a place, the user's too; from the copy where Zarr's own file is damaged."""
    for name in (METADATA, COPY):
        document = _document(place, name)
        attributes = document.get("attributes") if isinstance(document, dict) else None
        if isinstance(attributes, dict) and KEY in attributes:
            return attributes
    return {}


def _matches(document: Any, required: dict[str, Any]) -> bool:
    """Return True if the metadata have all required fields; what a user, or a later Zarr, has added may stay."""
    if not isinstance(document, dict) or not isinstance(document.get("attributes"), dict):
        return False
    same = all(document.get(name) == value for name, value in required.items() if name != "attributes")
    return bool(same and document["attributes"].get(KEY) == required["attributes"][KEY])


def _require_disk(place: Place, size: float) -> None:
    if size > (free := place.free()):
        raise OSError(
            errno.ENOSPC,
            f"the tiles that are left need {memory.text(size)} and {memory.text(free)} are free on the disk of "
            f"{place.name}; free space or choose another place. Nothing was computed",
        )


def _same_store(place: Place, manifest: dict[str, Any], plan: TilePlan) -> int:
    """Return the rows of a tile of the store at a place; refuses any store but one of this kernel and these data."""
    found = [_manifest_of(place, name) for name in (METADATA, COPY)]
    known = [each for each in found if each is not None]
    same = [each for each in known if _difference(each, manifest) is None]
    if not known:
        raise ValueError(
            f"{place.name} exists and is not a Gram matrix written by widelimit, or its {METADATA} is damaged and has "
            "no copy; choose another path, or remove it. Nothing was changed."
        )
    if not same:
        name, what = _difference(known[0], manifest) or ("", "")
        raise ValueError(
            f"{place.name} is a Gram matrix {what}: it says {name} = {_short(known[0].get(name))}, and this is "
            f"{_short(manifest[name])}; choose another path, or remove it. Nothing was changed."
        )
    edge = int(same[0]["tile"])
    if edge > plan.edge:
        raise MemoryError(
            f"the tiles of {place.name} are {edge} x {edge}; the budget is enough for {plan.edge} x {plan.edge}."
        )
    return edge


def _manifest_of(place: Place, name: str) -> dict[str, Any] | None:
    """Read the manifest of kernel and data; None if it is damaged: it contradicts itself, or is none of this form."""
    document = _document(place, name)
    try:
        found = document["attributes"][KEY]
        edge, chunks = found["tile"], document["chunk_grid"]["configuration"]["chunk_shape"]
        sides, rows = document["shape"], found["data"]["shape"][0]
    except (KeyError, TypeError, IndexError):
        return None
    sound = isinstance(edge, int) and edge > 0 and chunks == [edge, edge] and sides == [rows, rows]
    return found if sound else None


def _difference(found: dict[str, Any], manifest: dict[str, Any]) -> tuple[str, str] | None:
    """Return the first fact in which they differ, and how."""
    for name, what in (
        ("format", "in another format"),
        ("kernel", "of another kernel"),
        ("data", "of other data"),
        ("widelimit", "written by another version of widelimit"),
        ("values", "of a kernel with other values: another function of the same name, or another processor"),
    ):
        if found.get(name) != manifest.get(name):
            return name, what
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:80]} ..."


def find_damaged(place: Place) -> list[str]:
    """Find the tiles at a place, by their keys, whose checksum does not match."""
    array = zarr.open_array(place.store, mode="r")
    shape = array.chunks
    found = []
    for key in sorted(filter(re.compile(r"c/[0-9]+/[0-9]+").fullmatch, place.keys(TILES))):
        i, j = (int(name) * edge for name, edge in zip(key.split("/")[1:], shape, strict=True))
        try:
            array[i : i + shape[0], j : j + shape[1]]
        except (ValueError, OSError):
            found.append(key)
    return found
