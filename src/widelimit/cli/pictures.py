"""Pictures are read from arrays in .npy and .npz files, and from folders with one subfolder for each class."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from widelimit import memory
from widelimit.cli import tables
from widelimit.cli.matrices import read_arrays
from widelimit.messages import list_names

ARRAYS = (".npy", ".npz")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
IMAGES = ("X", "images", "x")
LABELS = ("y", "labels", "target")
MOST_CHANNELS = 4
"""Channels, at most, in an axis of colours: a first axis of so few before a last axis of more is channels first."""


@final
@dataclass(frozen=True)
class Pictures:
    """The pictures have one size; with them are the targets that the file has."""

    path: Path
    images: np.ndarray
    """(n, height, width, channels), in the dtype of the file."""
    target: np.ndarray | None
    names: list[str]
    """Names of the files in a folder."""
    notes: list[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return height, width and channels."""
        return self.images.shape[1:]

    def document(self) -> dict[str, Any]:
        """Return what the images are, in JSON."""
        return {"image": list(self.shape)}

    def summary(self, rows: str, drawn: str) -> str:
        """Describe the images."""
        return f"{rows} images{drawn} of {' x '.join(map(str, self.shape))}"


def is_pictures(path: Path) -> bool:
    """Return True for a folder, an array, or a picture."""
    return path.is_dir() or path.suffix.lower() in (*ARRAYS, *SUFFIXES)


def read(path: Path, target: str = "", *, test: bool = False) -> Pictures:
    """Read pictures.

    Args:
        path: a .npz file with X, or X_train and X_test (images or x for X), (n, height, width[, channels]); a .npy file
            with such an array; a folder of pictures, in subfolders named by their classes; one picture.
        target: of .npz the name of the array of labels, y unless given; of .npy another .npy file.
        test: take X_test and y_test, where the file has them.

    Raises:
        ValueError: no such file; no array of images; pictures of different sizes, with the file; NaN.
        MemoryError: memory does not hold them.
    """
    if not path.is_dir():
        tables.check_readable(path)
    if path.suffix.lower() in ARRAYS and not path.is_dir():
        return _checked(path, *_arrays(path, target, test))
    if target and path.is_dir():
        raise ValueError(f"--target {target}: the classes of a folder are the names of its subfolders; leave it out.")
    return _folder(path)


def _arrays(path: Path, target: str, test: bool) -> tuple[np.ndarray, np.ndarray | None]:
    found = _load(path)
    if isinstance(found, np.ndarray):
        labels = _load(Path(target)) if target else None
        if labels is not None and not isinstance(labels, np.ndarray):
            raise ValueError(f"--target {target}: is an archive of several arrays; labels are one array, .npy.")
        return found, labels
    suffixes = ("_test", "", "_train") if test else ("_train", "")
    for suffix in suffixes:
        images = next((name for name in found if name in [each + suffix for each in IMAGES]), None)
        if images is not None:
            break
    else:
        known = list_names(list(found)) or "nothing"
        raise ValueError(f"{path}: has no array X or X_train of images (n, height, width, channels), but {known}.")
    wished = [target, target + suffix] if target else [name + suffix for name in LABELS]
    labels = next((name for name in wished if name in found), None)
    if target and labels is None and not test:
        raise ValueError(f"--target {target}: {path.name} has no such array, but {list_names(list(found))}.")
    return found[images], None if labels is None else found[labels]


def _load(path: Path) -> Any:
    """Return an array, or a dictionary of arrays. Raises: ValueError: neither. MemoryError: memory does not hold it."""
    tables.check_readable(path)
    memory.require(4.0 * path.stat().st_size, f"{path}: reading it", remedy="cut the array to fewer images")
    return read_arrays(path, list)


