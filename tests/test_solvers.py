"""Every solver of K + noise against dense eigenvectors, what it refuses, and what it says of itself."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import subprocess
import sys
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import zarr

import widelimit as wl
from cases import SINGULAR, SOLVERS
from widelimit import memory
from widelimit.compute import (
    checkpoints,
    device_cholesky,
    devices,
    iterative,
    linalg,
    operators,
    packed,
    packed_cholesky,
    preconditioners,
)
from widelimit.inference import solver_choice, solvers
from widelimit.pytrees import pytree

RNG = np.random.default_rng(0)
N = 301
X = RNG.standard_normal((N, 4))
Z = RNG.standard_normal((7, 4))
Y = np.column_stack([np.sin(2 * X[:, 0]) + X[:, 1], X[:, 2] ** 2, np.sign(X[:, 3])])
K = wl.ntk(wl.mlp(depth=3, weight_std=1.4, bias_std=0.2))
TOLERANCE = 1e-10
GRAM, CROSS, PRIOR = (functools.cache(make) for make in (lambda: K.gram(X), lambda: K.cross(Z, X), lambda: K.diag(Z)))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Three blocks of rows, the last one shorter; no reserve."""
    monkeypatch.setattr(operators, "SIZE", 128)
    monkeypatch.setattr(operators.blocks, "__kwdefaults__", operators.blocks.__kwdefaults__ | {"size": 128})
    monkeypatch.setattr(operators, "RESERVE", 0)


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory):
    """Factors on disk are read for as long as their posteriors live."""
    PLACES.append(tmp_path_factory.mktemp("factors"))


PLACES = []


def room(monkeypatch, size):
    monkeypatch.setattr(memory, "available", lambda: int(size))


def fitted(monkeypatch, mode, rows=slice(None), labels=Y, noise=0.0):
    """A posterior by the storage and solver that the mode names; memory is what tells packed from full."""
    data = X[rows]
    n = len(data)
    options = SOLVERS[mode].options | ({"matrix": K.gram(data)} if mode in ("stored", "disk") else {})
    there = devices.forced() if mode.startswith(("device", "host")) else contextlib.nullcontext()
    with monkeypatch.context() as patch, there:
        if mode == "host":
            patch.setattr(device_cholesky, "LARGEST", 32)
            patch.setattr(devices.Location, "free", lambda _: 8 * n * n)
        if mode == "disk":
            options["checkpoint"] = PLACES[0] / uuid.uuid4().hex / "L.zarr"
        if mode == "packed":
            room(patch, 12 * n * n)
        if mode == "recomputed":
            room(patch, 3 * n * n)
            patch.setattr(solvers, "_require", lambda *_: None)  # at this size vectors take as much as the tiles
        return wl.posterior(K, data, labels, noise=noise, tolerance=TOLERANCE, **options)


def operators_of(value):
    """Types of the operators that a solved system holds, at any depth."""
    if not dataclasses.is_dataclass(value):
        return set()
    within = set().union(*(operators_of(getattr(value, field.name)) for field in dataclasses.fields(value)))
    return within | ({type(value)} if isinstance(value, operators.Operator) else set())


@pytest.mark.parametrize("mode", SINGULAR)
def test_a_singular_matrix_gets_eigenvectors(mode):
    rows = np.r_[0:40, 0, 0, 7]
    with devices.forced() if mode.startswith("device") else contextlib.nullcontext():
        post = wl.posterior(K, X[rows], Y[rows])
    assert type(post.factor) is SINGULAR[mode].factor
    np.testing.assert_allclose(post.mean(Z), wl.posterior(K, X[:40], Y[:40]).mean(Z), atol=1e-9)


STORAGE = {"mixed": "packed", "single": "tiles", "device, cg": "device"}


