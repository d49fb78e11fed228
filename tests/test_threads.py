"""BLAS threads: one for small computations, all for large ones, and as many as before when they end."""

import os
import threading

import numpy as np
import pytest
import scipy.linalg
from threadpoolctl import ThreadpoolController, threadpool_limits

import widelimit as wl
from widelimit.compute import linalg, packed, packed_cholesky, preconditioners, threads
from widelimit.compute.operators import StoredOperator
from widelimit.estimators.classifiers import NNGPClassifier

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3))
Y = RNG.standard_normal((40, 2))
MATRIX = X @ X.T + 40 * np.eye(40)
POOLS = ThreadpoolController().select(user_api="blas").lib_controllers


def counts():
    return {pool.get_num_threads() for pool in POOLS}


@pytest.fixture(autouse=True)
def two():
    """Two threads to begin with, whatever the machine and its environment have."""
    with threadpool_limits(2, user_api="blas"):
        assert counts() == {2}
        yield
        assert counts() == {2}, "the limit was not lifted"


@pytest.fixture
def seen(monkeypatch):
    """The numbers of threads at each call of what does the work of `linalg`."""
    found = []

    def watched(function):
        def call(*args, **kwargs):
            found.append(counts())
            return function(*args, **kwargs)

        return call

    for module, names in (
        (scipy.linalg.lapack, ("dpotrf", "dpstrf")),
        (scipy.linalg.blas, ("dtrsm", "dgemm")),
        (scipy.linalg, ("cho_solve", "eigh", "solve_triangular", "cholesky", "eigh_tridiagonal")),
        (packed_cholesky, ("_root", "_solve_triangle")),
        (np.linalg, ("eigh", "eigvalsh", "cholesky", "qr", "lstsq")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, watched(getattr(module, name)))
    return found


def posterior():
    return wl.posterior(wl.rbf(), X, Y, noise=0.1)


CALLS = {
    "factorise": lambda: linalg.factorise(MATRIX.copy()).solve(Y),
    "eigen": lambda: linalg.eigen(MATRIX.copy()).whiten(Y),
    "eigenvalues": lambda: linalg.eigenvalues(MATRIX.copy()),
    "pivoted": lambda: linalg.pivoted_cholesky(MATRIX, np.full(40, 1e-12)),
    "packed": lambda: packed.factorise([packed.RowBlock(0, 0, MATRIX)], np.zeros(40), np.dtype(float)).solve(Y),
    "preconditioner": lambda: preconditioners.low_rank(StoredOperator(MATRIX), np.ones(40), rank=10)(Y),
    "predict": lambda: posterior().predict(X),
    "sample": lambda: posterior().sample(X[:5], 2),
    "sensitivity": lambda: posterior().sensitivity(),
    "conjugate gradients": lambda: wl.posterior(wl.rbf(), X, Y, noise=0.1, solver="cg").predict(X),
    "flow": lambda: wl.gradient_flow(wl.rbf(), X, Y).predict(X, 1.0),
    "process": lambda: wl.GaussianProcess(wl.rbf()).log_density(X, Y[:, 0]),
    "certificate": lambda: wl.rkhs.is_positive_semidefinite(wl.rbf(), X),
    "separable": lambda: wl.separable(wl.rbf(), np.eye(2)),
    "least squares": lambda: wl.LinearModel(lambda x: x).minimum_norm(X, Y),
    "classifier": lambda: NNGPClassifier().fit(X, Y[:, 0] > 0).predict_proba(X),
    "regressor": lambda: wl.NTKRegressor(noise=0.1).fit(X, Y).predict(X),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_small_computation_has_one_thread(name, seen):
    CALLS[name]()
    assert seen, "nothing was watched"
    assert all(count == {1} for count in seen)


def test_a_large_one_keeps_its_threads(seen, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 1e4)
    linalg.factorise(MATRIX.copy()).solve(Y)
    posterior().sensitivity()
    assert seen
    assert all(count == {2} for count in seen)


def test_a_matrix_factorised_in_blocks_keeps_its_threads_beside_a_small_computation(seen, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 1e4)
    monkeypatch.setattr(linalg, "WHOLE", 20)
    with threads.limit(1):
        assert linalg.cholesky(MATRIX.copy()) is not None
    assert seen
    assert all(count == {2} for count in seen)


def test_where_a_matrix_begins_to_be_large():
    def limited(context):
        with context:
            return counts() == {1}

    assert limited(threads.limit(1400**3 / 3))
    assert not limited(threads.limit(1500**3 / 3))
    assert limited(threads.limit_decomposition(600))
    assert not limited(threads.limit_decomposition(700))
    assert not limited(threads.limit(threads.work(5000, 5000, 1)))  # a product with a matrix of 200 MB


def test_products_are_numpys():
    a = RNG.standard_normal((4, 3))
    for b in (RNG.standard_normal(3), RNG.standard_normal((3, 2)), RNG.standard_normal((5, 3, 2)), np.empty((3, 0))):
        np.testing.assert_array_equal(threads.product(a, b), a @ b)
    np.testing.assert_array_equal(threads.product(a[0], RNG.standard_normal((3, 2)) * 0), np.zeros(2))
    assert threads.product(np.empty((4, 0)), np.empty((0, 2))).shape == (4, 2)


def test_the_limit_is_lifted_after_an_error():
    def fail():
        with threads.limit(1):
            assert counts() == {1}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert counts() == {2}


class Interrupted:
    """Pools whose threads are set by a function that Ctrl-C ends, before or after it has done its work."""

    def __init__(self, monkeypatch, count, *, late):
        self.count, self.late = count, late
        pools = [threads._Pool(pool.threads, self.limit(pool)) for pool in threads._pools()]
        monkeypatch.setattr(threads, "_pools", lambda: pools)

    def limit(self, pool):
        def limit(count):
            interrupted, self.count = count == self.count, None if count == self.count else self.count
            if not interrupted or self.late:
                pool.limit(count)
            if interrupted:
                raise KeyboardInterrupt

        return limit


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("count", [1, 2], ids=["at the beginning", "at the end"])
def test_an_interrupted_limit_is_lifted(monkeypatch, count, late):
    Interrupted(monkeypatch, count, late=late)
    with pytest.raises(KeyboardInterrupt), threads.limit(1):
        pass
    with threads.limit(1):  # whatever was left undone at the end is done by the next computation
        assert counts() == {1}
    assert counts() == {2}


def test_a_computation_that_is_forgotten_counts_no_more():
    """Ctrl-C before the first instruction of `end`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads._ThreadLimit, "end", lambda *_: None)
        with threads.limit(1e12):
            pass
    with threads.limit(1):
        assert counts() == {1}


def test_nested_and_side_by_side():
    with threads.limit(1):
        with threads.limit(1):
            pass
        assert counts() == {1}
        with threads.limit(1e12):
            assert counts() == {2}  # the large one goes first: it would lose more
        assert counts() == {1}


def test_from_several_threads():
    wrong, ready = [], threading.Barrier(8)

    def work():
        ready.wait()
        for _ in range(300):
            with threads.limit(1):
                if counts() != {1}:
                    wrong.append(counts())

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert counts() == {2}


def test_a_users_own_limit_stays():
    with threadpool_limits(1, user_api="blas"):
        with threads.limit(1):
            assert counts() == {1}
        assert counts() == {1}
        with threads.limit(1e12):
            assert counts() == {1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_forked_child_is_not_limited_by_its_parents_computations():
    with threads.limit(1):
        child = os.fork()
        if child == 0:
            free = counts() == {2}
            with threads.limit(1):
                os._exit(0 if free and counts() == {1} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
