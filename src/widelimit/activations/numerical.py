"""Any phi without a closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from widelimit import gaussian, series, validation
from widelimit.activations import tables
from widelimit.activations.base import Activation
from widelimit.activations.expansions import ExpansionTrace, contracted, traced
from widelimit.activations.ranges import by_rows, signed
from widelimit.activations.tables import Part, Table
from widelimit.pytrees import pytree
from widelimit.signals import Gaps, Variance, power_of_two

RTOL = {"float64": 1e-10, "float32": 1e-6}


class _PartTrace(NamedTuple):
    apart: ExpansionTrace
    share: jax.Array
    mean_slope: ExpansionTrace


class _Trace(NamedTuple):
    """Arrays (.., n): the place of the deviation in its range, and what either part has there."""

    place: jax.Array
    even: _PartTrace | None
    odd: _PartTrace | None


@final
@pytree
@dataclass(frozen=True)
class Numerical(Activation):
    """phi(u), any function: its duals from quadrature, tabulated for the standard deviations that occur.

    Made by `wl.activation(phi, kinks=..., rtol=...)`, which checks phi.

    Attributes:
        phi: written with jax.numpy, elementwise, differentiable by JAX outside of its kinks; without jumps.
        kinks: where phi is continuous, but not analytic.
        rtol: bound on the error of duals relative to sqrt(E[phi(u)^2] E[phi(v)^2]), met or an error is raised; None is
            1e-10 in float64 and 1e-6 in float32.
        label: what errors call it.
    """

    phi: Callable[[jax.Array], jax.Array] = field(metadata={"static": True})
    kinks: tuple[float, ...] = field(default=(), metadata={"static": True})
    rtol: float | None = field(default=None, metadata={"static": True})
    label: str = field(default="a callable", metadata={"static": True})
    table: Table | None = field(default=None, repr=False)
    name: ClassVar[str] = "numerical"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return self.phi(u)

    def prepared(self, low: float, high: float, dtype: Any) -> Self:
        """This activation with its tables for standard deviations in [low, high], 0 <= low <= high.

        Kernels make tables for their inputs by themselves. Under jax.jit, grad and vmap, where inputs are not known,
        they need an activation prepared beforehand; signals out of the range (at any layer) give NaN there.

        Raises:
            ValueError: a range that is none, or duals that do not reach rtol there.
        """
        low = float(validation.finite_scalar("low", low, at_least=0.0))
        high = float(validation.finite_scalar("high", high, at_least=low))
        rtol = self.rtol_in(dtype)
        if low != high:  # a few ranges, by half octaves, so that tables and compiled programs are found again
            low = 0.0 if low < high / 256 else 2 ** (math.floor(2 * math.log2(low)) / 2)
            high = 2 ** (math.ceil(2 * math.log2(high)) / 2)
        return replace(self, table=tables.tabulate(self.phi, self.kinks, low, high, rtol, self.label))

    def rtol_in(self, dtype: Any) -> float:
        return RTOL[np.dtype(dtype).name] if self.rtol is None else self.rtol

    def second_moment(self, signal: Variance, largest: float) -> Variance:
        """E[phi(u)^2] for deviations up to `largest`."""
        deviation = jnp.maximum(signal.deviation, np.finfo(signal.value.dtype).tiny)
        wanted = gaussian.panels(self.kinks, 2.0 ** math.ceil(math.log2(max(largest, 1.0))))
        nodes, weights = gaussian.normal_rule(deviation, wanted)
        values = self.phi(deviation[..., None] * nodes)
        # Where phi(0) = 0, values of the order of s: a square root of the smallest number is no bound then.
        at_zero = self.phi(jnp.zeros((), signal.value.dtype))
        exponent = jnp.where(at_zero == 0, jnp.minimum(signal.exponent, 0), 0)
        values = values * power_of_two(-exponent, values.dtype)[..., None]
        return Variance(jnp.sum(weights * values**2, axis=-1), exponent)

    def _ready(self, dtype: Any) -> Table:
        if self.table is None:
            raise TypeError(
                f"{self.label} has no closed form: its duals are tabulated for the norms of the inputs, which are not "
                f"known under jax.jit, grad or vmap. Prepare it for the range of standard deviations of its signals, "
                f"e.g. wl.activation({self.label!r}).prepared(0.1, 10.0, 'float64'), compute the kernel outside of "
                f"them (to fit hyper-parameters: gradient='differences'), or use a closed form such as erf or gelu."
            )
        cast: Table = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self.table)
        return cast

    def encode(self, signal: Variance) -> tuple[Variance, _Trace]:
        table = self._ready(signal.value.dtype)
        place = table.places.of(signal.deviation)
        polynomials = table.places.polynomials(place)

        def part_of(part: Part | None) -> _PartTrace | None:
            if part is None:
                return None
            share = jnp.tensordot(part.share, polynomials, 1, precision="highest")
            return _PartTrace(traced(part.apart, polynomials), share, traced(part.mean_slope, polynomials))

        trace = _Trace(place, part_of(table.even), part_of(table.odd))
        return self.second_moment(signal, table.places.largest), trace

    def correlate(self, x: _Trace, y: _Trace, gaps: Gaps) -> tuple[Gaps, jax.Array]:
        return by_rows(self._correlate, x, y, gaps)

    def _correlate(self, x: _Trace, y: _Trace, gaps: Gaps) -> tuple[jax.Array, jax.Array]:
        near = gaps.near
        table = self._ready(near.dtype)
        square = (x.place - y.place) ** 2
        apart, mean_slope = jnp.zeros_like(near), []
        sign = signed(jnp.ones_like(near), gaps)
        for part, one, other, even in ((table.odd, x.odd, y.odd, False), (table.even, x.even, y.even, True)):
            if part is None or one is None or other is None:
                continue
            distance = square * contracted(part.apart, one.apart, other.apart)[0]
            coefficients = contracted(part.mean_slope, one.mean_slope, other.mean_slope)
            if even:  # half the squared sum in place of that of the difference
                distance = jnp.where(gaps.positive, distance, one.share + other.share - distance)
                coefficients = [sign * c for c in coefficients]
            apart = apart + distance
            mean_slope = [a + b for a, b in itertools.zip_longest(mean_slope, coefficients, fillvalue=0.0)]
        mean, slope = _mean_and_slope(mean_slope, near)
        return jnp.maximum(apart + near * mean, 0), slope


def _mean_and_slope(coefficients: list[jax.Array], near: jax.Array) -> tuple[jax.Array, jax.Array]:
    """H and dR/drho = H + tan(psi/2) dH/dpsi, from H in powers of the halves."""
    if len(coefficients) == 1:
        return coefficients[0], coefficients[0]
    x = series.angle_from_gap(near)[0] * (4 / math.pi) - 1
    (even, even_slope), (odd, odd_slope) = (
        series.polynomial_and_slope(coefficients[half::2], 2 * x**2 - 1) for half in (0, 1)
    )
    mean = even + x * odd
    by_psi = (4 / math.pi) * (odd + 4 * x * (even_slope + x * odd_slope))
    return mean, mean + series.safe_sqrt(near / (2 - near)) * by_psi
