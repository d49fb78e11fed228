"""Kernels without networks and their algebra: against scikit-learn and NumPy, and the laws of every kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from cases import MATRIX_KERNELS, STANDARD_KERNELS, points
from cases import OTHERS as Z
from cases import POINTS as X
from widelimit.compute import plan

RNG = np.random.default_rng(1)
EPS = np.finfo(np.float64).eps


@pytest.mark.parametrize("name", STANDARD_KERNELS)
def test_values_and_laws(name):
    k, oracle = STANDARD_KERNELS[name]
    X, Z = points(name)
    # 64 eps of the largest entry, as for the kernels of networks: a few roundings an operation
    bound = 64 * EPS * np.abs(oracle(X, X)).max()
    gram = k.gram(X)
    np.testing.assert_allclose(gram, oracle(X, X), rtol=0, atol=bound)
    np.testing.assert_allclose(k.cross(Z, X), oracle(Z, X), rtol=0, atol=bound)
    assert np.abs(1.01 * gram - oracle(X, X)).max() > bound
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(np.diagonal(gram), k.diag(X))
    np.testing.assert_allclose(k.cross(X, X), gram, rtol=0, atol=bound)
    assert np.linalg.eigvalsh(gram)[0] > -bound
    assert gram.dtype == np.float64
    assert name in ("precomputed", "empirical") or k.gram(X.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("name", MATRIX_KERNELS)
def test_values_and_laws_of_matrices(name):
    k, oracle = MATRIX_KERNELS[name]
    expected = oracle(X, X)
    bound = 64 * EPS * np.abs(expected).max()
    gram = k.gram(X)
    assert gram.shape == (9, 9, 2, 2)
    np.testing.assert_allclose(gram, expected, rtol=0, atol=bound)
    np.testing.assert_allclose(k.cross(Z, X), oracle(Z, X), rtol=0, atol=bound)
    np.testing.assert_allclose(k.diag(X), expected[np.arange(9), np.arange(9)], rtol=0, atol=bound)
    assert np.abs(1.01 * gram - expected).max() > bound
    assert np.abs(gram - expected[:, :, ::-1]).max() > bound
    whole = gram.transpose(0, 2, 1, 3).reshape(18, 18)
    np.testing.assert_allclose(whole, whole.T, rtol=0, atol=bound)
    assert np.linalg.eigvalsh(whole)[0] > -bound


@pytest.mark.parametrize("name", ["rbf, scales", "laplace", "sum", "scaled inputs"])
def test_gradients_in_inputs_and_parameters(name):
    """Against central differences, step 1e-5: rounding 1e-11, truncation 1e-10; finite at duplicate inputs."""
    k, _ = STANDARD_KERNELS[name]
    with jax.enable_x64(True):
        points, weights = jnp.asarray(X), jnp.asarray(RNG.standard_normal((9, 9)))
        leaves, tree = jax.tree.flatten(k)
        flat = jnp.concatenate([jnp.ravel(jnp.asarray(leaf, jnp.float64)) for leaf in leaves] or [jnp.zeros(0)])

        def total(points, flat):
            if len(leaves):
                parameter = flat[0] if np.ndim(leaves[0]) == 0 else flat
                return jnp.sum(weights * jax.tree.unflatten(tree, [parameter, *leaves[1:]]).gram(points))
            return jnp.sum(weights * k.gram(points))

        slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(points, flat)
        towards = RNG.standard_normal(X.shape), RNG.standard_normal(flat.shape)
        slope = sum(float(jnp.vdot(a, b)) for a, b in zip(slopes, towards, strict=True))
        forward, back = (float(total(points + h * towards[0], flat + h * towards[1])) for h in (1e-5, -1e-5))
        assert abs((forward - back) / 2e-5 - slope) < 1e-7
        assert abs((forward - back) / 2e-5 - 1.01 * slope) > 1e-7
        twice = points.at[1].set(points[0])
        assert all(bool(jnp.isfinite(g).all()) for g in jax.grad(total, argnums=(0, 1))(twice, flat))


def test_near_inputs_far_from_the_origin_keep_their_digits():
    """|x - x'|^2 from differences: x.x + y.y - 2 x.y would be off by 1e4^2 eps = 2e-8 here, and the norm by 1e-4."""
    far = 1e4 + X
    exact = np.linalg.norm(far[:, None] - far[None], axis=-1)
    np.testing.assert_allclose(wl.laplace(0.7).gram(far), np.exp(-exact / 0.7), rtol=8 * EPS)
    np.testing.assert_array_equal(wl.rbf(1e-200).gram(1e200 * X), np.eye(9))