@pytest.mark.parametrize("mode", SOLVERS)
def test_every_solver_equals_eigenvectors(monkeypatch, mode):
    noise = np.linspace(1e-3, 0.1, N)
    values, vectors = np.linalg.eigh(GRAM() + np.diag(noise))
    weights = vectors @ ((vectors.T @ Y) / values[:, None])
    covariance = K.gram(Z) - (CROSS() @ vectors / values) @ (CROSS() @ vectors).T
    post = fitted(monkeypatch, mode, noise=noise)
    assert post.fit.choice.storage == STORAGE.get(mode, mode)
    assert type(post.factor) is SOLVERS[mode].factor
    assert operators_of(post.factor) >= set(SOLVERS[mode].operators)
    # |error| <= |A^-1| |residual|; exact ones are right to n eps cond
    error = max(TOLERANCE, N * linalg.EPS * values[-1]) / values[0] * np.linalg.norm(Y, axis=0)
    assert (np.abs(post.weights - weights) < error).all()
    np.testing.assert_allclose(post.mean(Z), CROSS() @ weights, atol=1e-8)
    np.testing.assert_allclose(post.variance(Z), np.diagonal(covariance), atol=1e-11)
    np.testing.assert_allclose(post.covariance(Z), covariance, atol=1e-11)
    planted = CROSS() @ np.linalg.solve(GRAM() + 1.001 * np.diag(noise), Y)
    assert np.abs(post.mean(Z) - planted).max() > 1e-6
    measured = np.linalg.norm(Y - (GRAM() + np.diag(noise)) @ post.weights, axis=0) / np.linalg.norm(Y, axis=0)
    assert post.residual <= TOLERANCE
    np.testing.assert_allclose(post.residual, measured.max(), atol=1e-13)
    text = post.explain()
    assert f"storage {STORAGE.get(mode, mode)}" in text
    assert "relative residual" in text
    assert ("conjugate gradients" in text) == (mode in ("tiles", "recomputed", "single", "stored", "device, cg"))


@pytest.mark.parametrize("mode", SOLVERS)
def test_without_noise_too(monkeypatch, mode):
    expected = CROSS() @ np.linalg.solve(GRAM(), Y)
    np.testing.assert_allclose(fitted(monkeypatch, mode).mean(Z), expected, atol=1e-7)


@pytest.mark.parametrize("rows", [300, 301])
def test_determinants_and_inverses_of_a_packed_factor(monkeypatch, rows):
    data, labels = slice(rows), Y[:rows]
    full = fitted(monkeypatch, "full", data, labels, 0.01)
    half = fitted(monkeypatch, "packed", data, labels, 0.01)
    exact = np.linalg.slogdet(GRAM()[:rows, :rows] + 0.01 * np.eye(rows))[1]
    assert abs(half.factor.log_determinant() - exact) < rows * linalg.EPS * abs(exact)
    np.testing.assert_allclose(half.log_marginal_likelihood(), full.log_marginal_likelihood(), rtol=1e-12)
    np.testing.assert_allclose(half.leave_one_out().variance, full.leave_one_out().variance, rtol=1e-9)
    np.testing.assert_allclose(half.precision(), full.precision(), atol=1e-9)


@pytest.mark.parametrize("mode", ["mixed", "tiles"])
def test_no_factor_no_determinant(monkeypatch, mode):
    post = fitted(monkeypatch, mode, noise=0.1)
    for call, what in ((post.log_marginal_likelihood, "log-determinant"), (post.leave_one_out, "whitened")):
        with pytest.raises(ValueError, match=rf'{what}.* needs a factor in float64.*solver="cholesky", precision="dou'):
            call()


@pytest.mark.parametrize("mode", ["full", "packed", "mixed", "tiles"])
@pytest.mark.parametrize("labels", [Y, Y[:, 0]], ids=["three outputs", "one"])
def test_mean_and_variance_in_one_pass(monkeypatch, mode, labels):
    post = fitted(monkeypatch, mode, labels=labels, noise=0.1)
    monkeypatch.setattr("widelimit.inference.training_set.ROWS", 3)  # 7 points: blocks of 3, 3 and 1
    inverse = np.linalg.inv(GRAM() + 0.1 * np.eye(N))
    variance = PRIOR() - np.einsum("ij,jk,ik->i", CROSS(), inverse, CROSS())
    found = post.predict(Z)
    np.testing.assert_allclose(found.mean, CROSS() @ inverse @ labels, atol=1e-8)
    np.testing.assert_allclose(found.variance, variance, atol=1e-8)
    assert np.abs(PRIOR() - variance).min() > 1e-2
    np.testing.assert_array_equal(found.variance, post.variance(Z))
    again = post.predict(jnp.asarray(Z))
    assert isinstance(again.mean, jax.Array)
    assert isinstance(again.variance, jax.Array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(1, 0), (39, 0), (39, 38), (20, 7), (39, 39), (0, 0)])
