"""Factors of rows are kept between the tiles of a matrix, so that each row is differentiated once.

`keeping` holds them while a stored matrix is computed, `kept_of` finds them.
"""

import hashlib
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from widelimit.torch import inputs
from widelimit.torch.jacobian import Trial
from widelimit.torch.store import PREFIX, Store, require_disk


class Filled(NamedTuple):
    """A filled store has the factors of all its rows."""

    store: Store
    diagonal: dict[str, torch.Tensor]
    """K(x, x) of its rows by label, (n, ...)."""


@final
class KeptFactors:
    """The factors of blocks of rows are kept in memory up to a limit, then on disk, where those used last stay."""

    def __init__(self) -> None:
        self.users = 0
        """Number of matrices that are being computed with these factors."""
        self._found: OrderedDict[Hashable, tuple[Filled, float]] = OrderedDict()

    def get(self, key: Hashable) -> Filled | None:
        """Return the factors with this key, or None; they then count as used last."""
        if key not in self._found:
            return None
        self._found.move_to_end(key)
        return self._found[key][0]

    def begin(
        self, n: int, like: torch.Tensor, size: float, limit: float, *, disk: bool, needed: Collection[Hashable]
    ) -> Filled:
        """Return an empty store for the factors of n rows, of `size` bytes.

        It is on disk if `disk` is True, or if all that is kept in memory would take more than `limit` bytes. Then the
        files used least recently are removed, until all take half of the free disk at most; those whose keys are
        `needed` stay. The folder of a store is removed with the last reference to it, as a call in progress may still
        read it.

        Raises: OSError: a full disk.
        """
        files = {key: own for key, (filled, own) in self._found.items() if filled.store.path}
        written = sum(files.values())
        held = sum(own for _, own in self._found.values()) - written
        if not disk and held + size <= limit:
            return Filled(Store(n, None, like), {})
        limit = (shutil.disk_usage(tempfile.gettempdir()).free + written) / 2
        for key in [key for key in files if key not in needed]:
            if written + size <= limit:
                break
            written -= self._found.pop(key)[1]
        require_disk(size)
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        found = Filled(Store(n, path, like), {})
        weakref.finalize(found.store, shutil.rmtree, path, True)
        return found

    def add(self, key: Hashable, filled: Filled, size: float) -> None:
        """Keep the factors of a block of rows, of `size` bytes."""
        self._found[key] = filled, size

    def clear(self) -> None:
        """Remove all that is kept."""
        while self._found:
            _, ((store, _), _) = self._found.popitem()
            if store.path:
                shutil.rmtree(store.path, ignore_errors=True)


def key_of(rows: Any, trial: Trial, labels: tuple[str, ...]) -> Hashable:
    """Return the key of the factors of rows: a hash of inputs, their forms, parameters taken whole, and labels."""
    hashed = hashlib.sha256()
    for leaf in inputs.leaves(rows):
        value = leaf.cpu().contiguous().numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode()
        hashed.update(value)
    return hashed.digest(), inputs.forms(rows), trial.explicit, labels


_KEPT: weakref.WeakKeyDictionary[Any, KeptFactors] = weakref.WeakKeyDictionary()
"""What is kept for each kernel of a module whose matrices are being computed."""


def kept_of(owner: Any) -> KeptFactors | None:
    """Return the factors that are kept for a module's kernel, or None outside of `keeping`."""
    return _KEPT.get(owner)


@contextmanager
def keeping(owner: Any, lock: AbstractContextManager[Any]) -> Iterator[None]:
    """Keep factors of a kernel for the tiles of its matrices, and remove them when the last matrix is finished.

    Tiles use them under `lock`, as they come from several threads.
    """
    with lock:
        kept = _KEPT.setdefault(owner, KeptFactors())
        kept.users += 1
    try:
        yield
    finally:
        with lock:
            kept.users -= 1
            if not kept.users:
                del _KEPT[owner]
                kept.clear()
