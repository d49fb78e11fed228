"""The polynomial tables and their evaluation."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from widelimit import series
from widelimit.activations.tabulated.tables import polynomials


def arcsine(v):
    return mp.asin(mp.sqrt(v)) / mp.sqrt(v) if v else mp.mpf(1)


def arcsine_over_cosine(v):
    return arcsine(v) / mp.sqrt(1 - v)


def segment(v):
    return (mp.sqrt(1 - v) - (1 - 2 * v) * arcsine(v)) / v if v else mp.mpf(4) / 3


TABLES = {
    "arcsine": (series.ARCSINE, arcsine),
    "over cosine": (series.ARCSINE_OVER_COSINE, arcsine_over_cosine),
    "segment": (series.SEGMENT, segment),
}


def largest_error(table, exact, dtype):
    """Relative, in 60 digits, so that only the coefficients count."""
    with mp.workdps(60):
        grid = [mp.mpf(i) / 400 for i in range(201)]
        return max(abs(mp.fsum(mp.mpf(c) * v**k for k, c in enumerate(table[dtype])) / exact(v) - 1) for v in grid)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 6e-17), ("float32", 3e-9)])
def test_tables(name, dtype, bound):
    table, exact = TABLES[name]
    assert largest_error(table, exact, dtype) < bound
    planted = {dtype: (*table[dtype][:3], table[dtype][3] * 1.001, *table[dtype][4:])}
    assert largest_error(planted, exact, dtype) > bound


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_divided_differences_do_not_cancel(dtype):
    with jax.enable_x64(dtype == "float64"):
        eps = float(jnp.finfo(dtype).eps)
        u, w = (jnp.asarray(v, dtype) for v in ([0.5, 0.3, 0.2, 0.0], [0.5, 0.3 + 4 * eps, 0.45, 1e-12]))
        value, left, right = series.divided_differences(series.ARCSINE_OVER_COSINE, u, w, w)
    with mp.workdps(60):
        for i in range(4):
            a, b = mp.mpf(float(u[i])), mp.mpf(float(w[i]))
            f = arcsine_over_cosine
            slope_to_u = (f(a) - f(b)) / (a - b) if a != b else mp.diff(f, b)
            # An interpolant's slope is right to 4 degree^2 of its own error (Markov, on an interval of length 1/2).
            degree, error = (21, 2e-17) if dtype == "float64" else (10, 2.2e-9)
            tolerance = 8 * eps + 4 * degree**2 * error / 0.66
            assert abs(mp.mpf(float(value[i])) / f(b) - 1) < tolerance
            assert abs(mp.mpf(float(left[i])) / slope_to_u - 1) < tolerance
            assert abs(mp.mpf(float(right[i])) / mp.diff(f, b) - 1) < tolerance


def test_hypot_and_safe_functions():
    with jax.enable_x64(True):
        big = jnp.asarray([3e200, 3e-200, 0.0])
        other = jnp.asarray([4e200, 4e-200, 0.0])
        np.testing.assert_allclose(series.hypot(big, other), [5e200, 5e-200, 0.0], rtol=4e-16)
        gradient = jax.grad(lambda a, b: series.hypot(a, b), argnums=(0, 1))(jnp.asarray(0.0), jnp.asarray(0.0))
        assert gradient == (0.0, 0.0)
        assert float(jax.grad(series.safe_sqrt)(jnp.asarray(0.0))) == 0.0
        assert float(jax.grad(series.safe_sqrt)(jnp.asarray(4.0))) == 0.25
        assert float(series.safe_divide(jnp.asarray(1.0), jnp.asarray(0.0))) == 0.0


@pytest.mark.parametrize("count", [16, 80])
def test_chains_are_the_chebyshev_series(count):
    coefficients = np.random.default_rng(0).standard_normal(count) * 0.7 ** np.arange(count)
    x = np.linspace(-1, 1, 501)
    with jax.enable_x64(True):
        found = np.asarray(series.chains_sum(jnp.asarray(series.chebyshev_chains(coefficients)), jnp.asarray(x)))
        exact = np.polynomial.chebyshev.chebval(x, coefficients)
        assert np.abs(found - exact).max() <= 16 * np.finfo(float).eps * np.abs(coefficients).sum()
        assert np.abs(1.001 * found - exact).max() > 1e-4
        value, slope = series.polynomial_and_slope(list(jnp.asarray(coefficients)), jnp.asarray(x))
    power = np.polynomial.Polynomial(coefficients)
    np.testing.assert_allclose(value, power(x), atol=1e-14)
    np.testing.assert_allclose(slope, power.deriv()(x), atol=1e-13)


@pytest.mark.parametrize("count", [40, 96, 5])
def test_chebyshev_polynomials_of_one_place(count):
    x = np.concatenate([np.linspace(-1, 1, 41), 1 - np.logspace(-12, -1, 12)])
    with jax.enable_x64(True):
        found = np.asarray(polynomials(jnp.asarray(x), count))
    right = np.cos(np.arange(count)[:, None] * np.arccos(x))
    bound = 64 * count * np.finfo(float).eps
    assert np.abs(found - right).max() < bound < np.abs(np.roll(found, 1, axis=0) - right).max()
