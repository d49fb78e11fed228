"""Autonomous ordinary differential equations are solved by SciPy, with a bound on the work."""

from collections.abc import Callable

import numpy as np

MOST = 50_000
"""Evaluations of the right side in one call: hundreds are usual."""


def integrate(rate: Callable[[np.ndarray], np.ndarray], start: np.ndarray, span: float, tolerance: float) -> np.ndarray:
    """Solve dx/dt = rate(x) from t = 0 to `span`. Raises: ArithmeticError: no step is small enough, or too many are."""
    from scipy.integrate import solve_ivp

    if span == 0:
        return start
    evaluated = 0

    def bounded(_: float, state: np.ndarray) -> np.ndarray:
        nonlocal evaluated
        evaluated += 1
        if evaluated > MOST:
            raise _too_fast(span)
        return rate(state)

    with np.errstate(all="ignore"):
        found = solve_ivp(bounded, (0, span), start, "DOP853", t_eval=[span], rtol=tolerance, atol=tolerance * 1e-2)
    if not found.success or not np.isfinite(found.y[:, -1:]).all():
        raise _too_fast(span)
    return np.asarray(found.y[:, -1])


def _too_fast(span: float) -> ArithmeticError:
    return ArithmeticError(
        f"training for a time of {span:.4g} takes too many steps: inputs or targets are large; scale X or y down, or "
        "ask for earlier times."
    )
