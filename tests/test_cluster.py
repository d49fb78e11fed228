"""A simulated cluster: worker processes that are killed, a slow one, a full disk, a new scheduler, a store that fails.

And an object store, served by moto. `make test-cluster` has the packages.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from zarr.storage import ObjectStore

import cluster_hooks
import widelimit as wl
from commands import invoke
from widelimit.compute import engines, tile_tasks, workers

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")
obstore = pytest.importorskip("obstore")
moto = pytest.importorskip("moto.server")
pytestmark = pytest.mark.filterwarnings(
    "default::ResourceWarning", "default::DeprecationWarning", "default::UserWarning"
)

HERE = Path(__file__).parent
X = np.random.default_rng(5).standard_normal((250, 3))
K = wl.ntk(wl.mlp(depth=2, activation="relu", bias_std=0.3))
BUDGET = 32 * 1024
"""Bytes: tiles of 16 x 16, 136 of them."""
TILES = 136
KILLS = 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return wl.stored_gram(K, X, tmp_path_factory.mktemp("whole") / "K.zarr", budget=BUDGET)[:]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The folder in which workers log what they compute."""
    folder = tmp_path_factory.mktemp("cluster")
    settings = {
        "distributed.worker.multiprocessing-method": "forkserver",  # modules are imported once
        "distributed.worker.preload": [str(HERE / "cluster_hooks.py")],
        "distributed.comm.timeouts.connect": "20s",
        "distributed.deploy.lost-worker-timeout": "1h",  # see the test of workers that Dask gives up
        # A fork server has the environment of its start, and a second module's workers come from the same one.
        "distributed.nanny.environ": {cluster_hooks.FOLDER: str(folder)},
    }
    with pytest.MonkeyPatch.context() as patch, dask.config.set(settings):
        patch.setenv(cluster_hooks.FOLDER, str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
        import distributed.nanny  # noqa: F401
        from distributed.utils import get_mp_context

        get_mp_context().set_forkserver_preload(["distributed", "jax", "zarr", "widelimit.kernels.stored"])
        yield folder


@pytest.fixture(scope="module")
def cluster(workplace):
    del workplace
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=0, silence_logs=50
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster, workplace):
    (workplace / "log").write_text("")
    with distributed.Client(cluster) as client:
        yield client
    (workplace / "faults.json").unlink(missing_ok=True)


def scale(cluster, client, count):
    cluster.scale(count)
    assert comes(lambda: len(client.nthreads()) == count, 60)


