"""Exact inference on a simulated cluster: the bits of one process, through kills and in an object store."""

# ruff: noqa: F811, pytest's fixtures are imported from another module
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

import widelimit as wl
from test_cluster import (  # noqa: F401
    HERE,
    TILES,
    K,
    X,
    bucket,
    client,
    cluster,
    computed,
    forgotten,
    kill_workers,
    scale,
    snapshot,
    tell,
    workplace,
)
from widelimit.compute import stored_rows, tile_cholesky

obstore = pytest.importorskip("obstore")
pytestmark = pytest.mark.filterwarnings(
    "default::ResourceWarning", "default::DeprecationWarning", "default::UserWarning"
)
Y = np.sin(X[:, :2])
Z = X[:7] + 0.1


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(tile_cholesky, "SMALLEST", 16)
    monkeypatch.setattr(stored_rows, "BLOCK", 64)


@pytest.fixture(scope="module")
def gram(tmp_path_factory):
    return wl.stored_gram(K, X, tmp_path_factory.mktemp("gram") / "K.zarr", budget=32 * 1024)


def fitted(matrix, place, client=None, solver="cholesky"):
    return wl.posterior(K, X, Y, noise=0.1, matrix=matrix, checkpoint=place, client=client, solver=solver)


def files(path):
    return {p.relative_to(path): p.read_bytes() for p in path.glob("c/*/*")}


@pytest.fixture(scope="module")
def one_process(gram, tmp_path_factory):
    """The posterior and the files of its factor, without a client."""
    path = tmp_path_factory.mktemp("factor") / "L.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile_cholesky, "SMALLEST", 16)
        return fitted(gram, path), files(path)


def test_one_two_and_three_workers_give_the_bits_of_one_process(cluster, client, gram, one_process, tmp_path):
    steps = fitted(gram, None, solver="cg")
    for count in (1, 2, 3):
        scale(cluster, client, count)
        path = tmp_path / f"{count}.zarr"
        post = fitted(gram, path, client)
        assert files(path) == one_process[1]
        assert len(files(path)) == TILES
        assert (post.weights == one_process[0].weights).all()
        assert (post.variance(Z) == one_process[0].variance(Z)).all()
    assert (fitted(gram, None, client, "cg").weights == steps.weights).all()
    np.testing.assert_allclose(post.mean(Z), wl.posterior(K, X, Y, noise=0.1).mean(Z), rtol=1e-9)


def test_twenty_kills_cost_at_most_the_tiles_in_flight(cluster, client, workplace, gram, one_process, tmp_path):
    scale(cluster, client, 3)
    tell(workplace, seconds=0.06)
    done = []

    def kill():
        while len(computed(workplace)) < 5:
            time.sleep(0.02)
        kill_workers(cluster, 2, done)

    killer = threading.Thread(target=kill)
    killer.start()
    post = fitted(gram, tmp_path / "L.zarr", client)
    assert len(done) >= 10, done  # most of them while tiles were computed
    killer.join()
    counts = computed(workplace)
    assert len(counts) == TILES
    assert 0 < sum(counts.values()) - TILES <= len(done)
    assert files(tmp_path / "L.zarr") == one_process[1]
    assert (post.weights == one_process[0].weights).all()


SCRIPT = """
import sys, numpy as np, distributed, widelimit as wl
from widelimit.compute import tile_cholesky
tile_cholesky.SMALLEST = 16
X = np.load(sys.argv[2])
k = wl.ntk(wl.mlp(depth=2, activation="relu", bias_std=0.3))
client = distributed.Client(sys.argv[1])
wl.posterior(k, X, np.sin(X[:, :2]), noise=0.1, matrix=sys.argv[3], checkpoint=sys.argv[4], client=client)
"""


def test_a_killed_client_is_called_again_and_does_only_the_rest(
    cluster, client, workplace, gram, one_process, tmp_path
):
    scale(cluster, client, 2)
    tell(workplace, seconds=0.05)
    np.save(tmp_path / "X.npy", X)
    path, matrix = tmp_path / "L.zarr", gram.store._store.root
    arguments = [sys.executable, "-c", SCRIPT, cluster.scheduler_address, tmp_path / "X.npy", matrix, path]
    with subprocess.Popen(arguments) as process:
        while len(computed(workplace)) < 40:
            time.sleep(0.02)
            assert process.poll() is None
        process.kill()
    forgotten(client)
    done = snapshot(path)
    assert 30 <= len(done) < TILES
    fitted(gram, path, client)
    assert {each: snapshot(path)[each] for each in done} == done
    assert files(path) == one_process[1]
    assert sum(computed(workplace).values()) <= TILES + 2


def test_matrix_and_factor_in_an_object_store(bucket, one_process):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        matrix = wl.stored_gram(K, X, f"{bucket}/K.zarr", pool, budget=32 * 1024)
        for source in (matrix, f"{bucket}/K.zarr"):
            post = fitted(source, f"{bucket}/L.zarr", pool)
            assert (post.weights == one_process[0].weights).all()
            assert (post.variance(Z) == one_process[0].variance(Z)).all()
    obstore.delete(obstore.store.from_url(f"{bucket}/L.zarr"), "c/2/1")
    with pytest.raises(ValueError, match=r"s3://bucket/L.zarr: the tile c/2/1 is missing; call again"):
        post.variance(Z)


def test_flows_and_ensembles_have_the_bits_of_one_process(cluster, client, gram):
    net = wl.mlp(depth=2, activation="relu", bias_std=0.3)
    found = []
    for count in (0, 1, 2):
        if count:
            scale(cluster, client, count)
        options = {"matrix": gram, "client": client if count else None, "solver": "krylov"}
        flow = wl.gradient_flow(K, X, Y, **options)
        law = wl.trained_ensemble(net, X, Y, **options)
        found.append(np.concatenate([flow.predict(Z, [1.0, 50.0, np.inf]).ravel(), law.variance(Z, 50.0)]))
    assert (found[1] == found[0]).all()
    assert (found[2] == found[0]).all()
    np.testing.assert_allclose(found[0][-len(Z) :], wl.trained_ensemble(net, X, Y).variance(Z, 50.0), atol=1e-7)
