"""Gram matrices on disk: the bits of those in memory, found again after a kill, and nothing overwritten."""

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

import widelimit as wl
from widelimit.compute import plan, storage, stores, tile_tasks
from widelimit.compute.operators import StoredOperator
from widelimit.compute.places import Place, find_place

RNG = np.random.default_rng(5)
X = RNG.standard_normal((75, 3))
NET = {"depth": 2, "activation": "relu", "bias_std": 0.3}
K = wl.ntk(wl.mlp(**NET))
BUDGET = 32 * 1024
"""Bytes: enough for tiles of 16 x 16 and not for 32 x 32."""


@pytest.fixture(scope="module")
def whole():
    return K.gram(X)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "K.zarr"
    wl.stored_gram(K, X, path, budget=BUDGET)
    return path


@pytest.fixture
def store(finished, tmp_path):
    """A finished store of one's own."""
    return shutil.copytree(finished, tmp_path / "K.zarr")


def snapshot(path):
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino, p.read_bytes()) for p in path.rglob("*") if p.is_file()}


def test_the_array_is_the_matrix_in_chunks(finished, whole):
    array = zarr.open_array(finished, mode="r")
    assert array.chunks == (16, 16)
    assert array.metadata.zarr_format == 3
    np.testing.assert_allclose(array[:], whole, rtol=1e-14)
    assert (array[:] == array[:].T).all()
    assert (np.diagonal(array[:]) == K.diag(X)).all()


def test_a_second_call_writes_nothing(store):
    before, seen = snapshot(store), []
    array = wl.stored_gram(K, X, store, budget=BUDGET, progress=lambda done, total: seen.append((done, total)))
    assert snapshot(store) == before
    assert seen == []
    assert array.read_only


SCRIPT = """
import sys, time, numpy as np, widelimit as wl
def slow(done, total):
    print(done, flush=True)
    time.sleep(0.05)
net = wl.mlp(depth=2, activation="relu", bias_std=0.3)
wl.stored_gram(wl.ntk(net), np.load(sys.argv[1]), sys.argv[2], budget=32 * 1024, progress=slow)
"""


def test_kill_and_resume_gives_the_same_bits_and_recomputes_nothing(tmp_path, finished, monkeypatch):
    np.save(tmp_path / "X.npy", X)
    path = tmp_path / "K.zarr"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tmp_path / "X.npy", path], stdout=subprocess.PIPE, text=True
    )
    with process:
        while int(process.stdout.readline()) < 4:
            pass
        process.send_signal(signal.SIGKILL)
    (path / "c" / "0" / "1.dead.partial").write_bytes(b"half a tile")
    before = snapshot(path)
    written = {p for p in before if p.suffix not in (".partial", ".json")}
    computed = []
    write = tile_tasks.write_tile
    monkeypatch.setattr(tile_tasks, "write_tile", lambda work, i, j: computed.append((i, j)) or write(work, i, j))
    array = wl.stored_gram(K, X, path, budget=BUDGET)
    assert (array[:] == zarr.open_array(finished, mode="r")[:]).all()
    after = snapshot(path)
    assert all(after[p] == before[p] for p in written)
    assert not list(path.glob("c/*/*.partial"))
    done = {(int(p.parent.name), int(p.name)) for p in written}
    assert len(done) >= 4
    assert not [(i, j) for i, j in computed if (i, j) in done and (j, i) in done]
    assert len(computed) == len({(max(i, j), min(i, j)) for i in range(5) for j in range(5) if (i, j) not in done})


