"""Arguments are checked here: bad ones are refused. Nothing is cast unless the value survives exactly."""

import contextlib
import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import lossless
from widelimit.messages import shown as shown
from widelimit.processes import refuse_forked
from widelimit.shapes import Float

Array = np.ndarray | jax.Array


def is_jax(*arrays: Any) -> bool:
    """Return True if any of the arrays is a JAX array or tracer (then results are JAX arrays too)."""
    return any(isinstance(a, jax.Array) for a in arrays)


SMALLEST_DEVIATION, LARGEST_DEVIATION = 1e-150, 1e150
FLOAT_MAX = int(np.finfo(np.float64).max)


def as_float_array(name: str, value: Any) -> Array:
    """Return the value as float32 or float64 without loss. Raises: TypeError, ValueError: with what to pass."""
    refuse_forked()
    lossless.refuse_masked(name, value)
    if lossless.is_sparse(value):
        raise TypeError(f"{name} is a sparse matrix; pass {name}.toarray().")
    given = value
    if not isinstance(value, jax.Array):
        for column in lossless.columns(value):
            lossless.refuse_inexact(name, np.asarray(column))
        value = lossless.as_array(name, value)
        if isinstance(given, (list, tuple)) and lossless.large(value):
            lossless.refuse_inexact_lists(name, given)
    dtype = np.dtype(value.dtype)
    if value.ndim == 0 and dtype.kind in "bcO":
        raise TypeError(f"{name} must be a real number or an array of them, got {shown(given)}.")
    if dtype in (np.float32, np.float64):
        return value  # type: ignore[no-any-return]
    if dtype.kind in "iub" and isinstance(value, np.ndarray):
        lossless.refuse_inexact(name, value)
        return value.astype(np.float64)
    remedy = lossless.REMEDIES.get(dtype.kind, "convert it to float32 or float64 yourself")
    held = f" ({shown(given)})" if value.ndim == 0 else ""
    raise TypeError(f"{name} has dtype {str(dtype)[:60]}{held}; float32 or float64 is needed: {remedy}.")


def refuse_non_finite(name: str, value: Array) -> None:
    """Refuse NaN and infinite entries (traced: unchecked). Raises: ValueError: how many, and where the first is."""
    if isinstance(value, jax.core.Tracer):
        return
    if isinstance(value, jax.Array) and not on_host(value) and bool(jnp.isfinite(value).all()):
        return  # one number comes from the device, not the values
    if value.ndim == 0 and not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}.")
    finite = np.isfinite(np.asarray(value))
    if not finite.all():
        bad = np.argwhere(~finite)
        where = ", ".join(str(int(i)) for i in bad[0])
        raise ValueError(
            f"{name} has {len(bad)} entries that are NaN or infinite, the first at [{where}] "
            f"({np.asarray(value)[tuple(bad[0])]}); drop or impute them."
        )


def on_host(value: jax.Array) -> bool:
    """Return True for an array of the processor, which NumPy reads without a copy."""
    return all(device.platform == "cpu" for device in value.devices())


def traced(*values: Any) -> bool:
    """Return True if any of the values is being traced by JAX."""
    return any(isinstance(v, jax.core.Tracer) for v in values)


def as_finite_floats(name: str, value: Any) -> Array:
    """Return a number or an array of any shape as float32 or float64, finite. Raises: TypeError, ValueError."""
    array = as_float_array(name, value)
    refuse_non_finite(name, array)
    return array


