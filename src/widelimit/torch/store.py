"""The factors of all rows are kept by parameter: in memory, or in files of a temporary folder, read piece by piece."""

import dataclasses
import errno
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from widelimit import memory
from widelimit.kernels.empirical import factors
from widelimit.kernels.empirical.factors import Affine, Explicit, Factor, Lookup, Use
from widelimit.torch.jacobian import Factors
from widelimit.torch.patches import Patched
from widelimit.torch.uses import Place

ALL = slice(None)
PREFIX = "widelimit-"


@contextmanager
def folder(size: float, *, disk: bool) -> Iterator[Path | None]:
    """Give a temporary folder with room for `size` bytes; None where memory is used. Raises: OSError: a full disk."""
    if not disk:
        yield None
        return
    require_disk(size)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        yield Path(name)


def require_disk(size: float) -> None:
    """Refuse factors that the disk of temporary folders has no room for. Raises: OSError."""
    name = tempfile.gettempdir()
    free = shutil.disk_usage(name).free
    if size > free:
        raise OSError(
            errno.ENOSPC,
            f"the factors of the rows need {memory.text(size)} and {memory.text(free)} are free in {name}: pass "
            f"more memory=GiB, set TMPDIR to another disk, or take fewer rows, parameters or outputs",
        )


@final
class Store:
    """A store has the factors of n rows, one array for all rows; zero for rows that do not use a parameter."""

    def __init__(self, n: int, path: Path | None, like: torch.Tensor) -> None:
        self.n, self.path, self.device, self.dtype = n, path, like.device, like.dtype
        self.kinds: dict[Place, list[dict[str, Any]]] = {}
        """The factor of every use of a parameter, without its arrays: its class (under "kind") and other fields."""
        self.arrays: dict[tuple[Place, int, str], Any] = {}
        """The arrays by place, use and field: tensors, or (file, shape, dtype) on a disk."""

    def write(self, rows: slice, found: Factors) -> None:
        """Store the factors of some rows."""
        for place, parts in found.items():
            kept: Any = parts
            if place not in self.kinds:
                self._begin(place, parts)
            elif not self._alike(place, parts):
                kept = self._as_jacobians(place, parts)
            for k, part in enumerate(kept):
                for name, t in _tensors(part).items():
                    with self._open(place, k, name) as array:
                        if array is not t:
                            array[rows] = t if self.path is None else t.cpu().numpy()

    def read(self, place: Place, k: int, rows: slice, outs: slice = ALL, ins: slice = ALL) -> Factor | Patched:
        """Return a use's factor at some rows, of some of the weight's outputs and inputs (channels)."""
        fields = dict(self.kinds[place][k])
        kind = fields.pop("kind")
        for name in [name for p, i, name in self.arrays if p == place and i == k]:
            with self._open(place, k, name) as array:
                piece = array[_index(fields, name, rows, outs, ins)]
                t = piece if self.path is None else torch.from_numpy(np.array(piece)).to(self.device)
            fields[name] = t.transpose(1, 2) if name == "backward" else t
        found: Factor | Patched = kind(**fields)
        return found

    def _begin(self, place: Place, parts: Any) -> None:
        """Make the arrays of a parameter; those of all rows are taken as they are, in memory."""
        self.kinds[place] = []
        for k, part in enumerate(parts):
            tensors = _tensors(part)
            self.kinds[place].append(_fields(part))
            for name, t in tensors.items():
                self.arrays[place, k, name] = (
                    t if self.path is None and len(t) == self.n else self._room((self.n, *t.shape[1:]), t.dtype)
                )

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        """Return an array of zeros, or file, shape and dtype of one on a disk."""
        if self.path is None:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        own = np.dtype(str(dtype).removeprefix("torch."))
        with tempfile.NamedTemporaryFile(dir=self.path, delete=False) as made:
            size = max(1, int(np.prod(shape))) * own.itemsize
            made.truncate(size)
            if sys.platform == "linux":  # a full disk raises here; a write to a mapped file would kill the process
                os.posix_fallocate(made.fileno(), 0, size)
        return Path(made.name), shape, own

    @contextmanager
    def _open(self, place: Place, k: int, name: str) -> Iterator[Any]:
        """Yield an array; a file is mapped only while it is used, so that it does not count as memory in use."""
        kept = self.arrays[place, k, name]
        if self.path is None:
            yield kept
            return
        file, shape, dtype = kept
        yield np.memmap(file, dtype, "r+", shape=shape)

    def _alike(self, place: Place, parts: Any) -> bool:
        """Return True if the factors of a parameter's uses have the form of those that are stored."""
        kinds = self.kinds[place]
        return len(kinds) == len(parts) and all(
            kind == _fields(part)
            and all(self._shape(place, k, name)[1:] == t.shape[1:] for name, t in _tensors(part).items())
            for k, (kind, part) in enumerate(zip(kinds, parts, strict=True))
        )

    def like(self, n: int) -> "Store":
        """Return a store with the sizes of this one for n rows, whose arrays hold no data."""
        found = Store(n, None, torch.empty(0, dtype=self.dtype, device=self.device))
        found.kinds = self.kinds
        found.arrays = {key: torch.empty((), device="meta").expand(n, *self._shape(*key)[1:]) for key in self.arrays}
        return found

    def kind(self, place: Place) -> str:
        """Return the kind of a parameter's first use: "affine", "lookup", "explicit" or "patched"."""
        return str(self.kinds[place][0]["kind"].__name__).lower()

    def use(self, place: Place, k: int) -> Use:
        """Return the sizes of a use."""
        kind = self.kinds[place][k]
        if kind["kind"] is Explicit:
            return Use(1, 1, self._shape(place, k, "jacobian")[2])
        _, s, _, o = self._shape(place, k, "backward")
        if kind["kind"] is Lookup:
            return Use(s, kind["rows"], o)
        shape = self._shape(place, k, "signals")
        if kind["kind"] is Affine:
            return Use(s, shape[2], o)
        kernel = kind["windows"].kernel
        return Use(s, shape[-1 - len(kernel)] * math.prod(kernel), o)

    def _shape(self, place: Place, k: int, name: str) -> tuple[int, ...]:
        kept = self.arrays[place, k, name]
        return tuple(kept.shape if self.path is None else kept[1])

    def _as_jacobians(self, place: Place, parts: Any) -> list[Explicit]:
        """Return parts as one Jacobian, and turn the stored ones into Jacobians: rows use the parameter differently."""
        if self.kinds[place] != [{"kind": Explicit}]:
            uses = range(len(self.kinds[place]))
            old = [total([self.read(place, k, slice(i, i + 1)) for k in uses]) for i in range(self.n)]
            for key in [key for key in self.arrays if key[0] == place]:
                del self.arrays[key]
            self._begin(place, [Explicit(old[0])])
            for i, jacobian in enumerate(old):
                with self._open(place, 0, "jacobian") as array:
                    array[i : i + 1] = jacobian if self.path is None else jacobian.cpu().numpy()
        return [Explicit(total(parts))]