def test_interruption_stops_within_a_tile_and_keeps_the_finished_ones(tmp_path, finished, monkeypatch):
    monkeypatch.setattr(plan, "usable_cores", lambda: 1)

    def interrupt(done, _total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wl.stored_gram(K, X, tmp_path / "K.zarr", budget=BUDGET, progress=interrupt)
    partial = zarr.open_array(tmp_path / "K.zarr", mode="r")[:]
    there = ~np.isnan(partial)
    assert 0 < there.mean() < 0.7  # 3 of 15 tiles, each with its mirror, and what was in work
    assert (partial[there] == zarr.open_array(finished, mode="r")[:][there]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": wl.nngp(wl.mlp(**NET))}, r'of another kernel: it says kernel.class = "NTK", and this is "NNGP"'),
        (
            {"k": wl.ntk(wl.mlp(**{**NET, "bias_std": 0.3000001}))},
            r"of another kernel: it says kernel.net.layers\[0\].bias_std = 0.3, and this is 0.3000001",
        ),
        ({"k": K + wl.linear()}, "of another kernel: it says kernel.class"),
        ({"X": np.vstack([X[:-1], X[:1]])}, "of other data: it says data.sha256"),
        ({"X": X.astype(np.float32)}, 'of other data: it says data.dtype = "float64", and this is "float32"'),
        ({"X": X[:70]}, r"of other data: it says data.shape = \[\d+, \d\], and this is \[70, \d\]"),
    ],
)
def test_a_store_of_something_else_is_refused(store, change, message):
    before = snapshot(store)
    with pytest.raises(ValueError, match=f"{message}.*Nothing was changed"):
        wl.stored_gram(**{"k": K, "X": X, "path": store, "budget": BUDGET, **change})
    assert snapshot(store) == before


def test_functions_of_one_name_are_told_apart_by_their_values(tmp_path):
    def kernel(factor):
        def feature(x):
            return factor * x

        return wl.linear(feature)

    wl.stored_gram(kernel(1.0), X[:20], tmp_path / "K.zarr")
    with pytest.raises(ValueError, match="another function of the same name"):
        wl.stored_gram(kernel(2.0), X[:20], tmp_path / "K.zarr")


