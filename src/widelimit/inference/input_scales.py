"""One scale an input is learned, with the variances of the network, amplitude and noise: by evidence, or leave-one-out.

The search maximises the objective of `scaled_evidence` plus the logarithm of a weak prior: the logarithm of every
scale is N(0, 1.5^2), narrower for few rows, so that some tens of rows do not decide on as many scales. Inputs and
targets are standardised beforehand.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, final

import numpy as np
import scipy.optimize

from widelimit.compute import threads
from widelimit.inference import scaled_evidence
from widelimit.inference.coordinates import numbers
from widelimit.inference.noise_level import Objective
from widelimit.inference.outputs import distinct_columns
from widelimit.inference.scaled_evidence import AnyFamily, Family, NetworkFamily, Rows
from widelimit.progress import Report, no_progress

PRIOR = np.array([1.5, 1.0, 2.0, 5.0, 3.0])
"""Standard deviations of the logarithms of a scale, weight_std, bias_std, amplitude and noise about the first start.

A rough kernel, as the NTK of relu, explains noise nearly as well as the noise does: without a prior its noise may fall
to 0, and so may error bars at rows that stand in the table. Data without noise outweigh it: they gain nats by the row.
"""
FIRST = (0.0, math.log(1.4), math.log(0.5), 0.0, math.log(0.1))
"""Logarithms of scales, weight_std, bias_std, amplitude and noise of the first start ..."""
SECOND = (-1.0, math.log(1.4), math.log(0.5), 0.0, math.log(0.01))
"""... and of the second: smoother, with less noise."""
LOW, HIGH = (-12.0, -3.0, -7.0, -7.0, -30.0), (7.0, 2.0, 3.0, 14.0, 3.0)
RACE_ROWS, RACE_STEPS = 300, 40
"""Rows and steps of each family in the race: enough to see which ones lead."""
FINALISTS = 3
"""Families that go on to the end: after a race of so few steps the leader is not always the most likely one."""
GROWTH = 10.0
"""Nats by which a network of relu must be more likely than one of erf or rbf.

Its functions grow without bound: in a new row far from the table the error does too, and no row of the table can say
so. Its NTK is rough besides, and can take noise for function.
"""
ROWS = 1000
"""Rows of a search; from its result the search goes on for LAST_STEPS on up to LARGEST rows."""
LARGEST = 2000
STEPS, LAST_STEPS = 150, 12
PATIENCE, FLAT = 5, 1e-3
"""A search ends where so many steps have gained less than so many nats: no prediction changes by that."""
LINE = 8
"""Trials along one direction: where rounding hides every gain, as without noise, more find nothing either."""
LABEL_ROWS = 800
"""Rows of the last steps by one-hot labels, ..."""
LABEL_NOISE, LABEL_SPREAD = 0.1, 0.5
"""... the least noise, and the prior's deviation: with less noise a step fits any labels, and scales are chance."""
PER_SCALE = 10
"""Rows for each scale from which the prior has its full width; it is narrower, in proportion, for fewer."""
DIGITS = 12
"""Digits of standardised data in a search: other units, or weights for repeated rows, do not change its path."""


class ScaledFit(NamedTuple):
    """The fit holds the most likely hyper-parameters of a family of kernels, in units of standardised data."""

    family: AnyFamily
    scales: np.ndarray
    """(d,), one an input."""
    values: dict[str, float]
    """The numbers of the network by name."""
    amplitude: float
    noise: float
    score: float
    """The objective in nats with the logarithm of the prior, that of the family too, on the rows of the search."""
    at_bounds: tuple[str, ...]
    z: np.ndarray
    """The coordinates of this point, from which a search can continue."""


def spread(rows: int, groups: np.ndarray) -> float:
    """Return the standard deviation of the logarithm of a scale in the prior, for so many distinct rows."""
    return float(PRIOR[0]) * min(1.0, rows / (PER_SCALE * (int(groups.max()) + 1)))