def covariances(q1: Any, c: Any, q2: Any) -> tuple[Array, Array, Array]:
    """Check variances q1, q2 > 0 and a covariance with c^2 <= q1 q2 up to rounding, of shapes that broadcast."""
    arrays = {name: as_finite_floats(name, value) for name, value in (("q1", q1), ("c", c), ("q2", q2))}
    try:
        np.broadcast_shapes(*(a.shape for a in arrays.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
        raise ValueError(f"the shapes of q1, c and q2 must broadcast, got {shapes}.") from None
    first, covariance, second = arrays.values()
    if traced(first, covariance, second):
        return first, covariance, second
    for name in ("q1", "q2"):
        if not (np.asarray(arrays[name]) > 0).all():
            raise ValueError(f"{name} is a variance and must be > 0, got {np.min(arrays[name]):g}.")
    eps = float(max(np.finfo(a.dtype).eps for a in arrays.values()))
    with np.errstate(under="ignore"):
        bound = np.sqrt(np.asarray(first, float)) * np.sqrt(np.asarray(second, float)) * (1 + 4 * eps)
    if (np.abs(np.asarray(covariance, float)) > bound).any():
        raise ValueError("c^2 must be at most q1 q2: this is not a covariance matrix.")
    return first, covariance, second


def owned(values: Any, dtype: Any = None) -> np.ndarray:
    """Copy an array so that nobody can write to it: the caller's own may change afterwards."""
    return seal(np.array(values, dtype, order="C"))


def sample_weights(value: Any, n: int) -> Float[np.ndarray, " n"]:
    """Return (n,) weights >= 0, not all of them 0; 1 unless given. Raises: TypeError, ValueError."""
    if value is None:
        return np.ones(n)
    weights = np.asarray(as_float_array("sample_weight", value), dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(n, float(weights))
    if weights.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), one a row; got shape {weights.shape}.")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("sample_weight must be finite and >= 0.")
    if not weights.any():
        raise ValueError("sample_weight is zero at every row: there is nothing to fit.")
    return weights


def owned_leaf(leaf: Any) -> Any:
    """Copy a leaf of parameters that is a NumPy array; its owner cannot change the others."""
    return owned(leaf) if isinstance(leaf, np.ndarray) else leaf


def seal(array: np.ndarray) -> np.ndarray:
    """Make the array read-only: a result hands out what it goes on computing with."""
    array.setflags(write=False)
    return array


def sealed(result: Any) -> None:
    """Make every array that is a field of a result read-only."""
    for value in vars(result).values():
        if isinstance(value, np.ndarray):
            seal(value)


def points(name: str, value: Any) -> Array:
    """Return (n, d) inputs, n and d >= 1, float32 or float64, finite. Raises: TypeError, ValueError."""
    array = as_float_array(name, value)
    if array.ndim == 1:
        raise ValueError(
            f"{name} must have shape (n, d), got {array.shape}: pass {name}[:, None] for n points of one feature, "
            f"{name}[None, :] for one point."
        )
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape (n, d), got shape {array.shape}.")
    if 0 in array.shape:
        raise ValueError(f"{name} is empty: shape {array.shape}; at least one point and one feature are needed.")
    refuse_non_finite(name, array)
    return array


def concrete_points(name: str, value: Any) -> np.ndarray:
    """Return `points` as a NumPy array. Raises: TypeError, ValueError: as `points` and `concrete`."""
    return np.asarray(points(name, concrete(name, value)))


def two_blocks(X: Any, Y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return two blocks of inputs (n, d), (m, d) as NumPy arrays of their common dtype; one array where Y is X."""
    x, y = concrete_points("X", X), concrete_points("Y", Y)
    same_features("X", x, "Y", y)
    dtype = np.result_type(x, y)
    x = x.astype(dtype, copy=False)
    return x, x if Y is X else y.astype(dtype, copy=False)


def same_features(name_x: str, X: Array, name_y: str, Y: Array) -> None:
    """Refuse blocks with different numbers of columns. Raises: ValueError."""
    if X.shape[1] != Y.shape[1]:
        raise ValueError(f"{name_x} has {X.shape[1]} features and {name_y} has {Y.shape[1]}; they must agree.")


def concrete(name: str, value: Any) -> Any:
    """Return the value. Raises: TypeError: JAX is tracing it."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} is being traced by jax (jit, grad or vmap), and this works on values. Traced functions can use "
            f"the matrices of kernels, posterior, gradient_flow and trained_ensemble (docs/solvers.md)."
        )
    return value


def targets(name: str, value: Any, n: int) -> np.ndarray:
    """Return (n,) or (n, c) targets as float64, finite. Raises: TypeError, ValueError."""
    array = np.asarray(as_float_array(name, concrete(name, value)))
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
        raise ValueError(f"{name} must have shape (n,) or (n, c) with c >= 1, got shape {array.shape}.")
    if len(array) != n:
        raise ValueError(f"{name} has {len(array)} rows and X has {n}; they must agree.")
    refuse_non_finite(name, array)
    refuse_unsummable(name, array)
    return owned(array, np.float64)


def refuse_unsummable(name: str, values: np.ndarray) -> None:
    """Refuse a column whose sum of sizes overflows, and with it means, deviations and projections.

    Raises: ValueError.
    """
    with np.errstate(over="ignore"):
        if np.isfinite(np.abs(values).sum(axis=0, dtype=np.float64)).all():
            return
        largest = float(np.abs(values).max())
    raise ValueError(
        f"{name} reaches {largest:.3g}: a sum over its {len(values)} rows leaves float64's range. Scale it down, "
        f"and what is predicted up again."
    )


def noise(value: Any, n: int) -> np.ndarray:
    """Return a noise variance >= 0, one number or one a training point, as a float64 array of shape () or (n,)."""
    array = np.asarray(as_float_array("noise", concrete("noise", value)), dtype=np.float64)
    if array.shape not in ((), (n,)):
        raise ValueError(f"noise must be a number or of shape ({n},), one a training point; got shape {array.shape}.")
    refuse_non_finite("noise", array)
    if (array < 0).any():
        raise ValueError(f"noise is a variance and must be >= 0, got {array.min()}.")
    return owned(array)


def times(value: Any, name: str = "t") -> np.ndarray:
    """Return training times in [0, inf], shape () or (T,), as float64. Raises: TypeError, ValueError."""
    array = np.asarray(as_float_array(name, concrete(name, value)), dtype=np.float64)
    if array.ndim > 1 or array.size == 0:
        raise ValueError(f"{name} must be a number or a one-dimensional array of times, got shape {array.shape}.")
    if np.isnan(array).any() or (array < 0).any():
        raise ValueError(f"{name}: times must be in [0, inf], got {array.flat[np.argmin(array >= 0)]}.")
    return array


def flag(name: str, value: Any) -> bool:
    """Return True or False, or NumPy's. Raises: TypeError."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}.")
    return bool(value)


def choice(name: str, value: Any, known: Sequence[Any]) -> Any:
    """Return one of a few values, most of them names. Raises: TypeError: no text, not None; ValueError: another."""
    listed = ", ".join(v if isinstance(v, str) else repr(v) for v in known)
    if not (isinstance(value, str) or value is None):
        raise TypeError(f"{name} must be one of {listed}; got {shown(value)}.")
    if value not in known:
        raise ValueError(f"{name} must be one of {listed}; got {shown(value)}.")
    return value


def numbers_in(name: str, values: Any) -> tuple[float, ...]:
    """Return a sequence of finite real numbers. Raises: TypeError, ValueError."""
    if not isinstance(values, (tuple, list, set, np.ndarray)) or (isinstance(values, np.ndarray) and values.ndim != 1):
        raise TypeError(f"{name} must be a sequence of real numbers, got {shown(values)}.")
    return tuple(float(finite_scalar(f"every entry of {name}", value)) for value in values)


def random_key(name: str, value: Any) -> None:
    """Refuse what is neither one key of jax.random nor None. Raises: TypeError."""
    is_key = isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
    if value is not None and not (is_key and value.shape == ()):
        raise TypeError(f"{name} must be one key of JAX, jax.random.key(seed), or None; got {shown(value)}.")


def path(name: str, value: Any) -> Path:
    """Return the path of a file or a folder. Raises: TypeError: no path, or characters that no file name has."""
    with contextlib.suppress(TypeError, UnicodeEncodeError):
        if b"\0" not in os.fsencode(value) and not isinstance(value, bytes):
            return Path(value)
    raise TypeError(f"{name} must be a path, text or a pathlib.Path; got {shown(value)}.")


def function(name: str, value: Any, what: str) -> Any:
    """Return something that can be called. Raises: TypeError: with `what` it must be."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name} must be {what}, got {shown(value)}.")
    return value


def one_time(value: Any) -> np.ndarray:
    """Return a training time in [0, inf], shape (), as float64. Raises: TypeError, ValueError."""
    array = times(value)
    if array.ndim:
        raise ValueError(f"t must be one time, got shape {array.shape}.")
    return array


def integer(name: str, value: Any, *, at_least: int, below: float = 2**63) -> int:
    """Return an integer in [at_least, below); bools and floats such as 2.0 are none. Raises: TypeError, ValueError."""
    refuse_forked()
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {shown(value)}.") from None
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {shown(number)}.")
    if number >= below:
        raise ValueError(f"{name} must be below {below}, got {shown(number)}.")
    return number


def is_real(value: Any) -> bool:
    """Return True if a number, or a scalar of NumPy or JAX, is real and fits float64: no bool, date or longdouble."""
    if isinstance(value, jax.Array):
        return any(jax.numpy.issubdtype(value.dtype, kind) for kind in (np.floating, np.integer))
    if isinstance(value, np.generic):
        return value.dtype.kind in "iuf" and value.dtype.itemsize <= 8
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """Return a real scalar of NumPy or JAX as a number of Python; anything else as it is."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    scalar = isinstance(value, (np.generic, jax.Array)) and np.ndim(value) == 0 and not traced(value)
    return value.item() if scalar and is_real(value) else value


def finite_scalar(
    name: str, value: Any, *, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf
) -> Any:
    """Return a finite real number in range; a JAX scalar stays one, for derivatives (traced: unchecked)."""
    refuse_forked()
    if isinstance(value, jax.Array) and value.ndim != 0:
        raise ValueError(f"{name} must be a scalar, got shape {value.shape}.")
    if not is_real(value):
        rounds = isinstance(value, np.longdouble)
        raise TypeError(f"{name} must be a real number{' of float64' * rounds}, got {shown(value)}.")
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, int) and abs(value) > FLOAT_MAX:
        raise ValueError(f"{name} must be a real number of float64's range, got {shown(value)}.")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}.")
    if number <= above:
        raise ValueError(f"{name} must be > {above:g}, got {number:g}.")
    if number < at_least:
        raise ValueError(f"{name} must be >= {at_least:g}, got {number:g}.")
    if number > at_most:
        raise ValueError(f"{name} must be <= {at_most:g}, got {number:g}.")
    return value if isinstance(value, jax.Array) else number


LARGEST_FACTOR = 1e6
"""Factors are limited in size, and the reciprocal of the smallest: their squares are far inside float32."""


def factor(name: str, value: Any, *, positive: bool = False) -> None:
    """Refuse a factor beyond 1e6 or below 1e-6 in size (or negative). Raises: TypeError, ValueError."""
    finite_scalar(name, value, at_least=0.0 if positive else -LARGEST_FACTOR, at_most=LARGEST_FACTOR)
    if not traced(value) and abs(float(value)) < 1 / LARGEST_FACTOR:
        raise ValueError(f"{name} must be at least {1 / LARGEST_FACTOR:g} in size, got {value:g}.")


def offset(name: str, value: Any) -> None:
    """Refuse a number beyond 1e6 in size. Raises: TypeError, ValueError."""
    finite_scalar(name, value, at_least=-LARGEST_FACTOR, at_most=LARGEST_FACTOR)


def deviation(name: str, value: Any, *, zero: bool = False) -> Any:
    """Return a deviation > 0 (or 0, where that is none) whose square is in float64's range; as `finite_scalar`."""
    number = finite_scalar(name, value, at_least=0.0) if zero else finite_scalar(name, value, above=0.0)
    if isinstance(number, jax.core.Tracer) or (zero and float(number) == 0):
        return number
    if not SMALLEST_DEVIATION <= float(number) <= LARGEST_DEVIATION:
        raise ValueError(
            f"{name} must be between {SMALLEST_DEVIATION:g} and {LARGEST_DEVIATION:g}, so that its square, a variance, "
            f"is in float64's range; got {float(number):g}."
        )
    return number


def vector_or_scalar(name: str, value: Any, *, above: float = -math.inf) -> Any:
    """Return a finite real number, or a (d,) array of them, in range; JAX values stay ones (traced: unchecked)."""
    if np.ndim(value) == 0:
        return finite_scalar(name, value, above=above)
    array = as_finite_floats(name, value)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a number or of shape (d,), one a feature; got shape {array.shape}.")
    if not traced(array) and not (np.asarray(array) > above).all():
        raise ValueError(f"{name} must be > {above:g}, got {np.min(array):g}.")
    return array if isinstance(array, jax.Array) else owned(array)
