"""Flows and ensembles on a stored matrix: those in memory, the same bits for any workers, gone on with after a kill."""

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
import pytest
import zarr

import widelimit as wl
from widelimit.compute import checkpoints, stored_rows
from widelimit.compute.operators import StoredOperator
from widelimit.compute.places import find_place
from widelimit.compute.stores import TileStore

RNG = np.random.default_rng(4)
N = 60
X = RNG.standard_normal((N, 3))
Y = np.stack([np.sin(X[:, 0]), X[:, 1]], axis=1)
Z = RNG.standard_normal((5, 3))
NET = wl.mlp(depth=2, activation="relu", bias_std=0.3)
K, PRIOR = wl.ntk(NET), wl.nngp(NET)
TIMES = np.array([0.0, 0.5, 30.0, np.inf])


def f0(A):
    return np.column_stack([A[:, 0], np.ones(len(A))])


@pytest.fixture(scope="module")
def gram(tmp_path_factory):
    path = tmp_path_factory.mktemp("gram") / "K.zarr"
    wl.stored_gram(K, X, path, budget=32 * 1024)
    return path


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return wl.stored_gram(PRIOR, X, tmp_path_factory.mktemp("prior") / "S.zarr", budget=32 * 1024)


def agree(flow, other):
    np.testing.assert_allclose(flow.predict(Z, TIMES), other.predict(Z, TIMES), atol=1e-7)
    np.testing.assert_allclose(flow.loss(TIMES), other.loss(TIMES), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(flow.coefficients(30.0), other.coefficients(30.0), atol=1e-5)


def planted(gram, path, tile):
    """A copy of the matrix in which this tile and its image are wrong, with good checksums."""
    shutil.copytree(gram, path)
    store = TileStore(find_place(path), zarr.open_array(path, mode="r+"))
    for i, j in {tile, tile[::-1]}:
        store.write(i, j, store.read(i, j) * 1.001)
    return path


@pytest.mark.parametrize("solver", ["krylov", "eigh"])
def test_a_flow_is_the_one_in_memory(gram, solver):
    expected = wl.gradient_flow(K, X, Y, initial=f0)
    flow = wl.gradient_flow(K, X, Y, initial=f0, matrix=gram, solver=solver)
    assert isinstance(flow, wl.KrylovFlow if solver == "krylov" else wl.GradientFlow)
    agree(flow, expected)


def test_a_wrong_tile_is_detected(gram, tmp_path):
    """Where a row of it is compared with the kernel it is refused; elsewhere the comparison with memory rejects it."""
    with pytest.raises(ValueError, match=r"matrix is not K\(X, X\): its rows differ"):
        wl.gradient_flow(K, X, Y, matrix=planted(gram, tmp_path / "probed.zarr", (2, 1)), solver="krylov")
    path = tmp_path / "other.zarr"
    shutil.copytree(gram, path)
    array = zarr.open_array(path, mode="r+")
    array[20, 30] = array[30, 20] = array[20, 30] + 1e-4  # no row at which the kernel is compared
    with pytest.raises(AssertionError):
        agree(wl.gradient_flow(K, X, Y, matrix=array, solver="krylov"), wl.gradient_flow(K, X, Y))
    (path / "c" / "3" / "1").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"1 damaged tiles, c/3/1"):
        wl.gradient_flow(K, X, Y, matrix=path, solver="krylov").predict(Z, 1.0)


def test_an_ensemble_is_the_one_in_memory(gram, prior):
    expected = wl.trained_ensemble(NET, X, Y)
    for options in ({"solver": "krylov", "prior_matrix": prior}, {"solver": "krylov"}, {"prior_matrix": prior}):
        ensemble = wl.trained_ensemble(NET, X, Y, matrix=gram, **options)
        assert isinstance(ensemble, wl.KrylovEnsemble if "solver" in options else wl.TrainedEnsemble)
        np.testing.assert_allclose(ensemble.mean(Z, TIMES), expected.mean(Z, TIMES), atol=1e-7)
        np.testing.assert_allclose(ensemble.covariance(Z, TIMES), expected.covariance(Z, TIMES), atol=1e-7)
        np.testing.assert_allclose(ensemble.variance(Z, 0.5), expected.variance(Z, 0.5), atol=1e-7)
    lost = wl.trained_ensemble(NET, X, Y, matrix=gram, solver="krylov", prior_matrix=None)
    object.__setattr__(lost, "own", StoredOperator(K.gram(X)))  # Theta for Sigma
    assert np.abs(lost.variance(Z, 0.5) - expected.variance(Z, 0.5)).max() > 1e-3


