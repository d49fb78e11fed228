"""The state of a long solve is stored on disk: written whole or not at all, read back for the same problem only."""

import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np

from widelimit.writing import atomic_write

SECONDS = 30.0
"""Between two states written: the most work that a kill can cost."""
_KEY = "fingerprint"


@final
@dataclass
class SolverCheckpoint:
    """A checkpoint is one file, of one problem (known by its fingerprint)."""

    path: Path
    fingerprint: str
    seconds: float = field(default_factory=lambda: SECONDS)
    """Between two states written, unless one is to be written now."""
    written: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, np.ndarray] | None:
        """Load the last state; None if there is no file.

        Raises:
            ValueError: the file is damaged, or belongs to another problem; it is left as it is. Its folder is missing.
        """
        if not self.path.parent.is_dir():
            raise ValueError(f"the checkpoint {self.path} cannot be written: its folder does not exist.")
        if not self.path.exists():
            return None
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                state = {name: stored[name] for name in stored.files}
            owner = str(state.pop(_KEY))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            why = error if isinstance(error, OSError) else "it is damaged, or no checkpoint"
            raise ValueError(
                f"the checkpoint {self.path} cannot be read ({why}); remove it to start again, or give another path."
            ) from None
        if owner != self.fingerprint:
            raise ValueError(
                f"the checkpoint {self.path} belongs to another problem (another kernel, other data, noise, precision "
                "or tolerance, or another processor); remove it to start again, or give another path."
            )
        return state

    def save(self, state: dict[str, np.ndarray], *, now: bool = False) -> None:
        """Replace the file by this state, at most every `seconds` unless `now`."""
        if not now and time.monotonic() - self.written < self.seconds:
            return
        with atomic_write(self.path, unfinished=f"{self.path.name}.partial") as file:
            np.savez(file, **{_KEY: np.asarray(self.fingerprint)}, **state)  # type: ignore[arg-type]
        self.written = time.monotonic()
