"""Functions of a kernel's space, linear models, definiteness, spectra on spheres: identities and planted errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

import widelimit as wl

RNG = np.random.default_rng(0)
N = 12
X, Z = RNG.standard_normal((N, 3)), RNG.standard_normal((6, 3))
Y = np.sin(2 * X[:, 0]) + X[:, 1]
A, B = RNG.standard_normal(N), RNG.standard_normal(6)
KERNELS = {
    "ntk": wl.ntk(wl.mlp(depth=3, bias_std=0.3)),
    "sum": wl.rbf(1.2) + 0.5 * wl.linear(),
    "rank 3": wl.linear(),
}


# --- functions


@pytest.mark.parametrize("name", KERNELS)
def test_reproducing_property_norm_and_cauchy_schwarz(name):
    k = KERNELS[name]
    f, g = wl.rkhs.Function(k, X, A), wl.rkhs.Function(k, Z, B)
    gram = k.gram(X)
    for z in Z:
        at = wl.rkhs.Function(k, z[None], np.ones(1))
        np.testing.assert_allclose(f.inner(at), f(z[None])[0], rtol=1e-12, atol=1e-13)  # <f, K(., z)> = f(z)
        planted = wl.rkhs.Function(k, z[None], np.full(1, 1.01))
        assert abs(f.inner(planted) - f(z[None])[0]) > 1e-3 * abs(f(z[None])[0])
        assert abs(f(z[None])[0]) <= f.norm() * np.sqrt(k.diag(z[None])[0])
    np.testing.assert_allclose(f.inner(f), A @ gram @ A, rtol=1e-12)
    np.testing.assert_allclose(f.squared_norm(), A @ gram @ A, rtol=1e-12)
    np.testing.assert_allclose(f.norm() ** 2, A @ gram @ A, rtol=1e-12)
    assert abs(f.norm() - A @ gram @ A) > 1e-2  # section 4.2 prints the square as the norm
    assert abs(f.inner(g)) <= f.norm() * g.norm()
    np.testing.assert_allclose(f.inner(2.5 * f), f.norm() * (2.5 * f).norm(), rtol=1e-12)  # equality for parallel ones
    assert abs(f.inner(g)) < 0.999 * f.norm() * g.norm()


def test_functions_are_a_vector_space():
    k = KERNELS["ntk"]
    f, g = wl.rkhs.Function(k, X, A), wl.rkhs.Function(k, Z, B)
    combined = 2.0 * f - g * 0.5 + (-f)
    np.testing.assert_allclose(combined(Z), f(Z) - 0.5 * g(Z), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(f.inner(g), g.inner(f), rtol=1e-13)
    expected = f.inner(f) - 2 * f.inner(g) + g.inner(g)
    np.testing.assert_allclose(f.distance(g) ** 2, expected, rtol=1e-11)
    assert abs(f.distance(g) ** 2 / (f.inner(f) + g.inner(g)) - 1) > 1e-3
    assert (f - f).norm() == 0
    assert f.distance(wl.rkhs.Function(k, X[::-1], A[::-1])) == 0
    both = wl.rkhs.Function(k, X, np.column_stack([A, 2 * A]))
    np.testing.assert_allclose(both.squared_norm(), 5 * f.squared_norm(), rtol=1e-12)
    assert both(Z).shape == (6, 2)


def test_flow_at_infinity_is_the_interpolant_is_the_ridge_limit():
    k = KERNELS["ntk"]
    f = wl.rkhs.interpolant(k, X, Y)
    np.testing.assert_allclose(f(X), Y, atol=1e-11)
    flow = wl.gradient_flow(k, X, Y)
    np.testing.assert_allclose(flow.predict(Z, np.inf), f(Z), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(flow.coefficients(np.inf), f.coefficients, rtol=1e-8, atol=1e-9)
    gaps = [np.abs(wl.rkhs.ridge(k, X, Y, regularization=w)(Z) - f(Z)).max() for w in (1e-6, 1e-7, 1e-8)]
    np.testing.assert_allclose(np.log10(np.divide(gaps[:-1], gaps[1:])), 1.0, atol=0.02)  # first order in the weight
    other = f + wl.rkhs.Function(k, Z, B) - wl.rkhs.interpolant(k, X, wl.rkhs.Function(k, Z, B)(X))
    np.testing.assert_allclose(other(X), Y, atol=1e-10)
    assert other.norm() > f.norm()  # of all interpolants the smallest
    np.testing.assert_allclose(other.squared_norm() - f.squared_norm(), (other - f).squared_norm(), rtol=1e-8)
    ridge = wl.rkhs.ridge(k, X, Y, regularization=0.1)

    def objective(f):
        return np.mean((f(X) - Y) ** 2) + 0.1 * f.squared_norm()

    for step in (1e-3, -1e-3):
        assert objective(ridge) < objective(ridge + step * wl.rkhs.Function(k, X, A))
    unit = wl.rkhs.ridge(k, X, Y, regularization=0.1 / N)  # the planted error: the sum of errors instead of the mean
    assert objective(unit) > objective(ridge) + 1e-4


def test_from_f0_the_limit_is_f0_plus_the_interpolant_of_the_rest():
    def f0(A):
        return np.cos(A[:, 0])

    k = KERNELS["sum"]
    expected = f0(Z) + k.cross(Z, X) @ np.linalg.solve(k.gram(X), Y - f0(X))
    found = wl.gradient_flow(k, X, Y, initial=f0).predict(Z, np.inf)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    steps = wl.gradient_descent(
        k, X, Y, initial=f0, learning_rate=0.9 * wl.max_learning_rate(k, X), steps=10**9
    ).predict(Z)
    np.testing.assert_allclose(steps, expected, rtol=0, atol=1e-8)
    assert np.abs(wl.rkhs.interpolant(k, X, Y)(Z) - expected).max() > 1e-2  # Corollary 4.6 as printed


def test_a_kernel_of_low_rank_works_where_it_should():
    """Linear, 12 points in 3 dimensions: functions w.x; everything ends at the least-squares fit of smallest norm."""
    k, w = wl.linear(), np.array([1.0, -2.0, 0.5])
    best = np.linalg.lstsq(X, Y, rcond=None)[0]
    np.testing.assert_allclose(wl.gradient_flow(k, X, Y).predict(Z, np.inf), Z @ best, rtol=1e-10)
    weighted = wl.gradient_flow(k, X, Y, loss=wl.WeightedSquaredError(np.ones(N)))
    np.testing.assert_allclose(weighted.predict(Z, np.inf), Z @ best, rtol=1e-7)
    rate = 0.9 * wl.max_learning_rate(k, X)
    np.testing.assert_allclose(
        wl.gradient_descent(k, X, Y, learning_rate=rate, steps=10_000).predict(Z), Z @ best, rtol=1e-10
    )
    f = wl.rkhs.interpolant(k, X, X @ w)
    np.testing.assert_allclose(f(Z), Z @ w, rtol=1e-11)
    np.testing.assert_allclose(f.norm(), np.linalg.norm(w), rtol=1e-11)
    with pytest.raises(ValueError, match="numerical rank 3 of 12"):
        wl.rkhs.interpolant(k, X, Y)
    assert wl.rkhs.is_positive_semidefinite(k, X)
    np.testing.assert_allclose(wl.rkhs.power_function(k, X[:3], Z), 0, atol=1e-6)
    assert wl.rkhs.power_function(k, X[:2], Z).min() > 1e-3
    np.testing.assert_allclose(wl.rkhs.effective_dimension(k, X, regularization=0.0), 3, rtol=1e-12)


# --- diagnostics


@jax.tree_util.register_static
class Tanh(wl.Kernel):
    """tanh(x.y), no reproducing kernel."""

    def encode(self, X):
        return X

    def pairwise(self, x, y, *, same=False):
        return jnp.tanh(x @ y.T)

    def diagonal(self, x):
        return jnp.tanh(jnp.sum(x * x, axis=1))


def test_tanh_of_the_inner_product_is_found_out():
    certificate = wl.rkhs.is_positive_semidefinite(Tanh(), 2 * X)
    assert not certificate
    gram = np.tanh(4 * X @ X.T)
    np.testing.assert_allclose(np.linalg.norm(certificate.vector), 1.0, rtol=1e-13)
    np.testing.assert_allclose(certificate.vector @ gram @ certificate.vector, certificate.eigenvalue, rtol=1e-9)
    assert certificate.eigenvalue < -0.01
    good = wl.rkhs.is_positive_semidefinite(KERNELS["ntk"], X)
    assert good
    assert good.eigenvalue > 0
    duplicates = wl.rkhs.is_positive_semidefinite(KERNELS["ntk"], np.vstack([X, X]))
    assert duplicates
    assert abs(duplicates.eigenvalue) < duplicates.tolerance
    for call in (
        lambda: wl.gradient_flow(Tanh(), 2 * X, Y, loss="huber"),
        lambda: wl.gradient_descent(Tanh(), 2 * X, Y, learning_rate=0.1, steps=3, loss="huber"),
        lambda: wl.rkhs.interpolant(Tanh(), 2 * X, Y),
        lambda: wl.rkhs.eigenvalues(Tanh(), 2 * X),
    ):
        with pytest.raises(ValueError, match="not positive semi-definite"):
            call()
    with pytest.raises(ArithmeticError, match="not positive semi-definite"):
        wl.rkhs.Function(Tanh(), 2 * X, certificate.vector).norm()


def test_power_function_effective_dimension_and_eigenvalues():
    k = KERNELS["sum"]
    power = wl.rkhs.power_function(k, X, Z)
    gram, cross = k.gram(X), k.cross(X, Z)
    np.testing.assert_allclose(power**2, k.diag(Z) - np.sum(cross * np.linalg.solve(gram, cross), axis=0), rtol=1e-8)
    assert wl.rkhs.power_function(k, X, X).max() < 1e-6
    f = wl.rkhs.Function(k, np.vstack([X, Z]), RNG.standard_normal(N + 6))
    error = np.abs(f(Z) - wl.rkhs.interpolant(k, X, f(X))(Z))
    assert (error <= power * f.norm() * (1 + 1e-9)).all()
    assert (error > 1e-3 * power * f.norm()).any()
    expected = np.trace(gram @ np.linalg.inv(gram + N * 0.05 * np.eye(N)))
    np.testing.assert_allclose(wl.rkhs.effective_dimension(k, X, regularization=0.05), expected, rtol=1e-11)
    assert abs(wl.rkhs.effective_dimension(k, X, regularization=0.05 / N) / expected - 1) > 0.1
    np.testing.assert_allclose(wl.rkhs.eigenvalues(k, X), np.linalg.eigvalsh(gram)[::-1], rtol=1e-10)
    mixing = np.diag([1.0, 2.0])
    np.testing.assert_allclose(
        wl.rkhs.eigenvalues(wl.separable(k, mixing), X)[0], 2 * np.linalg.eigvalsh(gram)[-1], rtol=1e-12
    )


# --- linear models


def features(A):
    return jnp.concatenate([A, jnp.sin(A), A[:, :1] * A], axis=1)


@pytest.mark.parametrize("n", [6, 12])
def test_primal_and_dual_descent_are_one_and_end_at_the_minimum_norm(n):
    """9 features, fewer and more points; 2000 steps whose rounding errors add up to at most steps eps."""
    model = wl.LinearModel(features)
    data, target = X[:n], Y[:n]
    k = model.kernel()
    rate = 0.9 * wl.max_learning_rate(k, data)
    primal = model.primal_descent(data, target, learning_rate=rate, steps=2000)
    dual = model.dual_descent(data, target, learning_rate=rate, steps=2000)
    phi = model.features(data)
    np.testing.assert_allclose(dual @ phi, primal, rtol=0, atol=1e-12 * np.abs(primal).max())
    summed = np.sum(2 * rate / n * target) + dual[:1, :1] * 0  # the printed (3.6) moves every alpha_i by the sum over i
    assert np.abs(summed - dual[1]).max() > 1e-2
    function = wl.gradient_descent(k, data, target, learning_rate=rate, steps=2000)
    np.testing.assert_allclose(function.coefficients(), dual[-1], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(function.predict(Z), model.predict(primal[-1], Z), rtol=0, atol=1e-10)
    best = model.minimum_norm(data, target)
    np.testing.assert_allclose(best, np.linalg.pinv(phi) @ target, rtol=1e-9, atol=1e-11)
    outside = best - phi.T @ np.linalg.lstsq(phi.T, best, rcond=None)[0]
    assert np.abs(outside).max() < 1e-12  # w* in im(phi(X)^T), Proposition 3.4 corrected
    if n == 6:
        distance = min(np.abs(best - row).max() for row in phi)
        assert distance > 1e-2  # not one of the phi(x_i), as printed
        np.testing.assert_allclose(model.predict(best, Z), wl.rkhs.interpolant(k, data, target)(Z), rtol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(best), wl.rkhs.interpolant(k, data, target).norm(), rtol=1e-10)
    flow = wl.gradient_flow(k, data, target)
    np.testing.assert_allclose(model.predict(best, Z), flow.predict(Z, np.inf), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(model.weights(data, flow.coefficients(np.inf)), best, rtol=1e-8, atol=1e-10)


# --- spheres


def sphere(k, **options):
    return wl.rkhs.spherical_eigenvalues(k, **{"dimension": 3, "degree": 9, **options})


@pytest.mark.parametrize("dimension", [2, 3, 5])
def test_shallow_relu_without_bias_sees_no_odd_degree_from_three_on(dimension):
    blind = sphere(wl.ntk(wl.mlp(depth=2)), dimension=dimension)
    assert np.abs(blind.eigenvalues[3::2]).max() < 1e-12 * blind.trace
    assert (blind.eigenvalues[[0, 1, 2, 4, 6, 8]] > 1e-9).all()
    assert blind.positive().tolist() == [True, True, True, False, True, False, True, False, True, False]
    assert np.isinf(blind.times[3::2]).all()
    for k in (wl.ntk(wl.mlp(depth=2, bias_std=0.3)), wl.ntk(wl.mlp(depth=3))):
        seeing = sphere(k, dimension=dimension)
        assert (seeing.eigenvalues > 1e-9).all()
        assert seeing.positive().all()
        assert (np.diff(seeing.times[1:]) > 0).all() or dimension == 2


def test_spherical_eigenvalues_in_closed_form():
    """x.x': 1/d at degree 1 alone. exp(-|x - x'|^2/(2 l^2)) on S^2: exp(-s) sqrt(pi/(2 s)) I_{k+1/2}(s), s = 1/l^2."""
    flat = sphere(wl.linear(), dimension=4)
    np.testing.assert_allclose(flat.eigenvalues, np.eye(10)[1] / 4, rtol=0, atol=1e-14)
    s, degrees = 1 / 0.6**2, np.arange(10)
    bessel = np.sqrt(np.pi / (2 * s)) * scipy.special.ive(degrees + 0.5, s)
    found = sphere(wl.rbf(0.6))
    np.testing.assert_allclose(found.eigenvalues, bessel, rtol=0, atol=1e-14)
    assert np.abs(sphere(wl.rbf(0.606)).eigenvalues - bessel).max() > 1e-4
    np.testing.assert_allclose(sphere(wl.rbf(1.2), radius=2.0).eigenvalues, bessel, rtol=0, atol=1e-14)
    assert found.multiplicities[:4].tolist() == [1, 3, 5, 7]
    np.testing.assert_allclose(sphere(wl.rbf(0.6), degree=40).covered, 1.0, rtol=1e-13)


@pytest.mark.parametrize(("dimension", "degree"), [(3, 4), (6, 5)])
def test_spherical_eigenvalues_equal_adaptive_quadrature_in_the_cosine(dimension, degree):
    k = wl.ntk(wl.mlp(depth=3, bias_std=0.5))
    polynomial = scipy.special.gegenbauer(degree, dimension / 2 - 1)

    def profile(t):
        points = np.zeros((1, dimension))
        points[0, :2] = t, np.sqrt(1 - t**2)
        return k.cross(points, np.eye(dimension)[:1])[0, 0]

    def weighed(f):
        return scipy.integrate.quad(
            lambda t: f(t) * (1 - t**2) ** ((dimension - 3) / 2), -1, 1, epsabs=1e-10, epsrel=1e-10, limit=400
        )[0]

    expected = weighed(lambda t: profile(t) * polynomial(t) / polynomial(1)) / weighed(lambda _: 1.0)
    found = sphere(k, dimension=dimension).eigenvalues
    np.testing.assert_allclose(found[degree], expected, rtol=0, atol=1e-9)
    assert abs(found[degree - 1] - expected) > 1e-6


def test_the_spectrum_of_many_points_tends_to_that_of_the_sphere():
    """500 uniform points, seed 5: the means of the leading eigenvalues of K/n over each degree, within 10 %."""
    U = np.random.default_rng(5).standard_normal((500, 3))
    U /= np.linalg.norm(U, axis=1, keepdims=True)
    k = wl.ntk(wl.mlp(depth=2, bias_std=0.3))
    empirical = wl.rkhs.eigenvalues(k, U)[:9] / 500
    exact = sphere(k).eigenvalues
    for degree, part in enumerate((empirical[:1], empirical[1:4], empirical[4:9])):
        assert abs(part.mean() / exact[degree] - 1) < 0.1
    flow = wl.gradient_flow(k, U, U[:, 0])
    assert 0.7 < flow.modes().times[flow.modes().shares.argmax()] / sphere(k).times[1] < 1.4


# --- bad input


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: wl.rkhs.Function("k", X, A), TypeError, "a kernel is needed"),
        (lambda: wl.rkhs.Function(wl.linear(), X, B), ValueError, r"coefficients must have shape \(12,\)"),
        (lambda: wl.rkhs.Function(wl.linear(), X, np.nan * A), ValueError, "NaN"),
        (lambda: wl.rkhs.Function(wl.linear(), X, A) + 1.0, TypeError, "a wl.rkhs.Function is needed"),
        (
            lambda: wl.rkhs.Function(wl.rbf(1.0), X, A).inner(wl.rkhs.Function(wl.rbf(2.0), X, A)),
            ValueError,
            "different kernels",
        ),
        (
            lambda: wl.rkhs.Function(wl.rbf(), X, A) + wl.rkhs.Function(wl.rbf(), X, np.ones((N, 2))),
            ValueError,
            "outputs of shapes",
        ),
        (lambda: wl.rkhs.Function(wl.rbf(), X, A) * np.inf, ValueError, "the factor of a function must be finite"),
        (lambda: wl.rkhs.ridge(wl.rbf(), X, Y, regularization=-1.0), ValueError, "regularization must be >= 0"),
        (lambda: wl.rkhs.effective_dimension(wl.rbf(), X, regularization=-1.0), ValueError, "regularization must be"),
        (lambda: wl.rkhs.interpolant(wl.rbf(), X[[0, 0]], [0.0, 1.0]), ValueError, "duplicate rows"),
        (lambda: sphere(wl.rbf(), dimension=1), ValueError, "dimension must be at least 2"),
        (lambda: sphere(wl.rbf(), degree=-1), ValueError, "degree must be at least 0"),
        (lambda: sphere(wl.rbf(), radius=0.0), ValueError, "radius must be > 0"),
        (lambda: sphere(wl.rbf(np.array([1.0, 2.0, 3.0]))), ValueError, "no function of the angle"),
        (lambda: sphere(wl.rbf(1e-9)), ArithmeticError, "too rough in the angle"),
        (lambda: wl.LinearModel(3), TypeError, "feature_map must be a function"),
        (lambda: wl.LinearModel(lambda A: A / 0).features(X), ValueError, "result of feature_map has 36 entries"),
        (lambda: wl.LinearModel().predict(A, X), ValueError, r"w must have shape \(3,\)"),
        (
            lambda: wl.LinearModel().primal_descent(X, Y, learning_rate=0.0, steps=1),
            ValueError,
            "learning_rate must be",
        ),
        (
            lambda: wl.LinearModel().dual_descent(X, Y, learning_rate=0.1, steps=-1),
            ValueError,
            "steps must be at least",
        ),
        (lambda: wl.LinearModel().weights(X, B), ValueError, r"alpha must have shape \(12,\)"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


@jax.tree_util.register_static
class Broken(wl.Kernel):
    """NaN between different points."""

    def encode(self, X):
        return X

    def pairwise(self, x, y, *, same=False):
        return jnp.log(-jnp.abs(x @ y.T))

    def diagonal(self, x):
        return jnp.ones_like(x[:, 0])


def test_a_kernel_with_nan_is_told():
    for call in (
        lambda: wl.gradient_flow(Broken(), X, Y),
        lambda: wl.gradient_flow(Broken(), X, Y, loss="huber"),
        lambda: wl.gradient_descent(Broken(), X, Y, learning_rate=0.1, steps=1),
        lambda: wl.posterior(Broken(), X, Y, noise=0.1),
        lambda: wl.rkhs.is_positive_semidefinite(Broken(), X),
        lambda: wl.rkhs.interpolant(Broken(), X, Y),
    ):
        with pytest.raises(ValueError, match="the kernel is nan at rows"):
            call()
    with pytest.raises(ValueError, match="NaN or infinite"):
        wl.GaussianProcess(Broken()).sample(X, 1)