@pytest.mark.parametrize("blocks", [False, True])
def test_no_matrix_with_a_bad_entry_has_a_factor(monkeypatch, bad, place, blocks):
    """Nothing looks for them before a factorisation, above the diagonal nothing is read, and a sound one has one."""
    if blocks:
        monkeypatch.setattr(linalg, "WHOLE", 20)
        monkeypatch.setattr(packed_cholesky, "BLOCK_COLUMNS", 7)
        monkeypatch.setattr(packed_cholesky, "STRIP", 11)
    matrix = GRAM()[:40, :40] + np.eye(40)
    matrix[np.triu_indices(40, 1)] = np.nan
    sound = linalg.cholesky(matrix.copy())
    np.testing.assert_allclose(np.tril(sound.lower), np.linalg.cholesky(GRAM()[:40, :40] + np.eye(40)), rtol=1e-10)
    matrix[place] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        assert linalg.cholesky(matrix) is None


@pytree
@dataclasses.dataclass(frozen=True)
class Broken(wl.Kernel):
    """exp(-|x - y|^2), but NaN for twins."""

    def encode(self, X):
        return X

    def pairwise(self, x, y, *, same=False):
        square = jnp.sum((x[:, None] - y) ** 2, -1)
        return jnp.where(square == 0, jnp.nan, jnp.exp(-square))

    def diagonal(self, x):
        return jnp.full(len(x), 1.0)


@pytest.mark.parametrize("mode", ["full", "packed", "mixed"])
def test_an_entry_that_is_no_number_is_named(mode):
    data = X[:40].copy()
    data[31] = data[5]
    patch = {"precision": "mixed"} if mode == "mixed" else {}
    with pytest.MonkeyPatch.context() as room_for:
        if mode == "packed":
            room(room_for, 12 * 40 * 40)
        with pytest.raises(ValueError, match=r"the kernel is nan at rows (5 and 31|31 and 5) of X"):
            wl.posterior(Broken(), data, Y[:40], noise=0.1, solver="cholesky", **patch)
    data[31] += 1
    wl.posterior(Broken(), data, Y[:40], noise=0.1, solver="cholesky", **patch)


def test_a_residual_has_no_whole_matrix_where_there_is_no_room_for_one(monkeypatch):
    """A kernel with a quicker way to it than pairs is asked for it only where it fits."""
    asked = []

    @pytree
    @dataclasses.dataclass(frozen=True)
    class Quick(Broken):
        def gram(self, X):
            asked.append(len(X))
            return np.exp(-np.sum((X[:, None] - X) ** 2, -1))

    monkeypatch.setattr(operators.blocks, "__kwdefaults__", operators.blocks.__kwdefaults__ | {"size": 16})
    whole = 8 * 40 * 40
    for free, calls in ((whole, [40]), (whole - 1, [])):
        with monkeypatch.context() as patch:
            room(patch, 12 * 40 * 40)
            post = wl.posterior(Quick(), X[:40], Y[:40], noise=0.1)
            assert (post.fit.choice.storage, asked) == ("packed", [])
            room(patch, free)
            assert 0 < post.residual < 1e-12
        assert asked == calls
        asked.clear()


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 40, 41])
@pytest.mark.parametrize("size", [3, 16])
def test_the_folded_triangle_is_lapacks(n, size):
    root = RNG.standard_normal((n, n))
    matrix = root @ root.T + np.eye(n)
    blocks = [
        operators.RowBlock(i, j, matrix[i : i + size, j : j + size])
        for i in range(0, n, size)
        for j in range(0, i + 1, size)
    ]
    folded = packed.fold(blocks, n, np.dtype(np.float64))
    expected, _ = scipy.linalg.lapack.dtrttf(matrix, transr="N", uplo="L")
    np.testing.assert_array_equal(folded.ravel(), expected)
    noise = RNG.uniform(0, 1, n)
    factor = packed.factorise(blocks, noise, np.dtype(np.float64))
    b = RNG.standard_normal((n, 2))
    whole = matrix + np.diag(noise)
    np.testing.assert_allclose(factor.solve(b), np.linalg.solve(whole, b), rtol=1e-8, atol=1e-12)
    lower = np.linalg.cholesky(whole)
    np.testing.assert_allclose(factor.whiten(b), scipy.linalg.solve_triangular(lower, b, lower=True), rtol=1e-8)


