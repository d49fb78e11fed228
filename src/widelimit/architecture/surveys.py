"""A grid of deviations goes through the layers, and finds the range before every activation."""

import math
from typing import Any

import jax
import numpy as np

from widelimit.architecture.chain import Serial
from widelimit.architecture.normalisation import SPREAD, LayerNorm
from widelimit.architecture.state import Ranges
from widelimit.arithmetic import arithmetic
from widelimit.interpreter import interpreted
from widelimit.signals import variance_of

GRID = 33


def survey(body: Serial, low: float, high: float, degree: float) -> Ranges:
    """Find the range of deviations before every activation, from those before the layers and degrees of graphs."""
    ranges = Ranges()
    ranges.degree = degree
    with arithmetic(True):
        body.survey(interpreted(variance_of)(np.linspace(low, high, GRID)), None, (), ranges)
    return ranges


def require_spread(body: Serial, low: float, high: float, degree: float, rtol: float, dtype: Any) -> None:
    """Refuse signals that are nearly constant before a LayerNorm: less than half of their digits would be right.

    Raises: ValueError.
    """
    parts = jax.tree.leaves(body, is_leaf=lambda part: isinstance(part, LayerNorm))
    if not any(isinstance(part, LayerNorm) for part in parts):
        return
    least = math.sqrt(max(rtol, float(np.finfo(dtype).eps)))
    # Of inputs that are 0 a signal is constant, and 0 afterwards: exact.
    spreads = [found[low == 0] for path, found in survey(body, low, high, degree).items() if path[-1:] == (SPREAD,)]
    if min(spreads, default=1.0) < least:
        raise ValueError(
            f"LayerNorm: the activation before it is nearly constant at these inputs: its variance is "
            f"{min(spreads):.2g} of its mean square, and below {least:.2g} few digits are left when the mean is "
            f"taken off. Scale the inputs or weight_std up, or leave LayerNorm out there."
        )
