"""Polynomials between kinks, against quadrature, high precision and the closed forms they contain."""

import math
from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import by_numpy
import widelimit as wl
from cases import PIECES
from compiled import quick_jit
from widelimit import gaussian
from widelimit.activations.names import BY_NAME
from widelimit.activations.piecewise import bivariate_normal
from widelimit.activations.tabulated.moments import second_moments
from widelimit.signals import Variance, correlation_from_gap

EPS = np.finfo(float).eps
X = np.random.default_rng(0).standard_normal((8, 4))
RECTIFIED = {
    "relu": (wl.PiecewisePolynomial((0.0,), ((0.0,), (0.0, 1.0))), wl.Relu()),
    "rectified power": (wl.PiecewisePolynomial((0.0,), ((0.0,), (0.0, 0.0, 1.0))), wl.RectifiedPower(2)),
}
BENT = wl.PiecewisePolynomial((-1.0, 1.0), ((1.0, 3.0, 1.0), (0.0, 1.0), (-1.0, 2.0)))
"""phi' jumps at 1 and phi'' at -1: both parts have jumps of the same sizes, in other combinations."""


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-13), ("float32", 1e-7)])
def test_integrals_at_a_corner(dtype, bound):
    cases = [(k, b, near) for near in (1.0, 0.3, 1e-6) for k in (0.0, 1e-4, 0.1, 1.0) for b in (0.0, 1.0, 4.0)]
    with jax.enable_x64(dtype == "float64"):
        kappa, beta, near = (jnp.asarray(column, dtype) for column in zip(*cases, strict=True))
        own = bivariate_normal.angle_integrals(kappa, beta, near)
        found = np.concatenate([own.whole, own.tangential])
    nodes, weights = np.polynomial.legendre.leggauss(30)
    for i, (k, b, near) in enumerate(cases):
        # In log(y) the integrand is smooth on all scales; below 1e-18 nothing is left.
        ends = np.linspace(math.log(1e-18), math.log(2 * math.asin(math.sqrt(near / 2))), 121)
        log_y = np.ravel(ends[:-1, None] + np.diff(ends)[:, None] * (1 + nodes) / 2)
        y, mass = np.exp(log_y), np.ravel(np.diff(ends)[:, None] * weights / 2)
        down, w2 = 2 * np.sin(y / 2) ** 2, np.tan(y / 2) ** 2
        with np.errstate(under="ignore"):
            density = mass * y * np.exp(-(k**2) / down - b**2 / (2 - down)) / (2 * np.pi)
        v = 1 - down / near
        expected = [density @ weight for weight in (y**0, v, v**2, w2, w2 * (1 + v) / 2)]
        assert np.abs(found[:, i] - expected).max() <= bound, cases[i]
        assert np.abs(1.001 * found[:, i] - expected).max() > bound or expected[0] < 1e-4


def triples():
    """(s, t, rho): free ones, kinks that meet and nearly meet, duplicates and antipodes."""
    rng = np.random.default_rng(1)
    s, t = np.exp(rng.uniform(math.log(0.3), math.log(30), (2, 24)))
    rho = np.cos(rng.uniform(0, np.pi, 24))
    t[8:14] = s[8:14] * (1 + np.array([0, 1e-9, 1e-6, 1e-3, 0.01, -0.1]))
    rho[6:18] = np.array([0, 1, -1, 1 - 1e-12, 1 - 1e-8, 1 - 1e-4, 0.99, -1 + 1e-12, -1 + 1e-6, -0.99, 1e-9, 1])
    return s, t, rho


