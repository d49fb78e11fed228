"""Gaussian processes, leave-one-out, marginal likelihood and its gradient, hyper-parameters."""

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.gaussian_process.kernels import Kernel as SklearnKernel

import widelimit as wl

RNG = np.random.default_rng(0)
N = 15
X, Z = RNG.standard_normal((N, 3)), RNG.standard_normal((6, 3))
Y = np.column_stack([np.sin(2 * X[:, 0]) + X[:, 1], X[:, 2]]) + 0.7 * RNG.standard_normal((N, 2))
K = wl.rbf(1.2) + 0.5 * wl.linear()
NOISE = 0.05
LINE = np.linspace(-3, 3, 40)[:, None]
WAVE = np.sin(2 * LINE[:, 0]) + 0.3 * RNG.standard_normal(40)


def mean(A):
    return 0.5 + A[:, 0]


# --- the process


def test_log_density_is_scipys_and_adds_over_outputs():
    gp = wl.GaussianProcess(K, mean=mean)
    expected = scipy.stats.multivariate_normal(mean(X), K.gram(X)).logpdf(Y[:, 0])
    np.testing.assert_allclose(gp.log_density(X, Y[:, 0]), expected, rtol=1e-10)
    both = wl.GaussianProcess(K, mean=lambda A: np.stack([mean(A)] * 2, 1), outputs=(2,))
    np.testing.assert_allclose(
        both.log_density(X, Y), gp.log_density(X, Y[:, 0]) + gp.log_density(X, Y[:, 1]), rtol=1e-12
    )
    printed = -(N / 2) * np.log(2 * np.pi * np.linalg.det(K.gram(X))) + expected  # (2 pi det S)^(d/2), Definition 2.2
    printed -= -(N / 2) * np.log(2 * np.pi) - np.linalg.slogdet(K.gram(X))[1] / 2
    assert abs(printed / expected - 1) > 0.1


def test_a_degenerate_process_has_a_rank_a_density_on_its_support_and_samples_in_it():
    """A linear kernel on 15 points in 3 dimensions: SciPy's density on the support, by eigenvectors."""
    gp = wl.GaussianProcess(wl.linear())
    assert gp.rank(X) == 3
    assert wl.GaussianProcess(K).rank(np.vstack([X, X[:4]])) == N
    assert wl.GaussianProcess(wl.linear()).rank(np.zeros((4, 2))) == 0
    inside = X @ [1.0, -2.0, 0.3]
    expected = scipy.stats.multivariate_normal(np.zeros(N), X @ X.T, allow_singular=True).logpdf(inside)
    np.testing.assert_allclose(gp.log_density(X, inside), expected, rtol=1e-9)
    assert gp.log_density(X, inside + 1e-3 * Y[:, 0]) == -np.inf
    draws = gp.sample(X, 5, seed=2)
    np.testing.assert_allclose(draws @ scipy.linalg.null_space(X.T), 0, atol=1e-12)
    copies = wl.GaussianProcess(K).sample(X[[0, 1, 0]], 3)
    np.testing.assert_allclose(copies[:, 0], copies[:, 2], atol=1e-12)
    scaled = np.diag([1e12, 1.0, 1e-12])
    assert wl.GaussianProcess(wl.linear()).rank(scaled) == 3  # each pivot against its own diagonal
    assert wl.GaussianProcess(wl.linear()).sample(scaled, 1).shape == (1, 3)


def test_samples_have_the_mean_and_covariance_and_outputs_are_independent():
    """20,000 draws, seed 1: Mahalanobis distances are chi^2 at level 1e-3; 5 % too wide is seen."""
    gp = wl.GaussianProcess(K, mean=lambda A: np.stack([mean(A), -mean(A)], 1), outputs=(2,))
    draws = gp.sample(Z, 20_000, seed=1)
    assert draws.shape == (20_000, 6, 2)
    np.testing.assert_array_equal(draws[:1], gp.sample(Z, 20_000, seed=1)[:1])
    centred = draws - np.stack([mean(Z), -mean(Z)], 1)
    root = np.linalg.cholesky(K.gram(Z))

    def p_value(scale):
        white = scipy.linalg.solve_triangular(scale * root, centred[:, :, 0].T, lower=True)
        return scipy.stats.kstest(np.sum(white**2, axis=0), scipy.stats.chi2(6).cdf).pvalue

    assert p_value(1.0) > 1e-3
    assert p_value(1.05) < 1e-3
    assert abs(np.corrcoef(centred[:, 0, 0], centred[:, 0, 1])[0, 1]) < 4.5 / np.sqrt(20_000)


