"""A function is examined before it becomes an activation: elementwise, finite, differentiable, of slow growth."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Activation
from widelimit.activations.piecewise.polynomial import PiecewisePolynomial
from widelimit.activations.tabulated.numerical import Numerical
from widelimit.activations.tabulated.tables import derivative_of
from widelimit.arithmetic import arithmetic
from widelimit.interpreter import interpreted

_PROBES = np.linspace(-8.0, 8.0, 34)
"""Neither 0 nor an integer is among them: kinks are usually there."""
_BEYOND = 100.0
_PROBES_A_PIECE = 256
"""phi is compared with polynomials at these points: up to 100 beyond the kinks and 0."""
_FAR = 20.0
"""exp(u^2/4) is e^100 here."""


def from_function(phi: Callable[[jax.Array], jax.Array], kinks: Sequence[float], rtol: float | None) -> Activation:
    """Return phi as an activation, after checks. Raises: TypeError, ValueError: what `wl.activation` lists."""
    label = getattr(phi, "__name__", None) or type(phi).__name__
    ends = tuple(sorted(set(validation.numbers_in("kinks", kinks))))
    if rtol is not None:
        rtol = float(validation.finite_scalar("rtol", rtol, at_least=1e-13))
    with arithmetic(True):
        _check_shape(phi, label)
        _check_values(phi, label)
        # At 0 a table serves any function; elsewhere it cannot, as the kinks of two inputs are in different places.
        pieces = _pieces(phi, ends) if any(ends) else None
        if pieces:
            return PiecewisePolynomial(ends, pieces, rtol, label)
    return Numerical(phi, ends, rtol, label)


def _call(phi: Callable[[Any], Any], u: np.ndarray, label: str) -> Any:
    with contextlib.suppress(Exception):  # without compilation, where JAX can trace phi
        return interpreted(phi)(u)
    try:
        return phi(jnp.asarray(u))
    except Exception as error:
        raise TypeError(
            f"{label}: a call on an array of shape {u.shape} failed ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); phi must be elementwise and written with jax.numpy, without if on values."
        ) from None


def _check_shape(phi: Callable[[jax.Array], jax.Array], label: str) -> None:
    u = _PROBES
    for probe in (u, u.reshape(2, -1), u[0]):
        out = _call(phi, probe, label)
        shape = np.shape(out)
        if shape != probe.shape:
            raise ValueError(f"{label}: an array of shape {probe.shape} gave shape {shape}; phi must be elementwise.")
        if np.asarray(out).dtype.kind != "f":
            raise TypeError(f"{label}: gave {np.asarray(out).dtype}, not floats.")
    if not np.allclose(_call(phi, u[::2], label), _call(phi, u, label)[::2], rtol=1e-9, atol=0, equal_nan=True):
        raise ValueError(f"{label}: the value at one entry depends on the other entries; phi must be elementwise.")
    try:
        slope = interpreted(derivative_of(phi))(u)
    except Exception as error:
        raise TypeError(
            f"{label}: JAX cannot differentiate it ({type(error).__name__}: {str(error).splitlines()[0]}); "
            f"write it with jax.numpy."
        ) from None
    if not np.isfinite(slope).all():
        raise ValueError(f"{label}: its derivative at u = {_PROBES[~np.isfinite(slope)][0]:g} is not finite.")


def _check_values(phi: Callable[[jax.Array], jax.Array], label: str) -> None:
    u = np.concatenate([_PROBES, [0.0]])
    values = interpreted(phi)(u)
    if not np.isfinite(values).all():
        bad = ~np.isfinite(values)
        raise ValueError(f"{label}: phi({u[bad][0]:g}) is {values[bad][0]}; phi must be finite for every finite u.")
    if not values.any():
        raise ValueError(f"{label}: phi is 0 everywhere it was tried.")
    far = np.abs(interpreted(phi)(np.array([-_FAR, _FAR])))
    if not (far <= np.exp(_FAR**2 / 4)).all():
        raise ValueError(
            f"{label}: |phi(+-{_FAR:g})| is {far.max():.3g}; phi grows faster than exp(u^2/4), and E[phi(u)^2] is "
            f"infinite for signals of variance 1."
        )


def _pieces(phi: Callable[[jax.Array], jax.Array], kinks: tuple[float, ...]) -> tuple[tuple[float, ...], ...] | None:
    """Find the polynomials of degree 2 that phi is between its kinks, from its derivatives; None if it is not."""
    slope = derivative_of(phi)
    by_numpy, first_slope, second_slope = map(interpreted, (phi, slope, derivative_of(slope)))
    found = []
    for left, right in itertools.pairwise((-np.inf, *kinks, np.inf)):
        low, high = max(left, min(right, 0.0) - _BEYOND), min(right, max(left, 0.0) + _BEYOND)
        probes = low + (high - low) * (np.arange(_PROBES_A_PIECE) + 0.5) / _PROBES_A_PIECE
        at = 0.0 if left < 0 < right else probes[np.argmin(np.abs(probes))]
        value, first, second = (float(f(np.full(1, at))[0]) for f in (by_numpy, first_slope, second_slope))
        terms = np.array([value - first * at + second * at**2 / 2, first - second * at, second / 2])
        sizes = np.array([max(abs(value), abs(first * at), abs(second * at**2)), abs(first) + abs(second * at), 1.0])
        terms[np.abs(terms) <= 8 * np.finfo(float).eps * sizes] = 0.0  # what is left of a cancellation
        expected = terms @ np.stack([probes**0, probes, probes**2])
        if not np.allclose(by_numpy(probes), expected, rtol=1e-12, atol=1e-13 * np.abs(expected).max()):
            return None
        found.append(tuple(terms.tolist()))
    return tuple(found)