@final
@dataclass(frozen=True)
class Search:
    """The search has standardised rows, and maximises one objective over the families that it is asked for."""

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    groups: np.ndarray
    """(d,) numbers of scales: inputs of one number share a scale."""
    objective: Objective
    noise: float | None = None
    """The noise, if it is fixed; else None."""
    numbers: tuple[float, ...] | None = None
    """The numbers of the network, if they are fixed; else None."""
    least_noise: float = 0.0
    spread: float = float(PRIOR[0])
    """Standard deviation of the logarithm of a scale, in its prior."""

    @cached_property
    def rows(self) -> Rows:
        """Return the rows as the compiled step takes them: one preparation serves all families."""
        X, y = (np.round(values, DIGITS) for values in (self.X, self.y[:, distinct_columns(self.y)]))
        return scaled_evidence.padded(X, y, self.weights, self.groups)

    def subset(self, count: int) -> Search:
        """Return the search on at most `count` rows, drawn without replacement by a fixed seed."""
        places, at = np.unique(self.X, axis=0, return_inverse=True)
        if len(places) <= count:
            return self
        rows = np.isin(at.ravel(), np.random.default_rng(0).permutation(len(places))[:count])
        return replace(self, X=self.X[rows], y=self.y[rows], weights=self.weights[rows])

    def start(self, values: Sequence[float], family: AnyFamily | None = None) -> np.ndarray:
        """Return coordinates from the logarithm of all scales and of the four others; of a network about its own."""
        scale, weight, bias, *others = values
        own = [weight, bias]
        if isinstance(family, NetworkFamily):
            known = numbers(family.network)
            own = [math.log(known[name]) + _usual(name, values) - _usual(name, FIRST) for name in family.numbers]
        return np.concatenate([np.full(self.groups.max() + 1, scale), own, others])

    def _bounds(self, family: AnyFamily, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and the largest coordinates: equal ones of what is given."""
        low, high = self.start(LOW, family), self.start(HIGH, family)
        low[-1] = max(low[-1], math.log(max(self.least_noise, math.exp(LOW[-1]))))
        if self.numbers is not None:
            low[count:-2] = high[count:-2] = np.log(np.maximum(self.numbers, math.exp(LOW[-1])))
        if self.noise is not None:
            low[-1] = high[-1] = math.log(max(self.noise, math.exp(LOW[-1])))
        return low, high

    def run(self, family: AnyFamily, z: np.ndarray, steps: int) -> ScaledFit:
        """Climb from z by L-BFGS-B, at most so many steps. Raises: ValueError: no value at z."""
        count = int(self.groups.max()) + 1
        rows = self.rows
        spare = rows.X.shape[1] - count
        own = [_usual(name, PRIOR) for name in family.numbers]
        center, spread = self.start(FIRST, family), np.concatenate([np.full(count, self.spread), own, PRIOR[3:]])
        low, high = self._bounds(family, count)

        def negative(z: np.ndarray) -> tuple[float, np.ndarray]:
            whole = np.concatenate([z[:count], np.zeros(spare), z[count:]])
            with threads.limit(len(rows.X) ** 3 / 3):
                value, slope = scaled_evidence.value_and_gradient(family, self.objective, self.X.shape[1], rows, whole)
            away = np.where(low < high, z - center, 0.0) / spread
            value, slope = value - away @ away / 2, np.concatenate([slope[:count], slope[count + spare :]])
            if not (math.isfinite(value) and np.isfinite(slope).all()):
                return math.inf, np.zeros_like(z)
            return -value, away / spread - slope

        z = np.clip(z, low, high)
        first = negative(z)[0]
        if not math.isfinite(first):
            raise ValueError("the evidence is not finite at the start of the search; pass a larger noise.")
        wall = abs(first) + 1e6

        def guarded(z: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = negative(z)
            return (value, slope) if math.isfinite(value) else (wall, slope)

        found = _minimise(guarded, z, first, scipy.optimize.Bounds(low, high), steps)
        return self._fit(family, found.x, -float(found.fun), (low < high) & ((found.x == low) | (found.x == high)))

    def _fit(self, family: AnyFamily, z: np.ndarray, score: float, bound: np.ndarray) -> ScaledFit:
        count = int(self.groups.max()) + 1
        names = (*family.numbers, "amplitude", "noise")
        ends = tuple(name for name, at in zip(names, bound[count:], strict=True) if at)
        *own, amplitude, noise = np.exp(z[count:]).tolist()
        noise = noise if self.noise is None else self.noise
        score -= GROWTH if isinstance(family, Family) and family.activation == "relu" else 0.0
        values = dict(zip(family.numbers, own, strict=True))
        return ScaledFit(family, np.exp(z[:count])[self.groups], values, amplitude, noise, score, ends, z)


def _minimise(
    function: Callable[[np.ndarray], tuple[float, np.ndarray]],
    z: np.ndarray,
    first: float,
    bounds: scipy.optimize.Bounds,
    steps: int,
) -> scipy.optimize.OptimizeResult:
    """Minimise a function with its gradient by L-BFGS-B from z, where it is `first`, until it gains nothing."""
    values = [first]

    def report(intermediate_result: scipy.optimize.OptimizeResult) -> None:
        values.append(intermediate_result.fun)
        if len(values) > PATIENCE and values[-1] > values[-1 - PATIENCE] - FLAT:
            raise StopIteration

    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-9, "maxls": LINE}
    return scipy.optimize.minimize(
        function, z, jac=True, method="L-BFGS-B", bounds=bounds, options=options, callback=report
    )


def _usual(name: str, table: Sequence[float] | np.ndarray) -> float:
    """Return the entry of FIRST, PRIOR, LOW or HIGH for a number of a network: that of biases, or of weights."""
    return float(table[2] if name.endswith("bias_std") else table[1])


def fit_input_scales(search: Search, families: Sequence[AnyFamily], *, progress: Report = no_progress) -> ScaledFit:
    """Choose one of the families and its hyper-parameters: the first of `fit_finalists`. Raises: ValueError."""
    return fit_finalists(search, families, progress=progress)[0]


def fit_finalists(
    search: Search, families: Sequence[AnyFamily], *, progress: Report = no_progress
) -> tuple[ScaledFit, ...]:
    """Fit FINALISTS of the families: a race on few rows, then the best ones, then one of these on more, the first.

    The others follow, the more likely before the less, as they are on the rows of the race.

    Args:
        search: standardised rows.
        families: one or more.
        progress: called with the stage and the share that is done.

    Raises:
        ValueError: the objective is not finite anywhere it was tried.
    """
    small, medium, large = (search.subset(count) for count in (RACE_ROWS, ROWS, LARGEST))
    starts = [(family, small.start(FIRST, family)) for family in families]
    race = _ends(small, starts, RACE_STEPS, progress)
    progress("input scales", 0, 3)
    start, *others = _final(small, race[-FINALISTS:])
    progress("input scales", 1, 3)
    found = medium.run(start.family, start.z, STEPS) if len(medium.X) > len(small.X) else start
    progress("input scales", 2, 3)
    found = large.run(start.family, found.z, LAST_STEPS) if len(large.X) > len(medium.X) else found
    return found, *others


def fit_label_scales(search: Search, families: Sequence[AnyFamily], *, progress: Report = no_progress) -> ScaledFit:
    """Choose as `fit_input_scales` does, by one-hot labels: few steps, as their evidence is not that of classes.

    Raises:
        ValueError: as `fit_input_scales`.
    """
    search = replace(search, least_noise=LABEL_NOISE, spread=LABEL_SPREAD)
    small, large = search.subset(RACE_ROWS), search.subset(LABEL_ROWS)
    starts = [(family, small.start(FIRST, family)) for family in families]
    best = _ends(small, starts, RACE_STEPS, progress)[-1]
    return large.run(best.family, best.z, LAST_STEPS) if len(large.X) > len(small.X) else best


def _final(search: Search, leaders: Sequence[ScaledFit]) -> tuple[ScaledFit, ...]:
    """Return the leaders at their ends: the most likely one first, which starts again from SECOND and the others."""
    *others, best = _ends(search, [(leader.family, leader.z) for leader in leaders], STEPS)
    ends = [best]
    for z in (search.start(SECOND, best.family), *(end.z for end in others)):
        with contextlib.suppress(ValueError):  # no value at this start
            ends.append(search.run(best.family, z, STEPS))
    return max(ends, key=lambda end: end.score), *others[::-1]


def _ends(
    search: Search,
    starts: Sequence[tuple[AnyFamily, np.ndarray]],
    steps: int,
    progress: Report = no_progress,
) -> list[ScaledFit]:
    """Return where the search ends from each start, the most likely last; starts without a value are left out.

    Raises:
        ValueError: no start has a value.
    """
    ends, errors = [], []
    for i, (family, z) in enumerate(starts):
        progress("kernels", i, len(starts))
        try:
            ends.append(search.run(family, z, steps))
        except ValueError as error:
            errors.append(error)
    if not ends:
        raise errors[0]
    return sorted(ends, key=lambda end: end.score)
