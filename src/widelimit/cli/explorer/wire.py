"""Arrays go to the page as base64: of all their bytes, or of 16 bits for each number where a page is to be small."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

STEPS = 2**15 - 1
"""Steps of 16 bits from 0 to the largest number of an array."""


def encode(arrays: Mapping[str, Any], kind: str = "float64") -> dict[str, Any]:
    """Return a JSON object; arrays become {"shape": ..., kind: base64 (little endian)}, everything else stays.

    kind: "float64", "float32", or "int16": integers, in units of "unit", the largest number over 32767.
    """
    return {name: _packed(value, kind) if isinstance(value, np.ndarray) else value for name, value in arrays.items()}


def _packed(value: np.ndarray, kind: str) -> dict[str, Any]:
    unit = float(np.abs(value).max(initial=0.0)) / STEPS or 1.0
    numbers = np.round(value / unit) if kind == "int16" else value
    data = np.ascontiguousarray(numbers, np.dtype(kind).newbyteorder("<")).tobytes()
    found = {"shape": list(value.shape), kind: base64.b64encode(data).decode()}
    return found | {"unit": unit} if kind == "int16" else found


def decode(document: Mapping[str, Any]) -> dict[str, Any]:
    """Read what `encode` made."""
    return {name: _unpacked(value) if _is_array(value) else value for name, value in document.items()}


def _is_array(value: Any) -> bool:
    return isinstance(value, dict) and "shape" in value


def _unpacked(value: Mapping[str, Any]) -> np.ndarray:
    kind = next(name for name in ("float64", "float32", "int16") if name in value)
    flat = np.frombuffer(base64.b64decode(value[kind]), np.dtype(kind).newbyteorder("<"))
    return np.asarray(flat.reshape(value["shape"]) * value.get("unit", 1))


def text(document: Any) -> bytes:
    """Return the bytes of a JSON document. Raises: ValueError: NaN outside of arrays."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