# --- singular matrices: the minimum-norm rule, or a clear no

COPIES = np.r_[0:300, 0, 0, 7]


@pytest.mark.parametrize("mode", ["tiles", "single", "mixed"])
def test_duplicates_with_equal_labels_give_the_minimum_norm_interpolant(monkeypatch, mode):
    once = wl.posterior(K, X[:300], Y[:300])
    twice = fitted(monkeypatch, mode, COPIES, Y[COPIES])
    np.testing.assert_allclose(twice.mean(Z), once.mean(Z), atol=1e-7)
    np.testing.assert_allclose(twice.variance(Z), once.variance(Z), atol=1e-9)
    if mode != "single":  # float32 products leave some of the null space in the weights; it has no part in the mean
        np.testing.assert_allclose(twice.weights[[0, 300, 301]], np.tile(once.weights[0] / 3, (3, 1)), rtol=1e-5)
    if mode == "mixed":
        assert "factorised in float64 instead" in twice.explain()
        assert "minimum-norm" in twice.explain()


def test_a_packed_singular_matrix_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"singular to rounding.* at row 30[0-9] of 303.*Pass a noise.*solver=\"cg\""):
        fitted(monkeypatch, "packed", COPIES, Y[COPIES])


@pytest.mark.parametrize("mode", ["tiles", "mixed"])
def test_duplicates_with_different_labels_are_named(monkeypatch, mode):
    labels = Y[COPIES].copy()
    labels[-1] += 0.5
    with pytest.raises(ValueError, match="rows 7 and 302"):
        fitted(monkeypatch, mode, COPIES, labels)


@jax.tree_util.register_static
class Crooked(wl.Kernel):
    """tanh(2 x.y - 1): symmetric, not positive semi-definite."""

    def encode(self, X):
        return X

    def pairwise(self, x, y, *, same=False):
        return jnp.tanh(2 * x @ y.T - 1)

    def diagonal(self, x):
        return jnp.tanh(2 * jnp.sum(x * x, axis=1) - 1)


def test_kernels_that_are_not_positive_semi_definite_are_refused(monkeypatch):
    for solver, size in (("cg", 1e9), ("cholesky", 12 * N * N)):
        room(monkeypatch, size)
        with pytest.raises(ValueError, match="not positive semi-definite"):
            wl.posterior(Crooked(), X, Y, solver=solver)


def test_the_limit_of_iterations_is_an_explained_result(monkeypatch):
    monkeypatch.setattr(iterative, "MAX_ITERATIONS", 3)
    with pytest.warns(UserWarning, match=r"did not converge: stopped after 3 iterations: relative residual .*larger n"):
        post = wl.posterior(K, X, Y, solver="cg")
    assert not post.fit.converged
    assert "not converged" in post.explain()
    measured = np.linalg.norm(Y - GRAM() @ post.weights, axis=0) / np.linalg.norm(Y, axis=0)
    np.testing.assert_allclose(post.residual, measured.max(), rtol=1e-6)
    assert post.residual > 1e-3
    with pytest.warns(UserWarning, match="did not converge"):
        post.variance(Z)


def test_a_tolerance_below_rounding_ends():
    with pytest.warns(UserWarning, match="no longer lowers the residual|stopped after"):
        post = wl.posterior(K, X, Y, solver="cg", precision="mixed", tolerance=1e-14, noise=0.0)
    assert 1e-14 < post.residual < 1e-10


# --- preconditioner, stored matrices, choices


