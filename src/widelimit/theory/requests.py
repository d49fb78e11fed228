"""Arguments that several functions of `theory` share are checked here."""

from typing import Any

import numpy as np

from widelimit import validation
from widelimit.architecture.network import Network
from widelimit.shapes import Float


def finite_times(times: Any, reason: str) -> Float[np.ndarray, " T"]:
    """Return times, (T,). Raises: TypeError, ValueError: not finite and >= 0, for this reason."""
    until = np.atleast_1d(validation.times(times, "times"))
    if not np.isfinite(until).all():
        raise ValueError(f"times must be finite: {reason}.")
    return until


def require_one_output(y: Float[np.ndarray, "n c"]) -> None:
    """Refuse targets of several outputs. Raises: ValueError."""
    if y.shape[1] != 1:
        raise ValueError(f"y must have one output, (n,) or (n, 1), got {y.shape[1]} columns; pass one at a time.")


def probes_beside(net: Network, rows: Float[np.ndarray, "n d"], probes: Any) -> Float[np.ndarray, "m d"]:
    """Return probes in float64, with as many features as the training rows. Raises: TypeError, ValueError."""
    more = np.asarray(net.rows("probes", validation.concrete_points("probes", probes)), np.float64)
    validation.same_features("probes", more, "X", rows)
    return more
