"""Tasks run in threads, in an executor or on a Dask cluster; what is done stands in storage: a kill costs little.

Nothing is scheduled here but the order: a few tasks for each worker are submitted at a time, those whose predecessors
have finished. The executor, or Dask, places them; Dask runs those of a lost worker again and replaces it.
"""

from __future__ import annotations

import abc
import functools
import heapq
import importlib.metadata
import multiprocessing
import os
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from graphlib import TopologicalSorter
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, final

from widelimit.compute import threads
from widelimit.compute.plan import usable_cores
from widelimit.processes import refuse_forked
from widelimit.progress import Report, no_progress
from widelimit.version import __version__

if TYPE_CHECKING:
    from distributed import Client as DaskClient

TASKS = "tasks"
IN_FLIGHT = 3
"""Tasks submitted for each thread of a worker: the next one waits there while one runs."""
RETRIES = 3
"""Times that Dask runs a task again whose error may be the worker's or the store's."""
LOST_WORKERS = 30
"""Workers that a task may lose on Dask before it is taken for the cause; Dask's own limit is 3."""
POLL, FRESH = 0.5, 5.0
"""Seconds between two looks at the client, and for which the number of its workers is believed."""
WAITING = 60.0
"""Seconds without any worker after which a warning says so: they may be in a queue, or gone for good."""


class Task(NamedTuple):
    """A task calls a function of a module, which writes one chunk, whole or not at all, and returns nothing."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    """They are small and can be pickled: paths, indices, numbers."""
    after: tuple[str, ...] = ()
    """Names of tasks that must have finished before; a name that is not among the tasks counts as finished."""


def run(
    tasks: Mapping[str, Task], client: Executor | DaskClient | None, *, report: Report = no_progress, stage: str = TASKS
) -> None:
    """Run all tasks, with one BLAS thread each; in the order of the mapping as far as `after` allows.

    The first error cancels the others and is raised, with the task's name in a note.

    Args:
        tasks: by their names.
        client: None (threads of this process), a `concurrent.futures.Executor` or a `distributed.Client`.
        report: called as report(stage, done, all) in this thread after each task.
        stage: the name of the work.

    Raises:
        TypeError, ValueError: the client is none of these, asynchronous or closed.
        BrokenExecutor: a process of the executor was killed. ConnectionError: the scheduler is gone.
        RuntimeError: a worker has another version of widelimit, JAX or NumPy.
    """
    with closing(_results(tasks, client)) as results:
        for done, _ in enumerate(results, 1):
            report(stage, done, len(tasks))


def gather(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    client: Executor | DaskClient | None,
    *,
    report: Report = no_progress,
    stage: str = TASKS,
) -> list[Any]:
    """Compute function(*each) for all arguments and return the small results in their order. Raises: as `run`."""
    name = function.__name__.strip("_")
    tasks = {f"{name}-{i}": Task(function, each) for i, each in enumerate(arguments)}
    found: dict[str, Any] = {}
    with closing(_results(tasks, client)) as results:
        for key, result in results:
            found[key] = result
            report(stage, len(found), len(tasks))
    return [found[key] for key in tasks]


def _results(tasks: Mapping[str, Task], client: Any) -> Generator[tuple[str, Any]]:
    """Return (name, result) of each task as it finishes; the caller's thread waits."""
    if client is None:
        with ThreadPoolExecutor(min(usable_cores(), max(1, len(tasks)))) as pool:
            yield from _Flight(tasks, _Pool(pool)).results()
    else:
        with _engine(client) as engine:
            yield from _Flight(tasks, engine).results()


@contextmanager
def _engine(client: Any) -> Iterator[_Engine]:
    require_client(client)
    if isinstance(client, Executor):
        yield _Pool(client)
    else:
        with _patient(client):
            yield _Dask(client)


def require_client(client: Any) -> None:
    """Refuse what is no client, or a closed one. Raises: TypeError, ValueError."""
    if is_dask(client):
        _require_open(client)
    elif client is not None and not isinstance(client, Executor):
        raise TypeError(
            "client must be None (threads), a concurrent.futures.Executor or a distributed.Client "
            f'(distributed.Client("tcp://host:8786")); got {type(client).__name__}.'
        )