def test_the_preconditioner_is_a_nystrom_approximation_and_saves_iterations():
    matrix = operators.StoredOperator(GRAM())
    factor, tail, _ = preconditioners.random_cholesky(matrix, 60)
    rest = GRAM() - factor @ factor.T
    assert np.linalg.eigvalsh(rest)[0] > -N * linalg.EPS * np.trace(GRAM())
    np.testing.assert_allclose(np.trace(rest), tail, rtol=1e-9)
    best = np.linalg.eigvalsh(GRAM())[:-60].sum()
    assert best <= tail < 3 * best  # a rank that is as good as any of a somewhat smaller rank
    thin = X @ X.T
    exact, left, _ = preconditioners.random_cholesky(operators.StoredOperator(thin), 60)
    assert exact.shape == (N, 4)
    np.testing.assert_allclose(exact @ exact.T, thin, atol=1e-12)
    assert left < 1e-12
    noise = np.full(N, 1e-2)
    shifted = operators.Shifted(matrix, noise)
    with_it = preconditioners.low_rank(matrix, noise, rank=60)
    counts = [
        iterative.System(shifted, shifted, linalg.EPS, p, 1e-8, 1000).solve(Y).iterations
        for p in (lambda v: v, with_it)
    ]
    assert counts[1] < counts[0] / 2


def test_stored_matrices(tmp_path):
    expected = wl.posterior(K, X, Y, noise=0.01).mean(Z)
    stored = zarr.create_array(store=str(tmp_path / "k.zarr"), shape=(N, N), chunks=(100, 100), dtype="float64")
    stored[:] = GRAM()
    mapped = np.lib.format.open_memmap(tmp_path / "k.npy", "w+", np.float64, (N, N))
    mapped[:] = GRAM()
    for matrix in (stored, mapped):
        post = wl.posterior(K, X, Y, noise=0.01, matrix=matrix)
        np.testing.assert_allclose(post.mean(Z), expected, atol=1e-8)
    with pytest.raises(ValueError, match=r"matrix is not K.X, X.: its rows differ from the kernel's by"):
        wl.posterior(K, X, Y, matrix=GRAM() * 1.001)
    with pytest.raises(ValueError, match=r"of shape \(301, 301\).*got shape \(300, 301\)"):
        wl.posterior(K, X, Y, matrix=GRAM()[1:])
    with pytest.raises(ValueError, match='pass solver="cg"'):
        wl.posterior(K, X, Y, matrix=GRAM(), solver="cholesky")


def test_the_choice_follows_size_and_memory(monkeypatch):
    def chosen(n, gib, solver="auto", precision="double"):
        room(monkeypatch, gib * memory.GIB)
        return solver_choice.choose(n, solver, precision)[:2]

    assert chosen(10_000, 4) == ("cholesky", "full")
    assert chosen(60_000, 23) == ("cholesky", "packed")
    assert chosen(60_000, 12) == ("cg", "recomputed")
    assert chosen(60_000, 12, precision="mixed") == ("cholesky", "packed")
    assert chosen(60_000, 5, precision="mixed") == ("cg", "recomputed")
    assert chosen(80_000, 30) == ("cg", "tiles")
    assert chosen(10_000, 4, "cg") == ("cg", "tiles")
    assert "one triangle, 13.4 GiB, does not fit" in solver_choice.choose(60_000, "auto", "double").why
    room(monkeypatch, 8 * memory.GIB)
    assert 'precision="mixed" needs half' in solver_choice.choose(60_000, "auto", "double").why
    room(monkeypatch, 1000)
    with pytest.raises(MemoryError, match="one triangle of a 301 x 301 float64 kernel matrix needs"):
        solvers.packed.require(N, np.dtype(np.float64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "lu"}, 'solver must be "auto", "cholesky", "cg" or "nystrom", got \'lu\''),
        ({"precision": "half"}, 'precision must be "double" or "mixed"'),
        ({"tolerance": 0.0}, "tolerance must be >= 1e-14, got 0"),
        ({"tolerance": np.nan}, "tolerance must be finite"),
        ({"solver": "cholesky", "checkpoint": "x.npz"}, 'or pass solver="cg"'),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        wl.posterior(K, X, Y, **options)


# --- checkpoints

