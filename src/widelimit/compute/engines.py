"""Calls run somewhere else: in an executor, or by the workers of a Dask scheduler, which may not answer."""

from __future__ import annotations

import abc
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, final

from widelimit.compute.plan import usable_cores

if TYPE_CHECKING:
    from distributed import Client as DaskClient

IN_FLIGHT = 3
"""Tasks submitted for each thread of a worker: the next one waits there while one runs."""
RETRIES = 3
"""Times that Dask runs a task again whose error may be the worker's or the store's."""
LOST_WORKERS = 30
"""Workers that a task may lose on Dask before it is taken for the cause; Dask's own limit is 3."""
FRESH = 5.0
"""Seconds for which the number of a client's workers is believed."""
WAITING = 60.0
"""Seconds without any worker after which a warning says so: they may be in a queue, or gone for good."""
ANSWER = 30.0
"""Seconds in which Dask's scheduler must answer a question; it takes milliseconds."""


class NoAnswer(TimeoutError):
    """A scheduler does not answer, or no worker has finished a task in time."""


class Engine(abc.ABC):
    """An engine runs calls somewhere else; its futures have a result, or an error, and tell when they are done."""

    @abc.abstractmethod
    def capacity(self) -> int:
        """Return the number of tasks to have in flight."""

    @abc.abstractmethod
    def submit(self, name: str, *call: Any) -> Any:
        """Return the future of a call: a function and its arguments."""

    @abc.abstractmethod
    def lost(self, future: Any) -> bool:
        """Return True if the future has ended without its task: it is to be submitted again."""

    @abc.abstractmethod
    def cancel(self, futures: Iterable[Any], *, lost: bool) -> None:
        """Cancel what has not begun, and wait for what has, unless it is lost."""

    @abc.abstractmethod
    def require_open(self) -> None:
        """Raise a ConnectionError if the way to the workers is closed for good."""

    @abc.abstractmethod
    def check(self) -> bool:
        """Return True if somebody is there who could finish a task. Raises an error if no future will ever be done."""


@final
class Pool(Engine):
    """The engine is an executor; the number of its workers is known for those of the standard library."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def capacity(self) -> int:
        return IN_FLIGHT * int(getattr(self.executor, "_max_workers", usable_cores()))

    def submit(self, name: str, *call: Any) -> Future[Any]:
        try:
            return self.executor.submit(*call)
        except BrokenExecutor as error:
            raise broken_pool(error, name) from error
        except RuntimeError as error:
            raise ValueError(f"client takes no tasks: {error}. Make a new executor and call again.") from error

    def lost(self, future: Future[Any]) -> bool:
        return False

    def cancel(self, futures: Iterable[Future[Any]], *, lost: bool) -> None:
        begun = [future for future in futures if not future.cancel()]
        wait([] if lost else begun)

    def require_open(self) -> None:
        pass

    def check(self) -> bool:
        return not isinstance(self.executor, ThreadPoolExecutor)


@final
class Dask(Engine):
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
            workers = sum(asked(self.client.nthreads).values())
            self.known = time.monotonic(), workers
        return IN_FLIGHT * max(1, workers)

    def submit(self, name: str, *call: Any) -> Any:
        self.counts += 1
        key = f"{name}-{self.token}{self.counts:08x}"  # its own key: Dask would take an older result of the same
        return self.client.submit(*call, key=key, pure=False, retries=RETRIES)

    def lost(self, future: Any) -> bool:
        """Return True for futures of a scheduler, or of workers, that were started again."""
        if future.status not in ("cancelled", "lost"):
            return False
        self.check()
        return True

    def cancel(self, futures: Iterable[Any], *, lost: bool) -> None:
        if self.client.status == "running":
            with suppress(NoAnswer):
                asked(self.client.cancel, list(futures))

    def require_open(self) -> None:
        if self.client.status in ("closing", "closed"):
            raise ConnectionError(
                "the Dask client is closed, or its scheduler is gone; finished tasks are kept. Connect to a scheduler "
                "and call again."
            )

    def check(self) -> bool:
        self.require_open()
        try:
            self.capacity()
        except NoAnswer:
            raise
        except OSError:  # the scheduler is being started again
            return False
        if self.known[1]:
            self.working = time.monotonic()
        elif time.monotonic() - self.working > WAITING:
            warnings.warn(
                f"the Dask scheduler has had no workers for {WAITING:.0f} s; tasks wait for one. Start workers (a "
                "LocalCluster or SLURMCluster that has given up killed ones: cluster.adapt(minimum=n, maximum=n)), or "
                "interrupt and call again later: finished tasks are kept.",
                stacklevel=2,
            )
            self.working = float("inf")
        return self.known[1] > 0


def asked(question: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a scheduler answers. Raises: NoAnswer: nothing, for ANSWER seconds."""
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(question(*arguments))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()  # one that hangs ends with the process
    wait([answer], ANSWER)
    if not answer.done():
        raise NoAnswer(
            f"the Dask scheduler has not answered for {ANSWER:.0f} s: it hangs, or the network. Finished tasks are "
            "kept: connect a new client and call again."
        )
    return answer.result()


def require_open(client: DaskClient) -> None:
    """Refuse a client that is closed or asynchronous. Raises: TypeError, ValueError."""
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
def patient(client: DaskClient) -> Iterator[None]:
    """Let a task lose LOST_WORKERS workers inside: one that is innocent may well be on three that are killed."""
    before = None
    try:
        before = asked(client.run_on_scheduler, _allowed_failures, LOST_WORKERS)
    except NoAnswer:
        raise
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
            with suppress(NoAnswer):
                asked(client.run_on_scheduler, _allowed_failures, before)


def broken_pool(error: BrokenExecutor, name: str) -> BrokenExecutor:
    """Return the error of a pool whose process was killed, which says what to do."""
    return type(error)(
        f"a process of the executor ended during {name} or beside it (killed, or out of memory): {error} Finished "
        "tasks are kept: make a new executor and call again."
    )
