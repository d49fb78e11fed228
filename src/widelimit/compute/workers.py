"""Tasks run in threads, in an executor or on a Dask cluster; what is done stands in storage: a kill costs little.

Nothing is scheduled here but the order: a few tasks for each worker are submitted at a time, those whose predecessors
have finished. The executor, or Dask, places them; Dask runs those of a lost worker again and replaces it.
"""

from __future__ import annotations

import functools
import heapq
import importlib.metadata
import itertools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from graphlib import TopologicalSorter
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, final

from widelimit.compute import threads
from widelimit.compute.engines import Dask, Engine, NoAnswer, Pool, broken_pool, patient, require_open
from widelimit.compute.plan import usable_cores
from widelimit.processes import refuse_forked
from widelimit.progress import Report, no_progress
from widelimit.version import __version__

if TYPE_CHECKING:
    from distributed import Client as DaskClient

TASKS = "tasks"
POLL = 0.5
"""Seconds between two looks at the client."""
TIMEOUT, SECONDS = "WIDELIMIT_TIMEOUT", 3600.0
"""Environment variable: seconds without any finished task after which processes and workers are given up; unless set.

Threads are not: they cannot be left.
"""


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
        NoAnswer, a TimeoutError: the scheduler does not answer, or no task ends.
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
            yield from _Flight(tasks, Pool(pool)).results()
    else:
        with _engine(client) as engine:
            yield from _Flight(tasks, engine).results()


@contextmanager
def _engine(client: Any) -> Iterator[Engine]:
    require_client(client)
    if isinstance(client, Executor):
        yield Pool(client)
    else:
        with patient(client):
            yield Dask(client)


def require_client(client: Any) -> None:
    """Refuse what is no client, or a closed one. Raises: TypeError, ValueError."""
    if is_dask(client):
        require_open(client)
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


def _timeout() -> float:
    """Return the seconds without any finished task after which the rest is given up. Raises: ValueError: no number."""
    text = os.environ.get(TIMEOUT, "") or str(SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise ValueError(f"{TIMEOUT}={text!r:.80} must be a number of seconds > 0, or inf.")
    return seconds


@final
class _Flight:
    """Tasks are on their way: those that may begin, in order, and those in flight."""

    def __init__(self, tasks: Mapping[str, Task], engine: Engine) -> None:
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
        limit, heard, lost = _timeout(), time.monotonic(), True
        try:
            while self.sorter.is_active():
                self._submit()
                try:
                    future = self.done.get(timeout=POLL)
                except Empty:
                    if not self.engine.check():
                        heard = time.monotonic()
                    elif time.monotonic() - heard > limit:
                        raise self._stalled(limit) from None
                    continue
                heard = time.monotonic()
                name = self.flying[future]
                if self.engine.lost(future):
                    heapq.heappush(self.ready, self.places[name])
                else:
                    result = _result(future, name)
                    self.sorter.done(name)
                    yield name, result
                del self.flying[future]
        except NoAnswer:
            raise
        except BaseException as error:
            lost = False
            if isinstance(error, Exception):
                self.engine.require_open()  # what a client says that is closed at work depends on the moment
            raise
        finally:
            self.engine.cancel(self.flying, lost=lost)

    def _stalled(self, limit: float) -> NoAnswer:
        names = ", ".join(itertools.islice(self.flying.values(), 3))
        return NoAnswer(
            f"no task has ended for {limit:.0f} s, and {len(self.flying)} are in work ({names}, ...): a worker or its "
            "storage hangs. Finished tasks are kept: end these workers and call again with a new client, or set "
            f"{TIMEOUT}={10 * limit:.0f} where a task takes so long."
        )

    def _submit(self) -> None:
        for name in self.sorter.get_ready():
            heapq.heappush(self.ready, self.places[name])
        room = self.engine.capacity() - len(self.flying) if self.ready else 0
        for _ in range(min(room, len(self.ready))):
            name = self.names[heapq.heappop(self.ready)]
            future = self.engine.submit(name, perform, installed(), *self.tasks[name][:2])
            self.flying[future] = name
            future.add_done_callback(self.done.put)


def _result(future: Any, name: str) -> Any:
    """Return the result; an error has the task's name in a note."""
    try:
        return future.result()
    except BrokenExecutor as error:
        raise broken_pool(error, name) from error
    except ImportError as error:
        text = f"a worker cannot import what {name} needs ({error}): is widelimit {__version__} installed there?"
        raise RuntimeError(text) from error
    except Exception as error:
        error.add_note(f"in the task {name}")
        raise