SCRIPT = """
import sys, time
import numpy as np
import widelimit as wl
from widelimit.compute import checkpoints, operators

checkpoints.SECONDS = 0.0
product = operators.Tiles.product
calls = 0

def stopping(self, v):
    global calls
    calls += 1
    if calls > 8:
        print("stopped", flush=True)
        time.sleep(600)
    return product(self, v)

operators.Tiles.product = stopping
data = np.load(sys.argv[1])
k = wl.ntk(wl.mlp(depth=3, weight_std=1.4, bias_std=0.2))
wl.posterior(k, data["X"], data["Y"], solver="cg", checkpoint=sys.argv[2])
"""


def test_a_killed_solve_goes_on_where_it_was(tmp_path):
    undisturbed = wl.posterior(K, X, Y, solver="cg")
    np.savez(tmp_path / "data.npz", X=X, Y=Y)
    state = tmp_path / "state.npz"
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "data.npz"), str(state)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "stopped\n"
        child.send_signal(signal.SIGKILL)
    resumed = wl.posterior(K, X, Y, solver="cg", checkpoint=state)
    assert 0 < resumed.fit.resumed < resumed.fit.iterations
    # the blocks' sizes differ from the child's, and follow free memory; so does the order of sums, and the rounding
    assert abs(resumed.fit.iterations - undisturbed.fit.iterations) <= 2
    np.testing.assert_allclose(resumed.mean(Z), undisturbed.mean(Z), atol=1e-8)
    assert resumed.residual <= TOLERANCE
    again = wl.posterior(K, X, Y, solver="cg", checkpoint=state)
    assert again.fit.resumed == again.fit.iterations
    np.testing.assert_array_equal(again.weights, resumed.weights)


