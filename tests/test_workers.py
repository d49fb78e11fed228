"""Tasks run in threads and executors: in order, with one BLAS thread, and with errors that say which task."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import numpy as np
import pytest

import widelimit as wl
from widelimit import processes
from widelimit.compute import engines, threads, workers
from widelimit.compute.workers import Task


def append(path, line):
    with open(path, "a") as file:
        file.write(f"{line}\n")


def fail(path, line):
    append(path, line)
    raise OSError(28, f"no space for {line}")


def ended(_):
    os.kill(os.getpid(), signal.SIGKILL)


def square(x, path):
    append(path, f"{os.getpid()}")
    return x * x


def spawned(count):
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(params=["none", "threads", "processes"])
def client(request):
    if request.param == "none":
        yield None
        return
    with ThreadPoolExecutor(2) if request.param == "threads" else spawned(2) as pool:
        yield pool


def lines(path):
    return path.read_text().splitlines()


def test_tasks_wait_for_their_predecessors_and_results_come_in_order(client, tmp_path):
    log, seen = tmp_path / "log", []
    chain = {f"t-{i}": Task(append, (log, i), (f"t-{i - 1}", "done-before")) for i in reversed(range(9))}
    workers.run(chain, client, report=lambda *each: seen.append(each), stage="links")
    assert lines(log) == [str(i) for i in range(9)]
    assert seen == [("links", i, 9) for i in range(1, 10)]
    assert workers.gather(square, [(i, tmp_path / "pids") for i in range(20)], client) == [i * i for i in range(20)]
    workers.run({}, client)


def test_the_first_error_names_its_task_and_cancels_the_rest(client, tmp_path):
    log = tmp_path / "log"
    tasks = {f"t-{i}": Task(fail if i == 3 else append, (log, i)) for i in range(200)}
    with pytest.raises(OSError, match="no space for 3") as caught:
        workers.run(tasks, client)
    assert caught.value.__notes__ == ["in the task t-3"]
    assert len(lines(log)) < 60


def test_a_cycle_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cycle"):
        workers.run(
            {"a": Task(append, (tmp_path / "a", 1), ("b",)), "b": Task(append, (tmp_path / "a", 1), ("a",))}, None
        )


def test_a_killed_process_and_an_ended_executor_are_named(tmp_path):
    with spawned(1) as pool:
        for _ in range(2):  # during the work, and before it
            with pytest.raises(BrokenProcessPool, match=r"ended during t or beside it.* new executor and call again"):
                workers.run({"t": Task(ended, (0,))}, pool)
    with ThreadPoolExecutor(1) as pool:
        pass
    with pytest.raises(ValueError, match=r"client takes no tasks: .*shutdown"):
        workers.run({"t": Task(append, (tmp_path / "log", 1))}, pool)
    for wrong in ("tcp://host:8786", 4, object()):
        with pytest.raises(TypeError, match="client must be None"):
            workers.run({}, wrong)


def test_a_cluster_without_workers_is_reported_once(monkeypatch):
    cluster = SimpleNamespace(status="running", nthreads=lambda: {"tcp://here:1": 1})
    engine = engines.Dask(cluster)
    monkeypatch.setattr(engines, "WAITING", 0.0)
    monkeypatch.setattr(engines, "FRESH", 0.0)
    engine.check()
    cluster.nthreads = dict
    with pytest.warns(UserWarning, match=r"has had no workers for 0 s; tasks wait for one"):
        engine.check()
    engine.check()


class Silent:
    """A client of Dask whose tasks, or whose scheduler, never answer."""

    status, asynchronous = "running", False

    def __init__(self, *, scheduler):
        self.scheduler, self.cancelled = scheduler, []

    def nthreads(self):
        return {"tcp://here:1": 1} if self.scheduler else threading.Event().wait(60)

    def submit(self, *_, key, **__):
        return Future()

    def cancel(self, futures):
        self.cancelled += futures


def test_workers_that_never_answer_end_the_call(monkeypatch):
    monkeypatch.setenv(workers.TIMEOUT, "0.2")
    monkeypatch.setattr(workers, "POLL", 0.05)
    client = Silent(scheduler=True)
    flight = workers._Flight({f"t-{i}": Task(square, (i, "log")) for i in range(5)}, engines.Dask(client))
    with pytest.raises(TimeoutError, match=r"no task has ended for 0 s, and 3 are in work \(t-0, t-1.*call again"):
        list(flight.results())
    assert len(client.cancelled) == 3
    client.nthreads = dict  # no workers yet, as where they wait in a queue: that is no fault
    waiting = workers._Flight({"t": Task(square, (1, "log"))}, engines.Dask(client)).results()
    monkeypatch.setattr(engines, "WAITING", 0.5)
    with pytest.raises(UserWarning, match="has had no workers"):
        next(waiting)


def test_a_scheduler_that_never_answers_ends_the_call(monkeypatch):
    monkeypatch.setattr(engines, "ANSWER", 0.2)
    flight = workers._Flight({"t": Task(square, (1, "log"))}, engines.Dask(Silent(scheduler=False)))
    with pytest.raises(TimeoutError, match=r"the Dask scheduler has not answered for 0 s.*new client and call again"):
        list(flight.results())


def test_a_process_that_hangs_is_given_up_and_named_with_what_is_stored(tmp_path, monkeypatch):
    monkeypatch.setenv(workers.TIMEOUT, "0.3")
    monkeypatch.setattr(workers, "POLL", 0.05)

    class Hanging(Executor):
        """One that finishes some tasks, here, and then none."""

        def __init__(self):
            self.left = 4

        def submit(self, function, /, *arguments):
            future = Future()
            future.set_running_or_notify_cancel()
            if self.left:
                self.left -= 1
                future.set_result(function(*arguments))
            return future

    k, X = wl.rbf(), np.random.default_rng(0).standard_normal((70, 2))
    with pytest.raises(TimeoutError, match=r"K\.zarr: \d tiles are stored; no task has ended .*tile-.*again"):
        wl.stored_gram(k, X, tmp_path / "K.zarr", Hanging(), budget=32 * 1024)
    done = len(list((tmp_path / "K.zarr").glob("c/*/*")))
    assert 4 <= done < 25
    seen = []
    wl.stored_gram(k, X, tmp_path / "K.zarr", budget=32 * 1024, progress=lambda *each: seen.append(each))
    assert len(seen) == 15 - 4
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv(workers.TIMEOUT, wrong)
        with pytest.raises(ValueError, match=f"WIDELIMIT_TIMEOUT='{wrong}' must be a number of seconds"):
            workers.run({"t": Task(square, (1, "log"))}, None)


def test_a_process_that_was_forked_refuses_its_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(processes._State, "forked", True)
    with pytest.raises(RuntimeError, match=r"would hang for ever. Start processes by spawn"):
        workers.perform({}, append, (tmp_path / "log", 1))
    assert not (tmp_path / "log").exists()


def test_another_version_is_refused_with_both(client, tmp_path):
    workers.run({"t": Task(append, (tmp_path / "log", 1))}, client)
    sent = {**workers.installed(), "jax": "0.0.1"}
    with pytest.raises(RuntimeError, match=r"a worker has jax \d.*has 0\.0\.1"):
        workers.perform(sent, append, (tmp_path / "log", 2))
    assert lines(tmp_path / "log") == ["1"]


def test_a_task_has_one_thread_of_blas_also_where_it_calls_a_large_computation():
    before = [pool.threads() for pool in threads._pools()]
    if not any(count > 1 for count in before):
        pytest.skip("BLAS has one thread here")
    seen = []

    def look():
        with threads.limit(10 * threads.SMALL):
            seen.append([pool.threads() for pool in threads._pools()])

    look()
    workers.perform({}, look, ())
    assert seen == [before, [1] * len(before)]
    assert [pool.threads() for pool in threads._pools()] == before


def test_an_interruption_cancels_what_has_not_begun(tmp_path):
    started = threading.Semaphore(0)

    def work(i):
        started.release()
        append(tmp_path / "log", i)

    def interrupt(_, done, __):
        if done == 2:
            raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        workers.run({f"t-{i}": Task(work, (i,)) for i in range(100)}, pool, report=interrupt)
    assert 2 <= len(lines(tmp_path / "log")) <= 6