def test_foreign_and_damaged_stores_are_refused(store, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    other = zarr.create_array(tmp_path / "other.zarr", shape=(75, 75), chunks=(16, 16), dtype="f8")
    other[:] = 1.0
    file = tmp_path / "file.zarr"
    file.write_text("not a folder")
    for path in (foreign, tmp_path / "other.zarr", file):
        with pytest.raises(ValueError, match="is not a Gram matrix written by widelimit"):
            wl.stored_gram(K, X, path)
    assert [p.read_text() for p in foreign.iterdir()] == ["years of work"]
    (foreign / "zarr.json").write_text("{")
    (foreign / "c").mkdir()
    before = snapshot(foreign)
    with pytest.raises(ValueError, match="is not a Gram matrix written by widelimit"):
        wl.stored_gram(K, X, foreign)
    assert snapshot(foreign) == before
    shutil.rmtree(store / "c" / "3")
    for name in ("zarr.json", "widelimit.json"):
        (store / name).write_text("{")
    before = snapshot(store)
    with pytest.raises(ValueError, match=r"zarr\.json is damaged and has no copy"):
        wl.stored_gram(K, X, store, budget=BUDGET)
    assert snapshot(store) == before  # whose tiles these are nobody can tell


def flip(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x10]) + data[len(data) // 2 + 1 :]


DAMAGES = {"gone": None, "empty": lambda _: b"", "cut": lambda data: data[:-9], "flipped": flip}
FILES = ["zarr.json", "widelimit.json", *(f"c/{i}/{j}" for i in (0, 2, 4) for j in (1, 4))]


def damage(file, how):
    if DAMAGES[how]:
        file.write_bytes(DAMAGES[how](file.read_bytes()))
    else:
        file.unlink()


@pytest.mark.parametrize("how", DAMAGES)
def test_any_lost_or_damaged_file_is_made_again(store, how):
    good = snapshot(store)
    for name in FILES:
        damage(store / name, how)
        wl.stored_gram(K, X, store, budget=BUDGET)
        now = snapshot(store)
        assert {p: v[2] for p, v in now.items()} == {p: v[2] for p, v in good.items()}, name
        assert {p for p in good if now[p] != good[p]} == {store / name}, name
        good = now
    for name in FILES[2:]:  # several at once, and a metadata file
        damage(store / name, how)
    damage(store / "zarr.json", how)
    wl.stored_gram(K, X, store, budget=BUDGET)
    assert {p: v[2] for p, v in snapshot(store).items()} == {p: v[2] for p, v in good.items()}


def test_a_kill_at_the_beginning_leaves_what_can_be_gone_on_with(tmp_path, finished):
    for i, files in enumerate([(), ("zarr.0a1b.partial",), ("widelimit.json.partial",), ("zarr.json",)]):
        path = tmp_path / f"{i}.zarr"
        (path / "c" / "0").mkdir(parents=True)
        for name in files:
            (path / name).write_text("")
        array = wl.stored_gram(K, X, path, budget=BUDGET)
        assert {p.relative_to(path): v[2] for p, v in snapshot(path).items()} == {
            p.relative_to(finished): v[2] for p, v in snapshot(finished).items()
        }
        assert array.shape == (75, 75)


def test_one_copy_of_the_metadata_is_enough_to_refuse_another_kernel(store):
    for name in ("zarr.json", "widelimit.json"):
        kept = (store / name).read_bytes()
        (store / name).unlink()
        before = snapshot(store)
        with pytest.raises(ValueError, match="of another kernel"):
            wl.stored_gram(wl.nngp(wl.mlp(**NET)), X, store, budget=BUDGET)
        assert snapshot(store) == before
        (store / name).write_bytes(kept)


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_read_names_the_damaged_tile(store, how):
    array = wl.stored_gram(K, X, store, budget=BUDGET)
    damage(store / "c" / "2" / "1", how)
    assert np.isfinite(array[:16]).all()
    for read in (lambda: array[32:48, 20], lambda: np.asarray(array), lambda: array[:]):
        with pytest.raises(ValueError, match=r"1 damaged tiles, c/2/1: .*Call stored_gram"):
            read()
    with pytest.raises(ValueError, match=r"c/2/1"):
        wl.posterior(K, X, X[:, 0], noise=0.1, solver="cg", matrix=array)
    with pytest.raises(ValueError, match=r"rows 0 to 75 of the stored matrix .* again"):
        wl.posterior(K, X, X[:, 0], noise=0.1, solver="cg", matrix=zarr.open_array(store, mode="r"))
    with pytest.raises(IndexError):
        array[100]


def test_a_full_disk_keeps_the_finished_tiles(tmp_path, finished, monkeypatch):
    original = Place.put
    count = []

    def full(self, *args):
        count.append(1)
        if len(count) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, *args)

    monkeypatch.setattr(Place, "put", full)
    with pytest.raises(OSError, match=r"No space left on device while tiles .* are kept") as caught:
        wl.stored_gram(K, X, tmp_path / "K.zarr", budget=BUDGET)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    before = snapshot(tmp_path / "K.zarr" / "c")
    assert len(before) >= 6
    array = wl.stored_gram(K, X, tmp_path / "K.zarr", budget=BUDGET)
    assert (array[:] == zarr.open_array(finished, mode="r")[:]).all()
    after = snapshot(tmp_path / "K.zarr" / "c")
    assert all(after[p] == before[p] for p in before)


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"44 KiB and 0.98 KiB are free.*Nothing was computed"):
        wl.stored_gram(K, X, tmp_path / "K.zarr")
    assert not (tmp_path / "K.zarr").exists()


def test_a_budget_too_small_for_one_tile_is_refused(tmp_path, store):
    with pytest.raises(MemoryError, match=r"too small for one tile: 8 x 8 numbers of float64"):
        wl.stored_gram(K, X, tmp_path / "J.zarr", budget=1000)
    assert not (tmp_path / "J.zarr").exists()
    with pytest.raises(MemoryError, match="16 x 16; the budget is enough for 8 x 8"):
        wl.stored_gram(K, X, store, budget=12 * 1024)
    assert (wl.stored_gram(K, X, store)[:] == zarr.open_array(store, mode="r")[:]).all()  # a larger one uses its tiles


def test_arguments_are_checked(tmp_path):
    with pytest.raises(TypeError, match="a kernel is needed"):
        wl.stored_gram(wl.mlp(depth=2), X, tmp_path / "K.zarr")
    with pytest.raises(ValueError, match="NaN"):
        wl.stored_gram(K, np.full((3, 2), np.nan), tmp_path / "K.zarr")
    assert not list(tmp_path.iterdir())


