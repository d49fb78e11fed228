"""Files that the command line writes are checked before a computation, and written as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widelimit.cli import interruption
from widelimit.estimators.parameters import REPLACED
from widelimit.writing import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from widelimit.architecture.network import Network

FIGURES = (".png", ".pdf", ".svg")


def check_output(
    path: Path, suffixes: Sequence[str], *, option: str = "--out", inputs: Sequence[str | Path | None] = ()
) -> None:
    """Refuse a path that no file can be written to, before the work; a signal during it leaves no half file there.

    Raises:
        ValueError: a suffix that is not in `suffixes`; a parent folder missing or not writable; a folder or device; one
            of the `inputs`, the files that the command reads.
    """
    folder = path.parent
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} {path}: no such format {path.suffix!r}; end the name in {', '.join(suffixes)}.")
    if not folder.is_dir():
        raise ValueError(
            f"{option} {path}: there is no folder {folder}; create it (mkdir -p '{folder}') or choose another {option}."
        )
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} {path}: is not a regular file; choose the name of a file.")
    if any(given is not None and _is_same_file(path, given) for given in inputs):
        raise ValueError(f"{option} {path}: is a file that this command reads; choose another name.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{option} {path}: the folder {folder} is not writable; choose another {option}.")
    interruption.clear_at_end(folder.resolve())


def _is_same_file(path: Path, other: str | Path) -> bool:
    """Return True for two names of one file; a name of none, or too long for one, is another."""
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return False


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the path names. Raises: OSError."""
    with atomic_write(path) as stream:
        figure.savefig(stream, format=path.suffix[1:].lower(), dpi=150)


def given_network(given: Mapping[str, Any]) -> Network:
    """Return a network, or read the file of --network. Raises: ValueError: no such text, an option that it replaces."""
    for name in REPLACED:
        if given.get(name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} does not apply beside --network, whose file says all of the network; "
                f"leave one of them out."
            )
    if not isinstance(given["network"], str):
        return given["network"]  # type: ignore[no-any-return]
    from widelimit.network_text import read_network_file

    try:
        return read_network_file(given["network"])
    except OSError as error:
        raise ValueError(f"--network {given['network']}: cannot be read ({error.strerror}).") from None