def is_dask(client: Any) -> bool:
    """Return True for a client of Dask's scheduler; whoever has one has imported the package."""
    return "distributed" in sys.modules and isinstance(client, sys.modules["distributed"].Client)


@functools.cache
def installed() -> dict[str, str]:
    """Return the versions on which the bits of a result, and what can be unpickled, depend."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    python = ".".join(map(str, sys.version_info[:2]))
    return {"widelimit": __version__, **packages, "Python": python}


def perform(versions: Mapping[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call the function in a worker, with one BLAS thread, if the worker has these versions.

    Raises: RuntimeError: it has others, or was forked from a process that had used JAX.
    """
    refuse_forked()
    here = installed()
    for name, version in versions.items():
        if here.get(name) != version:
            raise RuntimeError(
                f"a worker has {name} {here.get(name)}, and the process that sends it tasks has {version}: their "
                "results could differ. Install the same versions in both; finished tasks are kept."
            )
    end_with_parent()
    with threads.single():
        return function(*arguments)


@functools.cache
def end_with_parent() -> None:
    """Let a worker process end when the process that started it is killed: nobody else would end it."""
    if (parent := multiprocessing.parent_process()) is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, name="parent", daemon=True).start()


class _Engine(abc.ABC):
    """An engine runs calls somewhere else; its futures have a result, or an error, and tell when they are done."""

    @abc.abstractmethod
    def capacity(self) -> int:
        """Return the number of tasks to have in flight."""

    @abc.abstractmethod
    def submit(self, name: str, *call: Any) -> Any:
        """Return the future of perform(*call)."""

    @abc.abstractmethod
    def lost(self, future: Any) -> bool:
        """Return True if the future has ended without its task: it is to be submitted again."""

    @abc.abstractmethod
    def cancel(self, futures: Iterable[Any]) -> None:
        """Cancel what has not begun."""

    def check(self) -> None:  # noqa: B027, an executor's futures end themselves
        """Raise an error if no future will ever be done."""


