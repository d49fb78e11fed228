"""This module prepares a table before a kernel sees it."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, final

import numpy as np
from sklearn.utils.validation import validate_data

from widelimit import memory, validation
from widelimit.architecture.inputs import Sited
from widelimit.compute import linalg
from widelimit.estimators import casting
from widelimit.estimators.parameters import NetworkParameters
from widelimit.inference.outputs import constant
from widelimit.inference.training_set import check_finite
from widelimit.lossless import is_sparse
from widelimit.shapes import Float, Int
from widelimit.validation import sample_weights as sample_weights

MAD = 1.482602218505602
"""Standard deviation over median absolute deviation of a Gaussian."""
ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vectors."""


def align(array: np.ndarray) -> np.ndarray:
    """Return the array in C order, at an address that is a multiple of 64 bytes: itself, or else a copy.

    Matrix products round in another way for another order: what a prediction reads has one form, in a fitted model and
    in a loaded one.
    """
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def set_frozen(instance: Any, state: dict[str, Any]) -> None:
    """Set the attributes of a (frozen) dataclass, arrays as `align` returns them and read-only."""
    for name, value in state.items():
        kept = validation.seal(align(value)) if isinstance(value, np.ndarray) else value
        object.__setattr__(instance, name, kept)


@final
@dataclass(frozen=True)
class Inputs:
    """The map is x -> (x - mean)/scale, column by column, then, on the sphere, each row to norm sqrt(d).

    Columns of scale 0 are left out: they were constant, and say nothing. d counts the others.
    """

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    sphere: bool

    @property
    def kept(self) -> np.ndarray:
        """Mark the columns that are not left out, (d,)."""
        return self.scale > 0

    def rescaled(self, scales: Float[np.ndarray, " k"]) -> Inputs:
        """Return the map followed by factors of the columns that are kept."""
        scale = self.scale.copy()
        scale[self.kept] /= scales
        return replace(self, scale=scale)

    def __call__(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Return the rows as the kernel takes them. Raises: ValueError: a row leaves float64's range."""
        with linalg.ignore_overflow():
            kept = self.kept
            rows = check_finite((X.compress(kept, axis=1) - self.mean[kept]) / self.scale[kept], X)
        if not self.sphere:
            return rows
        rows = linalg.normalise(rows.T)[0].T
        norms = np.sqrt(np.mean(rows**2, axis=1, keepdims=True))
        return np.asarray(rows / np.where(norms > 0, norms, 1.0))


def normalisation(
    normalize: str | None,
    X: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, " n"],
    groups: Int[np.ndarray, " d"],
    image: Sited | None = None,
) -> Inputs:
    """Make the normalisation of these training rows, or images: each group of columns has variance 1 in sum."""
    if image is not None:
        return image_normalisation(normalize, X, weights, image)
    if normalize is None:
        return Inputs(np.zeros(X.shape[1]), np.ones(X.shape[1]), False)
    mean, scale = mean_and_scale(X, weights)
    shared = np.bincount(groups)[groups] > 1
    # With a scale each, the two levels of a rare category would be further from each other than any numbers.
    small, exponent = linalg.normalise(scale)
    together = np.ldexp(np.sqrt(np.bincount(groups, small**2))[groups], exponent)
    scale = np.where(shared & (scale > 0), together, scale)
    if not scale.any():  # a kernel takes one column at least
        scale = np.ones_like(scale)
    return Inputs(mean, scale, normalize == "sphere")


def image_normalisation(
    normalize: str | None, X: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"], image: Sited
) -> Inputs:
    """Make the normalisation of training images: the pixels of a channel share mean and scale, and none is left out.

    Of sequences and graphs, masked sites do not count, mask and adjacency stay, and so does a channel that is constant.
    Raises: ValueError: "sphere" of these.
    """
    channels, sites = image.shape[-1], math.prod(image.sites)
    centre, divisor = np.zeros(X.shape[1]), np.ones(X.shape[1])
    structure = image.structure(X)
    if structure is not None and normalize == "sphere":
        raise ValueError(f'normalize="sphere" is for rows and images; for {image} use "standardize" or None.')
    if normalize is None:
        return Inputs(centre, divisor, False)
    there = np.ones(len(X) * sites, bool) if structure is None else np.asarray(structure.mask).ravel() > 0
    signals = np.asarray(image.read(X)).reshape(-1, channels)  # type: ignore[arg-type]
    mean, scale = mean_and_scale(signals[there], np.repeat(weights, sites)[there])
    centre[: sites * channels] = np.tile(mean if structure is None else np.where(scale > 0, mean, 0), sites)
    divisor[: sites * channels] = np.tile(np.where(scale > 0, scale, 1.0), sites)
    return Inputs(centre, divisor, normalize == "sphere")


