"""Gram matrices on disk: a Zarr v3 array whose chunks are the tiles, each written once.

A chunk takes its place by a rename, so that it is whole or not there: after a kill the finished tiles are found and the
others computed. The array's attributes say of which kernel and data it is; a store of anything else is refused.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, final

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from widelimit.compute import tiles
from widelimit.compute.memory import GIB
from widelimit.compute.plan import Plan, tile_plan

KEY = "widelimit_gram"
FORMAT = 1
CHECKSUM_BYTES = 4
"""A CRC-32C ends every chunk; reading a damaged one is an error."""
PROBED = 8
"""Rows whose Gram matrix stands in the fingerprint: it tells functions apart that have the same name."""


def store_gram(
    kernel: tiles.PairKernel,
    prepared: tiles.PairKernel,
    X: np.ndarray,
    path: Path,
    *,
    budget: float,
    progress: Callable[[int, int], None],
) -> None:
    """Compute the tiles of K(X, X) that are not yet in the store at `path`, which is made if it is not there.

    `prepared` is the kernel that computes, `kernel` the one that is described. Raises: see `stored_gram`.
    """
    plan = tile_plan(len(X), len(X), X.shape[1], X.dtype, symmetric=True, budget=budget)
    manifest = _manifest(kernel, prepared, X, plan.edge)
    if path.exists():
        plan = _same_store(path, manifest, plan)
    else:
        _require_disk(path, plan.n**2 * X.dtype.itemsize)
        _create(path, manifest, plan, X.dtype)
    _Store(path, plan, X.dtype).fill(prepared, X, progress)


def _manifest(kernel: tiles.PairKernel, prepared: tiles.PairKernel, X: np.ndarray, edge: int) -> dict[str, Any]:
    probe = tiles.gram(prepared, X[:PROBED])
    try:
        release = version("widelimit")
    except PackageNotFoundError:
        release = "unknown"
    return {
        "format": FORMAT,
        "widelimit": release,
        "kernel": _described(kernel),
        "values": _hash(probe),
        "data": _described(X),
        "tile": edge,
    }


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _described(value: Any) -> Any:
    """The value as JSON: classes and functions by their names, arrays by their hashes."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: _described(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, (tuple, list)):
        return [_described(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    array = np.asarray(value)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": _hash(array)}


def _create(path: Path, manifest: dict[str, Any], plan: Plan, dtype: np.dtype) -> None:
    zarr.create_array(
        path,
        shape=(plan.n, plan.n),
        chunks=(plan.edge, plan.edge),
        dtype=dtype,
        compressors=Crc32cCodec(),  # the digits of a kernel do not compress
        fill_value=np.nan,
        attributes={KEY: manifest},
        config={"write_empty_chunks": True},
    )


def _require_disk(path: Path, size: float) -> None:
    free = shutil.disk_usage(path.resolve().parent).free
    if size > free:
        raise OSError(
            errno.ENOSPC,
            f"the tiles that are left need {size / GIB:.3g} GiB and {free / GIB:.3g} GiB are free on the disk of "
            f"{path}; free space or choose another place. Nothing was computed",
        )


def _same_store(path: Path, manifest: dict[str, Any], plan: Plan) -> Plan:
    """The plan with the tiles of the store at `path`; refuses any store but one of this kernel and these data."""
    try:
        metadata = json.loads((path / "zarr.json").read_text())
        found = metadata["attributes"][KEY]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} exists and is not a Gram matrix written by widelimit, or its zarr.json is damaged "
            f"({type(error).__name__}: {error}); choose another path, or remove it. Nothing was changed."
        ) from None
    for name, what in (
        ("format", "in another format"),
        ("kernel", "of another kernel"),
        ("data", "of other data"),
        ("widelimit", "written by another version of widelimit"),
        ("values", "of a kernel with other values: another function of the same name, or another processor"),
    ):
        if found.get(name) != manifest[name]:
            raise ValueError(
                f"{path} is a Gram matrix {what}: it says {name} = {_short(found.get(name))}, and this is "
                f"{_short(manifest[name])}; choose another path, or remove it. Nothing was changed."
            )
    edge = found.get("tile")
    form = (metadata.get("shape"), metadata.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape"))
    if form != ([plan.n, plan.n], [edge, edge]):
        raise ValueError(f"{path}/zarr.json is damaged: shape and chunks are {form}; remove {path}.")
    if edge > plan.edge:
        raise MemoryError(
            f"the tiles of {path} are {edge} x {edge}; the budget is enough for {plan.edge} x {plan.edge}."
        )
    return replace(plan, edge=edge)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:200]} ..."


@final
@dataclass(frozen=True)
class _Store:
    """The tiles of a plan as the chunks of the array at `path`."""

    path: Path
    plan: Plan
    dtype: np.dtype

    def finished(self, i: int, j: int) -> bool:
        """Whether the chunk is there. Raises: ValueError if it is not whole, which no kill can do."""
        chunk = self.path / "c" / str(i) / str(j)
        if not chunk.exists():
            return False
        size, whole = chunk.stat().st_size, self.plan.edge**2 * self.dtype.itemsize + CHECKSUM_BYTES
        if size != whole:
            raise ValueError(
                f"{chunk} is damaged: it has {size} bytes and a whole tile has {whole}; remove that file, and it is "
                "computed again. Nothing was changed."
            )
        return True

    def fill(self, kernel: tiles.PairKernel, X: np.ndarray, progress: Callable[[int, int], None]) -> None:
        """Compute and write what is missing."""
        for part in self.path.glob("c/*/*.partial"):  # of a run that was killed
            part.unlink()
        blocks = range(self.plan.row_blocks)
        missing = {(i, j) for i in blocks for j in blocks if not self.finished(i, j)}
        _require_disk(self.path, len(missing) * self.plan.edge**2 * self.dtype.itemsize)
        array = zarr.open_array(self.path, mode="r+", config={"write_empty_chunks": True})

        def write(i: int, j: int, tile: np.ndarray) -> None:
            for at, block in {(i, j): tile, (j, i): tile.T}.items():
                if at in missing:
                    array[self.plan.rows(at[0]), self.plan.rows(at[1])] = block

        def wanted(i: int, j: int) -> bool:
            return (i, j) in missing or (j, i) in missing

        try:
            tiles.compute(kernel, X, X, self.plan, write, wanted=wanted, progress=progress)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror} while tiles were written to {self.path}; the finished ones are kept. Mend that (free"
                " space on the disk, for instance) and call again",
            ) from error
