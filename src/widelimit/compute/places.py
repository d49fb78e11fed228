"""A place keeps files by their keys: a folder, a bucket of an object store, or whatever else Zarr can write to."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore

from widelimit import extras, validation
from widelimit.writing import atomic_write

CLIENTS = ("obstore", "botocore", "aiobotocore", "gcsfs", "adlfs", "azure")
"""Packages that speak to object stores; their errors are none of Python's."""
ROLE = "/latest/api/token"
"""Where Amazon's machines are asked for their role, when no credentials are given."""


@final
@dataclass(frozen=True, eq=False)
class Place:
    """A place can be pickled, so that a worker opens the same one. A file is complete or absent."""

    store: Store
    name: str
    folder: Path | None
    """The folder; None if the files are not on this machine."""

    def read(self, key: str) -> bytes | None:
        """Read a file; None if it is missing, or no file."""
        if self.folder is not None:
            with suppress(OSError):
                return (self.folder / key).read_bytes()
            return None
        found = sync(self.store.get(key, default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Write a file, or replace it."""
        if self.folder is None:
            return self.put(key, np.frombuffer(data, np.uint8))
        (self.folder / key).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / key, unfinished=f"{Path(key).name}.partial") as file:
            file.write(data)
        return None

    def put(self, key: str, data: np.ndarray) -> None:
        """Write the bytes of a file, whole or not at all; a folder's reach the disk when the system likes."""
        if self.folder is None:
            return sync(self.store.set(key, default_buffer_prototype().buffer.from_array_like(data)))
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with part.open("wb", buffering=0) as file:
                if sys.platform == "linux":
                    os.posix_fallocate(
                        file.fileno(), 0, data.nbytes
                    )  # a page of space at a time takes half as long again
                file.write(data.data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def find(self, suits: Callable[[str], bool]) -> str | None:
        """Return the first key, in no order, that suits; the search ends there."""
        if self.folder is not None:
            return next((key for key in self._files() if suits(key)), None)
        return sync(self._search(suits))

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below a prefix that ends in a slash."""
        if self.folder is not None and not (self.folder / prefix).is_dir():
            return []
        return sync(self._listed(prefix))

    def clear(self, prefix: str) -> None:
        """Delete all files below a prefix."""
        if self.folder is not None:
            shutil.rmtree(self.folder / prefix, ignore_errors=True)
        else:
            sync(self.store.delete_dir(prefix.rstrip("/")))

    def free(self) -> float:
        """Return the bytes that are free there, as far as that is known."""
        if self.folder is None:
            return float("inf")
        place = self.folder.resolve()
        return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free

    def _files(self) -> Iterator[str]:
        for folder, _, names in os.walk(self.folder or "."):
            for name in names:
                yield (Path(folder) / name).relative_to(self.folder or ".").as_posix()

    async def _search(self, suits: Callable[[str], bool]) -> str | None:
        async for key in self.store.list():
            if suits(key):
                return key
        return None

    async def _listed(self, prefix: str) -> list[str]:
        return [key async for key in self.store.list_prefix(prefix)]


def find_place(path: Any) -> Place:
    """Return the place of a path, of a URL such as s3://bucket/K.zarr, or of a Zarr store.

    Raises: TypeError, ValueError: it is none; it cannot be written; the package for URLs is missing.
    """
    if isinstance(path, Store):
        if path.read_only or not (path.supports_writes and path.supports_deletes):
            raise ValueError(f"the store {path} cannot be written file by file, each whole or not at all.")
        folder = Path(path.root) if isinstance(path, LocalStore) else None
        return Place(path, str(folder or path), folder)
    if isinstance(path, str) and "://" in path:
        return Place(_remote(path), path, None)
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"path must be a path, a URL (s3://bucket/K.zarr) or a Zarr store; got {path!r:.80}.")
    folder = validation.path("path", path).absolute()  # a worker may have another working directory
    return Place(LocalStore(folder), str(path), folder)


def _remote(url: str) -> Store:
    try:
        from obstore.store import from_url
    except ImportError:
        raise ValueError(f"path: {extras.needed('obstore', f'the URL {url}')}; or give a Zarr store.") from None
    try:
        return ObjectStore(from_url(url))
    except Exception as error:
        raise ValueError(
            f"path: {url} is no address of an object store ({_first_line(error)}); write s3://bucket/K.zarr, "
            "gs://bucket/K.zarr or az://container/K.zarr."
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]


@contextmanager
def remote_errors(place: Place) -> Iterator[None]:
    """Raise errors of an object store's client as an OSError that names the place and says what to do."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in CLIENTS and not isinstance(error, FileNotFoundError):
            raise
        if place.folder is not None:
            raise
        cause = _first_line(error)
        if ROLE in cause:
            cause = "no credentials: AWS_ACCESS_KEY_ID is not set, and no service gives this machine a role"
        raise OSError(
            f"{place.name}: {cause}. Finished tiles are kept. Look at the address, the credentials "
            "(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...) and the network, here and on the workers, and call again."
        ) from error
