"""Exact inference on a matrix on disk: the posterior in memory to rounding, resumed after a kill, by any workers."""

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import tracemalloc
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import zarr

import widelimit as wl
from widelimit.compute import operators, stored_rows, tile_cholesky
from widelimit.compute.places import Place, find_place
from widelimit.compute.stores import TileStore
from widelimit.inference import solvers

RNG = np.random.default_rng(3)
N = 59
X = RNG.standard_normal((N, 3))
Y = np.stack([np.sin(X[:, 0]), X[:, 1]], axis=1)
Z = RNG.standard_normal((5, 3))
NOISE = 0.1
K = wl.ntk(wl.mlp(depth=2, activation="relu", bias_std=0.3))
TILES = 10
"""Tiles of the factor: 4 blocks of 16 rows, the lower triangle."""


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(tile_cholesky, "SMALLEST", 16)


@pytest.fixture(scope="module")
def gram(tmp_path_factory):
    path = tmp_path_factory.mktemp("gram") / "K.zarr"
    wl.stored_gram(K, X, path, budget=32 * 1024)
    return path


@pytest.fixture(scope="module")
def factored(gram, tmp_path_factory):
    path = tmp_path_factory.mktemp("factor") / "L.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile_cholesky, "SMALLEST", 16)
        stored(gram, path)
    return path


@pytest.fixture
def factor(factored, tmp_path):
    """A finished store of one's own."""
    return shutil.copytree(factored, tmp_path / "L.zarr")


@pytest.fixture(scope="module")
def memory():
    return wl.posterior(K, X, Y, noise=NOISE)


