"""Activations by name, and what is taken for an activation."""

from __future__ import annotations

from widelimit.activations.base import Activation
from widelimit.activations.erf import Erf, Gelu
from widelimit.activations.exponentials import Exp, Gaussian, Rbf
from widelimit.activations.linear import Abs, Identity, LeakyRelu, Relu
from widelimit.activations.polynomials import Hermite, Monomial
from widelimit.activations.steps import RectifiedPower, Sign, Step
from widelimit.activations.waves import Cos, Sin, Snake

BY_NAME: dict[str, Activation] = {
    a.name: a
    for a in (
        *(Identity(), Relu(), LeakyRelu(), Abs(), Sign(), Step(), RectifiedPower()),
        *(Erf(), Gelu(), Sin(), Cos(), Snake(), Rbf(), Exp(), Gaussian(), Monomial(), Hermite()),
    )
}


def resolve(activation: str | Activation) -> Activation:
    """The activation itself, or the one of that name.

    Raises:
        ValueError: no activation has that name.
        TypeError: neither a name nor an Activation.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation in BY_NAME:
            return BY_NAME[activation]
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(sorted(BY_NAME))}.")
    raise TypeError(
        f"activation must be a name ({', '.join(sorted(BY_NAME))}) or a widelimit.Activation, "
        f"got {type(activation).__name__}."
    )