def _checked(path: Path, images: np.ndarray, labels: np.ndarray | None) -> Pictures:
    """Return arrays as pictures. Raises: ValueError: other shapes or dtypes, NaN."""
    if images.ndim == 3:
        images = images[..., None]
    shape = images.shape
    if images.ndim != 4 or 0 in shape or images.dtype.kind not in "fiub":
        raise ValueError(
            f"{path}: images are numbers (n, height, width, channels) or, grey, (n, height, width); got {images.dtype} "
            f"of shape {shape}. Rows (n, d) are a table: .csv or .parquet."
        )
    if shape[1] <= MOST_CHANNELS < shape[3]:
        raise ValueError(
            f"{path}: images of shape {shape[1:]} have their channels first, it seems; move them to the end: "
            f"np.moveaxis(X, 1, -1)."
        )
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        raise ValueError(
            f"{path}: {(~finite).sum()} images hold NaN or infinite numbers, the first is {finite.argmin()}."
        )
    if labels is not None and labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(
            f"{path}: {len(images)} images and labels of shape {labels.shape}; one label an image is needed."
        )
    return Pictures(path, images, labels, [], _remarks(images))


def _remarks(images: np.ndarray) -> list[str]:
    """Return notes about the pixels, for the user."""
    notes = [f"pixels are bytes, 0 to {images.max()}; every channel is standardised"] * (images.dtype == np.uint8)
    flat = int((images.max(axis=(1, 2)) == images.min(axis=(1, 2))).all(axis=1).sum())
    return notes + [f"{flat} images are of one colour"] * (flat > 0)


def _folder(path: Path) -> Pictures:
    """Read the pictures in the subfolders of a folder, or else in the folder, or one picture."""
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")) if path.is_dir() else []
    files = [(file, each.name) for each in classes for file in _files(each)]
    if not files:
        files = [(file, "") for file in (_files(path) if path.is_dir() else [path])]
    elif beside := _files(path):
        raise ValueError(f"{beside[0]}: lies beside the subfolders, which are the classes; move it into one of them.")
    if not files:
        raise ValueError(f"{path}: has no pictures ({', '.join(SUFFIXES)}) in it, nor in its subfolders.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata
        found = [_picture(file) for file, _ in files]
    sizes = [image.shape[:2] for image, _ in found]
    for (file, _), size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise ValueError(
                f"{file}: is {size[0]} x {size[1]} pixels, and {files[0][0].name} {sizes[0][0]} x {sizes[0][1]}; bring "
                f"all pictures to one size first, as with Pillow's Image.resize."
            )
    memory.require(8.0 * len(files) * 3 * sizes[0][0] * sizes[0][1], f"{path}: its {len(files)} pictures")
    channels = max(image.shape[2] for image, _ in found)
    images = np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image, _ in found])
    target = np.array([name for _, name in files]) if files[0][1] else None
    names = [file.name if file == path else str(file.relative_to(path)) for file, _ in files]
    said = [text for _, texts in found for text in texts]
    empty = [each.name for each in classes if files[0][1] and not _files(each)]
    left = [f"the folders {list_names(empty)} have no pictures, and are no classes"] if empty else []
    said += ["are grey, taken as three equal colours" for image, _ in found if image.shape[2] < channels]
    notes = [f"{said.count(text)} pictures {text}" for text in sorted(set(said))]
    return Pictures(path, images, target, names, left + notes + _remarks(images))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != ".")


def _picture(path: Path) -> tuple[np.ndarray, list[str]]:
    """Return grey values or colours, (height, width, 1 or 3), 0 to 255, and a note on how they were converted."""
    from PIL import Image

    said = []
    try:
        with Image.open(path) as opened:
            mode = opened.mode
            if mode.startswith("I"):  # 16 bits a pixel
                said.append("have 16 bits a pixel, taken as 0 to 255 with fractions")
                return np.asarray(opened, np.float64)[..., None] / 257, said
            if mode == "F":
                return np.asarray(opened, np.float64)[..., None], said
            if mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in opened.info:
                said.append("have an alpha channel, which is left out")
            grey = mode in ("1", "L", "LA", "La")
            values = np.asarray(opened.convert("L" if grey else "RGB"), np.float64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: is no picture that can be read: {str(error)[:150]}") from None
    return values[..., None] if grey else values, said