@pytest.mark.parametrize("name", PIECES)
def test_duals_against_quadrature(name):
    activation = PIECES[name]
    s, t, rho = triples()
    # Exactly that of the covariance's floats: a rounding of rho would move the angle of near pairs by its root.
    sine = np.array(
        [
            math.sqrt(max(0, Fraction(a * a) * Fraction(b * b) - Fraction(a * b * r) ** 2) / (a * b) ** 2)
            for a, b, r in zip(s, t, rho, strict=True)
        ]
    )
    wanted = gaussian.panels(activation.kinks, 32.0)

    def sums(function):
        with jax.enable_x64(True):
            found = gaussian.pair_sums(function, function, s[:, None], t[:, None], rho, sine, grid=wanted)
            return np.asarray(found)[:, 0, 0]

    loose = replace(activation, rtol=1.0)
    for which, function in (("dual", activation), ("dual_derivative", activation.derivative)):
        scale = np.sqrt(np.prod([second_moments(function, activation.kinks, sizes) for sizes in (s, t)], axis=0))
        reference = sums(function)
        for dtype in (np.float64, np.float32):
            eps = float(np.finfo(dtype).eps)
            covariance = [v.astype(dtype) for v in (s * s, s * t * rho, t * t)]
            found = getattr(loose, which)(*covariance)
            assert found.dtype == dtype
            # The angle of a float32 covariance is off by the root of its rounding, sqrt(2e-7) = 5e-4, near rho = 1.
            kept = np.abs(rho) < 0.999 if dtype == np.float32 else np.ones(len(s), bool)
            bound = 8 * eps + np.maximum(activation.closed.errors(s, dtype), activation.closed.errors(t, dtype))
            error = np.abs(found - reference) / scale / bound
            assert error[kept].max() <= 1, (which, dtype, error[kept].max())
        for wrong in (1.001 * found, getattr(loose, which)(s, s * t * rho / np.sqrt(s * t), t)):
            assert (np.abs(wrong - reference) / scale).max() > 1e-4
        if which == "dual":  # the derivative of an odd phi is even in rho
            assert (np.abs(loose.dual(s * s, -s * t * rho, t * t) - reference) / scale).max() > 1e-4


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("hard_tanh", 0.25, 4.0), ("hard_swish", 0.5, 2.0), ("relu6", 0.5, 2.0), ("bends left and right", 0.5, 2.0)],
)
def test_tables_are_the_closed_forms(name, low, high):
    """To rtol = 1e-10 of gaps and slopes; near duplicates and kinks that nearly meet included."""
    exact = BY_NAME.get(name, BENT)
    table = exact.tabulated(low, high, np.float64)
    assert table.table is not None
    rng, n = np.random.default_rng(3), 400
    s, t = np.exp(rng.uniform(math.log(low), math.log(high), (2, n)))
    t[:200] = np.clip(s[:200] * (1 + 10.0 ** rng.uniform(-12, -1, 200)), low, high)
    t[:20] = s[:20]
    psi = np.where(rng.uniform(size=n) < 0.5, rng.uniform(0, np.pi / 2, n), 10.0 ** rng.uniform(-12, 0, n))
    psi[:10] = 0

    def through(activation):
        def correlate(gap, positive, *variances):
            signals = [Variance(v, jnp.zeros(n, jnp.int32)).normalise() for v in variances]
            traces = [activation.encode(signal)[1] for signal in signals]
            after, slope = activation.correlate(*traces, correlation_from_gap(gap, positive))
            return after.one_minus, slope

        with jax.enable_x64(True):
            found = quick_jit(correlate)(2 * np.sin(psi / 2) ** 2, np.arange(n) % 3 > 0, s * s, t * t)
        return [np.asarray(values) for values in found]

    gaps, _ = both = through(table)
    for found, expected in zip(both, through(exact), strict=True):
        assert np.abs(found - expected).max() <= 1e-10
        assert np.abs(1.001 * found - expected).max() > 1e-10
    same = (t == s) & (psi == 0) & (np.arange(n) % 3 > 0)
    assert same.any()
    assert (gaps[same] == 0).all()


@pytest.mark.parametrize("name", RECTIFIED)
def test_pieces_with_a_kink_at_0_are_the_closed_forms(name):
    pieces, exact = RECTIFIED[name]
    s, t = np.random.default_rng(2).uniform(0.1, 10, (2, 50))
    c = s * t * np.cos(np.linspace(0, np.pi, 50)) * (1 - EPS)
    for which in ("dual", "dual_derivative"):
        found, expected = (getattr(phi, which)(s * s, c, t * t) for phi in (pieces, exact))
        scale = np.sqrt(getattr(exact, which)(s * s, s * s, s * s) * getattr(exact, which)(t * t, t * t, t * t))
        assert (np.abs(found - expected) <= 64 * EPS * scale).all()


def test_networks_keep_the_angle_of_near_duplicates():
    """The NTK falls like the angle, which needs gaps to relative accuracy."""
    near = np.vstack([X, X + 1e-7 * X[::-1], 2 * X[:2], -X[:2], np.zeros((1, 4))])
    nets = [wl.mlp(depth=3, activation=phi, weight_std=1.3, bias_std=0.3) for phi in (RECTIFIED["relu"][0], wl.Relu())]
    found, exact = (by_numpy.gram(wl.ntk(net), near) for net in nets)
    assert np.abs(found - exact).max() <= 64 * EPS * exact.max()
    hard = wl.ntk(wl.mlp(depth=3, activation="hard_tanh", weight_std=1.3, bias_std=0.3))
    gram = by_numpy.gram(hard, near)
    fall = np.diagonal(gram)[:8] - np.array([gram[i, 8 + i] for i in range(8)])
    further = by_numpy.gram(hard, np.vstack([X, X + 1e-6 * X[::-1], near[16:]]))
    ratio = (np.diagonal(further)[:8] - np.array([further[i, 8 + i] for i in range(8)])) / fall
    np.testing.assert_allclose(ratio, 10, rtol=1e-3)  # linear in the distance; lost digits would leave noise