def test_a_kernel_of_long_standing_is_quick():
    """After warm-up a small Gram matrix takes less than 60 calls of a compiled product, and no n in a bucket compiles.

    That is 1 to 4 ms, by processor; a program that is traced again takes over 50 ms.
    """
    inputs = RNG.standard_normal((50, 5))
    K.gram(inputs)
    programs = *storage.tiles._encodes, *storage.tiles._tiles.values()
    sizes = [program._cache_size() for program in programs]
    product = jax.jit(lambda x: x @ x.T)
    assert product(inputs).shape == (50, 50)
    times, units = [], []
    for i, n in enumerate((50, 33, 64, 40) * 5):
        data = RNG.standard_normal((n, 5))
        for call, found in ((K.gram, times), (lambda x: np.asarray(product(x)), units)):
            start = time.thread_time()  # other work on the machine is not counted
            call(data)
            found += [time.thread_time() - start] if i >= 4 else []  # the first of each n compiles the product
    assert [program._cache_size() for program in programs] == sizes
    assert np.median(times) < 60 * np.median(units), (np.median(times), np.median(units))


@pytest.mark.parametrize("name", ["movie.mkv.partial", "c/0/movie.mkv.partial", "zarr.json.partial/take 1"])
def test_only_files_that_a_kill_leaves_are_removed(tmp_path, name):
    file = tmp_path / "K.zarr" / name
    file.parent.mkdir(parents=True)
    file.write_text("half of a film")
    with pytest.raises(ValueError, match=r"is not a Gram matrix written by widelimit.*Nothing was changed"):
        wl.stored_gram(K, X[:20], tmp_path / "K.zarr")
    assert [p for p in (tmp_path / "K.zarr").rglob("*") if p.is_file()] == [file]


def test_a_users_files_and_attributes_stay_in_a_store(store):
    film = store / "movie.mkv.partial"
    film.write_text("half of a film")
    (store / "widelimit.json.partial").write_text("half of the metadata")
    zarr.open_array(store, mode="r+").attrs["note"] = "for the paper"
    wl.stored_gram(K, X, store, budget=BUDGET)
    assert film.read_text() == "half of a film"
    assert not (store / "widelimit.json.partial").exists()
    before = snapshot(store)
    for name in ("zarr.json", "widelimit.json"):
        damage(store / name, "cut")
        assert wl.stored_gram(K, X, store, budget=BUDGET).attrs["note"] == "for the paper"
        assert {p: v[2] for p, v in snapshot(store).items()} == {p: v[2] for p, v in before.items()}


