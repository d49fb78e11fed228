"""Quadrature, tabulated activations, the series on spheres, and order and chaos."""

import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy import integrate

import oracles
import widelimit as wl
from cases import ACTIVATIONS, CORE, KERNELS, PIECES, TABULATED
from compiled import quick_jit
from widelimit import gaussian
from widelimit.activations.names import BY_NAME
from widelimit.activations.tabulated.fixed_lengths import in_loops
from widelimit.activations.tabulated.lookup import correlate_by_table, look_up
from widelimit.arithmetic import arithmetic
from widelimit.compute import tiles
from widelimit.kernels.sphere import Sphere
from widelimit.signals import Correlation, variance_of

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 4))
U = X / np.linalg.norm(X, axis=1, keepdims=True)
EPS = np.finfo(float).eps


def relu(u):
    return jnp.maximum(u, 0)


# --- quadrature --------------------


@pytest.mark.parametrize(
    ("phi", "kinks", "exact", "largest", "bound"),
    [
        (relu, (0.0,), wl.Relu(), 1.0, 64),
        (relu, (0.0,), wl.Relu(), 1e3, 64),
        (jax.scipy.special.erf, (), wl.Erf(), 1.0, 64),
        (jax.scipy.special.erf, (), wl.Erf(), 1e3, 128),  # measured: 82, at rho = 1 - 1e-12
    ],
)
def test_quadrature(phi, kinks, exact, largest, bound):
    """In eps; the closed forms are themselves held to 64 eps against high precision in test_activations.py."""
    rho = np.array([-1, -1 + 1e-12, -0.7, 0, 1e-9, 0.4, 1 - 1e-6, 1 - 1e-12, 1])
    sine = np.sqrt((1 - rho) * (1 + rho))
    for t in (largest, 0.3 * largest, 1e-3):
        with jax.enable_x64(True):
            s, small = np.full((9, 1), largest), np.full((9, 1), t)
            wanted = gaussian.panels(kinks, largest)
            found = np.asarray(gaussian.pair_sums(phi, phi, s, small, rho, sine, grid=wanted))[:, 0, 0]
        reference = exact.dual(largest**2, largest * t * rho, t**2)
        scale = math.sqrt(exact.dual(*[largest**2] * 3) * exact.dual(*[t**2] * 3))
        assert (np.abs(found - reference) <= bound * EPS * scale).all()
        assert not (np.abs(1.001 * found - reference) <= bound * EPS * scale).all()


# --- tabulated duals against an independent rule --------------------


def adaptive(phi, kinks, s, t, rho):
    """E[phi(s u) phi(t v)] by nested adaptive Gauss-Kronrod, split at the lines of the kinks."""
    sigma = math.sqrt(1 - rho**2)

    def inner(u):
        ends = [-9.0, *sorted(min(max((k / t - rho * u) / sigma, -9.0), 9.0) for k in (*kinks, 0.0)), 9.0]
        return sum(
            integrate.quad_vec(
                lambda w: np.asarray(phi(t * (rho * u + sigma * w))) * math.exp(-w * w / 2), a, b, epsabs=1e-13
            )[0]
            for a, b in itertools.pairwise(ends)
            if b > a
        )

    ends = sorted({-9.0, 0.0, 9.0, *(k / s for k in kinks if abs(k / s) < 9)})
    total = sum(
        integrate.quad_vec(
            lambda u: np.asarray(phi(s * u)) * math.exp(-u * u / 2) * inner(u), a, b, epsabs=1e-12, epsrel=1e-12
        )[0]
        for a, b in itertools.pairwise(ends)
    )
    return float(total) / (2 * math.pi)


def softplus(u):
    return np.logaddexp(0, u)