def test_equal_norms_agree_with_unequal_ones():
    U = X / np.linalg.norm(X, axis=1, keepdims=True)
    k = wl.ntk(wl.mlp(depth=3, activation="hard_swish", weight_std=1.5, bias_std=0.1))
    apart = k.gram(np.vstack([U, 1.2 * U[:1]]))[:8, :8]
    assert np.abs(k.gram(U) - apart).max() <= 1e-10 * apart.max()


def test_gradients_under_jit():
    """By the covariance the slope; by a variance, differences; finite at duplicates and antipodes."""
    phi = BY_NAME["hard_tanh"]
    q1, c, q2 = np.array([0.8, 1.5, 1.0, 1.0]), np.array([0.3, -0.9, 1.0, -1.0]), np.array([1.3, 0.7, 1.0, 1.0])
    with jax.enable_x64(True):
        slopes = quick_jit(jax.grad(lambda *a: jnp.sum(phi.dual(*a)), argnums=(0, 1)))
        by_q1, by_c = slopes(q1, c, q2)
        assert slopes.lower(q1, c, q2).as_text().count(" = ") < 6000  # 9,400 operations where nodes are written out
    assert np.isfinite([by_q1, by_c]).all()
    np.testing.assert_allclose(by_c[:2], phi.dual_derivative(q1, c, q2)[:2], rtol=1e-9)
    inside = [0, 1, 0, 1]  # beyond duplicates and antipodes there is no covariance; one shape is one program
    moved = [phi.dual(q1[inside] + h, c[inside], q2[inside])[:2] for h in (1e-5, -1e-5)]
    np.testing.assert_allclose(by_q1[:2], (moved[0] - moved[1]) / 2e-5, rtol=1e-8)


def shifted(u):
    return jnp.maximum(u - 1, 0)


@pytest.mark.parametrize(
    ("phi", "kinks", "pieces"),
    [
        (lambda u: jnp.clip(u, -1, 1), (-1, 1), BY_NAME["hard_tanh"].pieces),
        (jax.nn.hard_swish, (-3, 3), BY_NAME["hard_swish"].pieces),
        (jax.nn.relu6, (0, 6), BY_NAME["relu6"].pieces),
        (lambda u: jnp.sign(u) * jnp.maximum(jnp.abs(u) - 0.5, 0), (-0.5, 0.5), ((0.5, 1.0), (0.0,), (-0.5, 1.0))),
    ],
)
def test_functions_become_pieces(phi, kinks, pieces):
    found = wl.activation(phi, kinks=kinks)
    assert isinstance(found, wl.PiecewisePolynomial)
    for ours, expected in zip(found.pieces, pieces, strict=True):
        np.testing.assert_allclose(ours, [*expected, *[0.0] * (3 - len(expected))], rtol=1e-14)
    assert isinstance(wl.activation(lambda u: jnp.tanh(shifted(u)), kinks=(1,)), wl.Numerical)
    assert isinstance(wl.activation(lambda u: shifted(u) + shifted(u - 2), kinks=(1,)), wl.Numerical)  # undeclared


def test_bad_pieces_are_refused():
    for arguments, words in [
        (((), ((0.0,),)), "at least one is needed"),
        (((1.0, 0.0), ((0.0,), (1.0,), (0.0,))), "must ascend"),
        (((0.0,), ((0.0,),)), "2 pieces, got 1"),
        (((0.0,), ((0.0,), (0.0, 0.0, 0.0, 1.0))), "1 to 3 coefficients, got 4"),
        (((0.0,), ((0.0,), (1.0,))), "do not meet at 0"),
        (((0.0,), ((0.0,), (0.0,))), "all pieces are 0"),
        (((0.0,), ((0.0,), (0.0, np.nan))), "must be finite"),
    ]:
        with pytest.raises(ValueError, match=words):
            wl.PiecewisePolynomial(*arguments)
    phi = wl.activation(shifted, kinks=(1.0,))
    with pytest.raises(ValueError, match=r"at a standard deviation of 0\.1 are right to"):
        phi.dual(0.01, 0.005, 0.01)
    with pytest.raises(ValueError, match="in float32, not to rtol"):
        wl.activation("hard_tanh").dual(*np.array([100.0, 50.0, 100.0], np.float32))
    with pytest.raises(ValueError, match="overflow"):
        wl.activation("hard_swish").dual(1e200, 0.0, 1.0)
