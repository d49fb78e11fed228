"""A model's file is an .npz archive of arrays and a JSON header with a checksum; nothing in it is ever executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from widelimit import validation
from widelimit.estimators import files
from widelimit.estimators.files import ForeignFileError
from widelimit.estimators.model_state import INVALID, ModelState
from widelimit.fingerprints import sha256
from widelimit.version import __version__
from widelimit.writing import atomic_write

FORMAT = 1
"""The version of the file grows when an older library would misread a newer file."""
MAGIC = "widelimit.model"
HEADER = "header"
FIELDS = {"magic", "format", "widelimit", "class", "parameters", "state", "arrays", "extra", "checksum"}
"""The header has these fields."""


def write(path: Path, name: str, parameters: dict[str, Any], state: ModelState, extra: Any) -> None:
    """Write the model of the class `name`, whole or not at all.

    Raises:
        TypeError: JSON cannot hold `extra`.
        OSError: the file cannot be written.
    """
    arrays = {key: np.ascontiguousarray(value) for key, value in state.arrays.items()}
    header = {
        "magic": MAGIC,
        "format": FORMAT,
        "widelimit": __version__,
        "class": name,
        "parameters": parameters,
        "state": state.values,
        "arrays": describe(arrays),
        "extra": json_extra(extra),
    }
    header = json.loads(json.dumps(header))  # as it will be read: tuples are lists, keys text
    text = json.dumps(header | {"checksum": checksum(header, arrays)})
    with atomic_write(path) as stream:
        np.savez(stream, **{HEADER: np.frombuffer(text.encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]


def describe(arrays: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    """Return type and shape of each array."""
    return {key: [array.dtype.str, list(array.shape)] for key, array in arrays.items()}


def json_extra(extra: Any) -> Any:
    """Return the caller's addition as it will be read. Raises: TypeError: JSON cannot hold it."""
    if extra is not None and not isinstance(extra, dict):
        raise TypeError(f"extra must be a dictionary, or None; got {validation.shown(extra)}.")
    try:
        return json.loads(json.dumps(extra or {}))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"extra must be of what JSON can hold: {str(error)[:200]}.") from None


def contents(name: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read header and arrays, checked against each other.

    Raises:
        ForeignFileError: no such file of this library; edited, or of another format.
        ValueError: another header than a model has.
        FileNotFoundError, PermissionError: the file cannot be opened.
    """
    arrays = files.arrays(name, HEADER)
    try:
        header = json.loads(bytes(arrays.pop(HEADER).astype(np.uint8, casting="safe")).decode())
    except INVALID as error:
        raise files.foreign(name, f"an archive with another header ({str(error)[:120]})") from None
    if not isinstance(header, dict) or header.get("magic") != MAGIC:
        raise files.foreign(name, "a NumPy archive of another program")
    if header.get("format") != FORMAT:
        raise ForeignFileError(
            f"{name}: the file has format {validation.shown(header.get('format'))}, written by widelimit "
            f"{validation.shown(header.get('widelimit'))}; this is widelimit {__version__}, which reads "
            f"format {FORMAT}. Upgrade widelimit."
        )
    if describe(arrays) != header.get("arrays") or checksum(header, arrays) != header.get("checksum"):
        raise ForeignFileError(
            f"{name}: the checksum does not match: the file was damaged or edited. Save the model again."
        )
    if set(header) != FIELDS or not isinstance(header["widelimit"], str):
        raise ValueError("other fields than a model has")
    return header, arrays


def checksum(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """Compute SHA-256 over the rest of the header and over names, dtypes, shapes and bytes of the arrays."""
    rest = {key: value for key, value in header.items() if key != "checksum"}
    parts: list[str | bytes] = [json.dumps(rest, sort_keys=True)]
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        parts += [f"{key}:{array.dtype.str}:{array.shape};", array.tobytes()]
    return sha256(*parts)