DEFINITIONS = {
    "tanh": (np.tanh, ()),
    "sigmoid": (lambda u: 0.5 * (1 + np.tanh(u / 2)), ()),
    "silu": (lambda u: u * 0.5 * (1 + np.tanh(u / 2)), ()),
    "softplus": (softplus, ()),
    "mish": (lambda u: u * np.tanh(softplus(u)), ()),
    "gelu_tanh": (lambda u: 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))), ()),
    "elu": (lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0))), (0,)),
    "selu": (
        lambda u: 1.0507009873554805 * np.where(u > 0, u, 1.6732632423543772 * np.expm1(np.minimum(u, 0))),
        (0.0,),
    ),
    "celu": (lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0))), (0,)),
}


def test_every_name_is_checked_somewhere():
    """Closed forms in test_activations.py, pieces in test_piecewise.py, tables here: no name is left out."""
    assert set(TABULATED) == set(DEFINITIONS)
    kinds = {name: type(phi) for name, phi in BY_NAME.items()}
    assert {name for name, kind in kinds.items() if kind is wl.Numerical} == {*TABULATED, "swish"}
    assert {name for name, kind in kinds.items() if kind is wl.PiecewisePolynomial} <= set(PIECES)
    assert BY_NAME["swish"] is BY_NAME["silu"] or BY_NAME["swish"] == BY_NAME["silu"]
    closed = {name for name, kind in kinds.items() if kind not in (wl.Numerical, wl.PiecewisePolynomial)}
    assert closed <= set(ACTIVATIONS)
    assert set(ACTIVATIONS) - {"numerical", "piecewise_polynomial"} <= set(oracles.DUALS)


@pytest.mark.parametrize("name", [*TABULATED, *PIECES])
def test_kernels_are_positive_semidefinite(name):
    """To n eps of the largest eigenvalue where nothing is truncated: pieces at unequal norms.

    Series on spheres end at rtol/64, and tables are right to rtol.
    """
    activation = PIECES[name] if name in PIECES else BY_NAME[name]
    k = wl.nngp(wl.mlp(depth=2, activation=activation, weight_std=1.3, bias_std=0.3))
    sphere, apart = np.vstack([U, -U[:2], U[:1]]), np.vstack([X, X[:1], -X[1:2]])
    for data, noise in ((sphere, 1e-10 / 64), (apart, EPS if name in PIECES else 1e-10)):
        gram = k.gram(data)
        assert (gram == gram.T).all()
        spectrum = np.linalg.eigvalsh(gram)
        assert spectrum[0] >= -len(data) * noise * spectrum[-1]


@pytest.mark.parametrize("name", ["elu", "selu", "celu"])
def test_elu_against_its_closed_form(name):
    """E[phi(v) | u] is closed: a normal distribution function, a density, and one of an exponential tilt; u by mpmath.

    So are the kernels of Tsuchida et al. 2021, which write the outer integral by Owen's T.
    """
    scale, alpha = (1.0507009873554805, 1.6732632423543772) if name == "selu" else (1.0, 1.0)

    def phi(u):
        return scale * (u if u > 0 else alpha * mp.expm1(u))

    def conditional(mean, spread):
        end = mean / spread
        straight = mean * mp.ncdf(end) + spread * mp.npdf(end)
        tilted = mp.exp(mean + spread**2 / 2) * mp.ncdf(-end - spread)
        return scale * (straight + alpha * (tilted - mp.ncdf(-end)))

    with mp.workdps(25):
        for s, t, rho in ((1.0, 1.0, 0.6), (2.0, 0.3, -0.8), (0.01, 0.02, 0.5), (5.0, 4.0, 0.95)):
            spread = t * mp.sqrt(1 - mp.mpf(rho) ** 2)

            def integrand(z, s=s, t=t, rho=rho, spread=spread):
                return phi(s * z) * conditional(t * rho * z, spread) * mp.npdf(z)

            reference = float(mp.quad(integrand, [-12, -4, -1, 0, 1, 4, 12]))
            own = [BY_NAME[name].dual(q, q, q) for q in (s * s, t * t)]
            found = BY_NAME[name].dual(s * s, s * t * rho, t * t)
            assert abs(found - reference) <= 1e-10 * math.sqrt(own[0] * own[1])
            assert abs(1.001 * found - reference) > 1e-10 * math.sqrt(own[0] * own[1])