READS = {
    "slices": lambda z: z[:3, :3],
    "whole": lambda z: np.asarray(z),
    "orthogonal": lambda z: z.oindex[[0, 2], [0, 1]],
    "points": lambda z: z.vindex[[0, 2], [0, 1]],
    "mask": lambda z: z.vindex[np.eye(75, dtype=bool)],
    "blocks": lambda z: z.blocks[0, 0],
    "basic": lambda z: z.get_basic_selection((slice(0, 3), 0)),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_way_to_read_names_the_missing_or_damaged_tile(store, read):
    array = wl.stored_gram(K, X, store, budget=BUDGET)
    assert np.isfinite(read(array)).all()
    damage(store / "c" / "0" / "0", "flipped")
    with pytest.raises(ValueError, match=r"1 damaged tiles, c/0/0: .*Call stored_gram"):
        read(array)
    (store / "c" / "0" / "0").unlink()
    with pytest.raises(ValueError, match=r"the tile c/0/0 is missing. Call stored_gram"):
        read(array)
    wl.stored_gram(K, X, store, budget=BUDGET)
    assert np.isfinite(read(array)).all()


def test_inference_names_a_missing_tile(store):
    array = wl.stored_gram(K, X, store, budget=BUDGET)
    (store / "c" / "2" / "1").unlink()
    for matrix, message in (
        (array, r"the tile c/2/1 is missing. Call stored_gram"),
        (zarr.open_array(store, mode="r"), r"is nan at row 42 and column 16, in the tile c/2/1.* again"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            wl.posterior(K, X, X[:, 0], noise=0.1, solver="cg", matrix=matrix)
        assert len(str(caught.value)) < 400 + len(str(store))
    stored = StoredOperator(zarr.open_array(store, mode="r"))
    with pytest.raises(ValueError, match=r"tile c/2/1"):  # past the rows that were compared with the kernel
        stored.product(X)
    shutil.rmtree(store / "c" / "3")
    with pytest.raises(ValueError, match=r"nan at row 3[2-9]|nan at row 48"):
        stored.diagonal()


def test_the_search_for_anothers_files_ends_at_the_first(tmp_path, monkeypatch):
    for i in range(50):
        (tmp_path / "home" / str(i)).mkdir(parents=True)
        (tmp_path / "home" / str(i) / "letter.txt").write_text("dear")
    seen, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(path) or scan(path))
    with pytest.raises(ValueError, match="is not a Gram matrix written by widelimit"):
        wl.stored_gram(K, X[:20], tmp_path / "home")
    assert 0 < len(seen) < 5


def test_folders_above_the_store_are_made(tmp_path):
    assert wl.stored_gram(K, X[:20], tmp_path / "none" / "folder" / "a.zarr").shape == (20, 20)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def bend(X):
    return X**2


def test_other_processes_write_the_same_bits_and_do_only_the_rest(tmp_path, finished):
    expected, seen = zarr.open_array(finished, mode="r")[:], []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        path = tmp_path / "K.zarr"
        array = wl.stored_gram(K, X, path, pool, budget=BUDGET)
        assert (array[:] == expected).all()
        assert {p.relative_to(path): v[2] for p, v in snapshot(path).items()} == {
            p.relative_to(finished): v[2] for p, v in snapshot(finished).items()
        }
        (path / "c" / "3" / "1").unlink()
        damage(path / "c" / "0" / "2", "flipped")
        wl.stored_gram(K, X, path, pool, budget=BUDGET, progress=lambda *each: seen.append(each))
        assert seen == [(14, 15), (15, 15)]
        assert (array[:] == expected).all()
        wl.stored_gram(wl.linear(bend), X, tmp_path / "L.zarr", pool)
        with pytest.raises(OSError, match=r"15 tiles were computed and are not in .*the same files everywhere"):
            wl.stored_gram(K, X, MemoryStore(), pool, budget=BUDGET)  # of which each process has its own
        pool.submit(die)
        with pytest.raises(BrokenProcessPool, match=r"make a new executor and call again"):
            wl.stored_gram(K, X, tmp_path / "M.zarr", pool, budget=BUDGET)
    assert list((tmp_path / "M.zarr" / "widelimit.work").iterdir())  # for a call that goes on
    with ThreadPoolExecutor(3) as threads:
        assert (wl.stored_gram(K, X, tmp_path / "M.zarr", threads, budget=BUDGET)[:] == expected).all()
    assert not (tmp_path / "M.zarr" / "widelimit.work").exists()


class Inline(Executor):
    """The executor is a process that has worked before: it is this one."""

    def submit(self, function, /, *args, **options):
        future = Future()
        future.set_result(function(*args, **options))
        return future


def test_a_worker_keeps_nothing_for_another_call(tmp_path, monkeypatch):
    other = np.vstack([X[:10], X[10:20] + 1])  # of the same first rows, by which a kernel is probed
    for folder, data in (("a", X[:20]), ("a", other), ("b", other)):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        found = wl.stored_gram(K, data, "K.zarr", Inline())
        np.testing.assert_allclose(found[:], K.gram(data), rtol=1e-12)


def test_the_kernel_of_a_network_of_images_can_be_sent(tmp_path):
    k, images = wl.nngp(wl.convnet(inputs=wl.Image(3, 3, 1), depth=1)), np.random.default_rng(0).random((5, 9))
    assert (wl.stored_gram(k, images, tmp_path / "K.zarr", Inline())[:] == k.gram(images)).all()


def test_a_tile_on_the_diagonal_has_its_bits_whatever_is_kept(tmp_path, finished):
    place = find_place(shutil.copytree(finished, tmp_path / "K.zarr"))
    before = snapshot(place.folder)
    tiling = plan.TilePlan(75, 75, 16, 1, 1, True)
    work = tile_tasks.begin_work(stores.open_tiles(place), K.prepared(X), X, tiling)
    work = replace(work, encoded=tile_tasks.Kept(0))
    for i in range(5):
        (place.folder / "c" / str(i) / str(i)).unlink()
        tile_tasks.write_tile(work, i, i)
    assert {p: v[2] for p, v in snapshot(place.folder).items()} == {p: v[2] for p, v in before.items()}


def test_what_cannot_be_sent_or_reached_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tile_tasks, "_pickler", lambda: pickle)
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        pytest.raises(TypeError, match=r"cannot be sent to other processes.*in a module"),
    ):
        wl.stored_gram(wl.linear(lambda X: 2 * X), X, tmp_path / "K.zarr", pool)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ValueError, match=r'needs obstore: pip install "widelimit\[cluster\]"'):
        wl.stored_gram(K, X, "s3://bucket/K.zarr")
    for path, error, message in (
        (MemoryStore(read_only=True), ValueError, "cannot be written"),
        ("", TypeError, "path must be a path, a URL"),
        (3, TypeError, "path must be a path, a URL"),
    ):
        with pytest.raises(error, match=message):
            wl.stored_gram(K, X, path)
    with pytest.raises(TypeError, match="client must be None"):
        wl.stored_gram(K, X, tmp_path / "L.zarr", "tcp://host:8786")
    assert not (tmp_path / "L.zarr").exists()