def test_conditioning_gives_a_process_that_can_be_conditioned_again():
    gp = wl.GaussianProcess(K, mean=mean)
    once = gp.condition(X, Y[:, 0], noise=NOISE)
    post = wl.posterior(K, X, Y[:, 0] - mean(X), noise=NOISE)
    np.testing.assert_allclose(once.mean(Z), mean(Z) + post.mean(Z), rtol=1e-12)
    np.testing.assert_allclose(once.kernel.gram(Z), post.covariance(Z), rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        once.kernel.cross(Z, X),
        K.cross(Z, X) - post.factor.whiten(K.cross(X, Z)).T @ (post.factor.whiten(K.gram(X))),
        rtol=0,
        atol=1e-13,
    )
    twice = gp.condition(X[:6], Y[:6, 0], noise=NOISE).condition(X[6:], Y[6:, 0], noise=NOISE)
    np.testing.assert_allclose(twice.mean(Z), once.mean(Z), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(twice.kernel.gram(Z), once.kernel.gram(Z), rtol=0, atol=1e-11)
    planted = gp.condition(X[:6], Y[:6, 0], noise=1.1 * NOISE).condition(X[6:], Y[6:, 0], noise=NOISE)
    assert np.abs(planted.mean(Z) - once.mean(Z)).max() > 1e-4
    # chain rule: log p(y) = log p(y_1) + log p(y_2 | y_1), without noise
    first = gp.condition(X[:6], Y[:6, 0])
    together = gp.log_density(X[:6], Y[:6, 0]) + first.log_density(X[6:], Y[6:, 0])
    np.testing.assert_allclose(together, gp.log_density(X, Y[:, 0]), rtol=1e-9)
    assert first.rank(X) == N - 6
    np.testing.assert_allclose(first.sample(X[:6], 3), np.tile(Y[:6, 0], (3, 1)), atol=1e-6)
    assert (first.kernel.diag(X[:6]) == 0).all()


class Same(SklearnKernel):
    """scikit-learn's Gaussian process with a matrix that is already there; inputs are indices."""

    def __init__(self, matrix=None):
        self.matrix = matrix

    def __call__(self, A, B=None, eval_gradient=False):
        B = A if B is None else B
        return self.matrix[A[:, 0].astype(int)][:, B[:, 0].astype(int)]

    def diag(self, A):
        return np.diagonal(self.matrix)[A[:, 0].astype(int)]

    def is_stationary(self):
        return False


@pytest.mark.parametrize("noise", [1e-3, 0.1])
def test_scikit_learn_agrees_on_the_same_matrix(noise):
    k = wl.precomputed(wl.ntk(wl.mlp(depth=3, bias_std=0.3)).gram(np.vstack([X, Z])))
    train, test = k.indices[:N], k.indices[N:]
    peer = GaussianProcessRegressor(Same(k.matrix), alpha=noise, optimizer=None).fit(train, Y[:, 0])
    average, covariance = peer.predict(test, return_cov=True)
    post = wl.posterior(k, train, Y[:, 0], noise=noise)
    np.testing.assert_allclose(post.mean(test), average, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(post.covariance(test), covariance, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(post.log_marginal_likelihood(), peer.log_marginal_likelihood_value_, rtol=1e-8)
    assert abs(wl.posterior(k, train, Y[:, 0], noise=1.001 * noise).mean(test) - average).max() > 1e-8


# --- leave one out, marginal likelihood


@pytest.mark.parametrize("noise", [0.0, NOISE, "each"])
def test_leave_one_out_equals_as_many_refits(noise):
    noise = np.linspace(0.01, 0.2, N) if noise == "each" else noise
    found = wl.posterior(K, X, Y, noise=noise).leave_one_out()
    each = np.broadcast_to(noise, N)
    for i in range(N):
        rest = np.delete(np.arange(N), i)
        refit = wl.posterior(K, X[rest], Y[rest], noise=each[rest])
        np.testing.assert_allclose(found.mean[i], refit.mean(X[i : i + 1])[0], rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(found.variance[i], refit.variance(X[i : i + 1])[0], rtol=1e-7, atol=1e-10)
    kept = wl.posterior(K, X, Y, noise=noise)  # the planted error: the point itself is not left out
    assert np.abs(kept.mean(X) - found.mean).max() > 1e-3
    single = wl.posterior(K, X, Y[:, 0], noise=noise).leave_one_out()
    assert single.mean.shape == single.variance.shape == (N,)


NETS = {
    "leaky relu": lambda w=1.3, b=0.4, s=0.2: wl.ntk(
        wl.mlp(depth=2, activation=wl.LeakyRelu(s), weight_std=w, bias_std=b)
    ),
    "sin": lambda w=1.3, b=0.4, s=0.8: wl.nngp(wl.mlp(depth=2, activation=wl.Sin(s), weight_std=w, bias_std=b)),
}


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_of_the_marginal_likelihood_equals_differences(name):
    """Every leaf: weights and biases of both layers, the activation's parameters, input scales, the noise.

    Central differences of step 1e-5: truncation 1e-10 times the third derivative, rounding eps L/1e-5 = 1e-9.
    """
    k = wl.scale_inputs(NETS[name](), np.array([1.0, 0.7, 1.4]))
    slopes = wl.posterior(k, X, Y, noise=NOISE).log_marginal_likelihood_gradient()
    leaves, tree = jax.tree.flatten(k)
    assert jax.tree.structure(slopes.kernel) == tree
    for i, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(slopes.kernel), strict=True)):
        for j in range(np.size(leaf)):
            ends = []
            for step in (1e-5, -1e-5):
                moved = np.array(leaf, float)
                moved.flat[j] += step
                value = float(moved) if moved.ndim == 0 else moved
                other = jax.tree.unflatten(tree, [*leaves[:i], value, *leaves[i + 1 :]])
                ends.append(wl.posterior(other, X, Y, noise=NOISE).log_marginal_likelihood())
            difference = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(np.ravel(slope)[j], difference, rtol=1e-6, atol=1e-6)
            assert abs(1.01 * difference - np.ravel(slope)[j]) > 1e-6 * abs(difference) or abs(difference) < 1e-3
    ends = [wl.posterior(k, X, Y, noise=NOISE + h).log_marginal_likelihood() for h in (1e-6, -1e-6)]
    np.testing.assert_allclose(slopes.noise, (ends[0] - ends[1]) / 2e-6, rtol=1e-6)


def test_hyper_parameters_are_those_that_scikit_learn_finds():
    peer = GaussianProcessRegressor(
        1.0 * RBF(1.0) + WhiteKernel(0.1), n_restarts_optimizer=2, random_state=0, alpha=0.0
    ).fit(LINE, WAVE)
    found = wl.fit_hyperparameters(
        lambda amplitude, length_scale: amplitude * wl.rbf(length_scale),
        LINE,
        WAVE,
        start={"amplitude": 1.0, "length_scale": 1.0},
        noise=0.1,
    )
    assert found.score == pytest.approx(peer.log_marginal_likelihood_value_, abs=1e-4)
    assert found.values["length_scale"] == pytest.approx(peer.kernel_.k1.k2.length_scale, rel=1e-2)
    assert found.posterior.log_marginal_likelihood() == pytest.approx(found.score, rel=1e-12)
    assert len(found.runs) == 3
    assert "searches ended within 0.1% of the best score" in found.message
    worse = wl.posterior(1.0 * wl.rbf(1.0), LINE, WAVE, noise=0.1).log_marginal_likelihood()
    assert found.score > worse + 0.1


def leave_one_out_score(k, noise):
    left = wl.posterior(k, LINE, WAVE, noise=noise).leave_one_out()
    deviation = np.sqrt(left.variance + noise)
    return scipy.stats.norm(left.mean, deviation).logpdf(WAVE).sum()


def test_leave_one_out_objective_its_value_and_its_stationary_point():
    """The score by its definition, its optimum by trial, and both gradients."""
    common = {"noise": 0.1, "objective": "leave_one_out", "restarts": 0}

    def build(a, length):
        return a * wl.rbf(length) + wl.nngp(wl.mlp(depth=2, weight_std=a, bias_std=0.3))

    found = wl.fit_hyperparameters(build, LINE, WAVE, start={"a": 1.0, "length": 0.5}, **common)
    a, length, noise = (found.values[name] for name in ("a", "length", "noise"))
    assert found.score == pytest.approx(leave_one_out_score(build(a, length), noise), rel=1e-9)
    assert found.runs[0].converged, found.message
    assert not found.at_bounds, found.message
    for near in [(1.05 * a, length), (a / 1.05, length), (a, 1.05 * length), (a, length / 1.05)]:
        assert leave_one_out_score(build(*near), noise) < found.score
    for near in (1.05 * noise, noise / 1.05):
        assert leave_one_out_score(build(a, length), near) < found.score
    same = wl.fit_hyperparameters(build, LINE, WAVE, start={"a": 1.0, "length": 0.5}, gradient="differences", **common)
    assert same.score == pytest.approx(found.score, abs=1e-6)


def test_tabulated_activations_are_fitted_by_either_gradient():
    """Of a factor, so that the tables are made once. In one factor and without noise the best is y^T K^{-1} y/(n c).

    y has both outputs at the size of the first: their unit has no say.
    """
    k = wl.nngp(wl.mlp(depth=2, activation="tanh", bias_std=0.2))

    def build(factor):
        return factor * k

    size = np.sqrt(np.mean(Y**2, axis=0))
    best, raw = (np.sum(y * np.linalg.solve(k.gram(X), y)) / Y.size for y in (Y / size * size[0], Y))
    assert raw != pytest.approx(best, rel=1e-2)
    for gradient in ("differences", "autodiff"):
        found = wl.fit_hyperparameters(
            build,
            X,
            Y,
            start={"factor": 1.0},
            noise=0.0,
            gradient=gradient,
            restarts=0,
            bounds={"factor": (1e-9, 1e9)},
        )
        assert found.values["factor"] == pytest.approx(best, rel=1e-3), gradient


def test_a_kernel_is_its_own_builder_and_bounds_are_told():
    found = wl.fit_hyperparameters(
        wl.scale_inputs(wl.rbf(1.0), np.ones(3)),
        X,
        Y[:, 0],
        noise=0.1,
        restarts=0,
        max_steps=30,
        bounds={"kernel.length_scale": (0.99, 1.01)},
    )
    assert found.values["scales"].shape == (3,)
    assert 0.99 <= found.values["kernel.length_scale"] <= 1.01
    assert found.kernel.scales.shape == (3,)
    short = wl.fit_hyperparameters(
        wl.rbf(1.0), X, Y[:, 0], noise=0.1, fit_noise=False, restarts=0, bounds={"length_scale": (0.9, 1.1)}
    )
    assert short.at_bounds == ("length_scale",)
    assert "at a bound: length_scale" in short.message
    assert short.values["noise"] == 0.1


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: wl.GaussianProcess("rbf"), TypeError, "a kernel is needed"),
        (lambda: wl.GaussianProcess(K, mean=0.5), TypeError, "mean must be a function"),
        (lambda: wl.GaussianProcess(K, outputs=2), TypeError, r"outputs must be \(\) or \(c,\)"),
        (lambda: wl.GaussianProcess(K, outputs=(0,)), ValueError, "the number of outputs must be at least 1"),
        (lambda: wl.GaussianProcess(K).sample(X, 0), ValueError, "count must be at least 1"),
        (lambda: wl.GaussianProcess(K).sample(X, 1, seed=-1), ValueError, "seed must be at least 0"),
        (lambda: wl.GaussianProcess(K).log_density(X, Y), ValueError, r"y must have shape \(15,\) for outputs=\(\)"),
        (lambda: wl.GaussianProcess(K, mean=lambda A: A).sample(X, 1), ValueError, "mean must map"),
        (lambda: wl.posterior(wl.linear(), X, X[:, 0]).leave_one_out(), ValueError, "rank 3 of 15 and no inverse"),
        (lambda: wl.fit_hyperparameters(K, X, Y, noise=-1.0), ValueError, "noise must be >= 0"),
        (lambda: wl.fit_hyperparameters(K, X, Y, noise=0.1, objective="mse"), ValueError, "objective must be one of"),
        (lambda: wl.fit_hyperparameters(3, X, Y, noise=0.1), TypeError, "a builder, a kernel or a network"),
        (lambda: wl.fit_hyperparameters(K, X, Y, noise=0.1, start={}), ValueError, "start is for a builder"),
        (lambda: wl.fit_hyperparameters(lambda: 3, X, Y, noise=0.1), TypeError, "must return a kernel or a network"),
        (
            lambda: wl.fit_hyperparameters(wl.rbf, X, Y, start={"length_scale": 1.0}, noise=0.1, bounds={"l": (1, 2)}),
            ValueError,
            r"bounds names \['l'\]",
        ),
        (
            lambda: wl.fit_hyperparameters(wl.mlp(depth=2), X, Y, noise=0.1),
            ValueError,
            "bias_std starts at 0.0; give its bounds",
        ),
        (
            lambda: wl.fit_hyperparameters(wl.rbf(1.0), X, Y, noise=0.1, bounds={"length_scale": (2.0, 1.0)}),
            ValueError,
            "must be finite and low < high",
        ),
        (lambda: wl.fit_hyperparameters(wl.linear(), X, Y, noise=0.0), ValueError, "there is nothing to fit"),
        (lambda: wl.fit_hyperparameters(wl.rbf(1.0), X, Y, noise=0.1, max_steps=0), ValueError, "max_steps must be"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
