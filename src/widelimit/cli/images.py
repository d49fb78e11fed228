"""Images of MNIST are read from a user's file, for the claim that draws a figure for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from widelimit.claims.images import MNIST_LEAST, Images
from widelimit.cli.matrices import read_arrays

SIDE = 28
KEY = "X_train"


def mnist(path: Path) -> Images:
    """Read the first 512 training images of an .npz file of Keras: X_train or x_train, (n, 28, 28), grey values.

    Raises:
        ValueError: no such file, no archive of arrays, no X_train in it; another shape; fewer than 512 images; values
            that are not whole numbers from 0 to 255.
    """

    def choose(names: list[str]) -> list[str]:
        found = [name for name in names if name.lower() == KEY.lower()]
        if not found:
            raise ValueError(f"no array {KEY} in it, but {', '.join(names) or 'nothing'}")
        return found[:1]

    try:
        arrays = read_arrays(path, choose)
    except ValueError as error:
        raise ValueError(f"--mnist {path}: not an .npz file of images: {str(error).rstrip('.')}.") from None
    found = next(iter(arrays.values())) if isinstance(arrays, dict) else arrays
    if found.ndim != 3 or found.shape[1:] != (SIDE, SIDE) or len(found) < MNIST_LEAST:
        raise ValueError(
            f"--mnist {path}: {KEY} has shape {found.shape}; (n, {SIDE}, {SIDE}) with n >= {MNIST_LEAST} is required."
        )
    return Images(_grey(found[:MNIST_LEAST], path), True)


def _grey(found: np.ndarray, path: Path) -> np.ndarray:
    """Return grey values in [0, 1], (n, 784)."""
    whole = found.dtype.kind in "uif" and bool(np.all(found == np.rint(found)))
    if not (whole and found.min() >= 0 and found.max() <= 255):
        raise ValueError(
            f"--mnist {path}: {KEY} is {found.dtype}, from {found.min()} to {found.max()}; whole grey values from 0 to "
            f"255 are required, as in the file that Keras loads."
        )
    if found.max() <= 1:
        raise ValueError(f"--mnist {path}: the largest grey value is {found.max()}; the images are black or divided.")
    return found.reshape(len(found), -1).astype(np.float64) / 255
