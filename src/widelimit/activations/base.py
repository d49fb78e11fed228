"""An activation phi defines E[phi(u) phi(v)] and E[phi'(u) phi'(v)] for every Gaussian pair (u, v)."""

import abc
from collections.abc import Callable
from dataclasses import field, fields
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


def parameter(default: float, check: Callable[[str, Any], object], *, static: bool = False) -> Any:
    """Declare a parameter of an activation; check(name, value) raises an error for a value out of range."""
    return field(default=default, metadata={"check": check, "static": static})


def off_mean() -> Any:
    """Declare a field that is True of phi less its mean over the signals of each input, made by `less_mean`."""
    return field(default=False, metadata={"static": True}, init=False, repr=False)


ANY_DEPTH = 2**31


class Activation(abc.ABC):
    """An activation is a function phi with two maps on Gaussian signals.

    The signals are u ~ N(0, s^2) alone, and a pair (u, v) of correlation rho.

    `encode` sees each input once; `correlate` sees pairs and must be elementwise on arrays that broadcast. Correlations
    after phi are uncentred: E[phi(u) phi(v)] / sqrt(E[phi(u)^2] E[phi(v)^2]).
    """

    name: ClassVar[str]
    quick_depth: ClassVar[int] = 0
    """Kernels of networks of it alone are `quick` up to this depth (`PairKernel.quick_in`)."""
    quick_types: ClassVar[tuple[str, ...]] = ("float32", "float64")
    """Names of the dtypes in which they are quick."""
    light: ClassVar[bool] = True
    """True if its `encode` is `light` (`PairKernel.light`)."""
    looped: ClassVar[bool] = False
    """True if pairs are computed in a loop over rows (`row_groups`): a loop over layers around it costs no time."""
    centred: bool = False
    """True of phi less its mean (`less_mean`), for the duals; calls and `mean` are those of phi."""
    kinks: tuple[float, ...] = ()
    """Places other than 0 where phi is not analytic, for functions whose duals are computed by quadrature."""

    def __post_init__(self) -> None:
        for own in fields(self):  # type: ignore[arg-type]
            if "check" in own.metadata:
                own.metadata["check"](own.name, getattr(self, own.name))

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

    def refine(self, x: Memo, y: Memo, correlation: Correlation, after: Correlation) -> Correlation:
        """Return the correlation `after` phi with 1 - rho right to its own last digits, as kinks of later layers need.

        `correlate` may leave the rounding of 1 in it, where that is cheaper.
        """
        return after

    def less_mean(self) -> "Activation":
        """Return phi less a constant of each input, with duals that keep their digits where phi is nearly constant.

        For layers that take the mean off. The same phi where its mean is no large part of it, or is not known apart.
        """
        return self

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
        """Return this activation, prepared, with tables of few shapes: programs for tiles of `rows` fit others."""
        return self

    def rtol_in(self, dtype: Any) -> float:
        """Return the error target of the duals relative to sqrt(E[phi(u)^2] E[phi(v)^2]); it is 0 for closed forms."""
        return 0.0

    def second_moment(self, signal: Variance) -> Variance:
        """Compute E[phi(u)^2] for u ~ N(0, signal) of float64, by NumPy: for work that is done once."""
        return interpreted(variance_after)(self, signal)  # type: ignore[no-any-return]

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
        return self._pair(q1, c, q2, _moment)

    def dual_derivative(
        self, q1: Float[Array, "..."], c: Float[Array, "..."], q2: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """E[phi'(u) phi'(v)] = d dual / d c (Price's theorem). Arguments, returns and raises: as `dual`.

        Infinite at c^2 = q1 q2 for a phi that jumps.
        """
        return self._pair(q1, c, q2, _moment_of_slopes)

    def correlation_map(self, rho: Float[Array, "..."], *, q: float = 1.0) -> Float[Array, "..."]:
        """Map the correlation of two signals of variance q > 0 through phi: dual(q, q rho, q)/dual(q, q, q).

        Args:
            rho: correlations in [-1, 1], a number or an array.
            q: the common variance.

        Raises: ValueError: rho outside [-1, 1], or q not a positive finite number; TypeError: not real numbers.
        """
        rho = validation.as_finite_floats("rho", rho)
        if not validation.traced(rho) and (np.abs(rho) > 1).any():
            raise ValueError(f"rho is a correlation and must be in [-1, 1], got {np.max(np.abs(rho)):g} in size.")
        q = validation.finite_scalar("q", q, above=0.0)
        with arithmetic(rho.dtype == np.float64):
            ready = self if validation.traced(q) else self.prepared(float(q) ** 0.5, float(q) ** 0.5, rho.dtype)
            return _evaluate(_mapped, ready, q if validation.is_jax(q) else rho.dtype.type(q), rho)

    def _pair(self, q1: Any, c: Any, q2: Any, moment: Callable[..., jax.Array]) -> Float[Array, "..."]:
        arrays = validation.covariances(q1, c, q2)
        dtype = np.result_type(*(a.dtype for a in arrays))
        with arithmetic(dtype == np.float64):
            ready = self
            if not any(validation.traced(a) for a in arrays):
                variances = np.concatenate([np.ravel(arrays[0]), np.ravel(arrays[2])])
                ready = self.prepared(float(variances.min()) ** 0.5, float(variances.max()) ** 0.5, dtype)
            return _evaluate(moment, ready, *(a.astype(dtype) for a in arrays))


def _evaluate(function: Callable[..., jax.Array], activation: Activation, *arguments: Any) -> Float[Array, "..."]:
    """Call a function of an activation and arrays: by JAX where one is JAX's, else by NumPy, without compilation."""
    if validation.is_jax(*jax.tree.leaves(arguments)):
        return function(activation, *jax.tree.map(jnp.asarray, arguments))
    return interpreted(function)(activation, *arguments)[()]  # type: ignore[no-any-return]


def _through(activation: Activation, q1: jax.Array, c: jax.Array, q2: jax.Array) -> tuple[Any, ...]:
    """Return the variances of a pair before and after phi, the correlation after phi, and its slope."""
    q1, c, q2 = jnp.broadcast_arrays(q1, c, q2)
    x, y = (Variance(q, jnp.zeros(q.shape, jnp.int32)).normalise() for q in (q1, q2))
    (x_after, x_memo), (y_after, y_memo) = activation.encode(x), activation.encode(y)
    correlation, slope = activation.correlate(x_memo, y_memo, correlation_from_covariance(x, c, y))
    return (x, x_after), (y, y_after), correlation, slope


def _moment(activation: Activation, *covariance: jax.Array) -> jax.Array:
    (_, x), (_, y), correlation, _ = _through(activation, *covariance)
    return scaled(correlation.rho, x, y)


def _moment_of_slopes(activation: Activation, *covariance: jax.Array) -> jax.Array:
    *signals, _, slope = _through(activation, *covariance)
    gains = (Variance(after.value / q.value, after.exponent - q.exponent) for q, after in signals)
    return scaled(slope, *gains)


def _mapped(activation: Activation, q: jax.Array, rho: jax.Array) -> jax.Array:
    """Return the correlation after phi of two signals of the variance q."""
    memo = activation.encode(Variance(q.astype(rho.dtype), jnp.zeros((), jnp.int32)).normalise())[1]
    return activation.correlate(memo, memo, correlation_from_rho(rho))[0].rho


def variance_after(layer: Any, signal: Variance) -> Variance:
    """Return the variance after an activation, or after a layer of a network."""
    return layer.encode(signal)[0]  # type: ignore[no-any-return]
