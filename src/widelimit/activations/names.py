"""Activations are found by name, or made of any function phi(u)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp

from widelimit import validation
from widelimit.activations.base import Activation
from widelimit.activations.callables import from_function
from widelimit.activations.closed.arc_cosine import RectifiedPower, Sign, Step
from widelimit.activations.closed.erf import Erf, Gelu
from widelimit.activations.closed.exponentials import Exp, Gaussian, Rbf
from widelimit.activations.closed.linear import Abs, Identity, LeakyRelu, Relu
from widelimit.activations.closed.polynomials import Hermite, Monomial
from widelimit.activations.closed.trigonometric import Cos, Sin, Snake
from widelimit.activations.piecewise.polynomial import PiecewisePolynomial
from widelimit.activations.tabulated.numerical import Numerical
from widelimit.messages import did_you_mean
from widelimit.pytrees import require_pytree


@final
@dataclass(frozen=True)
class _Elu:
    """phi(u) = scale * (u for u > 0, alpha (exp(u/length) - 1) below).

    It is compared by value, so that tables are found again.
    """

    alpha: float
    scale: float
    length: float

    def __call__(self, u: jax.Array) -> jax.Array:
        below = self.alpha * jnp.expm1(jnp.minimum(u, 0) / self.length)
        return self.scale * jnp.where(u > 0, u, below)


def _mish(u: jax.Array) -> jax.Array:
    return u * jnp.tanh(jax.nn.softplus(u))


def _gelu_tanh(u: jax.Array) -> jax.Array:
    return jax.nn.gelu(u, approximate=True)


def elu(alpha: float = 1.0, *, scale: float = 1.0, length: float = 1.0) -> Numerical:
    """phi(u) = scale * (u for u > 0, alpha (exp(u/length) - 1) for u <= 0); its duals are tabulated.

    SELU is alpha 1.6732..., scale 1.0507... (Klambauer et al. 2017, arXiv 1706.02515); CELU has length = alpha (Barron
    2017, arXiv 1704.07483). A closed form by Owen's T function exists (Tsuchida et al. 2021, arXiv 2002.08517), whose
    terms cancel by a factor of 1/(s s') for small standard deviations: the tables do not.

    Raises:
        ValueError: alpha or scale not finite, length not positive; TypeError: not numbers.
    """
    phi = _Elu(
        float(validation.finite_scalar("alpha", alpha)),
        float(validation.finite_scalar("scale", scale)),
        float(validation.finite_scalar("length", length, above=0.0)),
    )
    return Numerical(phi, (0.0,), None, "elu")


_TABULATED: dict[str, Activation] = {
    "tanh": Numerical(jnp.tanh, label="tanh"),
    "sigmoid": Numerical(jax.nn.sigmoid, label="sigmoid"),
    "silu": Numerical(jax.nn.silu, label="silu"),
    "swish": Numerical(jax.nn.silu, label="silu"),
    "softplus": Numerical(jax.nn.softplus, label="softplus"),
    "mish": Numerical(_mish, label="mish"),
    "gelu_tanh": Numerical(_gelu_tanh, label="gelu_tanh"),
    "elu": elu(),
    "selu": elu(1.6732632423543772, scale=1.0507009873554805),
    "celu": elu(1.0, length=1.0),
}

_PIECES: dict[str, Activation] = {
    "hard_tanh": PiecewisePolynomial((-1.0, 1.0), ((-1.0,), (0.0, 1.0), (1.0,)), label="hard_tanh"),
    "hard_swish": PiecewisePolynomial((-3.0, 3.0), ((0.0,), (0.0, 0.5, 1 / 6), (0.0, 1.0)), label="hard_swish"),
    "relu6": PiecewisePolynomial((0.0, 6.0), ((0.0,), (0.0, 1.0), (6.0,)), label="relu6"),
}

_CLOSED: tuple[Activation, ...] = (
    *(Identity(), Relu(), LeakyRelu(), Abs(), Sign(), Step(), RectifiedPower()),
    *(Erf(), Gelu(), Sin(), Cos(), Snake(), Rbf(), Exp(), Gaussian(), Monomial(), Hermite()),
)
BY_NAME: dict[str, Activation] = {a.name: a for a in _CLOSED} | _PIECES | _TABULATED


def activation(
    phi: str | Activation | Callable[[jax.Array], jax.Array], *, kinks: Sequence[float] = (), rtol: float | None = None
) -> Activation:
    """Return the activation of that name, the activation itself, or any function phi(u) as one.

    Args:
        phi: a name, an `Activation`, or an elementwise function written with jax.numpy, continuous, analytic outside
            of `kinks`, growing more slowly than exp(u^2/4). With kinks away from 0 and polynomials up to degree 2
            between them it becomes a `PiecewisePolynomial`.
        kinks: points where phi is continuous but not analytic, e.g. (0.0,); for functions only.
        rtol: bound on the error of duals relative to sqrt(E[phi(u)^2] E[phi(v)^2]); default 1e-10 in float64 and 1e-6
            in float32. It is met, or an error is raised when kernels are computed. Of functions only.

    Raises:
        ValueError: an unknown name; a function that is not elementwise, gives NaN, another shape, or grows too fast.
        TypeError: neither of these; a function that JAX cannot call on arrays or differentiate.
    """
    kinks = validation.numbers_in("kinks", kinks)
    if isinstance(phi, (str, Activation)) and (kinks or rtol is not None):
        raise TypeError("kinks and rtol go with a function phi; names and Activations have their own.")
    if isinstance(phi, Activation):
        require_pytree(phi)
        return phi
    if isinstance(phi, str):
        if phi in BY_NAME:
            return BY_NAME[phi]
        known = f"{', '.join(sorted(BY_NAME))}{did_you_mean(phi, [*BY_NAME])}"
        raise ValueError(f"unknown activation {validation.shown(phi)[:70]}; known: {known}")
    if callable(phi) and not isinstance(phi, type):
        return from_function(phi, kinks, rtol)
    raise TypeError(
        f"activation must be a name ({', '.join(sorted(BY_NAME))}), a widelimit.Activation or a function of an array, "
        f"got {type(phi).__name__}."
    )


def name_or_repr(phi: Activation) -> str:
    """Return the code of an activation: its name in quotes where that finds it, else what makes it."""
    found = next((name for name, known in BY_NAME.items() if known == phi), None)
    if not found and isinstance(phi, Numerical) and isinstance(phi.phi, _Elu):
        own = phi.phi
        if phi == elu(own.alpha, scale=own.scale, length=own.length):
            return f"elu({own.alpha!r}, scale={own.scale!r}, length={own.length!r})"
    return repr(found or jax.tree.map(validation.plain, phi))