def comes(condition, seconds):
    """Return True when the condition holds, False if it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def tell(workplace, **faults):
    (workplace / "faults.json").write_text(json.dumps({key.replace("_", " "): value for key, value in faults.items()}))


def computed(workplace):
    return Counter(line for line in (workplace / "log").read_text().splitlines() if line.startswith("tile"))


def test_one_two_and_three_workers_give_the_bits_of_one_process(cluster, client, workplace, tmp_path, whole):
    for count in (1, 2, 3):
        scale(cluster, client, count)
        (workplace / "log").write_text("")
        seen, path = Seen(), tmp_path / f"{count}.zarr"
        array = wl.stored_gram(K, X, path, client, budget=BUDGET, progress=seen.add)
        assert (array[:] == whole).all()
        assert seen.reports == [(i, TILES) for i in range(1, TILES + 1)]
        assert set(computed(workplace).values()) == {1}
        assert sorted(p.name for p in path.iterdir()) == ["c", "widelimit.json", "zarr.json"]
    assert client.run_on_scheduler(
        lambda dask_scheduler: (len(dask_scheduler.tasks), dask_scheduler.allowed_failures)
    ) == (0, 3)


class Seen:
    """Progress is recorded; at a number of tiles, something is done."""

    def __init__(self, at=0, action=None):
        self.reports, self.at, self.action = [], at, action

    def add(self, done, total):
        self.reports.append((done, total))
        if done == self.at:
            self.action()


def kill_workers(cluster, seed, done):
    """Kill a worker at seeded moments; another takes its place."""
    rng = np.random.default_rng(seed)
    for _ in range(KILLS):
        time.sleep(rng.uniform(0.05, 0.4))
        alive = [n.process.pid for n in cluster.workers.values() if n.process and n.process.pid]
        if alive:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(int(rng.choice(alive)), signal.SIGKILL)
                done.append(1)


def test_twenty_kills_and_a_slow_worker_cost_at_most_the_tiles_in_flight(cluster, client, workplace, tmp_path, whole):
    scale(cluster, client, 3)
    tell(workplace, seconds=0.06)
    done = []

    def kill():
        while len(computed(workplace)) < 5:  # a worker that has only begun to start has no tile to lose
            time.sleep(0.02)
        kill_workers(cluster, 1, done)

    killer = threading.Thread(target=kill)
    killer.start()
    array = wl.stored_gram(K, X, tmp_path / "K.zarr", client, budget=BUDGET)
    assert len(done) >= 15  # most of them while tiles were computed
    killer.join()
    counts = computed(workplace)
    assert len(counts) == TILES
    assert 0 < sum(counts.values()) - TILES <= len(done)
    assert (array[:] == whole).all()


def test_an_innocent_task_may_lose_more_workers_than_dask_allows(
    cluster, client, workplace, tmp_path, whole, monkeypatch
):
    scale(cluster, client, 1)
    tell(workplace, deaths=4)
    assert (wl.stored_gram(K, X, tmp_path / "K.zarr", client, budget=BUDGET)[:] == whole).all()
    assert (workplace / "log").read_text().count("died") == 4
    monkeypatch.setattr(engines, "LOST_WORKERS", 0)
    tell(workplace, deaths=5)
    with pytest.raises(distributed.KilledWorker) as caught:
        wl.stored_gram(K, X, tmp_path / "L.zarr", client, budget=BUDGET)
    assert caught.value.__notes__[0].startswith("in the task tile-")  # or one that waited there


def kill_only_worker(cluster, client):
    """Kill it, and return its nanny, which starts it again; the scheduler knows that it is lost."""
    (nanny,) = cluster.workers.values()
    os.kill(nanny.process.pid, signal.SIGKILL)
    assert comes(lambda: not client.nthreads(), 20)
    return nanny


def test_a_worker_that_dask_gives_up_is_replaced_where_the_cluster_adapts_to_a_number(
    workplace, tmp_path, whole, monkeypatch
):
    """A cluster gives up a worker that is gone at 15 s after any of its deaths, also where it had come back between."""
    tell(workplace, seconds=0.01)
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}),  # it is gone then, at every death
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=0, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        nanny = kill_only_worker(cluster, client)
        assert comes(lambda: nanny.status == distributed.Status.closed, 30)
        assert list(cluster.worker_spec) == [nanny.name]  # the cluster wants it still, and nobody starts it
        assert not comes(client.nthreads, 3)
        monkeypatch.setattr(engines, "WAITING", 0.5)
        threading.Timer(3.0, cluster.adapt, kwargs={"minimum": 1, "maximum": 1}).start()
        with pytest.warns(UserWarning, match=r"no workers for 0 s.*cluster.adapt\(minimum=n, maximum=n\)"):
            array = wl.stored_gram(K, X, tmp_path / "K.zarr", client, budget=BUDGET)
        assert (array[:] == whole).all()
        kill_only_worker(cluster, client)
        assert comes(client.nthreads, 30)
    (workplace / "faults.json").unlink()


def test_a_full_disk_is_reported_and_the_next_call_does_the_rest(cluster, client, workplace, tmp_path, whole):
    scale(cluster, client, 2)
    tell(workplace, full_disk=60)
    with pytest.raises(OSError, match=r"No space left on device while tiles .* are kept") as caught:
        wl.stored_gram(K, X, tmp_path / "K.zarr", client, budget=BUDGET)
    assert caught.value.errno == 28
    tell(workplace)
    done, before = snapshot(tmp_path / "K.zarr"), computed(workplace)
    assert len(done) >= 60
    assert (wl.stored_gram(K, X, tmp_path / "K.zarr", client, budget=BUDGET)[:] == whole).all()
    assert {path: snapshot(tmp_path / "K.zarr")[path] for path in done} == done
    twice = [tile for tile in before if computed(workplace)[tile] > before[tile]]
    assert all(
        (tmp_path / "K.zarr" / "c" / i / j) not in done or (tmp_path / "K.zarr" / "c" / j / i) not in done
        for _, i, j in map(str.split, twice)
    )


def snapshot(path):
    return {p: p.stat().st_mtime_ns for p in path.glob("c/*/*") if p.suffix != ".partial"}


def test_a_store_that_fails_now_and_then_is_written_all_the_same(cluster, client, workplace, tmp_path, whole):
    scale(cluster, client, 2)
    tell(workplace, failing_every=9)
    assert (wl.stored_gram(K, X, tmp_path / "K.zarr", client, budget=BUDGET)[:] == whole).all()
    assert sum(computed(workplace).values()) > TILES
    tell(workplace, failing_every=1)
    with pytest.raises(OSError, match=r"Input/output error while tiles"):
        wl.stored_gram(K, X, tmp_path / "L.zarr", client, budget=BUDGET)


SCRIPT = """
import sys, numpy as np, distributed, widelimit as wl
k = wl.ntk(wl.mlp(depth=2, activation="relu", bias_std=0.3))
client = distributed.Client(sys.argv[1])
show = lambda *done: print(*done, flush=True)
wl.stored_gram(k, np.load(sys.argv[2]), sys.argv[3], client, budget=32 * 1024, progress=show)
"""


def forgotten(client):
    """Wait until the scheduler has no tasks of a client that was killed, and tiles in work are finished."""
    deadline = time.monotonic() + 20
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)


def test_a_killed_client_is_called_again_and_does_only_the_rest(cluster, client, workplace, tmp_path, whole):
    scale(cluster, client, 2)
    tell(workplace, seconds=0.02)
    np.save(tmp_path / "X.npy", X)
    path = tmp_path / "K.zarr"
    arguments = [sys.executable, "-c", SCRIPT, cluster.scheduler_address, tmp_path / "X.npy", path]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline().split()[0]) < 40:
            pass
        process.kill()
    forgotten(client)
    done, first = snapshot(path), sum(computed(workplace).values())
    assert len(done) >= 70
    assert (wl.stored_gram(K, X, path, client, budget=BUDGET)[:] == whole).all()
    assert {each: snapshot(path)[each] for each in done} == done
    assert sum(computed(workplace).values()) <= TILES + 2
    assert 40 <= first < TILES


def dask_process(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_scheduler_that_is_started_anew_gets_the_rest(workplace, tmp_path, whole):
    (workplace / "log").write_text("")
    tell(workplace, seconds=0.02)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, processes = f"tcp://127.0.0.1:{port}", []

    def start():
        processes.append(
            dask_process("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show")
        )
        hooks = str(HERE / "cluster_hooks.py")
        processes.append(
            dask_process("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--preload", hooks)
        )

    def restart():
        for process in processes:
            process.kill()
            process.wait()
        start()

    start()
    try:
        with distributed.Client(address, timeout=60) as client:
            seen = Seen(30, restart)
            array = wl.stored_gram(K, X, tmp_path / "K.zarr", client, budget=BUDGET, progress=seen.add)
            assert (array[:] == whole).all()
            assert len(seen.reports) == TILES
            assert sum(computed(workplace).values()) <= TILES + 4
            processes[-2].kill()
            deadline = time.monotonic() + 20
            while client.status == "running":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with pytest.raises(ValueError, match="the Dask client is not connected"):
                wl.stored_gram(K, X, tmp_path / "K.zarr", client, budget=BUDGET)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_closed_and_an_asynchronous_client_are_refused(client, tmp_path):
    client.close()
    with pytest.raises(ValueError, match=r"the Dask client is not connected \(it is closed\)"):
        wl.stored_gram(K, X, tmp_path / "K.zarr", client)
    assert not (tmp_path / "K.zarr").exists()


@pytest.mark.parametrize("late", [0.0, 0.02])
def test_a_client_that_is_closed_in_the_middle_is_named(late, cluster, client, workplace, tmp_path, whole):
    """Dask's own error depends on the moment: a task that cannot be sent, or one that is cancelled."""
    scale(cluster, client, 1)
    tell(workplace, seconds=0.01)
    other = distributed.Client(cluster)
    seen = Seen(20, (lambda: threading.Timer(late, other.close).start()) if late else other.close)
    with pytest.raises(ConnectionError, match="the Dask client is closed, or its scheduler is gone; finished tasks"):
        wl.stored_gram(K, X, tmp_path / "K.zarr", other, budget=BUDGET, progress=seen.add)
    assert (wl.stored_gram(K, X, tmp_path / "K.zarr", client, budget=BUDGET)[:] == whole).all()