def test_precomputed_kernels_index_their_matrix():
    everything = np.vstack([X, Z])
    whole = wl.rbf(0.7).gram(everything)
    k = wl.precomputed(whole)
    train, test = k.indices[:9], k.indices[9:]
    np.testing.assert_array_equal(k.gram(train), whole[:9, :9])
    np.testing.assert_array_equal(k.cross(test, train), whole[9:, :9])
    np.testing.assert_array_equal(k.diag(test), np.diagonal(whole)[9:])
    expected = wl.posterior(wl.rbf(0.7), X, X[:, 0], noise=0.1).mean(Z)
    np.testing.assert_allclose(wl.posterior(k, train, X[:, 0], noise=0.1).mean(test), expected, rtol=1e-13)
    swapped = wl.posterior(k, train[::-1], X[:, 0], noise=0.1).mean(test)
    assert np.abs(swapped - expected).max() > 1e-3


def test_a_kernel_is_a_pytree_of_its_hyper_parameters():
    assert jax.tree.leaves(2.0 * wl.rbf(0.7) + wl.linear() * wl.laplace(3.0)) == [2.0, 0.7, 3.0]
    assert jax.tree.leaves(np.float64(2.0) * wl.rbf(0.7)) == [2.0, 0.7]
    np.testing.assert_array_equal((0.0 * wl.rbf()).gram(X), np.zeros((9, 9)))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda: wl.precomputed(np.array([[1.0, 0.2], [0.3, 1.0]])),
            ValueError,
            r"entry \[0, 1\] is 0.2",
        ),
        (lambda: wl.precomputed(np.full((2, 2), np.nan)), ValueError, "4 entries that are NaN or infinite"),
        (lambda: wl.precomputed(np.ones((2, 3))), ValueError, r"must be square, \(N, N\), got shape \(2, 3\)"),
        (lambda: wl.precomputed(-np.eye(2)), ValueError, "diagonal of a kernel is >= 0, got -1"),
        (
            lambda: wl.precomputed(np.eye(2)).gram(np.array([[2]])),
            ValueError,
            "from 0 to 1, got 2; take them",
        ),
        (lambda: wl.precomputed(np.eye(2)).gram(np.array([[0.5]])), ValueError, "got 0.5"),
        (lambda: wl.precomputed(np.eye(2)).gram(X), ValueError, r"indices of shape \(n, 1\), got shape \(9, 3\)"),
        (lambda: -1.0 * wl.rbf(), ValueError, "the factor of a kernel must be >= 0, got -1"),
        (lambda: wl.rbf() * "2", TypeError, "must be a real number, got '2'"),
        (lambda: wl.rbf() + 1.0, TypeError, "unsupported operand"),
        (lambda: wl.rbf(0.0), ValueError, "length_scale must be > 0, got 0"),
        (lambda: wl.rbf(np.array([1.0, -1.0])), ValueError, "length_scale must be > 0, got -1"),
        (lambda: wl.laplace(np.ones((2, 2))), ValueError, "one a feature; got shape"),
        (lambda: wl.laplace(np.ones(2)).gram(X), ValueError, r"length_scale has shape \(2,\) and the inputs have 3"),
        (lambda: wl.scale_inputs(wl.linear(), np.ones(2)).gram(X), ValueError, "scales has shape"),
        (lambda: wl.scale_inputs("rbf", 1.0), TypeError, "a kernel is needed"),
        (lambda: wl.polynomial(degree=0), ValueError, "degree must be at least 1"),
        (lambda: wl.polynomial(degree=2, offset=-1.0), ValueError, "offset must be >= 0"),
        (lambda: wl.linear(3), TypeError, "feature_map must be a function"),
        (lambda: wl.linear(lambda A: A[:, 0]).gram(X), ValueError, "feature_map must map"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize("name", STANDARD_KERNELS)
def test_inputs_come_first_and_sizes_are_stated(name):
    """`encode` gives arrays (n, ..), of no more numbers an input than the kernel states."""
    k, (X, _) = STANDARD_KERNELS[name][0], points(name)
    k = k.prepared(X)
    with jax.enable_x64(True):
        leaves = jax.tree.leaves(k.encode(jnp.asarray(X)))
    assert {leaf.shape[0] for leaf in leaves} == {len(X)}
    numbers = sum(leaf[0].size for leaf in leaves)
    assert numbers <= k.numbers_per_input(X.shape[1]) <= numbers + 2 * plan.BESIDE + 16
