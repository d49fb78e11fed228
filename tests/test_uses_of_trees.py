"""Every tree of layers through everything that stands on kernels: one table of uses, one of trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from compiled import quick_jit
from test_architectures import TREES

RNG = np.random.default_rng(7)
N = 5
POINTS, OTHERS = RNG.standard_normal((N, 4)), RNG.standard_normal((3, 4))
TARGETS = np.sin(POINTS[:, 0]) + POINTS[:, 1]
NOISE = 0.3
BUDGET = 32 * 1024
"""Bytes: tiles of 16 rows, so that 40 rows take several."""


def joint(kernel):
    """The kernel of all points together, by the library's own matrix: the uses below are plain algebra on it."""
    return kernel.gram(np.vstack([POINTS, OTHERS]))


def posterior(net):
    K = joint(wl.nngp(net))
    post = wl.posterior(wl.nngp(net), POINTS, TARGETS, noise=NOISE)
    weights = np.linalg.solve(K[:N, :N] + NOISE * np.eye(N), K[:N, N:])
    variances = np.diag(K)[N:] - np.sum(K[:N, N:] * weights, axis=0)
    return [post.mean(OTHERS), post.variance(OTHERS)], [weights.T @ TARGETS, variances]


def gradient_flow(net):
    T = joint(wl.ntk(net))
    values, vectors = np.linalg.eigh(T[:N, :N])
    decay = vectors @ np.diag((1 - np.exp(-2 * values / N)) / values) @ vectors.T
    return [wl.gradient_flow(wl.ntk(net), POINTS, TARGETS).predict(OTHERS, 1.0)], [T[N:, :N] @ decay @ TARGETS]


def ensemble(net):
    K, T = joint(wl.nngp(net)), joint(wl.ntk(net))
    weights = np.linalg.solve(T[:N, :N], T[:N, N:]).T
    law = K[N:, N:] - weights @ K[:N, N:] - (weights @ K[:N, N:]).T + weights @ K[:N, :N] @ weights.T
    found = wl.trained_ensemble(net, POINTS, TARGETS)
    return [found.mean(OTHERS, np.inf), found.covariance(OTHERS, np.inf)], [weights @ TARGETS, law]


def empirical(net):
    """Against the explicit Jacobian of a finite network."""
    params = net.init(0, input_dim=4, width=8, dtype=np.float64)
    with jax.enable_x64(True):
        jacobian = quick_jit(jax.jacrev(net.signals_of))(params, jnp.asarray(OTHERS))
    rows = [np.asarray(leaf).reshape(len(OTHERS), -1) for leaf in jax.tree.leaves(jacobian)]
    known = sum(row @ row.T for row in rows)
    return [wl.empirical_ntk(net.apply, params, output="trace").gram(OTHERS)], [known]


USES = {"posterior": posterior, "gradient flow": gradient_flow, "ensemble": ensemble, "empirical": empirical}


@pytest.mark.parametrize("name", TREES)
def test_every_use_of_every_tree(name):
    net = wl.network(*TREES[name][0])
    for use, compute in USES.items():
        for found, expected in zip(*compute(net), strict=True):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * scale, err_msg=use)
            assert np.abs(found - 1.001 * expected).max() > 1e-8 * scale


@pytest.mark.parametrize("name", ["dense-connected", "alike but for numbers"])
def test_a_matrix_on_disk_goes_on_where_it_was_killed(name, tmp_path):
    kernel, X = wl.ntk(wl.network(*TREES[name][0])), RNG.standard_normal((80, 4))

    class Killed(BaseException):
        pass

    def kill(done, _):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        wl.stored_gram(kernel, X, tmp_path / "K.zarr", budget=BUDGET, progress=kill)
    done = []
    stored = wl.stored_gram(kernel, X, tmp_path / "K.zarr", budget=BUDGET, progress=lambda *at: done.append(at))
    assert 2 <= done[0][0] - 1 < done[0][1]
    np.testing.assert_allclose(stored[:], kernel.gram(X), rtol=1e-13)
