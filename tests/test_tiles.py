"""How a matrix is cut into tiles: every tile once, within the budget, the same numbers whatever the cut."""

import itertools
import threading
import time
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.compute import plan, tiles
from widelimit.pytrees import pytree
from widelimit.signals import correlate_points

RNG = np.random.default_rng(11)
EPS = np.finfo(np.float64).eps


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_tile_comes_once_and_the_budget_is_kept(symmetric, monkeypatch):
    monkeypatch.setattr(plan, "usable_cores", lambda: 16)
    shapes = itertools.product((1, 9, 700, 1025, 60_000), (1, 784), (np.float32, np.float64), (2**21, 2**24, 2**28))
    for n, d, dtype, budget in shapes:
        m = n if symmetric else n // 2 + 1
        found = plan.tile_plan(n, m, d + plan.BESIDE, dtype, symmetric=symmetric, budget=budget)
        cut = [tile for _, _, group in found.groups() for tile in group]
        wanted = {
            (i, j) for i in range(-(-n // found.edge)) for j in range(-(-m // found.edge)) if not symmetric or j <= i
        }
        assert len(cut) == found.count == len(wanted)
        assert set(cut) == wanted
        size = np.dtype(dtype).itemsize
        tile, features = size * found.edge**2, size * found.edge * (d + plan.BESIDE)
        assert found.workers * plan.COPIES * tile + 2 * found.group * features <= budget
        assert all(i in rows and j in columns for rows, columns, group in found.groups() for i, j in group)
        assert all(len(rows) <= found.group >= len(columns) for rows, columns, _ in found.groups())


def test_a_budget_too_small_is_an_error():
    with pytest.raises(MemoryError, match=r"0\.000954 MiB is too small for one tile: 8 x 8"):
        plan.tile_plan(100, 100, 5 + plan.BESIDE, np.float64, symmetric=True, budget=1000)


def blocks(n, d=6):
    data = RNG.standard_normal((n, d))
    data[n // 3], data[n // 2] = data[0], -2 * data[1]
    return data


@pytest.mark.parametrize("k", [wl.ntk(wl.mlp(depth=3, bias_std=0.2)), wl.rbf(2.0)], ids=["ntk", "rbf"])
def test_the_cut_does_not_show(k, monkeypatch):
    """Blocks of 128 with patches of 32, whose rim is not full, few features held at once: as in one piece."""
    X, Y = blocks(300), blocks(141)
    whole, block = k.gram(X), k.cross(X, Y)
    monkeypatch.setattr(plan, "LARGEST", 128)
    monkeypatch.setattr(tiles, "PATCH", 32)
    seen = []
    monkeypatch.setattr(plan, "BESIDE", 200)
    budget = 1.2 * 128 * 8 * (plan.COPIES * 128 + 2 * 206)
    monkeypatch.setattr(tiles, "usual_budget", lambda *_: budget)
    assert plan.tile_plan(300, 300, 206, np.float64, symmetric=True, budget=budget).group == 1
    cut = tiles.gram(k, X, report=lambda _, *done: seen.append(done))
    assert seen == [(i + 1, 6) for i in range(6)]
    bound = 64 * EPS * np.sqrt(np.outer(k.diag(X), k.diag(X)))
    assert (np.abs(cut - whole) <= bound).all()
    assert (cut == cut.T).all()
    assert (np.diagonal(cut) == k.diag(X)).all()
    assert np.abs(tiles.cross(k, X, Y) - block).max() <= 64 * EPS * max(k.diag(X).max(), k.diag(Y).max())
    assert not (np.abs(1.001 * cut - whole) <= bound).all()


@pytest.mark.parametrize("n", [5, 200, 1100])
def test_the_lower_triangle_alone_is_the_same_to_the_bit(n):
    k, data = wl.ntk(wl.mlp(depth=3, bias_std=0.2)), blocks(n)
    np.testing.assert_array_equal(np.tril(tiles.lower_gram(k, data)), np.tril(k.gram(data)))


def test_as_many_features_as_rows():
    """Which axis of a square array of features is that of the rows cannot be seen from its shape."""
    X = RNG.standard_normal((256, 256))
    np.testing.assert_allclose(wl.linear().gram(X), X @ X.T, atol=1e-11)
    index = np.arange(256.0)[:, None]
    np.testing.assert_array_equal(wl.precomputed(X @ X.T).gram(index), X @ X.T)


@final
@pytree
@dataclass(frozen=True)
class Transposed(wl.Kernel):
    """A linear kernel whose features have the inputs last."""

    def encode(self, X):
        return X.T

    def pairwise(self, x, y, *, same=False):
        return x.T @ y

    def diagonal(self, x):
        return (x**2).sum(0)


def test_features_without_the_inputs_first_are_refused():
    X = RNG.standard_normal((9, 4))
    for attempt in (Transposed().gram, Transposed().diag, lambda X: Transposed().cross(X, X[:3])):
        with pytest.raises(
            ValueError, match=r"arrays \(n, \.\.\) with the n inputs first; it returned shape \(4, 16\)"
        ):
            attempt(X)


def test_no_compilation_within_a_bucket():
    k = wl.ntk(wl.mlp(depth=2, weight_std=1.1))
    programs = (*tiles._tiles.values(), tiles._encode)
    k.gram(blocks(200))
    k.cross(blocks(200), blocks(140))
    before = [program._cache_size() for program in programs]
    for n in (129, 150, 256):
        k.gram(blocks(n))
        k.cross(blocks(n), blocks(385 - n))
    assert [program._cache_size() for program in programs] == before


def test_ctrl_c_stops_within_a_tile():
    """What has begun ends; what has not never does."""
    begun, lock = [], threading.Lock()

    def work(item):
        with lock:
            begun.append(item)
        time.sleep(0.02)

    def interrupted():
        with tiles.ThreadPoolExecutor(2) as pool:
            for _ in tiles.run_in_pool(pool, work, range(100)):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert 1 <= len(begun) <= 6


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gaps_of_inputs_that_are_all_alike(dtype):
    """A common part far larger than the differences, duplicates and opposites: to 64 eps of long arithmetic."""
    centre = 5 * RNG.standard_normal(40)
    points = np.vstack([centre + RNG.standard_normal((24, 40)), centre + 1e-4 * RNG.standard_normal((4, 40))])
    points = np.vstack([points, -points[:3], points[3:4]]).astype(dtype)
    U = np.longdouble(points)
    U = (U / np.sqrt((U**2).sum(1))[:, None]).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        correlation = correlate_points(jnp.asarray(U), jnp.asarray(U), same=False)
        below, above = np.asarray(correlation.one_minus), np.asarray(correlation.one_plus)
    long = np.longdouble(U)
    exact = [((long[:, None] + s * long[None]) ** 2).sum(-1) / 2 for s in (-1, 1)]
    # a unit vector rounded to dtype is off its length by eps, which the difference does not see and the product does
    eps = np.finfo(dtype).eps
    near = [exact[i] < 0.5 for i in range(2)]
    for found, right, here in zip((below, above), exact, near, strict=True):
        assert here.sum() > 5
        assert (np.abs(found - right)[here] <= (64 + 4 / 0.01) * eps * right[here]).all()
        assert not (np.abs(1.001 * found - right)[here] <= (64 + 4 / 0.01) * eps * right[here]).all()
    naive = 1 - U @ U.T
    assert not (np.abs(naive - exact[0])[near[0]] <= (64 + 4 / 0.01) * eps * exact[0][near[0]]).all()


@pytest.mark.parametrize("n", [10, 40])
def test_nothing_is_compiled_where_no_tile_is_required(n, monkeypatch):
    k, X, begun = wl.rbf(), blocks(n), []
    monkeypatch.setattr(tiles, "compile_ahead", lambda *_: begun.append(1) or (lambda: None))
    cut = plan.tile_plan(n, n, 6 + plan.BESIDE, X.dtype, symmetric=True, budget=2**15)
    assert (cut.count == 1) == (n == 10)
    tiles.compute(k, X, X, cut, lambda *_: None, required=lambda *_: False)
    assert not begun
    tiles.compute(k, X, X, cut, lambda *_: None)
    assert begun


@pytest.mark.parametrize("k", [wl.rbf(1.0), wl.kernel(jnp.dot), wl.nngp(wl.mlp(depth=2)) * wl.linear()])
def test_numpy_inputs_are_computed_at_once_inside_of_a_trace(k):
    X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    for values in (k.gram, lambda A: k.cross(A, A[:2]), k.diag):
        traced = jax.jit(lambda s, values=values: s * values(X))(2.0)
        np.testing.assert_array_equal(traced, 2 * values(X))
        with pytest.raises(TypeError, match=r"pass jnp\.asarray\(X\)"):
            jax.jit(lambda s: (s * k).gram(X))(2.0)
    np.testing.assert_allclose(jax.jit(lambda s: (s * k).gram(jnp.asarray(X)))(2.0), 2 * k.gram(X), atol=1e-5)


def test_a_posterior_of_numpy_arrays_inside_of_a_trace():
    X = np.random.default_rng(0).standard_normal((6, 3))
    post = wl.posterior(wl.rbf(1.0), X, X[:, 0], noise=0.1)
    inside = jax.jit(lambda s: s * wl.posterior(wl.rbf(1.0), X, X[:, 0], noise=0.1).mean(X))(2.0)
    np.testing.assert_allclose(inside, 2 * post.mean(X), rtol=1e-6)