def test_a_store_of_zarr_holds_the_matrix(finished):
    store = MemoryStore()
    expected = zarr.open_array(finished, mode="r")[:]
    assert (wl.stored_gram(K, X, store, budget=BUDGET)[:] == expected).all()
    del store._store_dict["c/1/2"]
    seen = []
    wl.stored_gram(K, X, store, budget=BUDGET, progress=lambda *each: seen.append(each))
    assert seen == [(15, 15)]
    with pytest.raises(ValueError, match="of another kernel"):
        wl.stored_gram(2.0 * K, X, store, budget=BUDGET)
    again = pickle.loads(pickle.dumps(wl.stored_gram(K, X, finished, budget=BUDGET)))
    assert (again[:] == expected).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_tile_has_the_bytes_that_zarr_would_write_and_costs_one_copy(tmp_path, dtype):
    n, edge = 400, 256
    matrix = RNG.standard_normal((n, n)).astype(dtype)
    matrix[3, 300] = -0.0
    for path in ("ours", "zarrs"):
        find_place(tmp_path / path).write("zarr.json", stores.metadata((n, n), (edge, edge), np.dtype(dtype), {}))
    zarr.open_array(tmp_path / "zarrs", mode="r+", config={"write_empty_chunks": True})[:] = matrix
    store = stores.open_tiles(find_place(tmp_path / "ours"))
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for tile in (matrix[store.rows(i), store.rows(j)], matrix.T.copy()[store.rows(j), store.rows(i)].T):
            tracemalloc.start()
            store.write(i, j, tile)
            assert tracemalloc.get_traced_memory()[1] < 1.5 * store.bytes_of_tile + 50_000
            tracemalloc.stop()
            data = (tmp_path / "ours" / "c" / f"{i}" / f"{j}").read_bytes()
            assert data == (tmp_path / "zarrs" / "c" / f"{i}" / f"{j}").read_bytes()
    assert (zarr.open_array(tmp_path / "ours", mode="r")[:] == matrix).all()


def fail(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("step", [(Path, "replace"), (os, "posix_fallocate")])
def test_a_write_that_fails_half_way_leaves_no_file(tmp_path, monkeypatch, step):
    if step[0] is os and sys.platform != "linux":
        pytest.skip("space is not allocated ahead")
    place, data = find_place(tmp_path / "K.zarr"), np.arange(100, dtype=np.uint8)
    place.put("c/0/1", data)
    with monkeypatch.context() as patch:
        patch.setattr(*step, fail)
        for name in ("c/0/1", "c/0/2"):
            with pytest.raises(OSError, match="Input/output error"):
                place.put(name, data[:10])
    assert [p.name for p in (tmp_path / "K.zarr" / "c" / "0").iterdir()] == ["1"]
    assert place.read("c/0/1") == data.tobytes()
