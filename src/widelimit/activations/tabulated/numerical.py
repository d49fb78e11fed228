"""phi is any function: its duals are looked up in tables made by quadrature."""

import functools
import math
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, ClassVar, Self, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import ANY_DEPTH, USUAL_MEMO, Activation
from widelimit.activations.tabulated import fixed_lengths, tables
from widelimit.activations.tabulated.lookup import TableMemo, correlate_by_table, look_up, mean_of
from widelimit.activations.tabulated.moments import second_moment_of
from widelimit.activations.tabulated.tables import Table
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, correlation_with_itself

LARGEST_TRACED = 8.0
"""Standard deviations of signals up to which tables serve under jit, grad and vmap, where inputs are not known."""

QUICK_TERMS = 480
"""Terms of H up to which XLA's older emitters make a tile as fast (measured: u/(1 + u^2) has 474)."""
SHORT = 320
"""Terms of H up to which a warm call takes so little that encoding is compiled with optimisation (tanh has 300)."""


def _half_tanh(u: jax.Array) -> jax.Array:
    """Return sigmoid(u) - 1/2."""
    return jnp.tanh(u / 2) / 2


def _softplus_less_log_2(u: jax.Array) -> jax.Array:
    return jnp.where(u < 1, jnp.log1p(jnp.expm1(jnp.minimum(u, 1)) / 2), jax.nn.softplus(u) - math.log(2))


_LESS_CONSTANT = ((jax.nn.sigmoid, _half_tanh), (jax.nn.softplus, _softplus_less_log_2))
"""phi and phi - phi(0), where the former is nearly constant for small u and nowhere else."""


@final
@pytree
class Numerical(Activation):
    """phi(u) is any function: its duals are from quadrature, tabulated for the standard deviations that occur.

    Made by `wl.activation(phi, kinks=..., rtol=...)`, which checks phi.

    Attributes:
        phi: written with jax.numpy, elementwise, differentiable by JAX outside of its kinks; without jumps.
        kinks: points where phi is continuous but not analytic.
        rtol: bound on the error of duals relative to sqrt(E[phi(u)^2] E[phi(v)^2]), met or an error is raised; None is
            1e-10 in float64 and 1e-6 in float32.
        label: name of phi in errors.
    """

    phi: Callable[[jax.Array], jax.Array] = field(metadata={"static": True})
    kinks: tuple[float, ...] = field(default=(), metadata={"static": True})
    rtol: float | None = field(default=None, metadata={"static": True})
    label: str = field(default="a callable", metadata={"static": True})
    table: Table | None = field(default=None, repr=False)
    name: ClassVar[str] = "numerical"
    looped: ClassVar[bool] = True

    def __post_init__(self) -> None:
        validation.function("phi", self.phi, "a function of an array")
        validation.numbers_in("kinks", self.kinks)
        if self.rtol is not None:
            validation.finite_scalar("rtol", self.rtol, at_least=1e-13)

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return self.phi(u)

    def less_mean(self) -> Self:
        known = [other for phi, other in _LESS_CONSTANT if phi is self.phi]
        return replace(self, phi=known[0]) if known and self.table is None else self

    def prepared(self, low: float, high: float, dtype: Any) -> Self:
        """Return this activation with its tables for standard deviations in [low, high], 0 <= low <= high.

        Kernels make tables for their inputs automatically. Under jax.jit, grad and vmap, where inputs are not known,
        tables are for [0, 8], unless the activation was prepared for another range beforehand; signals out of the range
        (at any layer) give NaN there.

        Raises: ValueError: not 0 <= low <= high < inf, or duals that do not reach rtol there.
        """
        low = float(validation.finite_scalar("low", low, at_least=0.0))
        high = float(validation.finite_scalar("high", high, at_least=low))
        rtol = self.rtol_in(dtype)
        low, high = tables.half_octaves(low, high)
        return replace(self, table=tables.tabulate(self.phi, self.kinks, low, high, rtol, self.label))

    def in_few_shapes(self, dtype: Any, rows: int) -> Self:
        if self.table is None:
            return self
        # Compiled programs are cached by static fields: phi, which may be a new lambda, is dropped for its table.
        nameless = replace(self, phi=_replaced, label="", table=None)
        written = getattr(getattr(self.phi, "__code__", None), "co_code", self.phi)
        key = nameless, written, np.dtype(dtype).name, rows
        return replace(nameless, table=fixed_lengths.in_few_shapes(self.table, key))

    def rtol_in(self, dtype: Any) -> float:
        return tables.error_target(self.rtol, dtype)

    def second_moment(self, signal: Variance) -> Variance:
        """Compute E[phi(u)^2] for u ~ N(0, signal) of float64, by quadrature."""
        return second_moment_of(self.phi, self.kinks, signal)

    @property
    def numbers_per_input(self) -> int:
        return self.table.numbers_per_input if self.table else USUAL_MEMO

    @property
    def quick_depth(self) -> int:  # type: ignore[override]
        return ANY_DEPTH * (0 < self._terms <= QUICK_TERMS)

    @property
    def _terms(self) -> int:
        """Return the terms of H; 0 without a table."""
        parts = (self.table.even, self.table.odd) if self.table else ()
        return sum(sum(part.mean_slope.pattern) for part in parts if part)

    @property
    def light(self) -> bool:  # type: ignore[override]
        return not 0 < self._terms <= SHORT  # encoding would take a tenth of the time of a warm call

    def _ready(self, dtype: Any) -> Table:
        """Return the table; under a trace, where no range is known, the one for all usual deviations."""
        return self.table or _usual(replace(self, rtol=self.rtol_in(dtype)))

    def mean(self, deviation: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return Activation.mean(self, deviation) if self.table is None else mean_of(self.table, deviation)

    def encode(self, signal: Variance) -> tuple[Variance, TableMemo]:
        return look_up(self._ready(signal.value.dtype), signal)

    def itself(self, x: TableMemo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return correlation_with_itself(correlation.one_minus), x.itself

    def correlate(self, x: TableMemo, y: TableMemo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        ready = self._ready(correlation.one_minus.dtype)
        return correlate_by_table(ready, x, y, correlation, remember=self.table is not None)


def _replaced(_: jax.Array) -> jax.Array:
    raise TypeError("phi was replaced by its table")


@functools.lru_cache(maxsize=64)
def _usual(activation: Numerical) -> Table:
    """Make the table for deviations up to LARGEST_TRACED, in loops, whose gradients compile soon."""
    with jax.ensure_compile_time_eval():
        ready = activation.prepared(0.0, LARGEST_TRACED, "float64").table
        assert ready is not None
        return fixed_lengths.in_loops(ready)