def test_prepared_tables_work_under_a_trace():
    """The gradient by the covariance is the slope; out of the range is NaN."""
    phi = wl.activation("tanh").prepared(0.5, 2.0, "float64")
    with jax.enable_x64(True):
        value, slope = jax.jit(jax.value_and_grad(phi.dual, argnums=1))(*map(jnp.asarray, (1.0, 0.5, 1.3)))
        assert float(value) == pytest.approx(float(wl.activation("tanh").dual(1.0, 0.5, 1.3)), rel=1e-9)
        assert float(slope) == pytest.approx(float(wl.activation("tanh").dual_derivative(1.0, 0.5, 1.3)), rel=1e-7)
        assert np.isnan(jax.jit(phi.dual)(*map(jnp.asarray, (100.0, 0.5, 1.3))))
    with pytest.raises(ValueError, match="high must be >= 2"):
        wl.activation("tanh").prepared(2.0, 1.0, "float64")


def test_gram_cross_and_diag_share_their_preparation():
    k = wl.nngp(wl.mlp(depth=3, activation="relu"))
    assert k.prepared(U) is k.prepared(U)
    assert k.prepared(U) is not wl.ntk(k.net).prepared(U)
    assert k.prepared(U) is not k.prepared(2 * U)


@pytest.mark.parametrize("name", TABULATED)
def test_tabulated_duals_meet_their_rtol(name):
    phi, kinks = DEFINITIONS[name]
    activation = BY_NAME[name]
    for s, t, rho in ((1.0, 1.0, 0.6), (1.5, 0.8, -0.4)):
        reference = adaptive(phi, kinks, s, t, rho)
        own = [activation.dual(q, q, q) for q in (s * s, t * t)]
        scale = math.sqrt(own[0] * own[1])
        assert abs(activation.dual(s * s, s * t * rho, t * t) - reference) <= 1e-10 * scale
        assert abs(1.001 * activation.dual(s * s, s * t * rho, t * t) - reference) > 1e-10 * scale
        assert abs(activation.dual(s * s, -s * t * rho, t * t) - reference) > 1e-10 * scale
    # The last ones are of unequal norms: there variances are not standard deviations.
    assert abs(activation.dual(s, s * t * rho, t) - reference) > 1e-10 * scale


def test_tanh_at_standard_deviation_10():
    reference = adaptive(np.tanh, (), 10.0, 10.0, 0.9)
    assert abs(wl.activation("tanh").dual(100.0, 90.0, 100.0) - reference) <= 1e-10


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_table_of_a_known_activation_agrees_with_its_closed_form(dtype):
    phi = wl.activation(jax.scipy.special.erf)
    s, t = RNG.uniform(0.5, 2, (2, 60))
    rho = np.cos(np.concatenate([RNG.uniform(0, np.pi, 55), [0, 1e-3, 0.05, np.pi - 0.01, np.pi]]))
    q1, c, q2 = ((v * (1 - 1e-6 * (v is rho))).astype(dtype) for v in (s * s, s * t * rho, t * t))
    tolerance = {np.float64: 1e-10, np.float32: 4e-6}[dtype]
    np.testing.assert_allclose(phi.dual(q1, c, q2), wl.Erf().dual(q1, c, q2), rtol=0, atol=tolerance)
    slopes = phi.dual_derivative(q1, c, q2), wl.Erf().dual_derivative(q1, c, q2)
    np.testing.assert_allclose(*slopes, rtol=0, atol=10 * tolerance)


def test_dual_derivative_of_a_table_is_the_slope_of_its_dual():
    for name in ("tanh", "elu", "mish"):
        phi = wl.activation(name)
        q1, c, q2 = np.array([1.0, 1.5]), np.array([0.4, -0.3]), np.array([0.8, 1.1])
        numerical = (phi.dual(q1, c + 1e-4, q2) - phi.dual(q1, c - 1e-4, q2)) / 2e-4
        np.testing.assert_allclose(phi.dual_derivative(q1, c, q2), numerical, rtol=1e-6)