def test_the_bits_do_not_depend_on_the_workers(gram, prior, monkeypatch):
    monkeypatch.setattr(stored_rows, "BLOCK", 16)
    found = []
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(3) as three:
        for client in (None, one, three):
            flow = wl.gradient_flow(K, X, Y, matrix=gram, client=client, solver="krylov")
            law = wl.trained_ensemble(NET, X, Y, matrix=gram, prior_matrix=prior, client=client, solver="krylov")
            found.append(np.concatenate([flow.predict(Z, TIMES).ravel(), law.variance(Z, TIMES).ravel()]))
        copy = pickle.loads(pickle.dumps(flow))
    assert all((each == found[0]).all() for each in found)
    assert (copy.predict(Z, 30.0) == flow.predict(Z, 30.0)).all()
    assert np.isfinite(copy.predict(Z, 1e4)).all()  # in threads: its client is closed
    with pytest.raises(ValueError, match=r"client takes no tasks: .* Make a new executor"):
        flow.predict(Z, 1e4)


def test_a_basis_is_kept_and_gone_on_with(gram, tmp_path, monkeypatch):
    file, calls = tmp_path / "basis.npz", []
    expected = wl.gradient_flow(K, X, Y, matrix=gram, solver="krylov").predict(Z, 1e4)
    original = StoredOperator.product
    monkeypatch.setattr(StoredOperator, "product", lambda self, v: calls.append(1) or original(self, v))
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    wl.gradient_flow(K, X, Y, matrix=gram, checkpoint=file).predict(Z, 1.0)
    first = len(calls)
    flow = wl.gradient_flow(K, X, Y, matrix=gram, checkpoint=file)
    flow.predict(Z, 1.0)
    assert len(calls) == first
    assert (flow.predict(Z, 1e4) == expected).all()
    assert len(calls) == flow.basis.steps
    assert first < flow.basis.steps
    with pytest.raises(ValueError, match="belongs to another problem"):
        wl.gradient_flow(K, X, Y + 1, matrix=gram, checkpoint=file)


def test_mistakes_are_refused(gram):
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="client computes with a stored matrix"):
        wl.gradient_flow(K, X, Y, client=pool)
    with pytest.raises(TypeError, match="client must be None"):
        wl.trained_ensemble(NET, X, Y, matrix=gram, client="tcp://host:8786")
    for call in (wl.gradient_flow, lambda _, *args, **more: wl.trained_ensemble(NET, *args, **more)):
        with pytest.raises(ValueError, match=r"matrix must be K\(X, X\), .* shape \(60, 60\)"):
            call(K, X, Y, matrix=np.eye(3))
        with pytest.raises(ValueError, match="is not the folder of a matrix"):
            call(K, X, Y, matrix="nowhere.zarr")
        with pytest.raises(ValueError, match='solver must be "auto", "eigh" or "krylov"'):
            call(K, X, Y, solver="cg")
        with pytest.raises(TypeError, match="matrix"):
            jax.eval_shape(partial(call, K, X.astype(np.float32), matrix=gram), Y.astype(np.float32))
    with pytest.raises(ValueError, match="is for the squared error"):
        wl.gradient_flow(K, X, np.sign(Y), loss="logistic", matrix=gram)
    with pytest.raises(ValueError, match='solver="eigh" keeps no state'):
        wl.gradient_flow(K, X, Y, solver="eigh", checkpoint="state.npz")
    with pytest.raises(TypeError, match="is matrix-valued"):
        wl.gradient_flow(wl.separable(K, np.eye(2)), X, Y, matrix=gram)
    with pytest.raises(TypeError, match=r'cannot be traced by jax .* pass solver="eigh"'):
        jax.jit(lambda z: wl.trained_ensemble(NET, X, Y, matrix=gram, solver="krylov").variance(z, 1.0))(Z)


def test_a_product_has_the_same_bits_here_and_where_its_vectors_are_sent(monkeypatch):
    """A basis has gaps between its vectors, and pickling closes them; the products of BLAS depend on that."""
    rng = np.random.default_rng(8)
    monkeypatch.setattr(stored_rows, "BLOCK", 64)
    matrix = StoredOperator(rng.standard_normal((250, 250)))
    for v in (rng.standard_normal((7, 21, 250))[:, 3].T, rng.standard_normal((7, 250)).T):
        sent = pickle.loads(pickle.dumps(v))
        assert not v.flags.c_contiguous
        assert (matrix.product(v) == matrix.product(sent)).all()
