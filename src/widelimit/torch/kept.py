"""The factors of blocks of rows are kept from one tile of a stored matrix to the next: a row is differentiated once."""

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
    """The store has the factors of all its rows; with the kernels of rows with themselves, by label."""

    store: Store
    diagonal: dict[str, torch.Tensor]


@final
class KeptFactors:
    """The factors of the blocks that were used last are kept, on disk or in memory, within a limit of bytes."""

    def __init__(self) -> None:
        self.users = 0
        """Matrices that are computed with these now."""
        self._found: OrderedDict[Hashable, tuple[Filled, float]] = OrderedDict()

    def get(self, key: Hashable) -> Filled | None:
        """Return the factors of these rows, if they are there."""
        if key not in self._found:
            return None
        self._found.move_to_end(key)
        return self._found[key][0]

    def begin(
        self, n: int, like: torch.Tensor, size: float, limit: float, *, disk: bool, needed: Collection[Hashable]
    ) -> Filled:
        """Return an empty store for `size` bytes of n rows' factors; the oldest others go, those needed stay.

        Without a disk all that is kept takes `limit` bytes at most; on a disk half of what is free. The folder of a
        store is removed with the last reference to it: a call in progress may read it.

        Raises: OSError: a full disk.
        """
        held = sum(own for _, own in self._found.values())
        free = shutil.disk_usage(tempfile.gettempdir()).free if disk else 0.0
        limit = (free + held) / 2 if disk else limit
        for key in [key for key in self._found if key not in needed]:
            if held + size <= limit:
                break
            held -= self._found.pop(key)[1]
        if not disk:
            return Filled(Store(n, None, like), {})
        require_disk(size)
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        found = Filled(Store(n, path, like), {})
        weakref.finalize(found.store, shutil.rmtree, path, True)
        return found

    def add(self, key: Hashable, filled: Filled, size: float) -> None:
        """Keep the factors of a block, of so many bytes."""
        self._found[key] = filled, size

    def clear(self) -> None:
        """Remove all that is kept."""
        while self._found:
            _, ((store, _), _) = self._found.popitem()
            if store.path:
                shutil.rmtree(store.path, ignore_errors=True)


def key_of(rows: Any, trial: Trial, labels: tuple[str, ...]) -> Hashable:
    """Return a hash of rows of inputs, with the parameters whose Jacobians are taken whole, and all labels."""
    hashed = hashlib.sha256()
    for leaf in inputs.leaves(rows):
        value = leaf.cpu().contiguous().numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode()
        hashed.update(value)
    return hashed.digest(), inputs.forms(rows), trial.explicit, labels


_of: weakref.WeakKeyDictionary[Any, KeptFactors] = weakref.WeakKeyDictionary()


def kept_of(owner: Any) -> KeptFactors | None:
    """Return what is kept for a module's kernel now, if anything is."""
    return _of.get(owner)


@contextmanager
def keeping(owner: Any, lock: AbstractContextManager[Any]) -> Iterator[None]:
    """Keep factors for the tiles of matrices, and remove them when the last one ends; tiles use them under `lock`."""
    with lock:
        kept = _of.setdefault(owner, KeptFactors())
        kept.users += 1
    try:
        yield
    finally:
        with lock:
            kept.users -= 1
            if not kept.users:
                del _of[owner]
                kept.clear()