@final
class _Pool(_Engine):
    """The engine is an executor; the number of its workers is known for those of the standard library."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def capacity(self) -> int:
        return IN_FLIGHT * int(getattr(self.executor, "_max_workers", usable_cores()))

    def submit(self, name: str, *call: Any) -> Future[Any]:
        try:
            return self.executor.submit(perform, *call)
        except BrokenExecutor as error:
            raise _broken(error, name) from error
        except RuntimeError as error:
            raise ValueError(f"client takes no tasks: {error}. Make a new executor and call again.") from error

    def lost(self, future: Future[Any]) -> bool:
        return False

    def cancel(self, futures: Iterable[Future[Any]]) -> None:
        wait([future for future in futures if not future.cancel()])


@final
class _Dask(_Engine):
    """The engine is Dask's scheduler. Nothing stays in a worker's memory, so that a lost one costs what was in work."""

    def __init__(self, client: DaskClient) -> None:
        self.client = client
        self.token = uuid.uuid4().hex[:8]
        self.counts = 0
        self.known = (-FRESH, 0)
        self.working = time.monotonic()

    def capacity(self) -> int:
        counted, workers = self.known
        if time.monotonic() - counted > FRESH and self.client.status == "running":
            workers = sum(self.client.nthreads().values())
            self.known = time.monotonic(), workers
        return IN_FLIGHT * max(1, workers)

    def submit(self, name: str, *call: Any) -> Any:
        self.counts += 1
        key = f"{name}-{self.token}{self.counts:08x}"  # its own key: Dask would take an older result of the same
        return self.client.submit(perform, *call, key=key, pure=False, retries=RETRIES)

    def lost(self, future: Any) -> bool:
        """Return True for futures of a scheduler, or of workers, that were started again."""
        if future.status not in ("cancelled", "lost"):
            return False
        self.check()
        return True

    def cancel(self, futures: Iterable[Any]) -> None:
        if self.client.status == "running":
            self.client.cancel(list(futures))

    def check(self) -> None:
        if self.client.status in ("closing", "closed"):
            raise ConnectionError(
                "the Dask client is closed, or its scheduler is gone; finished tasks are kept. Connect to a scheduler "
                "and call again."
            )
        with suppress(OSError):  # the scheduler is being started again
            self.capacity()
        if self.known[1]:
            self.working = time.monotonic()
        elif time.monotonic() - self.working > WAITING:
            warnings.warn(
                f"the Dask scheduler has had no workers for {WAITING:.0f} s; tasks wait for one. Start workers, or "
                "interrupt and call again later: finished tasks are kept.",
                stacklevel=2,
            )
            self.working = float("inf")


def _require_open(client: DaskClient) -> None:
    if client.asynchronous:
        raise TypeError("client is asynchronous; give a distributed.Client without asynchronous=True.")
    if client.status != "running":
        raise ValueError(
            f"the Dask client is not connected (it is {client.status}): its scheduler is gone, or close() was called. "
            'Make a new one: distributed.Client("tcp://host:8786").'
        )


def _allowed_failures(count: int, dask_scheduler: Any = None) -> int:
    """Set, in the scheduler, the workers that a task may lose; returns the number before."""
    before = int(dask_scheduler.allowed_failures)
    dask_scheduler.allowed_failures = max(count, 0)
    return before


@contextmanager
def _patient(client: DaskClient) -> Iterator[None]:
    """Let a task lose LOST_WORKERS workers inside: one that is innocent may well be on three that are killed."""
    before = None
    try:
        before = client.run_on_scheduler(_allowed_failures, LOST_WORKERS)
    except Exception as error:
        warnings.warn(
            f"the scheduler does not take the number of workers that a task may lose ({error}), and gives a task up "
            "after three; start it with DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=30.",
            stacklevel=2,
        )
    try:
        yield
    finally:
        if before is not None and client.status == "running":
            client.run_on_scheduler(_allowed_failures, before)


@final
class _Flight:
    """Tasks are on their way: those that may begin, in order, and those in flight."""

    def __init__(self, tasks: Mapping[str, Task], engine: _Engine) -> None:
        self.tasks, self.engine = tasks, engine
        self.names = list(tasks)
        self.places = {name: i for i, name in enumerate(self.names)}
        self.sorter = TopologicalSorter({name: [a for a in task.after if a in tasks] for name, task in tasks.items()})
        self.ready: list[int] = []
        self.flying: dict[Any, str] = {}
        self.done: SimpleQueue[Any] = SimpleQueue()

    def results(self) -> Generator[tuple[str, Any]]:
        """Return (name, result) as tasks finish; whatever ends this cancels the rest."""
        self.sorter.prepare()
        try:
            while self.sorter.is_active():
                self._submit()
                try:
                    future = self.done.get(timeout=POLL)
                except Empty:
                    self.engine.check()
                    continue
                name = self.flying[future]
                if self.engine.lost(future):
                    heapq.heappush(self.ready, self.places[name])
                else:
                    result = _result(future, name)
                    self.sorter.done(name)
                    yield name, result
                del self.flying[future]
        finally:
            self.engine.cancel(self.flying)

    def _submit(self) -> None:
        for name in self.sorter.get_ready():
            heapq.heappush(self.ready, self.places[name])
        room = self.engine.capacity() - len(self.flying) if self.ready else 0
        for _ in range(min(room, len(self.ready))):
            name = self.names[heapq.heappop(self.ready)]
            future = self.engine.submit(name, installed(), *self.tasks[name][:2])
            self.flying[future] = name
            future.add_done_callback(self.done.put)


def _broken(error: BrokenExecutor, name: str) -> BrokenExecutor:
    return type(error)(
        f"a process of the executor ended during {name} or beside it (killed, or out of memory): {error} Finished "
        "tasks are kept: make a new executor and call again."
    )


def _result(future: Any, name: str) -> Any:
    """Return the result; an error has the task's name in a note."""
    try:
        return future.result()
    except BrokenExecutor as error:
        raise _broken(error, name) from error
    except ImportError as error:
        text = f"a worker cannot import what {name} needs ({error}): is widelimit {__version__} installed there?"
        raise RuntimeError(text) from error
    except Exception as error:
        error.add_note(f"in the task {name}")
        raise