@pytest.fixture(scope="module")
def pool():
    """One process, as each costs a second; tests/test_cluster_cholesky.py has more."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def stored(matrix, path, **changes):
    return wl.posterior(
        **{
            "k": K,
            "X": X,
            "y": Y,
            "noise": NOISE,
            "matrix": matrix,
            "checkpoint": path,
            "solver": "cholesky",
            **changes,
        }
    )


def tiles(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.glob("c/*/*")}


def times(path):
    return {p.relative_to(path).as_posix(): p.stat().st_mtime_ns for p in path.glob("c/*/*")}


def agree(post, other):
    np.testing.assert_allclose(post.mean(Z), other.mean(Z), rtol=1e-10)
    np.testing.assert_allclose(post.variance(Z), other.variance(Z), rtol=1e-9)
    np.testing.assert_allclose(post.covariance(Z), other.covariance(Z), atol=1e-11)
    np.testing.assert_allclose(post.sample(Z, 2, seed=7), other.sample(Z, 2, seed=7), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(post.log_marginal_likelihood(), other.log_marginal_likelihood(), rtol=1e-12)
    np.testing.assert_allclose(post.leave_one_out().mean, other.leave_one_out().mean, rtol=1e-9, atol=1e-12)


def test_it_is_the_posterior_in_memory(gram, factored, memory):
    post = stored(gram, factored)
    agree(post, memory)
    assert len(tiles(factored)) == TILES
    assert post.residual < 1e-14
    assert "storage disk" in post.explain()
    assert str(factored) in post.explain()
    lower = np.tril(zarr.open_array(factored, mode="r")[:])
    np.testing.assert_allclose(lower @ lower.T, K.gram(X) + NOISE * np.eye(N), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("plant", ["a lost update", "a transposed tile", "a scaled pivot"])
def test_a_wrong_factor_is_rejected(plant, gram, tmp_path, monkeypatch):
    right = wl.posterior(K, X, Y, noise=30.0)
    agree(stored(gram, tmp_path / "right.zarr", noise=30.0), right)
    original = TileStore.write

    def write(self, i, j, tile):
        if (i, j) == (2, 1) and plant == "a transposed tile":
            tile = tile.T
        if (i, j) == (1, 1) and plant == "a scaled pivot":
            tile = tile * (1 + 1e-6)
        original(self, i, j, tile)

    monkeypatch.setattr(TileStore, "write", write)
    if plant == "a lost update":
        monkeypatch.setattr(tile_cholesky, "update", lambda tile, left, right: tile)
    monkeypatch.setattr(solvers, "REFINEMENTS", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        post = stored(gram, tmp_path / "L.zarr", noise=30.0)
    assert post.residual > 1e-9
    with pytest.raises(AssertionError):
        agree(post, right)


def test_refinement_repairs_a_slightly_wrong_factor(gram, factor, memory):
    store = TileStore(find_place(factor), zarr.open_array(factor, mode="r+"))
    store.write(1, 1, store.read(1, 1) * (1 + 1e-6))
    post = stored(gram, factor)
    assert post.residual <= 1e-10
    assert post.fit.iterations >= 1
    np.testing.assert_allclose(post.mean(Z), memory.mean(Z), rtol=1e-8)


def test_the_factor_of_a_matrix_that_was_changed_later_is_reported(gram, factor, tmp_path):
    array = zarr.open_array(shutil.copytree(gram, tmp_path / "K.zarr"), mode="r+")
    array[20, 30] = array[30, 20] = array[20, 30] + 0.05  # no row at which the kernel is compared
    with pytest.warns(UserWarning, match=r"L\.zarr is not the factor of this matrix.*remove it and call again"):
        post = stored(array, factor)
    assert "(not converged)" in post.explain()


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_the_bits_do_not_depend_on_the_workers(solver, gram, factored, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_rows, "BLOCK", 16)
    found, factors = [], []
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(3) as three:
        for i, client in enumerate((None, one, three, pool)):
            place = tmp_path / (f"{i}.zarr" if solver == "cholesky" else f"{i}.npz")
            post = stored(gram, place, solver=solver, client=client)
            found.append(np.concatenate([post.weights.ravel(), post.variance(Z)]))
            factors.append(tiles(place))
    assert all((each == found[0]).all() for each in found)
    if solver == "cholesky":
        assert all(each == tiles(factored) for each in factors)


class Deadly:
    """The matrix of a store, which kills the first process that reads the block of one tile."""

    chunks = (16, 16)

    def __init__(self, path, mark):
        self.path, self.mark = path, mark
        self.shape, self.dtype = (N, N), np.dtype(float)

    def __getitem__(self, index):
        if isinstance(index, tuple) and index[1].start == 16 and index[0].start == 32 and not self.mark.exists():
            self.mark.write_text("dead")
            os.kill(os.getpid(), signal.SIGKILL)
        return zarr.open_array(self.path, mode="r")[index]


def test_after_a_kill_only_missing_tiles_are_computed(gram, factored, tmp_path, monkeypatch):
    matrix, place, computed = Deadly(gram, tmp_path / "mark"), tmp_path / "L.zarr", []
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        pytest.raises(BrokenProcessPool, match=r"during L-.* kept: make a new executor and call again"),
    ):
        stored(matrix, place, client=pool)
    (place / "c" / "0" / "0.dead.partial").write_bytes(b"half a tile")
    done = times(place)
    del done["c/0/0.dead.partial"]
    assert 3 <= len(done) < TILES
    original = tile_cholesky.compute_tile

    def compute_tile(store, matrix, noise, i, j):
        computed.append(f"c/{i}/{j}")
        original(store, matrix, noise, i, j)

    monkeypatch.setattr(tile_cholesky, "compute_tile", compute_tile)
    stored(matrix, place)
    assert sorted(computed) == sorted(set(tiles(factored)) - set(done))
    assert done.items() <= times(place).items()
    assert tiles(place) == tiles(factored)


def test_a_damaged_or_lost_tile_is_computed_again_and_no_other(gram, factor, factored):
    good = tiles(factored)
    before = times(factor)
    for name, harm in {"c/2/1": "flip", "c/3/3": "cut", "c/0/0": "gone"}.items():
        file = factor / name
        data = file.read_bytes()
        if harm == "gone":
            file.unlink()
        else:
            file.write_bytes(data[:-9] if harm == "cut" else data[:99] + bytes([data[99] ^ 16]) + data[100:])
    stored(gram, factor)
    after = times(factor)
    assert tiles(factor) == good
    assert {name for name in after if after[name] != before[name]} == {"c/2/1", "c/3/3", "c/0/0"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": 0.2}, "of a matrix with other noise: it says noise"),
        ({"noise": np.r_[np.full(N - 1, 0.1), 0.11]}, "of a matrix with other noise"),
        ({"matrix": K.gram(X)}, "of another matrix: it says matrix"),
    ],
)
def test_another_factor_is_refused(gram, factor, change, message):
    before = times(factor)
    with pytest.raises(ValueError, match=f"is a Cholesky factor {message}.*Nothing was changed"):
        stored(**{"matrix": gram, "path": factor, **change})
    assert times(factor) == before


def test_a_matrix_of_an_older_version_is_read_and_not_gone_on_with(gram, memory, tmp_path):
    old = shutil.copytree(gram, tmp_path / "old.zarr")
    for name in ("zarr.json", "widelimit.json"):
        document = json.loads((old / name).read_text())
        document["attributes"]["widelimit_gram"]["widelimit"] = "0.1.0"
        (old / name).write_text(json.dumps(document))
    agree(stored(old, tmp_path / "L.zarr"), memory)
    with pytest.raises(ValueError, match=r"written by another version of widelimit: it says widelimit = .0\.1\.0"):
        wl.stored_gram(K, X, old)


def test_another_version_or_no_factor_is_refused(gram, factor, tmp_path):
    for name in ("zarr.json", "widelimit.json"):
        text = (factor / name).read_text()
        document = json.loads(text)
        document["attributes"]["widelimit_cholesky"]["widelimit"] = "0.0.9"
        (factor / name).write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"written by another version of widelimit: it says widelimit = .0\.0\.9"):
        stored(gram, factor)
    copied = shutil.copytree(gram, tmp_path / "K.zarr")
    with pytest.raises(ValueError, match=r"is not a Cholesky factor written by widelimit.*Nothing was changed"):
        stored(gram, copied)
    (tmp_path / "thesis.zarr").mkdir()
    (tmp_path / "thesis.zarr" / "text").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not a Cholesky factor"):
        stored(gram, tmp_path / "thesis.zarr")


def test_a_matrix_without_a_description_is_known_by_its_bytes(tmp_path, memory, pool):
    mapped = np.lib.format.open_memmap(tmp_path / "K.npy", "w+", np.float64, (N, N))
    mapped[:] = K.gram(X)
    post = stored(mapped, tmp_path / "L.zarr", client=pool)
    agree(post, memory)
    stored(mapped, tmp_path / "L.zarr", y=Y[:, 0])  # other targets have the same factor
    mapped[3, 7] = mapped[7, 3] = mapped[3, 7] * (1 + 1e-15) + 1e-17
    with pytest.raises(ValueError, match="of another matrix"):
        stored(mapped, tmp_path / "L.zarr")
    for matrix in (K.gram(X), mapped[:], np.load(tmp_path / "K.npy", mmap_mode="c")):
        with pytest.raises(ValueError, match="matrix is in the memory of this process"):
            stored(matrix, tmp_path / "M.zarr", client=pool)


def test_a_full_disk_keeps_the_finished_tiles(gram, factored, tmp_path, monkeypatch):
    original = Place.put

    def full(self, key, data):
        if not key.endswith("/0"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, key, data)

    monkeypatch.setattr(Place, "put", full)
    with pytest.raises(OSError, match=r"No space left on device while tiles .*L\.zarr; the finished .*call again"):
        stored(gram, tmp_path / "L.zarr")
    monkeypatch.undo()
    monkeypatch.setattr(tile_cholesky, "SMALLEST", 16)
    before = times(tmp_path / "L.zarr")
    assert before
    stored(gram, tmp_path / "L.zarr")
    assert before.items() <= times(tmp_path / "L.zarr").items()
    assert tiles(tmp_path / "L.zarr") == tiles(factored)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"need 14 KiB and 0\.98 KiB are free.*Nothing was computed$"):
        stored(gram, tmp_path / "M.zarr")
    assert not (tmp_path / "M.zarr").exists()


def test_a_singular_matrix_names_the_row_and_its_duplicate(tmp_path, pool):
    twice = np.vstack([X[:40], X[5:6], X[40:50]])
    labels = np.r_[Y[:40, 0], Y[5, 0], Y[40:50, 0]]
    gram = wl.stored_gram(K, twice, tmp_path / "K.zarr")
    for client in (None, pool):
        with pytest.raises(ValueError, match=r"is singular to rounding.*at row 40 of 51 .it equals row 5."):
            stored(gram, tmp_path / "L.zarr", X=twice, y=labels, noise=0.0, client=client)
    thin = wl.linear()
    gram = wl.stored_gram(thin, X, tmp_path / "T.zarr")
    with pytest.raises(ValueError, match=r"is singular to rounding.*at row 3 of 59"):
        stored(gram, tmp_path / "M.zarr", k=thin, noise=0.0)


def test_a_damaged_factor_names_its_tile_at_a_prediction(gram, factor):
    post = stored(gram, factor)
    (factor / "c" / "2" / "0").unlink()
    with pytest.raises(ValueError, match=r"the tile c/2/0 is missing; call again"):
        post.variance(Z)
    assert np.isfinite(post.mean(Z)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client": ThreadPoolExecutor(1)}, "client computes with a stored matrix"),
        ({"client": ThreadPoolExecutor(1), "solver": "nystrom"}, 'client: not of solver="nystrom"'),
        ({"solver": "cholesky", "checkpoint": "L.zarr"}, "is for the factor of a stored matrix"),
        ({"solver": "cg", "checkpoint": "L.zarr", "matrix": np.eye(N)}, "is for the factor of a stored matrix"),
        ({"solver": "cholesky", "matrix": np.eye(N)}, r"a folder that ends in \.zarr"),
        ({"solver": "cholesky", "matrix": np.eye(N), "checkpoint": "L.npz"}, r"a folder that ends in \.zarr"),
        ({"precision": "mixed", "matrix": np.eye(N), "checkpoint": "L.zarr"}, 'precision="mixed" has no factor'),
        ({"matrix": "nowhere.zarr"}, "matrix: 'nowhere.zarr' is not the folder of a matrix"),
    ],
)
def test_options_without_a_meaning_are_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        wl.posterior(K, X, Y, noise=NOISE, **options)
    assert not list(tmp_path.iterdir())


def test_another_client_is_refused(gram, tmp_path):
    with pytest.raises(TypeError, match="client must be None"):
        stored(gram, tmp_path / "L.zarr", client="tcp://host:8786")


def test_auto_follows_the_checkpoint(gram, factored, tmp_path):
    assert stored(gram, factored, solver="auto").fit.choice[:2] == ("cholesky", "disk")
    assert stored(gram, tmp_path / "state.npz", solver="auto").fit.choice[:2] == ("cg", "stored")
    assert stored(gram, None, solver="auto").fit.choice[:2] == ("cg", "stored")


def test_predictions_need_no_client(gram, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        posts = [stored(gram, tmp_path / name, solver="auto", client=pool) for name in ("L.zarr", "state.npz")]
    for post in posts:
        assert (pickle.loads(pickle.dumps(post)).variance(Z) == post.variance(Z)).all()


def peak_of(call, *arguments):
    tracemalloc.start()
    try:
        call(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_task_and_a_solve_hold_a_few_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(tile_cholesky, "SMALLEST", 256)
    A = np.cov(RNG.standard_normal((1500, 40))) + np.eye(1500)
    matrix, noise = stored_rows.StoredRows(A, 256), np.zeros(1500)
    factor = tile_cholesky.factorise(find_place(tmp_path / "L.zarr"), A, noise, np.diagonal(A), None)
    (tmp_path / "L.zarr" / "c" / "5" / "4").unlink()
    tile, slack = 256 * 256 * 8, 200_000
    bound = tile_cholesky.TILES * tile + slack
    assert peak_of(tile_cholesky.compute_tile, factor.store, matrix, noise[:0], 5, 4) < bound
    assert peak_of(tile_cholesky.compute_tile, factor.store, matrix, noise[:0], 5, 4) < 2 * tile  # it is there
    b = RNG.standard_normal((1500, 3))
    found = []
    assert peak_of(lambda: found.append(factor.solve(b))) < bound
    np.testing.assert_allclose(A @ found[0], b, atol=1e-12)
    (tmp_path / "L.zarr" / "c" / "5" / "4").unlink()
    held, update = [], tile_cholesky.update
    monkeypatch.setattr(tile_cholesky, "update", lambda *tiles: held.append(tiles) or update(*tiles))
    assert peak_of(tile_cholesky.compute_tile, factor.store, matrix, noise[:0], 5, 4) > bound


def test_reads_of_a_block_and_of_rows_are_those_of_the_matrix(monkeypatch):
    monkeypatch.setattr(stored_rows, "BLOCK", 7)
    A = K.gram(X)
    operator = operators.StoredOperator(A)
    index = np.array([40, 3, 58, 4])
    np.testing.assert_array_equal(operator.columns(index), A[:, index])
    np.testing.assert_array_equal(operator.diagonal(), np.diagonal(A))
    np.testing.assert_allclose(operator.product(Y), A @ Y, rtol=1e-13)
    assert len(operator._stored.tasks()) == -(-N // 7)
    monkeypatch.setattr(stored_rows, "TASKS", 4)
    assert [part.stop - part.start for part in operator._stored.tasks()] == [21, 21, 17]
