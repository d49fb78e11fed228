"""What does not fit is refused at the door: at once, with both sizes, before anything is computed or allocated."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import scipy.linalg

import widelimit as wl
from widelimit import memory
from widelimit.compute import tiles
from widelimit.inference import solvers

RNG = np.random.default_rng(0)
N, D = 64, 3
X = RNG.standard_normal((N, D))
Y = X[:, 0]
Z = RNG.standard_normal((3 * N, D))
NET = wl.mlp(depth=3, bias_std=0.2)
K = wl.ntk(NET)
MATRIX = 8 * N * N
"""Bytes of one kernel matrix."""


@pytest.fixture(scope="module")
def made():
    wl.NNGPRegressor(noise=0.1).fit(X[:5], Y[:5])  # imports what it needs, as does the name of `train`
    assert wl.train
    return {
        "posterior": wl.posterior(K, X, Y, noise=0.1),
        "process": wl.GaussianProcess(K),
        "ensemble": wl.trained_ensemble(NET, X, Y),
        "flow": wl.gradient_flow(K, X, Y),
        "params": NET.init(0, input_dim=D, width=8, dtype=np.float64),
        "many": NET.init_many(range(4), input_dim=D, width=8, dtype=np.float64),
        "wide": NET.init(0, input_dim=D, width=120, dtype=np.float64),
        "function": wl.rkhs.Function(K, X, Y),
    }


def trained(params, *, rows=N, **settings):
    """A short training on some rows."""
    points = np.resize(X, (rows, D))
    given = {"learning_rate": 0.1, "steps": 1, "kernel_points": 0, "progress": False} | settings
    return wl.train(NET.apply, params, points, points[:, 0], **given)


# the free memory, in kernel matrices, that is just too little, and what is then refused
CALLS = {
    "gram": (0.9, lambda _: K.gram(X)),
    "cross": (2.9, lambda _: K.cross(Z, X)),
    "posterior": (0.4, lambda _: wl.posterior(K, X, Y, noise=0.1)),
    "posterior by Cholesky": (0.4, lambda _: wl.posterior(K, X, Y, noise=0.1, solver="cholesky")),
    "posterior in mixed precision": (
        0.2,
        lambda _: wl.posterior(K, X, Y, noise=0.1, solver="cholesky", precision="mixed"),
    ),
    "conjugate gradients": (4.9, lambda _: wl.posterior(K, X, Y, noise=0.1, solver="cg")),
    "covariance": (35, lambda made: made["posterior"].covariance(Z)),
    "mean of many": (2.9, lambda made: made["posterior"].mean(Z)),
    "samples": (35, lambda made: made["posterior"].sample(Z, 2)),
    "many samples": (90, lambda made: made["posterior"].sample(Z, 4000)),
    "leave one out": (2.9, lambda made: made["posterior"].leave_one_out()),
    "likelihood's gradient": (7, lambda made: made["posterior"].log_marginal_likelihood_gradient()),
    "process": (35, lambda made: made["process"].sample(Z, 2)),
    "density": (3.9, lambda made: made["process"].log_density(X, Y)),
    "flow": (3.9, lambda _: wl.gradient_flow(K, X, Y)),
    "flow of another loss": (3.9, lambda _: wl.gradient_flow(K, X, Y, loss=wl.Huber(1.0))),
    "flow by Lanczos": (0.3, lambda _: wl.gradient_flow(K, X, Y, solver="krylov")),
    "flow at many times": (9, lambda made: made["flow"].predict(X, np.linspace(0, 1, 1000))),
    "descent": (4.9, lambda _: wl.gradient_descent(K, X, Y, learning_rate=0.1, steps=3)),
    "learning rate": (1.9, lambda _: wl.max_learning_rate(K, X)),
    "ensemble": (4.9, lambda _: wl.trained_ensemble(NET, X, Y)),
    "ensemble's covariance": (40, lambda made: made["ensemble"].covariance(Z, 1.0)),
    "ensemble's variance": (8, lambda made: made["ensemble"].variance(Z, 1.0)),
    "certificate": (3.9, lambda _: wl.rkhs.is_positive_semidefinite(K, X)),
    "eigenvalues": (1.9, lambda _: wl.rkhs.eigenvalues(K, X)),
    "norm": (1.9, lambda made: made["function"].norm()),
    "values": (2.9, lambda made: made["function"](Z)),
    "init": (85, lambda _: NET.init(0, input_dim=D, width=600)),
    "init_many": (50, lambda _: NET.init_many(range(50), input_dim=D, width=90)),
    "apply": (0.4, lambda made: NET.apply(made["params"], Z)),
    "apply_many": (1.4, lambda made: NET.apply_many(made["many"], Z)),
    "regressor": (0.4, lambda _: wl.NNGPRegressor(noise=0.1).fit(X, Y)),
    "classifier": (0.9, lambda _: wl.NTKClassifier().fit(X, Y > 0)),
    "empirical": (0.9, lambda made: wl.empirical_ntk(NET.apply, made["params"], output="trace").gram(X)),
    "dual descent": (
        0.9,
        lambda _: wl.LinearModel(lambda x: x).dual_descent(X, Y, learning_rate=0.1, steps=1),
    ),
    "train, parameters": (10.9, lambda made: trained(made["wide"])),
    "train, signals": (1.4, lambda made: trained(made["params"], rows=4 * N)),
    "train, records of all rows": (
        2.03,
        lambda made: trained(made["params"], rows=8 * N, optimizer="sgd", batch_size=1),
    ),
    "train, adam": (27, lambda made: trained(made["wide"], optimizer="adam")),
    "train, an ensemble": (11.4, lambda made: trained(made["many"], rows=8 * N, ensemble=True)),
    "train, flow": (56, lambda made: trained(made["wide"], steps=None, learning_rate=None, flow_time=1.0)),
    "train, many records": (30, lambda made: trained(made["params"], steps=2**30, record_every=1)),
    "train, probes": (8.03, lambda made: trained(made["params"], probes=np.tile(X, (32, 1)))),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_does_not_fit_is_refused_before_the_work(made, name, monkeypatch):
    matrices, call = CALLS[name]

    def worked(*_, **__):
        raise AssertionError("work was begun before the refusal")

    monkeypatch.setattr(memory, "available", lambda: int(matrices * MATRIX))
    monkeypatch.setattr(solvers.operators, "RESERVE", 0)
    monkeypatch.setattr(tiles, "compute", worked)
    monkeypatch.setattr(scipy.linalg, "eigh", worked)
    tracemalloc.start()
    try:
        with pytest.raises(MemoryError, match=r"[GMK]iB") as caught:
            call(made)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "free" in str(caught.value) or "budget" in str(caught.value)
    assert len(str(caught.value)) < 400 or name == "empirical"  # which lists every method
    assert peak < 2**21  # no array: what is traced and imported


@pytest.mark.parametrize(
    "name",
    [
        *("flow", "ensemble", "leave one out", "covariance", "init", "conjugate gradients"),
        *("train, signals", "train, adam", "train, flow"),
    ],
)
def test_a_little_more_is_enough(made, name, monkeypatch):
    matrices, call = CALLS[name]
    monkeypatch.setattr(memory, "available", lambda: int((1.3 * matrices + 0.5) * MATRIX))
    monkeypatch.setattr(solvers.operators, "RESERVE", 0)
    assert call(made) is not None
    monkeypatch.setattr(memory, "available", lambda: int(0.5 * matrices * MATRIX))
    with pytest.raises(MemoryError, match=r"[KM]iB"):
        call(made)


SCRIPT = """
import resource, time, numpy as np, widelimit as wl
net = wl.mlp(depth=3)
k = wl.nngp(net)
k.gram(np.eye(3))
X = np.random.default_rng(0).standard_normal((3_000_000, 2))
params = {"v": np.zeros((2, 400)), "w": np.zeros(400)}
heavy = {"v": np.zeros((2, 30_000_000)), "w": np.zeros(30_000_000)}
wide = lambda p, X: abs(X @ p["v"]) @ p["w"]
wl.train(wide, params, X[:3], X[:3, 0], learning_rate=0.1, steps=1)
wl.memory.available = lambda: 8 * 2**30
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for call in (
    lambda: wl.posterior(k, X, X[:, 0], noise=0.1),
    lambda: wl.posterior(k, X, X[:, 0], noise=0.1, solver="cholesky", precision="mixed"),
    lambda: wl.gradient_flow(k, X, X[:, 0], solver="eigh"),
    lambda: net.init(0, input_dim=2, width=200_000),
    lambda: wl.GaussianProcess(k).sample(X, 1),
    lambda: wl.train(wide, params, X, X[:, 0], learning_rate=0.1, steps=1),
    lambda: wl.train(wide, params, X, X[:, 0], optimizer="sgd", batch_size=9, learning_rate=0.1, steps=1),
    lambda: wl.train(wide, params, X, X[:, 0], flow_time=1.0),
    lambda: wl.train(wide, heavy, X[:3], X[:3, 0], flow_time=1.0),
):
    start = time.process_time()
    try:
        call()
    except MemoryError as error:
        print(time.process_time() - start, error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_millions_of_rows_are_refused_within_a_second():
    code = SCRIPT.replace("wl.memory", "__import__('widelimit.memory', fromlist=['memory'])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    *lines, grown = done.stdout.splitlines()
    assert len(lines) == 9, done.stdout + done.stderr
    assert max(float(line.split()[0]) for line in lines) < 1.0
    assert "conjugate gradients on 3000000 points with 1 outputs needs" in lines[0]
    assert all("8.0 GiB are free" in line for line in lines)
    assert int(grown) < 700, "MiB"  # copies of X, 46 MiB each


@pytest.mark.skipif(sys.platform == "win32", reason="no ulimit")
def test_the_limit_of_the_process_counts():
    code = (
        "import resource, widelimit as wl; from widelimit import memory\n"
        "import psutil; used = psutil.Process().memory_info().vms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28)); print(memory.available())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert 2**27 < int(done.stdout) <= 2**28


def group(folder, version, limit, used, cached):
    """The files of a control group of this version."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{'total_' * (version == 1)}inactive_file {cached}\n")


def test_the_limit_of_a_job_counts_in_both_versions_of_control_groups(tmp_path):
    """The tightest group from the job's own up to the root; what the system keeps of files can be given back."""
    own, job = tmp_path / "own", "system.slice/job_1"
    own.write_text(f"12:cpu:/x\n0::/{job}\n")
    root = tmp_path / "two"
    assert memory.control_groups(root, own) == sys.maxsize
    group(root / job, 2, 1000, 700, 200)
    group(root / "system.slice", 2, "max", 700, 0)
    assert memory.control_groups(root, tmp_path / "nowhere") == sys.maxsize
    memory._limited_groups.cache_clear()
    assert memory.control_groups(root, own) == 500
    group(root / job, 2, 1000, 900, 0)
    assert memory.control_groups(root, own) == 100  # what is used is read each time
    old = tmp_path / "old"
    old.write_text("4:memory:/job\n0::/\n")
    group(tmp_path / "one" / "memory" / "job", 1, 800, 500, 0)
    group(tmp_path / "one" / "memory", 1, 9223372036854771712, 10**12, 0)
    assert memory.control_groups(tmp_path / "one", old) == 300
    contained = tmp_path / "contained"  # a container sees its own group as the root
    contained.write_text("0::/../kubepods/pod\n")
    group(tmp_path / "three", 2, 640, 40, 0)
    assert memory.control_groups(tmp_path / "three", contained) == 600
