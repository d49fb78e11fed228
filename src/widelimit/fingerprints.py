"""Things with one fingerprint are the same: SHA-256 of texts, bytes and arrays."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def sha256(*parts: str | bytes | memoryview | np.ndarray) -> str:
    """Hash the parts one after another, an array by its dtype, shape and values; in hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(part.encode())
        elif isinstance(part, bytes | memoryview):
            total.update(part)
        else:
            total.update(f"{part.dtype}{part.shape}".encode())
            total.update(part.reshape(-1).view("uint8").data)
    return total.hexdigest()