# --- kernels --------------------


@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_of_a_tabulated_activation_are_those_of_the_closed_form(kind):
    """Inputs of unequal norm, a zero row, duplicates and antipodes: erf given as a function against wl.Erf()."""
    data = np.vstack([X, np.zeros((1, 4)), X[:1], -X[1:2], X[2:3] * (1 + 1e-7)])
    net = {"depth": 3, "weight_std": 1.3, "bias_std": 0.3}
    given = KERNELS[kind](wl.mlp(activation=jax.scipy.special.erf, **net))
    exact = KERNELS[kind](wl.mlp(activation="erf", **net)).gram(data)
    found = given.gram(data)
    assert np.abs(found - exact).max() <= 1e-9 * exact.max()
    wrong = KERNELS[kind](wl.mlp(activation="erf", **net | {"weight_std": 1.3001})).gram(data)
    assert np.abs(found - wrong).max() > 1e-9 * exact.max()
    assert (found == found.T).all()
    assert (np.diagonal(found) == given.diag(data)).all()
    assert np.linalg.eigvalsh(found)[0] >= -1e-9 * exact.max()


def test_elu_networks_keep_the_angle():
    """Near duplicates of a kinked activation: the NTK falls like the angle, which needs gaps to relative accuracy."""
    net = wl.mlp(depth=3, activation=wl.activation(relu, kinks=(0.0,)), weight_std=1.3, bias_std=0.3)
    exact = wl.mlp(depth=3, activation="relu", weight_std=1.3, bias_std=0.3)
    near = np.vstack([X, X + 1e-7 * X[::-1]])
    difference = np.abs(wl.ntk(net).gram(near) - wl.ntk(exact).gram(near)).max()
    assert difference <= 1e-9 * wl.ntk(exact).diag(near).max()


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("activation", CORE)
def test_equal_norms_give_the_layers_to_64_eps(kind, activation):
    data = np.vstack([U, -U[:4], U[:1]])  # more than 16 rows, and depths of test_kernels.py: the same programs
    for depth in (2, 3, 12):
        k = KERNELS[kind](wl.mlp(depth=depth, activation=activation, weight_std=1.2, bias_std=0.2))
        assert isinstance(k.prepared(data), Sphere)
        assert not isinstance(k.prepared(X), Sphere)
        found, layers = k.gram(data), tiles.gram(k, data)
        assert np.abs(found - layers).max() <= 64 * EPS * layers.max()
        assert np.abs(1.001 * found - layers).max() > 64 * EPS * layers.max()
        assert (found == found.T).all()
        assert (np.diagonal(found) == k.diag(data)).all()


def test_equal_norms_against_high_precision():
    net = {"depth": 6, "activation": "relu", "weight_std": 1.3, "bias_std": 0.1}
    for kind in KERNELS:
        found = KERNELS[kind](wl.mlp(**net)).cross(U[:5], U[5:10])
        for i in range(5):
            for j in range(5):
                assert oracles.errors(found[i, j], U[i], U[5 + j], kind=kind, **net)[0] <= 64 * EPS


def test_equal_norms_of_tabulated_activations():
    for name in ("tanh", "elu"):
        k = wl.ntk(wl.mlp(depth=3, activation=name, weight_std=1.5, bias_std=0.1))
        found = k.gram(U)
        assert isinstance(k.prepared(U), Sphere)
        assert np.isfinite(found).all()
        assert np.linalg.eigvalsh(found)[0] > 0
    smooth = wl.ntk(wl.mlp(depth=3, activation="tanh", weight_std=1.5, bias_std=0.1))
    unequal = np.vstack([U, 1.2 * U[:1]])
    assert np.abs(smooth.gram(U) - smooth.gram(unequal)[:12, :12]).max() <= 1e-9 * smooth.gram(U).max()


# --- order and chaos --------------------


