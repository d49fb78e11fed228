"""Any phi without a closed form."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import gaussian, validation
from widelimit.activations import tables
from widelimit.activations.base import Activation
from widelimit.activations.lookup import TableTrace, looked_up, pair_map
from widelimit.activations.ranges import by_rows
from widelimit.activations.tables import Table
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Gaps, Variance, power_of_two

RTOL = {"float64": 1e-10, "float32": 1e-6}


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
        low, high = tables.half_octaves(low, high)
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

    def encode(self, signal: Variance) -> tuple[Variance, TableTrace]:
        table = self._ready(signal.value.dtype)
        return self.second_moment(signal, table.places.largest), looked_up(table, signal.deviation)

    def correlate(self, x: TableTrace, y: TableTrace, gaps: Gaps) -> tuple[Gaps, jax.Array]:
        return by_rows(functools.partial(pair_map, self._ready(gaps.below.dtype)), x, y, gaps)
