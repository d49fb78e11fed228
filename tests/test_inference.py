"""Posterior, gradient flow and trained ensembles against other algorithms, with planted errors that must be seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel as SklearnKernel

import widelimit as wl
from oracles import posterior_variance
from widelimit.compute import linalg

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3))
Z = RNG.standard_normal((11, 3))
Y = np.column_stack([np.sin(X[:, 0]) + X[:, 1], X[:, 2] ** 2])
NET = wl.mlp(depth=3, activation="relu", weight_std=1.4, bias_std=0.2)
K, THETA = wl.nngp(NET), wl.ntk(NET)
INF = np.inf


# --- posterior


class Precomputed(SklearnKernel):
    """scikit-learn's Gaussian process with our kernel."""

    def __init__(self, kernel=None):
        self.kernel = kernel

    def __call__(self, A, B=None, eval_gradient=False):
        return self.kernel.gram(A) if B is None else self.kernel.cross(A, B)

    def diag(self, A):
        return self.kernel.diag(A)

    def is_stationary(self):
        return False


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_posterior_equals_scikit_learn(noise):
    peer = GaussianProcessRegressor(Precomputed(K), alpha=noise, optimizer=None).fit(X, Y[:, 0])
    mean, covariance = peer.predict(Z, return_cov=True)
    post = wl.posterior(K, X, Y[:, 0], noise=noise)
    np.testing.assert_allclose(post.mean(Z), mean, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(post.covariance(Z), covariance, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(post.variance(Z), np.diagonal(covariance), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(post.log_marginal_likelihood(), peer.log_marginal_likelihood_value_, rtol=1e-10)
    planted = wl.posterior(K, X, Y[:, 0], noise=noise + 1e-6)
    assert np.abs(planted.mean(Z) - mean).max() > 1e-9


def test_posterior_shapes_outputs_and_noise_per_point():
    post = wl.posterior(K, X, Y, noise=0.1)
    assert post.mean(Z).shape == (11, 2)
    assert post.variance(Z).shape == (11,)
    assert post.covariance(Z).shape == (11, 11)
    for i in range(2):
        np.testing.assert_allclose(post.mean(Z)[:, i], wl.posterior(K, X, Y[:, i], noise=0.1).mean(Z), rtol=1e-12)
    each = wl.posterior(K, X, Y, noise=np.full(40, 0.1))
    np.testing.assert_array_equal(each.mean(Z), post.mean(Z))
    # a noise that tends to infinity at one point is that point left out
    ignored = wl.posterior(K, X, Y, noise=np.r_[1e12, np.full(39, 0.1)])
    np.testing.assert_allclose(ignored.mean(Z), wl.posterior(K, X[1:], Y[1:], noise=0.1).mean(Z), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(np.diagonal(post.covariance(Z)), post.variance(Z), rtol=1e-10)
    assert (post.covariance(Z) == post.covariance(Z).T).all()


def test_the_mean_never_pays_for_the_variance(monkeypatch):
    post = wl.posterior(K, X, Y, noise=0.1)
    expected = post.mean(Z)

    def forbidden(*_):
        raise AssertionError("a triangular solve for the mean")

    for name in ("whiten", "squares", "form"):
        monkeypatch.setattr(linalg.Cholesky, name, forbidden)
    for name in ("factorise", "cholesky"):
        monkeypatch.setattr(linalg, name, forbidden)
    np.testing.assert_array_equal(post.mean(Z), expected)
    with pytest.raises(AssertionError, match="triangular"):
        post.variance(Z)


def test_samples_have_the_variances_even_where_they_are_tiny():
    """Smooth functions with next to no noise: the spread of draws is that of `variance`, 0 at no point."""
    rng = np.random.default_rng(0)
    X, Z = rng.uniform(-1, 1, (60, 2)), rng.uniform(-1, 1, (30, 2))
    post = wl.posterior(wl.nngp(wl.mlp(depth=2, activation="erf")), X, np.sin(X.sum(axis=1)), noise=1e-12)
    variance = post.variance(Z)
    assert 0 < variance.min() < np.median(variance) < 1e-9
    ratio = post.sample(Z, 2000).std(axis=0) / np.sqrt(variance)
    np.testing.assert_allclose(ratio, 1, atol=0.08)  # 2.5 % are one standard deviation


def test_samples_follow_the_posterior():
    """4000 draws, seed 1: Mahalanobis distances are chi^2 (level 1e-3), means within 4.5 standard errors."""
    post = wl.posterior(K, X, Y, noise=0.05)
    draws = post.sample(Z, 4000, seed=1)
    assert draws.shape == (4000, 11, 2)
    np.testing.assert_array_equal(draws, post.sample(Z, 4000, seed=1))
    covariance = post.covariance(Z)
    root = np.linalg.cholesky(covariance)

    def p_value(scale):
        white = scipy.linalg.solve_triangular(root * scale, (draws[:, :, 0] - post.mean(Z)[:, 0]).T, lower=True)
        return scipy.stats.kstest(np.sum(white**2, axis=0), scipy.stats.chi2(11).cdf).pvalue

    assert p_value(1.0) > 1e-3
    assert p_value(1.05) < 1e-3
    z = (draws.mean(0) - post.mean(Z)) / np.sqrt(post.variance(Z)[:, None] / 4000)
    assert np.abs(z).max() < 4.5
    correlation = np.corrcoef(draws[:, 0, 0], draws[:, 0, 1])[0, 1]
    assert abs(correlation) < 4.5 / np.sqrt(4000)


def test_sampling_a_degenerate_posterior_returns_the_labels():
    post = wl.posterior(K, X, Y)
    np.testing.assert_allclose(post.sample(X, 3, seed=0), np.broadcast_to(Y, (3, 40, 2)), atol=1e-5)
    assert post.sample(Z, 2).shape == (2, 11, 2)


def test_variance_is_zero_at_the_data_and_never_negative():
    post = wl.posterior(K, X, Y)
    at_data = post.variance(X)
    assert (at_data >= 0).all()
    assert at_data.max() < 1e-12
    close = post.variance(X + 1e-9 * RNG.standard_normal(X.shape))
    assert (close >= 0).all()
    assert close.max() < 1e-7
    assert (np.linalg.eigvalsh(post.covariance(np.vstack([X, Z]))) > -1e-11).all()


def test_variances_of_smooth_kernels_are_known_beyond_the_condition_number():
    """The bound by the condition number is 5e-10 here: all but one variance would be 0."""
    points, new = np.linspace(-1, 1, 24)[:, None], np.linspace(-1.2, 1.2, 9)[:, None]
    k, noise = wl.nngp(wl.mlp(depth=2, activation="erf", weight_std=1.0, bias_std=0.5)), 1e-10
    matrices = k.gram(points), k.cross(new, points), k.diag(new)
    exact = posterior_variance(*matrices, noise)
    post = wl.posterior(k, points, np.sin(points), noise=noise)
    np.testing.assert_allclose(post.variance(new), exact, rtol=1e-3)
    np.testing.assert_allclose(np.diagonal(post.covariance(new)), exact, rtol=1e-3)
    assert (post.variance(new) > 1.003 * posterior_variance(*matrices, 0.99 * noise)).any()  # the negative control


@jax.tree_util.register_static
class Crooked(wl.Kernel):
    """tanh(2 x.y - 1): symmetric, not positive semi-definite."""

    def encode(self, X):
        return X

    def pairwise(self, x, y, *, same=False):
        return jnp.tanh(2 * x @ y.T - 1)

    def diagonal(self, x):
        return jnp.tanh(2 * jnp.sum(x * x, axis=1) - 1)


def test_a_kernel_that_is_not_positive_semi_definite_is_refused():
    with pytest.raises(ValueError, match="not positive semi-definite: its smallest eigenvalue is -"):
        wl.posterior(Crooked(), X, Y)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        wl.gradient_flow(Crooked(), X, Y)


# --- duplicate rows and singular kernels


def test_duplicates_with_equal_labels_give_the_minimum_norm_interpolant():
    rows = np.r_[0:40, 0, 0, 7]
    once, twice = wl.posterior(K, X, Y), wl.posterior(K, X[rows], Y[rows])
    assert twice.factor.rank == 40
    np.testing.assert_allclose(twice.mean(Z), once.mean(Z), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(twice.variance(Z), once.variance(Z), rtol=1e-8, atol=1e-11)
    # minimum norm: the copies share the weight of their point
    weights = twice.weights
    np.testing.assert_allclose(weights[[0, 40, 41]], np.broadcast_to(once.weights[0] / 3, (3, 2)), rtol=1e-6)
    with pytest.raises(ValueError, match="rank 40 of 43: y has no density"):
        twice.log_marginal_likelihood()


def test_duplicates_with_different_labels_are_named():
    rows = np.r_[0:40, 3]
    labels = Y[rows].copy()
    labels[-1] += 0.5
    with pytest.raises(ValueError, match=r"duplicate rows of X have different labels: rows 3 and 40 .*Pass noise="):
        wl.posterior(K, X[rows], labels)
    shifted = wl.posterior(K, X[rows], labels, noise=0.1).mean(X[3:4])
    assert np.isfinite(shifted).all()


def test_a_conflict_in_one_output_is_not_hidden_by_the_size_of_another():
    rows = np.r_[0:40, 3]
    labels = np.column_stack([1e12 * Y[rows, 0], Y[rows, 1]])
    labels[-1, 1] += 1e-3
    with pytest.raises(ValueError, match="rows 3 and 40"):
        wl.posterior(K, X[rows], labels)
    wl.posterior(K, X[rows], labels, noise=np.r_[np.zeros(40), 0.1])  # only one of the two is exact


def test_badly_scaled_systems_are_not_called_singular():
    k = wl.ntk(wl.mlp(depth=3))
    scaled = X.copy()
    scaled[0] *= 1e9
    mean = wl.posterior(k, scaled, Y).mean(scaled)
    np.testing.assert_allclose(mean[1:], Y[1:], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(mean[0], Y[0], atol=1e-3)  # a sum of terms of size 1e9: 1e9 eps times its condition
    huge = wl.posterior(K, X, Y, noise=np.r_[1e20, np.full(39, 0.1)])
    np.testing.assert_allclose(huge.mean(Z), wl.posterior(K, X[1:], Y[1:], noise=0.1).mean(Z), rtol=1e-8, atol=1e-9)


def test_near_duplicates_with_different_labels_are_not_called_duplicates():
    near = np.vstack([X, X[3] + 1e-13])
    with pytest.raises(ValueError, match=r"numerical rank 40 of 41 \(no duplicate row of X has two labels\)"):
        wl.posterior(K, near, np.r_[Y[:, 0], Y[3, 0] + 1])


def test_antipodal_pairs_make_the_shallow_bias_free_network_singular():
    """Relu, depth 2, bias 0 sees of odd functions only the linear ones; the rest is out of its range."""
    k = wl.ntk(wl.mlp(depth=2))
    both = np.vstack([X[:6], -X[:6]])
    even, linear = np.abs(both[:, 0]), both @ np.ones(3)
    assert wl.posterior(k, both, even + linear).factor.rank == 9
    with pytest.raises(ValueError, match="numerical rank 9 of 12"):
        wl.posterior(k, both, np.sign(both[:, 0]))


def test_a_constant_or_zero_kernel_matrix():
    k = wl.nngp(wl.mlp(depth=1))
    zero = np.zeros((3, 2))
    np.testing.assert_array_equal(wl.posterior(k, zero, np.zeros(3)).mean(Z[:, :2]), 0)
    with pytest.raises(ValueError, match="duplicate rows"):
        wl.posterior(k, zero, np.arange(3.0))
    assert wl.gradient_flow(k, zero, np.ones(3)).loss(INF) == 1.0


# --- gradient flow


def test_flow_equals_the_ordinary_differential_equation():
    """df/dt = -(2/n) K(., X) (f(X) - y), integrated by an adaptive method to 1e-10, on training and test points."""
    everything = np.vstack([X, Z])
    matrix = THETA.cross(everything, X)

    def velocity(_, f):
        return -(2 / 40) * matrix @ (f[:40] - Y[:, 0])

    times = np.array([0.0, 0.3, 2.0, 9.0])
    start = np.cos(everything[:, 0])
    solution = scipy.integrate.solve_ivp(velocity, (0, 9), start, t_eval=times, rtol=1e-10, atol=1e-12, method="DOP853")
    flow = wl.gradient_flow(THETA, X, Y[:, 0], initial=lambda A: np.cos(A[:, 0]))
    np.testing.assert_allclose(flow.predict(everything, times), solution.y.T, atol=1e-8)
    losses = np.mean((solution.y[:40].T - Y[:, 0]) ** 2, axis=1)
    np.testing.assert_allclose(flow.loss(times), losses, rtol=1e-7, atol=1e-12)
    planted = flow.predict(everything, times / 2)  # the other time unit in use
    assert np.abs(planted - solution.y.T).max() > 0.01


def test_flow_ends_at_the_minimum_norm_interpolant_and_starts_at_f0():
    flow = wl.gradient_flow(THETA, X, Y)
    np.testing.assert_allclose(flow.predict(Z, INF), wl.posterior(THETA, X, Y).mean(Z), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(flow.predict(X, INF), Y, atol=1e-10)
    np.testing.assert_array_equal(flow.predict(Z, 0.0), 0)
    np.testing.assert_allclose(flow.predict(Z, 1e12), flow.predict(Z, INF), rtol=1e-12)
    np.testing.assert_allclose(flow.loss(0.0), np.sum(Y**2) / 40, rtol=1e-13)
    assert flow.loss(INF) == 0.0
    tiny = flow.predict(Z, 1e-9) / 1e-9
    np.testing.assert_allclose(tiny, 2 / 40 * THETA.cross(Z, X) @ Y, rtol=1e-6)
    np.testing.assert_allclose(flow.predict(Z, 1e-320), 0, atol=1e-310)


def test_flow_from_f0_ends_at_f0_plus_the_interpolant_of_the_rest():
    def f0(A):
        return np.column_stack([A[:, 0], np.ones(len(A))])

    flow = wl.gradient_flow(THETA, X, Y, initial=f0)
    expected = f0(Z) + wl.posterior(THETA, X, Y - f0(X)).mean(Z)
    np.testing.assert_allclose(flow.predict(Z, INF), expected, rtol=1e-9, atol=1e-10)
    assert np.abs(flow.predict(Z, INF) - wl.posterior(THETA, X, Y).mean(Z)).max() > 1e-3  # not Corollary 4.6 as printed


def test_flow_shapes_follow_the_times():
    flow = wl.gradient_flow(THETA, X, Y)
    single = wl.gradient_flow(THETA, X, Y[:, 0])
    assert flow.predict(Z, 1.0).shape == (11, 2)
    assert flow.predict(Z, [0, 1, INF]).shape == (3, 11, 2)
    assert single.predict(Z, 1).shape == (11,)
    assert single.predict(Z, [1.0]).shape == (1, 11)
    assert isinstance(single.loss(1.0), float)
    np.testing.assert_allclose(flow.predict(Z, [0.5, 3.0])[1], flow.predict(Z, 3.0), rtol=1e-13)
    losses = flow.loss(np.linspace(0, 50, 20))
    assert (np.diff(losses) < 0).all()


def test_flow_on_a_singular_kernel_stalls_at_the_least_squares_fit():
    rows = np.r_[0:40, 3]
    labels = Y[rows, 0].copy()
    labels[-1] += 0.5
    flow = wl.gradient_flow(THETA, X[rows], labels)
    fair = Y[:, 0].copy()
    fair[3] += 0.25
    np.testing.assert_allclose(flow.predict(Z, INF), wl.posterior(THETA, X, fair).mean(Z), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(flow.loss(INF), 2 * 0.25**2 / 41, rtol=1e-9)
    for t in (1e5, 1e7, 1e10, 1e13, 1e15, 1e18, 1e100, 1e308):  # sqrt(eps) is what rounding may add on the way
        np.testing.assert_allclose(flow.predict(Z, t), flow.predict(Z, INF), rtol=1e-7, atol=1e-7)


def test_slightly_negative_eigenvalues_do_no_harm():
    """A kernel matrix of rank 4 in 200 points: 196 eigenvalues are rounding, of both signs."""
    k = wl.ntk(wl.mlp(depth=1, bias_std=0.5))
    data = RNG.standard_normal((200, 3))
    target = data @ [1.0, -2.0, 0.5] + 0.7
    flow = wl.gradient_flow(k, data, target)
    assert (flow.values < 0).any()
    for t in (1e4, 1e6, 1e8, 1e10, 1e12, 1e200):
        np.testing.assert_allclose(flow.predict(Z, t), Z @ [1.0, -2.0, 0.5] + 0.7, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(flow.predict(Z, INF), Z @ [1.0, -2.0, 0.5] + 0.7, rtol=1e-9)
    np.testing.assert_allclose(flow.predict(Z, 1e12), Z @ [1.0, -2.0, 0.5] + 0.7, rtol=1e-9)
    assert flow.loss(INF) < 1e-20


# --- trained ensembles


def test_ensemble_starts_as_the_prior_and_ends_without_variance_at_the_data():
    ens = wl.trained_ensemble(NET, X, Y)
    np.testing.assert_array_equal(ens.covariance(Z, 0.0), K.gram(Z))
    np.testing.assert_array_equal(ens.variance(Z, 0.0), K.diag(Z))
    np.testing.assert_array_equal(ens.mean(Z, 0.0), 0)
    assert ens.variance(X, INF).max() < 1e-12
    assert (ens.variance(X, [0.0, 1.0, INF]) >= 0).all()
    np.testing.assert_allclose(ens.mean(Z, INF), wl.posterior(THETA, X, Y).mean(Z), rtol=1e-9, atol=1e-10)
    for t in (0.5, INF):
        covariance = ens.covariance(Z, t)
        assert (covariance == covariance.T).all()
        np.testing.assert_allclose(np.diagonal(covariance), ens.variance(Z, t), rtol=1e-9, atol=1e-12)
    assert ens.covariance(Z, [0, 1.0]).shape == (2, 11, 11)
    assert ens.variance(Z, [0, 1.0]).shape == (2, 11)
    assert ens.mean(Z, [0, 1.0]).shape == (2, 11, 2)


@pytest.mark.parametrize("t", [0.7, 20.0, INF])
def test_ensemble_is_the_law_of_flows_from_random_starts(t):
    """20,000 draws of f_0 from the NNGP prior, each run by the flow. Seed 3; chance of a false alarm below 1e-3."""
    everything = np.vstack([X, Z])
    root = linalg.square_root(np.asarray(K.gram(everything)), 1e-9)
    starts = root @ np.random.default_rng(3).standard_normal((51, 20_000))

    def f0(A):
        return starts[:40] if len(A) == 40 else starts[40:]

    flow = wl.gradient_flow(THETA, X, np.tile(Y[:, :1], 20_000), initial=f0)
    ends = flow.predict(Z, t)
    ens = wl.trained_ensemble(NET, X, Y[:, 0])
    covariance = ens.covariance(Z, t)
    z = (ends.mean(1) - ens.mean(Z, t)) / np.sqrt(np.diagonal(covariance) / 20_000)
    assert np.abs(z).max() < 4.5
    centred = ends - ens.mean(Z, t)[:, None]
    sample = centred @ centred.T / 20_000
    variance = np.diagonal(covariance)
    error = np.sqrt((covariance**2 + np.outer(variance, variance)) / 20_000)
    assert (np.abs(sample - covariance) / error).max() < 4.8
    assert (np.abs(sample - 1.1 * covariance) / error).max() > 4.8
    bayes = wl.posterior(K, X, Y, noise=1e-9).covariance(Z)
    assert (np.abs(sample - bayes) / error).max() > 4.8


def test_last_layer_training_is_bayes():
    """With the NNGP in place of the NTK (only the last layer trained) the ensemble at t = inf is the posterior."""
    flow = wl.gradient_flow(K, X, Y)
    modes = flow.vectors.T @ K.gram(X) @ flow.vectors
    ens = wl.TrainedEnsemble(flow, K, modes)
    post = wl.posterior(K, X, Y)
    np.testing.assert_allclose(ens.mean(Z, INF), post.mean(Z), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(ens.covariance(Z, INF), post.covariance(Z), rtol=1e-7, atol=1e-10)


# --- arrays


def test_float32_and_jax_data_are_computed_in_float64():
    single = X.astype(np.float32), Y.astype(np.float32)
    exact = wl.posterior(K, single[0].astype(np.float64), single[1].astype(np.float64), noise=1e-8)
    post = wl.posterior(K, *single, noise=1e-8)
    assert post.mean(Z).dtype == np.float64
    np.testing.assert_array_equal(post.mean(Z), exact.mean(Z))
    traced = wl.posterior(K, jnp.asarray(single[0]), jnp.asarray(single[1]), noise=1e-8)
    answer = traced.mean(jnp.asarray(Z, jnp.float32))
    assert answer.dtype == jnp.float32
    np.testing.assert_allclose(answer, exact.mean(Z.astype(np.float32)), rtol=1e-6, atol=1e-6)
    with jax.enable_x64(True):
        double = jnp.asarray(Z)
    assert traced.mean(double).dtype == traced.variance(double).dtype == jnp.float64
    integers = wl.posterior(K, X, np.arange(40))
    np.testing.assert_array_equal(integers.mean(Z), wl.posterior(K, X, np.arange(40.0)).mean(Z))


def test_inference_leaves_its_inputs_alone():
    data, targets, where = X.copy(), Y.copy(), Z.copy()
    wl.posterior(K, data, targets).covariance(where)
    wl.trained_ensemble(NET, data, targets).covariance(where, [0, INF])
    for now, before in ((data, X), (targets, Y), (where, Z)):
        np.testing.assert_array_equal(now, before)


def test_draws_of_one_seed_are_a_continuous_function_of_the_covariance():
    """Eigenvectors are not: their signs, and a basis where eigenvalues meet, follow the last bits of the matrix."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((6, 4))
    for covariance in (np.eye(6), factor @ factor.T, np.diag([1.0, 1.0, 1.0, 2.0, 2.0, 0.0])):
        change = rng.standard_normal((6, 6)) * 1e-14
        draws = [
            linalg.gaussian_draws(np.zeros((6, 2)), each, 1e-12, 3, seed)
            for each, seed in ((covariance, 1), (covariance + change + change.T, 1), (covariance, 2))
        ]
        np.testing.assert_allclose(draws[0], draws[1], atol=1e-6)  # sqrt(1e-14) and some, where an eigenvalue is 0
        assert np.abs(draws[0] - draws[2]).max() > 0.1
        root = linalg.square_root(covariance, 1e-12)
        np.testing.assert_allclose(root @ root.T, covariance, atol=1e-13)


@pytest.mark.filterwarnings("ignore:the search ended at a bound of noise")
@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_what_tables_leave_of_a_zero_eigenvalue_is_no_negative_variance(activation):
    """Eigenvalues of 1-D kernels fall below the error of a table: -9e-11 beside 158 for softplus, which was refused."""
    k = wl.nngp(wl.mlp(depth=3, activation=activation, weight_std=1.2, bias_std=0.3))
    Z = np.linspace(-np.pi, np.pi, 121)[:, None]
    X, y = Z[::4], np.sin(Z[::4, 0])
    lowest = np.linalg.eigvalsh(k.gram(Z))[0]
    assert -k.covariance_error(Z) < lowest < -1e-15  # the case is one, and within the stated error
    assert np.isfinite(wl.posterior(k, X[::8], y[::8], noise=0.01).sample(Z, 2)).all()
    flow = wl.gradient_flow(k, X, y).predict(X, [1.0, 1e6])
    assert np.abs(flow[1] - y).max() < np.abs(flow[0] - y).max() < 1
    model = wl.NNGPRegressor(activation=activation).fit(X, y)
    assert model.noise_ < 1e-8
    assert np.abs(model.predict(Z) - np.sin(Z[:, 0])).max() < 0.01


def test_kernels_that_are_not_definite_beyond_the_error_of_tables_are_refused():
    bad = np.diag([1.0, 1.0, -1e-6])
    with pytest.raises(ValueError, match="not positive semi-definite"):
        linalg.eigenpairs(bad.copy(), 1e-7)
    values, _ = linalg.eigenpairs(np.diag([1.0, 1e-7, -1e-6]), 1e-5)
    assert values.tolist() == [0.0, 0.0, 1.0]  # both are within the error that the negative one shows
    assert wl.nngp(wl.mlp(depth=3, activation="erf")).covariance_error(np.ones((4, 2))) == 0
    assert wl.nngp(wl.mlp(depth=3, activation="tanh")).covariance_error(np.ones((4, 2))) == pytest.approx(
        4e-10, rel=0.9
    )