def image_rows(image: Sited | None, X: Any, normalize: str | None) -> Any:
    """Return images as rows of numbers, bytes as floats where a normalisation scales them; X, where there are none.

    Raises: TypeError, ValueError.
    """
    if image is None:
        return X
    if image.kind != "image" and (isinstance(X, (list, tuple)) or np.ndim(X) > 2):
        return image.rows("X", X)
    casting.refuse_uncastable("X", X)
    if X is None or is_sparse(X):
        return X
    array = np.asarray(X)
    bytes_stay = normalize is None and array.dtype == np.uint8
    return image.rows("X", array.astype(np.float64) if array.dtype.kind in "fiub" and not bytes_stay else array)


OTHER = 50
"""Standardised pixels that vary by this factor more, or less, are in another unit: 255 is that of bytes."""


def warn_of_other_pixels(points: Float[np.ndarray, "n d"]) -> None:
    """Warn of new images, standardised as those of the fit, whose pixels vary far more or less."""
    spread = float(points.std())
    if spread > OTHER or 0 < spread < 1 / OTHER:
        warnings.warn(
            f"the pixels of the new images vary {spread:.2g} times as much as those of the fit: one of them is in "
            f"another unit, it seems (bytes, 0 to 255, or numbers from 0 to 1). Pass both in the same.",
            stacklevel=4,
        )


