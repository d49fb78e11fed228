"""phi, its dual and the derivative of the dual, against independent closed forms, quadrature and sampling."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy.special import erf

import oracles
import widelimit as wl
from cases import ACTIVATIONS, DTYPES
from widelimit.interpreter import interpreted
from widelimit.signals import Correlation, Variance, correlation_from_gap, variance_of

BOUND = 64  # eps of the dtype
NAMED = {name: (activation, oracles.DUALS[name]) for name, activation in ACTIVATIONS.items() if name in oracles.DUALS}
CLOSED = NAMED | {name: (make(wl), oracle) for name, (make, oracle) in oracles.VARIANTS.items()}

DEVIATIONS = (1e-3, 0.1, 1.0, 10.0, 1e3)
CORRELATIONS = (-1.0, -1 + 1e-12, -0.99, -0.5, 0.0, 1e-9, 0.5, 0.99, 1 - 1e-12, 1.0)


def covariances(dtype):
    """(q1, c, q2) of all pairs of deviations and correlations, and of nearly equal deviations; as floats of dtype."""
    found = [(s, t, rho) for s, t in itertools.product(DEVIATIONS, repeat=2) for rho in CORRELATIONS]
    found += [(s, s * (1 + 1e-3), rho) for s in (0.1, 1.0, 3.0) for rho in CORRELATIONS]
    q1, q2 = (np.array([row[i] ** 2 for row in found], dtype) for i in (0, 1))
    limit = np.sqrt(q1.astype(float)) * np.sqrt(q2.astype(float))
    c = (np.array([row[2] for row in found]) * limit).astype(dtype)
    return q1, c, q2


def exactly(q1, c, q2):
    """The floats as they are; c rounded beyond sqrt(q1 q2) is sqrt(q1 q2)."""
    q1, c, q2 = (mp.mpf(float(v)) for v in (q1, c, q2))
    return q1, (mp.sign(c) * mp.sqrt(q1 * q2) if c**2 > q1 * q2 else c), q2


def errors(oracle, which, covariance, values):
    """|value - reference|/sqrt(reference at (q1, q1, q1) times that at (q2, q2, q2)) in eps, for each pair.

    A derivative that is infinite there is compared with itself. inf is right only beyond the dtype's range (where a
    finite number may be within the bound all the same), and what is below its smallest normal number counts as 0.
    """
    info, own, found = np.finfo(values.dtype), {}, []
    with mp.workdps(100):
        for *entries, value in zip(*covariance, values, strict=True):
            q1, c, q2 = exactly(*entries)
            reference = oracle(q1, c, q2)[which]
            for q in (q1, q2):
                own[q] = own[q] if q in own else oracle(q, q, q)[which]
            scale = mp.sqrt(own[q1] * own[q2])
            scale = abs(reference) if scale == mp.inf else scale
            if not np.isfinite(value):
                found.append(
                    0.0 if value * mp.sign(reference) == np.inf and abs(reference) > float(info.max) else np.inf
                )
                continue
            wrong = abs(mp.mpf(float(value)) - reference)
            found.append(0.0 if wrong < float(info.tiny) else float(wrong / scale) / float(info.eps))
    return found


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_duals_are_right_to_64_eps(dtype, name):
    activation, oracle = CLOSED[name][0], functools.cache(CLOSED[name][1])  # it returns the dual and its slope at once
    covariance = covariances(dtype)
    for which, values in enumerate((activation.dual(*covariance), activation.dual_derivative(*covariance))):
        assert values.dtype == dtype
        worst = max(zip(errors(oracle, which, covariance, values), *covariance, strict=True))
        assert worst[0] <= BOUND, (which, worst)


@pytest.mark.parametrize("name", NAMED)
def test_the_comparison_rejects_planted_errors(name):
    """A factor of 1.001, standard deviations for variances, the other branch: each spoils the dual or its slope."""
    activation, oracle = NAMED[name][0], functools.cache(NAMED[name][1])
    q1, c, q2 = covariance = np.array([0.6, 1.7]), np.array([0.4, -0.9]), np.array([1.3, 2.0])
    roots = np.sqrt(q1), c / np.sqrt(np.sqrt(q1 * q2)), np.sqrt(q2)  # of the same correlation

    def worst(*at, factor=1.0):
        maps = enumerate((activation.dual, activation.dual_derivative))
        return max(max(errors(oracle, which, covariance, factor * f(*at))) for which, f in maps)

    assert worst(*covariance) <= BOUND
    assert worst(*covariance, factor=1.001) > BOUND
    assert worst(*roots) > BOUND
    assert worst(q1, -c, q2) > BOUND


# --- the oracles, against the definition --------------------


def hermite3(u):
    return (u**3 - 3 * u) / math.sqrt(6)


PHI = {
    "identity": (lambda u: u, np.ones_like, ()),
    "relu": (lambda u: np.maximum(u, 0), lambda u: 1.0 * (u > 0), (0,)),
    "leaky_relu": (lambda u: np.where(u > 0, u, 0.01 * u), lambda u: np.where(u > 0, 1, 0.01), (0,)),
    "abs": (np.abs, np.sign, (0,)),
    "abrelu": (lambda u: np.where(u > 0, 1.5 * u, -0.3 * u), lambda u: np.where(u > 0, 1.5, -0.3), (0,)),
    "sign": (np.sign, None, (0,)),
    "step": (lambda u: 1.0 * (u > 0), None, (0,)),
    "rectified_power": (lambda u: np.maximum(u, 0) ** 2, lambda u: 2 * np.maximum(u, 0), (0,)),
    "rectified power 3": (lambda u: np.maximum(u, 0) ** 3, lambda u: 3 * np.maximum(u, 0) ** 2, (0,)),
    "erf": (erf, lambda u: 2 / math.sqrt(math.pi) * np.exp(-(u**2)), ()),
    "erf, parameters": (
        lambda u: -1.7 * erf(0.4 * u) + 0.6,
        lambda u: -1.7 * 0.4 * 2 / math.sqrt(math.pi) * np.exp(-((0.4 * u) ** 2)),
        (),
    ),
    "gelu": (
        lambda u: u * (1 + erf(u / math.sqrt(2))) / 2,
        lambda u: (1 + erf(u / math.sqrt(2))) / 2 + u * np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi),
        (),
    ),
    "sin": (lambda u: np.sin(1.2 * u + 0.4), lambda u: 1.2 * np.cos(1.2 * u + 0.4), ()),
    "cos": (lambda u: np.cos(0.8 * u), lambda u: -0.8 * np.sin(0.8 * u), ()),
    "snake": (lambda u: u + np.sin(0.7 * u) ** 2 / 0.7, lambda u: 1 + np.sin(1.4 * u), ()),
    "rbf": (
        lambda u: math.sqrt(2) * np.sin(math.sqrt(1.2) * u + math.pi / 4),
        lambda u: math.sqrt(2.4) * np.cos(math.sqrt(1.2) * u + math.pi / 4),
        (),
    ),
    "exp": (lambda u: 0.5 * np.exp(0.5 * u), lambda u: 0.25 * np.exp(0.5 * u), ()),
    "gaussian": (lambda u: 1.3 * np.exp(-0.5 * u**2), lambda u: -1.3 * u * np.exp(-0.5 * u**2), ()),
    "monomial": (lambda u: u**2, lambda u: 2 * u, ()),
    "polynomial": (lambda u: 0.3 - u + 0.2 * u**2 + 0.1 * u**3, lambda u: -1 + 0.4 * u + 0.3 * u**2, ()),
    "hermite": (hermite3, lambda u: (3 * u**2 - 3) / math.sqrt(6), ()),
}
MODERATE = [(0.6, 0.4, 1.3), (1.7, -0.9, 2.0), (0.25, 0.0, 1.0)]


def test_every_closed_form_has_a_definition():
    assert set(NAMED) <= set(PHI)


@pytest.mark.parametrize("name", PHI)
def test_the_oracles_are_the_definition(name):
    phi, derivative, kinks = PHI[name]
    for q1, c, q2 in MODERATE:
        value, slope = (float(v) for v in CLOSED[name][1](*map(mp.mpf, (q1, c, q2))))
        assert abs(oracles.definition(phi, q1, c, q2, kinks) - value) < 1e-11
        assert abs(oracles.definition(phi, q1, c, q2, kinks) - 1.001 * value) > 1e-5 or abs(value) < 0.02
        if derivative:
            assert abs(oracles.definition(derivative, q1, c, q2, kinks) - slope) < 1e-11


# --- phi itself --------------------


@pytest.mark.parametrize("name", PHI)
def test_phi_and_its_derivative(name):
    phi, derivative, _ = PHI[name]
    activation = CLOSED[name][0]
    u = np.array([-2.0, -0.5, -1e-3, 1e-3, 0.3, 1.0, 3.0])
    with jax.enable_x64(True):
        np.testing.assert_allclose(activation(jnp.asarray(u)), phi(u), rtol=1e-14, atol=1e-15)
        if derivative:
            np.testing.assert_allclose(activation.derivative(jnp.asarray(u)), derivative(u), rtol=1e-13, atol=1e-14)
    assert activation(jnp.asarray(u, jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("name", NAMED)
def test_sampled_moments(name):
    """10^6 pairs, seed 0: within 4 standard errors (4.5 for the worst of 60 comparisons)."""
    activation = NAMED[name][0]
    q1, c, q2 = 0.6, 0.4, 1.3
    u, z = np.random.default_rng(0).standard_normal((2, 10**6))
    v = math.sqrt(q2) * (c / math.sqrt(q1 * q2) * u + math.sqrt(1 - c**2 / (q1 * q2)) * z)
    with jax.enable_x64(True):
        at_u, at_v = (np.asarray(activation(jnp.asarray(w))) for w in (math.sqrt(q1) * u, v))
    for sample, moment in ((at_u**2, (q1, q1, q1)), (at_v**2, (q2, q2, q2)), (at_u * at_v, (q1, c, q2))):
        error = sample.std() / 1e3
        assert abs(sample.mean() - activation.dual(*moment)) <= 4.5 * error + 1e-12


# --- derivatives, and pairs at the ends --------------------


@pytest.mark.parametrize("name", CLOSED)
def test_the_derivative_is_that_of_the_dual(name):
    activation = CLOSED[name][0]
    q1, c, q2 = (np.array(column) for column in zip(*MODERATE, (1.1, 1.0, 1.2), strict=True))
    slope = activation.dual_derivative(q1, c, q2)
    with jax.enable_x64(True):
        exact = interpreted(jax.grad(lambda c: jnp.sum(activation.dual(jnp.asarray(q1), c, jnp.asarray(q2)))))(c)
    np.testing.assert_allclose(exact, slope, rtol=1e-12, atol=1e-13)
    h = 1e-5  # the error of central differences: h^2 = 1e-10 and eps/h = 2e-11, times higher derivatives
    numerical = (activation.dual(q1, c + h, q2) - activation.dual(q1, c - h, q2)) / (2 * h)
    scale = np.sqrt(activation.dual_derivative(q1, q1 * 0.999, q1) * activation.dual_derivative(q2, q2 * 0.999, q2))
    assert (np.abs(numerical - slope) <= 2e-7 * scale).all()


ENDS = [0.0, 1e-300, 1e-30, 1e-15, 1e-3, 0.5, 1.0]
SIZES = [0.0, 1e-150, 1e-10, 1.0, 1e10, 1e150]


def ends(dtype):
    """(Variance, Variance, near, positive) of all sizes and gaps, as 0-d columns of arrays."""
    sizes = [s for s in SIZES if dtype == np.float64 or s == 0 or 1e-15 < s < 1e15]
    rows = [(s, t, g, p) for s in sizes for t in sizes for g in ENDS for p in (True, False)]
    s, t, near, positive = (np.array(column) for column in zip(*rows, strict=True))
    near = np.where(near < np.finfo(dtype).tiny, 0, near).astype(dtype)
    exponents = [np.where(v > 0, np.round(np.log2(np.where(v > 0, v, 1))), 0).astype(np.int32) for v in (s, t)]
    values = [np.where(v > 0, (v / 2.0**e) ** 2, 0).astype(dtype) for v, e in zip((s, t), exponents, strict=True)]
    return [Variance(jnp.asarray(v), jnp.asarray(e)).normalise() for v, e in zip(values, exponents, strict=True)], (
        jnp.asarray(near),
        jnp.asarray(positive),
    )


@pytest.mark.parametrize(
    ("dtype", "name"), [*((np.float64, name) for name in CLOSED), *((np.float32, name) for name in NAMED)]
)
def test_pairs_at_the_ends(dtype, name):
    """Finite maps and derivatives from zero signals to 1e150, from duplicates to antipodes; identical ones stay so."""
    activation = CLOSED[name][0]

    def pair(x_value, y_value, near, exponents, positive):
        x, y = (Variance(v, e) for v, e in zip((x_value, y_value), exponents, strict=True))
        (x_after, x_trace), (y_after, y_trace) = activation.encode(x), activation.encode(y)
        correlation, slope = activation.correlate(x_trace, y_trace, correlation_from_gap(near, positive))
        return (x_after, y_after), correlation, slope

    def total(*arguments):
        (x_after, y_after), correlation, slope = pair(*arguments)
        wanted = activation.has_ntk & (x.exponent < 20) & (y.exponent < 20)  # of a wave's slope it is about -s^4
        return jnp.sum(correlation.one_minus + x_after.value + y_after.value + jnp.where(wanted, slope, 0))

    with jax.enable_x64(dtype == np.float64):
        (x, y), (near, positive) = ends(dtype)
        rest = ((x.exponent, y.exponent), positive)
        after, correlation, slope = interpreted(pair)(x.value, y.value, near, *rest)
        eps = float(np.finfo(dtype).eps)
        for variance in after:
            assert np.isfinite(variance.value).all()
            assert variance.exponent.dtype == jnp.int32
        for gap in correlation:
            assert ((gap >= 0) & (gap <= 2 + 4 * eps)).all()
            assert gap.dtype == dtype
        assert not np.isnan(slope).any()
        if activation.has_ntk:
            assert np.isfinite(slope).all()
        same = (x.value == y.value) & (x.exponent == y.exponent) & (near == 0) & positive
        assert same.any()
        assert (np.asarray(correlation.one_minus)[np.asarray(same)] == 0).all()
        for gradient in interpreted(jax.grad(total, argnums=(0, 1, 2)))(x.value, y.value, near, *rest):
            assert np.isfinite(gradient).all()


def test_exponents_stay_integers_through_any_depth():
    """exp and u^10, ten times over: the variance leaves every float, and is then inf, never NaN."""
    with jax.enable_x64(True):
        for activation in (wl.Exp(), wl.Monomial(10), wl.RectifiedPower(3), wl.Polynomial((0.0, 1.0, 3.0))):
            for size in (1e3, 1e-3):
                signal = Variance(jnp.asarray([size**2]), jnp.zeros(1, jnp.int32)).normalise()
                for _ in range(30):
                    signal, _ = activation.encode(signal)
                    assert abs(int(signal.exponent[0])) < 2**29
                    assert 0 < float(signal.value[0]) < 1


def points():
    X = np.random.default_rng(1).standard_normal((20, 4))
    X[3], X[5], X[7], X[9] = X[2], 0, -X[6], 2 * X[8]
    return X


@pytest.mark.parametrize(
    "name", [name for name in NAMED if name not in ("identity", "relu", "leaky_relu", "abs", "erf")]
)
def test_networks(name):
    """A zero row, duplicates, an antipode and a multiple, without and with bias."""
    activation, X = ACTIVATIONS[name], points()
    for bias_std in (0.0, 0.1):
        net = wl.mlp(depth=3, activation=activation, weight_std=1.2, bias_std=bias_std)
        k = wl.ntk(net) if activation.has_ntk else wl.nngp(net)
        gram, diag = k.gram(X), k.diag(X)
        assert np.isfinite(gram).all()
        assert (gram == gram.T).all()
        assert (np.diagonal(gram) == diag).all()
        spectrum = np.linalg.eigvalsh(gram)
        assert spectrum[0] >= -len(X) * np.finfo(float).eps * spectrum[-1]


def test_bad_parameters_are_refused():
    for make, kind, words in [
        (lambda: wl.ABRelu(0.0, 0.0), ValueError, "a or b must be at least 1e-06 in size, got 0 and 0"),
        (lambda: wl.ABRelu(1e7, 0.0), ValueError, r"a must be <= 1e\+06, got 1e\+07"),
        (lambda: wl.Erf(0.0), ValueError, "a must be at least 1e-06 in size, got 0"),
        (lambda: wl.Erf(c=np.nan), ValueError, "c must be finite"),
        (lambda: wl.RectifiedPower(4), ValueError, "power must be below 4, got 4"),
        (lambda: wl.RectifiedPower(1.0), TypeError, r"power must be an integer, got 1\.0"),
        (lambda: wl.Sin(0.0), ValueError, "a must be at least 1e-06 in size"),
        (lambda: wl.Rbf(-1.0), ValueError, "gamma must be >= 0, got -1"),
        (lambda: wl.Gaussian(1.0, 0.0), ValueError, "b must be at least 1e-06 in size"),
        (lambda: wl.Exp("a"), TypeError, "a must be a real number, got 'a'"),
        (lambda: wl.Monomial(11), ValueError, "power must be below 11, got 11"),
        (lambda: wl.Hermite(0), ValueError, "degree must be at least 1, got 0"),
        (lambda: wl.Polynomial(()), ValueError, "1 to 11 coefficients are needed, got 0"),
        (lambda: wl.Polynomial((0.0, 0.0)), ValueError, "one of the coefficients must be at least 1e-06"),
        (lambda: wl.Polynomial(3.0), TypeError, "coefficients must be a sequence of numbers, got float"),
        (lambda: wl.Polynomial((1.0, np.inf)), ValueError, r"coefficients\[1\] must be finite"),
    ]:
        with pytest.raises(kind, match=words):
            make()


NEAR = [
    (s, s * (1 + h), g)
    for s in (1e-3, 0.05, 0.5, 3.0)
    for h in (0.0, 1e-9, 1e-4, 0.2)
    for g in (0.0, 1e-22, 1e-9, 1e-4, 1e-2)
]


def refined(activation, s, t, gap):
    """1 - rho after phi of signals of deviations s, t and 1 - rho = gap."""
    (_, x), (_, y) = (activation.encode(variance_of(deviation)) for deviation in (s, t))
    correlation = Correlation(gap, 2 - gap)
    return activation.refine(x, y, correlation, activation.correlate(x, y, correlation)[0]).one_minus


@pytest.mark.parametrize("name", ["gelu", "sin", "sin, no phase", "cos", "erf", "snake"])
def test_angles_of_near_pairs_after_a_smooth_activation(name):
    """A kink behind it sees sqrt(1 - rho): right within 16 eps; that of a rounded rho is not."""
    activation, dual = CLOSED[name]
    for dtype in DTYPES.values():
        eps, table = np.finfo(dtype).eps, np.array(NEAR, dtype).T
        with jax.enable_x64(True):
            found = np.asarray(interpreted(functools.partial(refined, activation))(*table), float)
        exact = []
        with mp.workdps(60):
            for s, t, g in table.T.tolist():
                q, p = mp.mpf(s) ** 2, mp.mpf(t) ** 2
                own = mp.sqrt(dual(q, q, q)[0] * dual(p, p, p)[0])
                exact.append(float(mp.sqrt(abs(1 - dual(q, mp.mpf(s) * t * (1 - mp.mpf(g)), p)[0] / own))))
        assert np.abs(np.sqrt(found) - exact).max() <= 16 * eps
        rounded = np.sqrt(np.abs(1 - (1 - np.square(exact)).astype(dtype)))
        assert np.abs(rounded - exact).max() > 100 * eps
