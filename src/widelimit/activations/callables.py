"""What is found out about a function before it is taken for an activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.numerical import Numerical

_PROBES = np.linspace(-8.0, 8.0, 34)
"""Neither 0 nor an integer is among them: kinks are usually there."""
_FAR = 20.0
"""exp(u^2/4) is e^100 here."""


def numerical(phi: Callable[[jax.Array], jax.Array], kinks: Sequence[float], rtol: float | None) -> Numerical:
    """phi as an activation, after checks.

    Raises:
        TypeError, ValueError: what `wl.activation` lists.
    """
    label = getattr(phi, "__name__", None) or type(phi).__name__
    ends = tuple(sorted({float(validation.finite_scalar("every kink", kink)) for kink in kinks}))
    if rtol is not None:
        rtol = float(validation.finite_scalar("rtol", rtol, at_least=1e-13))
    with jax.enable_x64(True):
        _check_shape(phi, label)
        _check_values(phi, label)
    return Numerical(phi, ends, rtol, label)


def _called(phi: Callable[[jax.Array], jax.Array], u: jax.Array, label: str) -> Any:
    try:
        return phi(u)
    except Exception as error:
        raise TypeError(
            f"{label}: a call on an array of shape {u.shape} failed ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); phi must be elementwise and written with jax.numpy, without if on values."
        ) from None


def _check_shape(phi: Callable[[jax.Array], jax.Array], label: str) -> None:
    u = jnp.asarray(_PROBES)
    for probe in (u, u.reshape(2, -1), u[0]):
        out = _called(phi, probe, label)
        shape = np.shape(out)
        if shape != probe.shape:
            raise ValueError(f"{label}: an array of shape {probe.shape} gave shape {shape}; phi must be elementwise.")
        if np.asarray(out).dtype.kind != "f":
            raise TypeError(f"{label}: gave {np.asarray(out).dtype}, not floats.")
    if not np.allclose(_called(phi, u[::2], label), _called(phi, u, label)[::2], rtol=1e-9, atol=0, equal_nan=True):
        raise ValueError(f"{label}: the value at one entry depends on the other entries; phi must be elementwise.")
    try:
        slope = jax.jvp(phi, (u,), (jnp.ones_like(u),))[1]
    except Exception as error:
        raise TypeError(
            f"{label}: JAX cannot differentiate it ({type(error).__name__}: {str(error).splitlines()[0]}); "
            f"write it with jax.numpy."
        ) from None
    if not np.isfinite(slope).all():
        raise ValueError(f"{label}: its derivative at u = {_PROBES[~np.isfinite(slope)][0]:g} is not finite.")


def _check_values(phi: Callable[[jax.Array], jax.Array], label: str) -> None:
    u = np.concatenate([_PROBES, [0.0]])
    values = np.asarray(phi(jnp.asarray(u)))
    if not np.isfinite(values).all():
        bad = ~np.isfinite(values)
        raise ValueError(f"{label}: phi({u[bad][0]:g}) is {values[bad][0]}; phi must be finite for every finite u.")
    if not values.any():
        raise ValueError(f"{label}: phi is 0 everywhere it was tried.")
    far = np.abs(np.asarray(phi(jnp.asarray([-_FAR, _FAR]))))
    if not (far <= np.exp(_FAR**2 / 4)).all():
        raise ValueError(
            f"{label}: |phi(+-{_FAR:g})| is {far.max():.3g}; phi grows faster than exp(u^2/4), and E[phi(u)^2] is "
            f"infinite for signals of variance 1."
        )