def test_workers_of_another_version_or_with_other_bits_are_refused(cluster, client, tmp_path, monkeypatch):
    scale(cluster, client, 1)
    monkeypatch.setattr(workers, "installed", lambda: {"widelimit": "0.0.9"})
    with pytest.raises(RuntimeError, match=r"a worker has widelimit \d+\.\d+\.\d+, .*has 0\.0\.9"):
        wl.stored_gram(K, X, tmp_path / "K.zarr", client, budget=BUDGET)
    monkeypatch.undo()
    monkeypatch.setattr(tile_tasks, "probe", lambda *_: "0" * 64)
    with pytest.raises(RuntimeError, match="a worker computes other bits"):
        wl.stored_gram(K, X, tmp_path / "L.zarr", client, budget=BUDGET)


def peak(client, path, n, d, budget):
    """The most memory that the only worker took for this matrix, in bytes."""
    data = np.random.default_rng(n).standard_normal((n, d))
    before = client.run(lambda: psutil.Process().memory_info().rss)
    client.run(lambda: Path("/proc/self/clear_refs").write_text("5"))
    array = wl.stored_gram(K, data, path / f"{n}.zarr", client, budget=budget)
    text = client.run(lambda: Path("/proc/self/status").read_text()).popitem()[1]
    shutil.rmtree(path / f"{n}.zarr")
    (most,) = (int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))
    return most - before.popitem()[1], array.chunks[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_worker_does_not_grow_with_the_number_of_points(cluster, client, workplace, tmp_path):
    """It is the budget and three blocks of rows; a worker that read all rows would exceed that."""
    scale(cluster, client, 1)
    budget, d = 2**23, 1500
    peak(client, tmp_path, 700, d, budget)  # programs, and the first blocks, stay
    found = [peak(client, tmp_path, n, d, budget) for n in (400, 1400)]
    tell(workplace, all_rows_in_memory=1)
    control, edge = peak(client, tmp_path, 1400, d, budget)
    bound = budget + 3 * edge * d * 8
    assert max(most for most, _ in found) < bound < control, (found, bound, control)


@pytest.fixture(scope="module")
def bucket():
    """The URL of a bucket that moto serves."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        # moto keeps what a server of another module stored in this process.
        for path, method in (("moto-api/reset", "POST"), ("bucket", "PUT")):
            urllib.request.urlopen(urllib.request.Request(f"{url}/{path}", method=method)).close()
        yield "s3://bucket"
    server.stop()


def test_an_object_store_holds_the_same_bits_and_the_rest_is_computed_again(bucket, whole):
    url = f"{bucket}/K.zarr"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        array = wl.stored_gram(K, X, url, pool, budget=BUDGET)
        assert (array[:] == whole).all()
        store = obstore.store.from_url(url)
        keys = sorted(each["path"] for each in obstore.list(store).collect())
        assert len(keys) == 2 + 16 * 16
        obstore.delete(store, "c/3/1")
        obstore.put(store, "c/2/2", b"\0" * 2052)
        with pytest.raises(ValueError, match=r"the tile c/3/1 is missing"):
            array[48:64, :32]
        with pytest.raises(ValueError, match=r"1 damaged tiles, c/2/2"):
            array[32:48]
        seen = Seen()
        assert (wl.stored_gram(K, X, ObjectStore(store), pool, budget=BUDGET, progress=seen.add)[:] == whole).all()
        assert len(seen.reports) == 2
    obstore.delete(store, "zarr.json")
    assert (wl.stored_gram(K, X, url, budget=BUDGET)[:] == whole).all()
    with pytest.raises(ValueError, match="of other data"):
        wl.stored_gram(K, X[:100], url, budget=BUDGET)


def test_mistakes_with_an_object_store_are_named(bucket, monkeypatch):
    obstore.put(obstore.store.from_url(f"{bucket}/foreign"), "thesis.txt", b"years of work")
    with pytest.raises(ValueError, match="is not a Gram matrix written by widelimit"):
        wl.stored_gram(K, X, f"{bucket}/foreign")
    with pytest.raises(OSError, match=r"s3://nothing/K.zarr: .*Look at the address, the credentials"):
        wl.stored_gram(K, X, "s3://nothing/K.zarr")
    with pytest.raises(ValueError, match="is no address of an object store"):
        wl.stored_gram(K, X, "nowhere://bucket/K.zarr")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(OSError, match=r"s3://bucket/K.zarr: .*and the network"):
        wl.stored_gram(K, X, f"{bucket}/K.zarr")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(OSError, match=r"s3://bucket/K.zarr: no credentials: AWS_ACCESS_KEY_ID is not set"):
        wl.stored_gram(K, X, f"{bucket}/K.zarr")


CLI = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from widelimit.cli import main; main()"


def test_the_command_by_processes_is_interrupted_and_goes_on(tmp_path, whole):
    np.save(tmp_path / "X.npy", X)
    out = tmp_path / "K.zarr"
    options = ["--depth", "2", "--bias-std", "0.3", "--budget", str(BUDGET / 2**20), "--workers", "1"]
    line = [sys.executable, "-c", CLI, "kernel", str(tmp_path / "X.npy"), "--out", str(out), *options]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not (out / "c" / "0" / "0").exists():
            assert process.poll() is None
            time.sleep(0.01)
        group = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
        assert process.wait(20) == 130
        assert process.stderr.read() == (
            f"widelimit: interrupted; the finished tiles are in {out}, and the same command goes on with them.\n"
        )
    assert len(group) >= 2
    assert psutil.wait_procs(group, timeout=10)[1] == []
    done = snapshot(out)
    assert 0 < len(done) < 256
    assert invoke(*line[3:-2]).exit_code == 0
    assert (zarr.open_array(out, mode="r")[:] == whole).all()
    assert {each: snapshot(out)[each] for each in done} == done


def test_the_command_takes_a_scheduler_and_says_where_the_dashboard_is(cluster, client, tmp_path, whole):
    scale(cluster, client, 1)
    np.save(tmp_path / "X.npy", X)
    options = ["--depth", 2, "--bias-std", 0.3, "--budget", BUDGET / 2**20, "--out", tmp_path / "K.zarr"]
    found = invoke("kernel", tmp_path / "X.npy", "--scheduler", cluster.scheduler_address, *options)
    assert (found.exit_code, found.stdout[:18]) == (0, "ntk of 250 inputs:")
    assert found.stderr == f"note: 1 workers at {cluster.scheduler_address}; dashboard: {client.dashboard_link}\n"
    assert (zarr.open_array(tmp_path / "K.zarr", mode="r")[:] == whole).all()
    for wrong, message in {
        ("--scheduler", "tcp://127.0.0.1:1"): "no Dask scheduler answers there within 5 s",
        ("--scheduler", "nonsense"): "no Dask scheduler answers there",
        ("--scheduler", cluster.scheduler_address, "--workers", 2): "give one of them",
    }.items():
        found = invoke("kernel", tmp_path / "X.npy", *wrong, *options)
        assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
        assert message in found.stderr
