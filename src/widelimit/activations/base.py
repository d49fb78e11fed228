"""An activation phi defines E[phi(u) phi(v)] and E[phi'(u) phi'(v)] for every Gaussian pair (u, v)."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.gaussian import traced_normal_rule
from widelimit.interpreter import interpreted
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, correlation_from_covariance, correlation_from_rho, scaled
from widelimit.validation import Array

Memo = Any
"""A memo holds the data of one input that an activation needs: a pytree of arrays (..., n), or ()."""

USUAL_MEMO = 8
"""Numbers in the longest memo of any closed form except polynomials."""


class Activation(abc.ABC):
    """An activation is a function phi with two maps on Gaussian signals.

    The signals are u ~ N(0, s^2) alone, and a pair (u, v) of correlation rho.

    `encode` sees each input once; `correlate` sees pairs and must be elementwise on arrays that broadcast. Correlations
    after phi are uncentred: E[phi(u) phi(v)] / sqrt(E[phi(u)^2] E[phi(v)^2]).
    """

    name: ClassVar[str]
    kinks: tuple[float, ...] = ()
    """Places other than 0 where phi is not analytic, of functions whose duals are computed by quadrature."""

    @property
    def has_ntk(self) -> bool:
        """The NTK exists if E[phi'(u) phi'(v)] is finite at rho = 1; it is not for a phi that jumps."""
        return True

    @abc.abstractmethod
    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        """Evaluate phi(u), elementwise."""

    @abc.abstractmethod
    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        """Return (E[phi(u)^2], memo) for u ~ N(0, signal)."""

    @abc.abstractmethod
    def correlate(self, x: Memo, y: Memo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        """Return (the correlation after phi, d rho_after / d rho); x and y are the memos of the two inputs."""

    @property
    def numbers_per_input(self) -> int:
        """Return about how many numbers a memo holds; kernels state their sizes from it."""
        return USUAL_MEMO

    def itself(self, x: Memo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        """Apply `correlate` to every signal with itself, whose correlation is 1."""
        return self.correlate(x, x, correlation)

    def prepared(self, low: float, high: float, dtype: Any) -> Self:
        """Return this activation prepared for standard deviations in [low, high]; closed forms need no preparation."""
        return self

    def tabulated(self, low: float, high: float, dtype: Any) -> Self:
        """Prepare for the many pairs of a kernel: a table right to rtol where that is cheaper than a closed form."""
        return self.prepared(low, high, dtype)

    def in_few_shapes(self, dtype: Any, rows: int) -> Self:
        """Return this activation, prepared, with tables whose programs for tiles of `rows` serve other ranges too."""
        return self

    def rtol_in(self, dtype: Any) -> float:
        """Return the error target of the duals relative to sqrt(E[phi(u)^2] E[phi(v)^2]); it is 0 for closed forms."""
        return 0.0

    def second_moment(self, signal: Variance) -> Variance:
        """E[phi(u)^2] for u ~ N(0, signal) of float64, by NumPy: for work that is done once."""
        return interpreted(_variance_after)(self, signal)  # type: ignore[no-any-return]

    def mean(self, deviation: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        """Compute E[phi(u)] for u ~ N(0, deviation^2), traceable; by quadrature split at the kinks if not overridden.

        Right to about 1e-15 of sqrt(E[phi(u)^2]) for functions that vary over lengths of order 1 or more.
        """
        nodes, weights = traced_normal_rule(deviation, self.kinks)
        return jnp.sum(weights * self(deviation[..., None] * nodes), axis=-1)

    def derivative(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        """Evaluate phi'(u), elementwise."""
        return jnp.asarray(jax.jvp(self.__call__, (u,), (jnp.ones_like(u),))[1])

    def dual(self, q1: Float[Array, "..."], c: Float[Array, "..."], q2: Float[Array, "..."]) -> Float[Array, "..."]:
        """Compute E[phi(u) phi(v)] for a centred Gaussian pair with variances q1, q2 and covariance c.

        Args:
            q1: variance of u, > 0; numbers or arrays that broadcast.
            c: covariance, c^2 <= q1 q2 (up to a rounding error, which is taken as equality).
            q2: variance of v, > 0.

        Returns:
            The expectation, in the dtype of the arguments; JAX arrays in, a JAX array out.

        Raises:
            ValueError: a variance that is not positive, c^2 > q1 q2, or NaN or infinite entries.
            TypeError: not real numbers.
        """
        return self._pair(q1, c, q2, derivative=False)

    def dual_derivative(
        self, q1: Float[Array, "..."], c: Float[Array, "..."], q2: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """E[phi'(u) phi'(v)] = d dual / d c (Price's theorem). Arguments, returns and raises: as `dual`.

        Infinite at c^2 = q1 q2 for a phi that jumps.
        """
        return self._pair(q1, c, q2, derivative=True)

    def correlation_map(self, rho: Float[Array, "..."], *, q: float = 1.0) -> Float[Array, "..."]:
        """Map the correlation of two signals of variance q > 0 through phi: dual(q, q rho, q)/dual(q, q, q).

        Args:
            rho: correlations in [-1, 1], a number or an array.
            q: the common variance.

        Raises:
            ValueError: rho outside [-1, 1], or q not a positive finite number.
            TypeError: not real numbers.
        """
        rho = validation.as_finite_floats("rho", rho)
        if not validation.traced(rho) and (np.abs(rho) > 1).any():
            raise ValueError(f"rho is a correlation and must be in [-1, 1], got {np.max(np.abs(rho)):g} in size.")
        q = validation.finite_scalar("q", q, above=0.0)
        with arithmetic(rho.dtype == np.float64):
            signal = Variance(jnp.asarray(q, rho.dtype), jnp.zeros((), jnp.int32))
            ready = self if validation.traced(q) else self.prepared(float(q) ** 0.5, float(q) ** 0.5, rho.dtype)
            _, memo = ready.encode(signal.normalise())
            after = ready.correlate(memo, memo, correlation_from_rho(jnp.asarray(rho)))[0].rho
        return after if validation.is_jax(rho) else np.asarray(after)[()]

    def _pair(self, q1: Any, c: Any, q2: Any, *, derivative: bool) -> Float[Array, "..."]:
        arrays = validation.covariances(q1, c, q2)
        dtype = np.result_type(*(a.dtype for a in arrays))
        with arithmetic(dtype == np.float64):
            ready = self
            if not any(validation.traced(a) for a in arrays):
                variances = np.concatenate([np.ravel(arrays[0]), np.ravel(arrays[2])])
                ready = self.prepared(float(variances.min()) ** 0.5, float(variances.max()) ** 0.5, dtype)
            value = _pair_moment(ready, *(jnp.asarray(a, dtype) for a in arrays), derivative=derivative)
        return value if validation.is_jax(*arrays) else np.asarray(value)[()]


def _pair_moment(activation: Activation, *covariance: jax.Array, derivative: bool) -> jax.Array:
    """Compute E[phi(u) phi(v)] or E[phi'(u) phi'(v)] by the activation's own maps."""
    q1, c, q2 = jnp.broadcast_arrays(*covariance)
    x, y = (Variance(q, jnp.zeros(q.shape, jnp.int32)).normalise() for q in (q1, q2))
    (x_after, x_memo), (y_after, y_memo) = activation.encode(x), activation.encode(y)
    after, slope = activation.correlate(x_memo, y_memo, correlation_from_covariance(x, c, y))
    if not derivative:
        return scaled(after.rho, x_after, y_after)
    x_gain, y_gain = (
        Variance(after.value / before.value, after.exponent - before.exponent)
        for before, after in ((x, x_after), (y, y_after))
    )
    return scaled(slope, x_gain, y_gain)


def _variance_after(activation: Activation, signal: Variance) -> Variance:
    return activation.encode(signal)[0]
