"""A forked child answers or raises at once; it never hangs."""

import multiprocessing
import subprocess
import sys

import numpy as np
import pytest

import widelimit as wl
from widelimit import processes

X = np.random.default_rng(0).standard_normal((40, 3))
K = wl.nngp(wl.mlp(depth=2, bias_std=0.3))
SECONDS = 60
"""For a process: it hangs."""

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows"),
    pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning", "ignore:.*fork.*:DeprecationWarning"),
]


def outcome(work, queue):
    try:
        queue.put(("answer", float(np.sum(work()))))
    except Exception as error:
        queue.put((type(error).__name__, str(error)))


def forked(work):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=outcome, args=(work, queue))
    child.start()
    child.join(SECONDS)
    if child.is_alive():
        child.kill()
        child.join()
        return "hung", ""
    return queue.get() if not queue.empty() else ("died", str(child.exitcode))


@pytest.fixture(scope="module")
def works():
    posterior = wl.posterior(K, X, X[:, 0], noise=0.1)
    model = wl.NNGPRegressor(noise=0.1).fit(X, X[:, 0])
    net = wl.mlp(depth=2)
    params = net.init(0, input_dim=3, width=4, output_dim=1)
    return {
        "gram": lambda: K.gram(X),
        "another kernel": lambda: wl.rbf().cross(X, X),
        "posterior": lambda: posterior.predict(X[:5]).mean,
        "estimator": lambda: model.predict(X[:5]),
        "fit": lambda: wl.NTKRegressor(noise=0.1).fit(X, X[:, 0]).predict(X),
        "init": lambda: net.init(1, input_dim=3, width=4, output_dim=1) and 0,
        "apply": lambda: net.apply(params, X),
        "empirical": lambda: wl.empirical_ntk(net.apply, params, output="trace").gram(X),
        "flow": lambda: wl.gradient_flow(K, X, X[:, 0]).predict(X, 1.0),
        "dual": lambda: wl.activation("relu").dual(1.0, 0.5, 1.0),
    }


@pytest.mark.parametrize(
    "name", ["gram", "another kernel", "posterior", "estimator", "fit", "init", "apply", "empirical", "flow", "dual"]
)
def test_after_use_in_the_parent_the_child_raises_at_once(works, name):
    K.gram(X)
    kind, text = forked(works[name])
    assert kind == "RuntimeError", text
    assert 'multiprocessing.get_context("spawn")' in text
    assert len(text) < 400
    K.gram(X)  # the parent goes on


def test_without_jax_the_child_answers():
    assert forked(lambda: X) == ("answer", float(X.sum()))


SCRIPT = """
import multiprocessing, numpy as np, widelimit as wl
X = np.linspace(0, 1, 12).reshape(6, 2)
k, model = wl.nngp(wl.mlp(depth=2)), wl.NNGPRegressor(noise=0.1)
def work(queue):
    queue.put([float(k.gram(X).sum()), float(model.fit(X, X[:, 0]).predict(X).sum())])
context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
child = context.Process(target=work, args=(queue,))
child.start()
child.join(60)
assert child.exitcode == 0, child.exitcode
found = queue.get()
assert found == [float(k.gram(X).sum()), float(model.fit(X, X[:, 0]).predict(X).sum())], found
print("fine")
"""


def test_what_the_parent_has_not_used_works_in_the_child():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.stdout == "fine\n", done.stderr


def test_joblib_works():
    joblib = pytest.importorskip("joblib")
    K.gram(X)
    sums = joblib.Parallel(n_jobs=2)(joblib.delayed(total)(scale) for scale in (1.0, 2.0))
    np.testing.assert_allclose(sums, [total(1.0), total(2.0)], rtol=1e-12)


def total(scale):
    return float(wl.nngp(wl.mlp(depth=2, bias_std=0.3)).gram(scale * X).sum())


def test_the_check_costs_nothing(monkeypatch):
    processes.refuse_forked()
    monkeypatch.setattr(processes._State, "forked", True)
    with pytest.raises(RuntimeError, match="forked"):
        K.gram(X)