def mean_and_scale(
    values: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Compute each column's weighted mean and deviation: its first value and 0 where it is constant up to rounding."""
    share = weights / weights.sum()
    largest = np.abs(values).max(axis=0)
    unit = np.where(largest > 0, largest, 1.0)  # of order 1, so that no square leaves the range of a float
    mean = share @ (values / unit)
    scale = np.sqrt(share @ (values / unit - mean) ** 2)
    still = constant(values)
    flat = still | (scale <= 10 * np.finfo(np.float64).eps * len(values) ** 0.5)
    return np.where(still, values[0], mean * unit), np.where(flat, 0.0, scale * unit)


def standardise(
    y: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Return (y - mean)/scale, mean and scale, column by column; 0 and 1 where it is constant up to rounding."""
    mean, scale = mean_and_scale(y, weights)
    scale = np.where(scale > 0, scale, 1.0)
    return np.where(constant(y), 0.0, (y - mean) / scale), mean, scale


def standardise_targets(
    y: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"], *, robust: bool = False
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Standardise targets; a target that does not vary gets the scale max|y|/sqrt(1 + n), or 1/sqrt(1 + n) if it is 0.

    Its rows say that it varies little, and no more: one row in addition, of a scale as large as the target itself,
    keeps standard deviations from 0. n is the sum of the weights.
    """
    standard, middle, scale = (standardise_robustly if robust else standardise)(y, weights)
    largest = np.abs(y).max(axis=0)
    unknown = np.where(largest > 0, largest, 1.0) / math.sqrt(1 + float(weights.sum()))
    return standard, middle, np.where(constant(y), unknown, scale)


def standardise_robustly(
    y: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Standardise by median and median absolute deviation, which no outlier moves, as `standardise` does.

    Where most values are equal, the deviation is that of the others.
    """
    still = constant(y)
    middle = np.array([_median(column, weights) for column in y.T])
    away = np.abs(y - middle)
    differ = away > 10 * np.finfo(np.float64).eps * np.abs(middle)
    deviation = np.array([_median(column, weights) for column in (away * differ).T])
    for j in np.flatnonzero(~still & (deviation == 0)):
        deviation[j] = _median(away[differ[:, j], j], weights[differ[:, j]]) if differ[:, j].any() else 0.0
    deviation = np.where(still | (deviation == 0), 1.0, MAD * deviation)
    middle = np.where(still, y[0], middle)
    return np.where(still, 0.0, (y - middle) / deviation), middle, deviation


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    """Compute the median of weighted values, of two middle ones their mean: a weight of 2 is a value given twice."""
    low, high = (s * np.quantile(s * values, 0.5, weights=weights, method="inverted_cdf") for s in (1.0, -1.0))
    return float(low / 2 + high / 2)


LONGEST = 380
"""Characters of a message of scikit-learn's that are kept."""


@contextmanager
def shorten_errors(name: str) -> Iterator[None]:
    """Shorten errors of scikit-learn that name the argument, or X: without the numbers of a table in them."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        text = str(error)
        whole = text if re.search(rf"\b({name}|X)\b", text) else f"{name}: {text}"
        raise kind(whole if len(whole) <= LONGEST else f"{whole[:LONGEST]} ...") from None


def refuse_rows(value: Any) -> None:
    """Refuse rows that scikit-learn would misread, or refuse with a long message. Raises: TypeError, ValueError."""
    casting.refuse_uncastable("X", value)
    if value is None:
        raise ValueError("X must have shape (n, d), got None.")
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or is_sparse(value):
        return
    if array.ndim == 2 and not len(array):
        raise ValueError(f"X is empty: shape {array.shape}, 0 sample(s); at least one row is needed.")
    if array.ndim == 4:
        raise ValueError(
            f"X has shape {array.shape}, as images have, and the estimator has no network that reads them: pass "
            f"network=wl.convnet(inputs=wl.Image{array.shape[1:]}), or rows: X must have shape (n, d)."
        )
    if array.ndim != 2:
        raise ValueError(
            f"X must have shape (n, d), got shape {array.shape}. Reshape your data: X[:, None] for n points of one "
            "feature, X[None, :] for one point."
        )
    validation.refuse_non_finite("X", array)


def validate_rows(estimator: Any, X: Any, *, reset: bool) -> Float[np.ndarray, "n d"]:
    """Return rows as an array, validated by scikit-learn; `reset`: of a fit. Raises: TypeError, ValueError."""
    refuse_rows(X)
    with shorten_errors("X"):
        return np.asarray(validate_data(estimator, X, dtype=np.float64, order="C", reset=reset))


def refuse_targets(value: Any) -> None:
    """Refuse regression targets that are no real, finite numbers. Raises: TypeError, ValueError."""
    try:
        casting.refuse_uncastable("y", value)
    except TypeError as error:
        hint = " Classes are for a classifier, e.g. WideClassifier." if "text" in str(error) else ""
        raise TypeError(f"{error}{hint}") from None
    array = np.asarray(value)
    if value is not None and array.ndim == 0:
        raise ValueError(f"y must have shape (n,) or (n, c), got {validation.shown(value)}.")
    if array.dtype.kind == "f":
        validation.refuse_non_finite("y", array)
        validation.refuse_unsummable("y", array)


def check_choices(estimator: NetworkParameters) -> None:
    """Refuse parameters that are not among their choices, or are flags and neither True nor False.

    Raises: TypeError, ValueError.
    """
    for parameter in fields(estimator):
        value, choices = getattr(estimator, parameter.name), parameter.metadata["choices"]
        if choices:
            validation.choice(parameter.name, value, choices)
        if isinstance(parameter.default, bool):
            validation.flag(parameter.name, value)


def refuse_noise(value: Any) -> None:
    """Refuse what is neither a variance nor "auto". Raises: TypeError, ValueError."""
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f'noise must be a number >= 0 or "auto", got {validation.shown(value)}.')
    elif np.ndim(value) or not validation.is_real(value):
        raise TypeError(
            f'noise must be one number >= 0 or "auto", got {validation.shown(value)}; noise that differs from row to '
            "row goes by sample_weight: observation i has noise/sample_weight[i]."
        )
    else:
        validation.finite_scalar("noise", value, at_least=0.0)


def refuse_time(value: Any) -> None:
    """Refuse what is no training time. Raises: TypeError, ValueError."""
    if np.ndim(value) or not validation.is_real(value):
        raise TypeError(f"time must be one number in [0, inf], got {validation.shown(value)}.")
    if not value >= 0 or (isinstance(value, int) and value > validation.FLOAT_MAX):
        raise ValueError(f"time: times must be in [0, inf], got {validation.shown(value)}.")


def refuse_random_state(value: Any) -> None:
    """Refuse what seeds no generator. Raises: TypeError, ValueError."""
    if value is not None and not isinstance(value, np.random.RandomState):
        validation.integer("random_state", value, at_least=0, below=2**32)


def input_groups(value: Any, d: int | None = None) -> Int[np.ndarray, " d"]:
    """Return the number of the scale of each of d inputs, from 0 without gaps; d is not checked where it is None.

    Raises:
        TypeError: neither None nor integers.
        ValueError: another shape than (d,).
    """
    groups = np.arange(d or 0) if value is None else np.asarray(value, dtype=object)
    if groups.ndim != 1 or not all(isinstance(group, (int, np.integer)) for group in groups.tolist()):
        raise TypeError(
            f"input_groups must be None or (d,) integers, columns of one number share a scale; got "
            f"{validation.shown(value)}."
        )
    if d is not None and len(groups) != d:
        raise ValueError(f"input_groups has {len(groups)} numbers and X has {d} columns; they must agree.")
    return np.asarray(np.unique(groups, return_inverse=True)[1].ravel())


MOST_ROWS = 20_000
"""Rows of a fit that learns scales as it comes: so many take minutes, twice as many eight times as long."""


def require_few_rows(n: int, remedy: str) -> None:
    """Refuse more rows than the estimators that choose their network take. Raises: ValueError: with the figures."""
    if n > MOST_ROWS:
        raise ValueError(
            f"a fit with a chosen network takes at most {MOST_ROWS} rows, and there are {n}: they need "
            f"{4 * n**2 / 2**30:.1f} GiB, and {(n / MOST_ROWS) ** 3:.1f} times as long as {MOST_ROWS}; {remedy}."
        )


def require_room(n: int, matrices: float) -> None:
    """Refuse n rows whose (n, n) matrices do not fit, before any is made; half a matrix is one triangle.

    Raises:
        MemoryError: they do not fit; the message says what to use instead.
    """
    memory.require(
        8.0 * matrices * n * n,
        f"an exact fit to {n} rows",
        remedy="fit fewer rows (a random sample of X), or use NTKFeatures before a linear model, whose memory grows "
        "with the number of rows only: make_pipeline(NTKFeatures(), Ridge())",
    )
