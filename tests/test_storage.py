"""Gram matrices on disk: the bits of those in memory, found again after a kill, and nothing overwritten."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import zarr

import widelimit as wl
from widelimit.compute import plan, storage

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
    written = {p for p in before if p.suffix != ".partial" and p.name != "zarr.json"}
    computed = []
    original = storage.tiles.compute

    def compute(*args, wanted=lambda *_: None, **options):
        if wanted(0, -1) is None:  # the probe's little matrix
            return original(*args, **options)
        return original(*args, wanted=lambda i, j: wanted(i, j) and not computed.append((i, j)), **options)

    monkeypatch.setattr(storage.tiles, "compute", compute)
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
        ({"k": wl.nngp(wl.mlp(**NET))}, "of another kernel"),
        ({"k": wl.ntk(wl.mlp(**{**NET, "bias_std": 0.3000001}))}, "of another kernel"),
        ({"k": K + wl.linear()}, "of another kernel"),
        ({"X": np.vstack([X[:-1], X[:1]])}, "of other data"),
        ({"X": X.astype(np.float32)}, "of other data"),
        ({"X": X[:70]}, "of other data"),
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
    assert (foreign / "thesis.txt").read_text() == "years of work"
    chunk = store / "c" / "2" / "1"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"c/2/1 is damaged: it has 2043 bytes .* 2052; remove that file"):
        wl.stored_gram(K, X, store, budget=BUDGET)
    chunk.unlink()
    wl.stored_gram(K, X, store, budget=BUDGET)
    flipped = bytearray(chunk.read_bytes())
    flipped[100] ^= 1
    chunk.write_bytes(flipped)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(store, mode="r")[:]
    metadata = json.loads((store / "zarr.json").read_text())
    metadata["shape"] = [75, 76]
    (store / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"zarr\.json is damaged"):
        wl.stored_gram(K, X, store, budget=BUDGET)
    (store / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"zarr\.json is damaged"):
        wl.stored_gram(K, X, store, budget=BUDGET)


def test_a_full_disk_keeps_the_finished_tiles(tmp_path, finished, monkeypatch):
    original = zarr.Array.__setitem__
    count = []

    def full(self, *args):
        count.append(1)
        if len(count) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, *args)

    monkeypatch.setattr(zarr.Array, "__setitem__", full)
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
    with pytest.raises(OSError, match=r"4\.19e-05 GiB and 9\.31e-07 GiB are free.*Nothing was computed"):
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
    """After warm-up a small Gram matrix takes less than a millisecond, and no n within a bucket compiles."""
    inputs = RNG.standard_normal((50, 5))
    K.gram(inputs)
    sizes = storage.tiles._encode._cache_size(), storage.tiles._tile._cache_size()
    times = []
    for n in (50, 33, 64, 40) * 5:
        data = RNG.standard_normal((n, 5))
        start = time.thread_time()  # other work on the machine is not counted
        K.gram(data)
        times.append(time.thread_time() - start)
    assert (storage.tiles._encode._cache_size(), storage.tiles._tile._cache_size()) == sizes
    assert sorted(times)[len(times) // 2] < 1e-3