def plain(factor: Factor | Patched) -> Factor:
    """Return a factor as one of `kernels.empirical.factors`: a convolution as an affine map of its patches."""
    return factor.affine() if isinstance(factor, Patched) else factor


def total(parts: Any) -> torch.Tensor:
    """Return the Jacobian of a parameter, (n, c, P), summed over its uses."""
    found: torch.Tensor = sum(factors.jacobian(plain(part), torch) for part in parts)
    return found


def _tensors(factor: Factor | Patched) -> dict[str, torch.Tensor]:
    """Return the arrays of a factor; backward signals as they lie in memory, (n, S, c, O)."""
    found = {name: t for name, t in vars(factor).items() if isinstance(t, torch.Tensor)}
    return {name: t.transpose(1, 2) if name == "backward" else t for name, t in found.items()}


def _fields(factor: Factor | Patched) -> dict[str, Any]:
    """Return the class of a factor, and its fields that are no arrays."""
    arrays = _tensors(factor)
    rest = {f.name: getattr(factor, f.name) for f in dataclasses.fields(factor) if f.name not in arrays}
    return {"kind": type(factor), **rest}


def _index(fields: Any, name: str, rows: slice, outs: slice, ins: slice) -> tuple[Any, ...]:
    """Return the index of some rows, outputs and inputs in a stored array."""
    if name == "backward":
        return rows, ALL, ALL, outs
    if name == "jacobian":
        return rows, ALL, ins
    if name == "tokens":
        return (rows,)
    return rows, ..., ins, *((ALL,) * len(fields["windows"].kernel) if "windows" in fields else ())
