"""A claim is a prediction, a measurement of it, and a negative control that must fail."""

import enum
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, final

import numpy as np
from matplotlib.figure import Figure

from widelimit.claims import NAMES
from widelimit.claims.statistics import Line
from widelimit.messages import did_you_mean, list_names

T = TypeVar("T")
EPS = float(np.finfo(np.float64).eps)
"""The relative rounding error of double precision, 2.2e-16."""
Data = Mapping[str, np.ndarray]
"""Arrays that a figure shows, by name; numbers and booleans, never objects."""


class Effort(enum.Enum):
    """The effort sets the time: all claims together take less than 4 minutes, or less than 30, on two cores."""

    QUICK = "quick"
    FULL = "full"

    def pick(self, *, quick: T, full: T) -> T:
        """Return the setting of this effort."""
        return quick if self is Effort.QUICK else full


@final
@dataclass(frozen=True)
class Check:
    """A check is a measured number and the interval that the statement predicts."""

    name: str
    measured: float
    low: float
    high: float
    why: str
    """The derivation of the interval."""

    @property
    def holds(self) -> bool:
        """Return True if the number is in its interval; NaN never is."""
        return bool(self.low <= self.measured <= self.high)


def at_most(name: str, measured: float | np.floating[Any], bound: float, why: str) -> Check:
    """Check a number >= 0 against an upper bound, such as an error against its rounding."""
    return Check(name, float(measured), 0.0, float(bound), why)


def at_least(name: str, measured: float | np.floating[Any], bound: float, why: str) -> Check:
    """Check a number against a lower bound."""
    return Check(name, float(measured), float(bound), float("inf"), why)


def within(name: str, measured: float, predicted: float, error: float, why: str) -> Check:
    """Check a number against predicted +- error."""
    return Check(name, float(measured), float(predicted - error), float(predicted + error), why)


def slope_check(name: str, line: Line, predicted: float, tolerance: float) -> Check:
    """Check a fitted exponent against predicted +- tolerance."""
    return within(name, line.slope, predicted, tolerance, f"standard error {line.error:.2g}")


class Measurement(NamedTuple):
    """A measurement holds what an experiment found."""

    checks: tuple[Check, ...]
    data: Data


@final
@dataclass(frozen=True)
class Claim:
    """A claim is a statement of the paper and the experiment that could refute it."""

    title: str
    statement: str
    """The statement in our own words, with its number in the paper."""
    source: str
    prediction: str
    tolerance: str
    """The derivation of the intervals of the checks."""
    control: str
    """The error that is planted in the negative control; each of its checks must fail."""
    seed: int
    measure: Callable[[Effort], Measurement]
    violate: Callable[[Effort], Measurement]
    draw: Callable[[Data, Data], Figure]
    """Draws the data of `measure` and of `violate`."""
    reads: str = "no file"
    """Identifies the user's file that the experiment reads; kept results count only if it is the same."""


def load(name: str) -> Claim:
    """Load the claim of that name. Raises: ValueError: there is none."""
    if name not in NAMES:
        known = f"{list_names(NAMES)} (widelimit verify --list){did_you_mean(name, NAMES)}"
        raise ValueError(f"there is no claim {name!r}; the claims are {known}")
    claim = importlib.import_module(f"widelimit.claims.{name}").CLAIM
    if not isinstance(claim, Claim):
        raise TypeError(f"widelimit.claims.{name}.CLAIM is not a Claim.")
    return claim


def source_code(name: str) -> str:
    """Return the text of the claim's module: the code that made its figure."""
    return inspect.getsource(importlib.import_module(f"widelimit.claims.{name}"))
