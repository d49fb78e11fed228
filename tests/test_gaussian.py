"""Expectations of a Gaussian pair: the value, and whether the error that comes with it bounds the error."""

import itertools
import math

import jax
import jax.numpy as jnp
import pytest

import widelimit as wl


def relu(u):
    return jnp.maximum(u, 0)


def sign(u):
    return jnp.sign(u)


EXACT = {
    "relu": (relu, (0.0,), wl.Relu()),
    "erf": (jax.scipy.special.erf, (), wl.Erf()),
    "sign": (sign, (0.0,), wl.Sign()),
    "sin": (jnp.sin, (), wl.Sin()),
}
GRID = list(itertools.product((0.1, 1.0, 30.0), (0.5, 20.0), (-1.0, -0.9, 0.0, 0.6, 1 - 1e-10)))


@pytest.mark.parametrize("name", EXACT)
def test_the_error_bounds_the_error(name):
    phi, kinks, exact = EXACT[name]
    for s, t, rho in GRID:
        q1, q2 = s * s, t * t
        c = rho * math.sqrt(q1 * q2) * (1 - 1e-15)
        found = wl.gaussian_expectation(phi, phi, q1, c, q2, kinks=kinks)
        scale = math.sqrt(exact.dual(q1, q1, q1) * exact.dual(q2, q2, q2))
        wrong = abs(found.value - exact.dual(q1, c, q2))
        assert wrong <= found.error, (s, t, rho, wrong / scale, found.error / scale)
        if name != "sin":  # sin(30 z) varies within a deviation: the rule may, and says so, be off
            assert found.error <= 1e-11 * scale
            assert abs(1.001 * found.value - exact.dual(q1, c, q2)) > found.error or abs(found.value) < 1e-7 * scale


def test_two_functions():
    found = wl.gaussian_expectation(relu, jnp.square, 1.0, 0.5, 2.0, kinks=(0.0,))
    # E[max(u, 0) v^2] = (q2 + rho^2 q2)/sqrt(2 pi) for q1 = 1: v = c u + independent rest.
    assert found.value == pytest.approx((2.0 + 0.25) / math.sqrt(2 * math.pi), abs=found.error)


@pytest.mark.parametrize(
    "phi", [lambda u: jnp.abs(u - 0.3), lambda u: jnp.where(u > 0.7, 1.0, 0.0), lambda u: jnp.sin(60 * u)]
)
def test_what_the_rule_does_not_resolve_has_a_large_error(phi):
    """Undeclared kinks and jumps, fast waves: 10^6 times the error of a function that is resolved."""
    found = wl.gaussian_expectation(phi, phi, 1.0, 0.5, 1.3)
    declared = wl.gaussian_expectation(phi, phi, 1.0, 0.5, 1.3, kinks=(0.3, 0.7))
    assert found.error >= 1e-8
    assert abs(found.value - declared.value) <= found.error + declared.error


def test_growth_and_bad_input():
    assert wl.gaussian_expectation(lambda u: jnp.exp(0.3 * u * u), relu, 1.0, 0.5, 1.0, kinks=(0.0,)).error == math.inf
    with pytest.raises(ValueError, match="at most q1 q2"):
        wl.gaussian_expectation(relu, relu, 1.0, 2.0, 1.0)
    with pytest.raises(ValueError, match="must be > 0"):
        wl.gaussian_expectation(relu, relu, 0.0, 0.0, 1.0)