def test_checkpoints_of_others_and_damaged_ones_are_left_alone(tmp_path):
    path = tmp_path / "state.npz"
    wl.posterior(K, X, Y, solver="cg", checkpoint=path)
    kept = path.read_bytes()
    others = [
        lambda: wl.posterior(K, X, Y + 1, solver="cg", checkpoint=path),
        lambda: wl.posterior(2.0 * K, X, Y, solver="cg", checkpoint=path),
        lambda: wl.posterior(K, X, Y, noise=0.1, solver="cg", checkpoint=path),
    ]
    for call in others:
        with pytest.raises(ValueError, match="belongs to another problem"):
            call()
        assert path.read_bytes() == kept
    for damaged in (kept[: len(kept) // 2], b"", b"not a file of ours"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot be read .*; remove it to start again"):
            wl.posterior(K, X, Y, solver="cg", checkpoint=path)
        assert path.read_bytes() == damaged
    with pytest.raises(ValueError, match="its folder does not exist"):
        wl.posterior(K, X, Y, solver="cg", checkpoint=tmp_path / "nowhere" / "state.npz")


def test_checkpoints_tell_functions_of_one_name_by_their_values(tmp_path):
    def solved(s):
        k = wl.kernel(lambda x, z: jnp.exp(-s * jnp.sum((x - z) ** 2)))
        return wl.posterior(k, X, Y, noise=0.1, solver="cg", checkpoint=tmp_path / "state.npz")

    first = solved(0.5)
    with pytest.raises(ValueError, match="belongs to another problem"):
        solved(2.0)
    assert solved(0.5).fit.resumed == first.fit.iterations


def test_the_residual_of_a_checkpoint_is_measured_again(tmp_path):
    """A state whose residual is 0 by its own account, with weights that solve nothing."""
    file = checkpoints.SolverCheckpoint(tmp_path / "state.npz", "mine")
    A = operators.StoredOperator(GRAM() + np.eye(N))
    system = iterative.System(A, A, linalg.EPS, lambda v: v, 1e-10, 1000)
    zero = np.zeros_like(Y)
    file.save({**iterative._start(zero), "x": Y, "total": np.asarray(3)}, now=True)
    solved = system.solve(Y, file)
    assert solved.converged
    np.testing.assert_allclose(solved.x, np.linalg.solve(GRAM() + np.eye(N), Y), atol=1e-8)


@pytest.mark.parametrize("solver", ["cg", "cholesky"])
def test_new_inputs_far_away_are_refused_by_every_solver(solver):
    post = wl.posterior(K, 10 * X, Y, noise=0.1, solver=solver)
    far = np.concatenate([Z, np.full((1, 4), 1e308)])
    for ask in (post.predict, post.mean, post.variance, post.covariance):
        with pytest.raises(ValueError, match="row 7 of the new inputs"):
            ask(far)
    post.predict(Z)


@pytest.mark.parametrize("entry", [(3, 5), (4, 4)])
def test_a_stored_matrix_with_nan_is_refused(entry):
    matrix = GRAM().copy()
    matrix[entry] = matrix[entry[::-1]] = np.nan
    with pytest.raises(
        ValueError, match=r"matrix has NaN or infinite entries|the kernel matrix is nan|the stored matrix is nan at row"
    ):
        wl.posterior(K, X, Y, noise=0.1, solver="cg", matrix=matrix)


def test_a_right_hand_side_that_is_not_finite_spoils_no_other():
    A = operators.StoredOperator(GRAM() + np.eye(N))
    system = iterative.System(A, A, linalg.EPS, lambda v: v, 1e-10, 1000)
    b = Y.copy()
    b[3, 1] = np.nan
    solved = system.solve(b)
    assert solved.converged
    assert np.isnan(solved.x[:, 1]).all()
    np.testing.assert_array_equal(
        solved.x[:, [0, 2]], system.solve(np.where(np.isnan(b), 0, b) * [1, 0, 1]).x[:, [0, 2]]
    )


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = checkpoints.SolverCheckpoint(pathlib.Path(tmp_path / "a.npz"), "mine")
    file.save({"x": np.arange(3.0)}, now=True)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        file.save({"x": np.zeros(3)}, now=True)
    monkeypatch.undo()
    np.testing.assert_array_equal(file.load()["x"], np.arange(3.0))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_packed_cholesky_equals_lapacks_in_blocks_and_strips_of_any_size(monkeypatch, dtype):
    """Rounding: n eps of the largest entry. A minor that is not positive is found at its own order."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 8, 37, 64, 129):
        square = rng.standard_normal((n, n + 3)).astype(dtype)
        square = square @ square.T
        for block, strip in ((7, 11), (16, 8), (packed_cholesky.BLOCK_COLUMNS, packed_cholesky.STRIP)):
            monkeypatch.setattr(packed_cholesky, "BLOCK_COLUMNS", block)
            monkeypatch.setattr(packed_cholesky, "STRIP", strip)
            fold, unfold = scipy.linalg.get_lapack_funcs(("trttf", "tfttr"), (square,))
            folded = fold(square, transr="N", uplo="L")[0].reshape((n + 1) // 2, n + 1 - n % 2).copy()
            assert packed_cholesky.factorise(folded, n) == 0
            root = np.tril(unfold(n, folded.ravel(), transr="N", uplo="L")[0])
            expected = np.linalg.cholesky(square.astype(np.float64))
            bound = 16 * n * np.finfo(dtype).eps * np.abs(expected).max()
            np.testing.assert_allclose(root, expected, rtol=0, atol=bound)
            assert np.abs(1.01 * root - expected).max() > bound
            b = rng.standard_normal((n, 3)).astype(dtype)
            # Solves have small residuals with the factor itself (Higham 2002, theorem 8.5), whatever its condition.
            size = n * np.finfo(dtype).eps * np.abs(root).max()
            white = packed_cholesky.whiten(folded, n, b)
            assert white.dtype == dtype
            assert np.abs(root @ white - b).max() <= 16 * size * max(np.abs(white).max(), 1)
            x = packed_cholesky.solve(folded, n, b)
            bound = 16 * size * max(np.abs(root).max() * np.abs(x).max(), np.abs(white).max())
            assert np.abs(root.T @ x - white).max() <= bound
            assert n == 1 or np.abs(root @ x - white).max() > bound
    monkeypatch.setattr(packed_cholesky, "BLOCK_COLUMNS", 7)
    for bad in (0, 2, 20, 36):
        broken = np.eye(37, dtype=dtype)
        broken[bad, bad] = -1
        folded = scipy.linalg.get_lapack_funcs("trttf", (broken,))(broken, transr="N", uplo="L")[0]
        assert packed_cholesky.factorise(folded.reshape(19, 37).copy(), 37) == bad + 1