def test_critical_initialisations():
    assert wl.critical("relu") == pytest.approx((math.sqrt(2), 0.0), abs=1e-15)
    assert wl.critical("relu", q=7.0) == pytest.approx((math.sqrt(2), 0.0), abs=1e-15)
    for name in ("erf", "tanh"):
        weight_std, bias_std = wl.critical(name, q=0.7)
        assert wl.phase(name, weight_std=weight_std, bias_std=bias_std).name == "critical"
        assert wl.phase(name, weight_std=1.05 * weight_std, bias_std=bias_std).name == "chaotic"
        assert wl.phase(name, weight_std=0.95 * weight_std, bias_std=bias_std).name == "ordered"
    with pytest.raises(ValueError, match="infinite"):
        wl.critical("sign")


def test_correlations_of_deep_networks_go_to_the_stable_fixed_point():
    found = wl.phase("erf", weight_std=2.0, bias_std=0.3)
    assert found.name == "chaotic"
    stable = [point.rho for point in found.fixed_points if point.stable]
    k = wl.nngp(wl.mlp(depth=300, activation="erf", weight_std=2.0, bias_std=0.3))
    gram = k.gram(X[:2])
    assert gram[0, 0] == pytest.approx(found.variance, rel=1e-10)
    assert stable == [pytest.approx(gram[0, 1] / gram[0, 0], rel=1e-8)]
    with pytest.raises(ValueError, match="grows without bound"):
        wl.phase("relu", weight_std=2.0)
    with pytest.raises(ValueError, match="vanishes"):
        wl.phase("relu", weight_std=1.0)


def test_jumps_have_no_tangent_kernel():
    for activation in ("step", "sign", wl.RectifiedPower(0)):
        net = wl.mlp(depth=3, activation=activation)
        assert np.isfinite(wl.nngp(net).gram(X)).all()
        with pytest.raises(ValueError, match="no neural tangent kernel"):
            wl.ntk(net)


# --- bad functions --------------------


def branches(u):
    return u if u > 0 else 0 * u


def shares(u):
    return u / jnp.sum(jnp.abs(u))


@pytest.mark.parametrize(
    ("phi", "error", "message"),
    [
        (math.tanh, TypeError, "tanh: a call on an array"),
        (branches, TypeError, "branches: a call on an array"),
        (np.tanh, TypeError, "tanh: JAX cannot differentiate"),
        (jnp.sum, ValueError, "sum: an array of shape"),
        (shares, ValueError, "shares: the value at one entry depends"),
        (jnp.log, ValueError, "nan"),
        (lambda u: jnp.exp(u * u), ValueError, "faster than exp"),
        (lambda u: 0 * u, ValueError, "0 everywhere"),
        (lambda u: (u > 0).astype(int), TypeError, "not floats"),
        (3.0, TypeError, "must be a name"),
        ("tahn", ValueError, "unknown activation"),
    ],
)
def test_bad_functions_are_refused(phi, error, message):
    with pytest.raises(error, match=message):
        wl.activation(phi)
    with pytest.raises(error, match=message):
        wl.mlp(depth=2, activation=phi)


@pytest.mark.parametrize(
    ("phi", "message"),
    [
        (lambda u: jnp.abs(u - 0.3), "kink that is not declared"),
        (lambda u: jnp.maximum(u, 0), "kink that is not declared"),
        (lambda u: jnp.where(u > 0, 1.0, 0.0), "phi jumps"),
        (lambda u: jnp.exp(u * u / 4.5), "grows too fast"),
    ],
)
def test_what_quadrature_finds_is_an_error_not_a_wrong_number(phi, message):
    with pytest.raises(ValueError, match=message):
        wl.activation(phi).dual(1.0, 0.5, 1.0)


def test_a_kink_away_from_zero_is_refused_under_a_trace():
    phi = wl.activation(lambda u: jnp.tanh(jnp.maximum(u - 1, 0)), kinks=(1.0,))
    with pytest.raises(ValueError, match="equal norm"):
        jax.grad(lambda w: wl.nngp(wl.mlp(depth=2, activation=phi, weight_std=w)).gram(jnp.asarray(X)).sum())(1.0)


