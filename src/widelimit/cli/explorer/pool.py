"""Connections are served by a fixed number of threads; those beyond the waiting places are refused at once."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread

THREADS, WAITING = 8, 32
"""Connections that are served at a time, and that wait for a thread."""
PAUSE = 0.1
"""Seconds without accepting after the system has refused a connection (too many open files)."""
LEFT = 2**16
"""Bytes of a refused request that are read, so that the answer arrives: unread ones make the system reset it."""
BUSY = (
    b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\r\n"
    b'{"error":"too many requests at once; try again in a second."}\n'
)

Handle = Callable[[socket.socket, tuple[str, int]], None]
Connection = tuple[socket.socket, tuple[str, int]]


def serve(listener: socket.socket, handle: Handle, stop: Event, *, threads: int = THREADS) -> None:
    """Accept connections until `stop` is set; `handle` serves one, in one of the threads, and never raises."""
    listener.settimeout(0.2)
    waiting: Queue[Connection] = Queue(WAITING)
    for _ in range(threads):
        Thread(target=_work, args=(waiting, handle, stop), daemon=True).start()
    while not stop.is_set():
        try:
            connection = listener.accept()
        except TimeoutError:
            continue
        except OSError:
            time.sleep(PAUSE)
            continue
        try:
            waiting.put_nowait(connection)
        except Full:
            refuse(connection[0])


def _work(waiting: Queue[Connection], handle: Handle, stop: Event) -> None:
    while not stop.is_set():
        try:
            connection, address = waiting.get(timeout=0.2)
        except Empty:
            continue
        with suppress(OSError), connection:
            handle(connection, address)


def refuse(connection: socket.socket) -> None:
    """Answer 503 without waiting for anything."""
    with suppress(OSError), connection:
        connection.setblocking(False)
        connection.send(BUSY)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(LEFT)