def test_kinks_away_from_zero_of_other_than_polynomials_need_equal_norms():
    k = wl.ntk(wl.mlp(depth=2, activation=wl.activation(lambda u: jnp.tanh(jnp.maximum(u - 1, 0)), kinks=(1.0,))))
    with pytest.raises(ValueError, match="equal norm"):
        k.gram(X)
    with pytest.raises(TypeError, match="go with a function"):
        wl.activation("tanh", kinks=(1.0,))


def test_a_wave_on_a_line_from_zero_to_large_deviations():
    """E[phi(u) phi(v)] of sin(u) + 0.3 u has a closed form; sites of images have deviations from 0 on."""
    phi = wl.activation(lambda u: jnp.sin(u) + 0.3 * u)
    X = np.random.default_rng(1).standard_normal((6, 4))
    X *= (np.array([1e-3, 0.3, 1, 2, 3, 4]) / np.sqrt(np.mean(X**2, axis=1)))[:, None]
    net = wl.network(wl.layers.Conv(1), phi, wl.layers.Flatten(), wl.layers.Dense(), inputs=wl.Image(1, 1, 4))
    cov = X @ X.T / 4
    v = np.diag(cov)
    sums, waves = v[:, None] + v, np.exp(-v / 2)
    expected = np.exp(-sums / 2) * np.sinh(cov) + 0.09 * cov + 0.3 * cov * (waves[:, None] + waves)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    for k in (wl.nngp(net), wl.nngp(wl.network(wl.layers.Dense(), phi, wl.layers.Dense()))):
        error = np.abs(k.gram(X) - expected) / scale
        assert error.max() <= 1e-10
        assert (np.abs(k.gram(X[:, ::-1] * (1 + 1e-9)) - expected) / scale).max() > 1e-10
    with pytest.raises(ValueError, match=r"up to .* they do"):
        wl.nngp(net).gram(5 * X)


def test_loops_over_powers_are_the_sums_written_out():
    """1,000 eps: sums of up to 200 terms of size 1, in another order; silu has an even and an odd part."""
    full = wl.activation(jax.nn.silu).prepared(0.0, 8.0, np.float64).table
    looped, gaps = in_loops(full), np.array([[1e-12, 0.4, 1.999], [0.0, 1.3, 2.0]])
    rows = np.array(looped.even.mean_slope.rows)
    rows[1] = 0
    lost = replace(looped, even=replace(looped.even, mean_slope=replace(looped.even.mean_slope, rows=rows)))

    @quick_jit
    def correlated(table, deviations, one_minus):
        memo = look_up(table, variance_of(deviations))[1]
        x, y = (jax.tree.map(lambda leaf, axis=axis: jnp.expand_dims(leaf, axis), memo) for axis in (-1, -2))
        x = jax.tree.map(lambda leaf: leaf[..., :2, :], x)
        return jnp.stack(jax.tree.leaves(correlate_by_table(table, x, y, Correlation(one_minus, 2 - one_minus))))

    with arithmetic(True):
        found = [np.asarray(correlated(table, np.array([0.02, 0.7, 7.5]), gaps)) for table in (full, looped, lost)]
    assert np.abs(found[1] - found[0]).max() < 1_000 * EPS
    assert np.abs(found[2] - found[0]).max() > 1e-6


def test_gradients_of_tables_compile_few_operations():
    """Tables add loops: at most 2.5 times the operations of relu (measured: 2.0; 2.7 in chunks)."""
    W = np.cos(np.arange(16.0).reshape(4, 4))

    def operations(activation):
        net = wl.mlp(depth=2, activation=activation, bias_std=0.1)
        slope = jax.grad(lambda X: jnp.sum(W * wl.nngp(net).gram(X)))
        return jax.jit(slope).lower(jnp.ones((4, 3), jnp.float32)).as_text().count(" = ")

    assert operations("tanh") < 2.5 * operations("relu")
