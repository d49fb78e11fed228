"""The process ends by SIGINT, SIGTERM, a closed pipe, a full disk, or when its work is done.

Python raises KeyboardInterrupt in the main thread, between two of its instructions: inside an import, a callback or a
destructor it turns into tracebacks or is lost, and an interpreter that is torn down under XLA's threads crashes. So a
thread waits for the signals, says one line and ends the process as `kill -9` would, which files and stores survive:
they take their place by a rename.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from widelimit.writing import SUFFIX

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
CLOSED_PIPE = 141
"""The exit code that shells show for a process ended by SIGPIPE."""
_folders: set[Path] = set()
_endings: list[Callable[[bool], None]] = []
_remarks: list[str] = []
_listening: list[bool] = []


def listen() -> None:
    """Let SIGINT and SIGTERM end the process at once, with one line; one that is ignored stays so."""
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    _listening.append(True)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    from threading import Thread

    Thread(target=_wait, args=(receiver,), name="signals", daemon=True).start()


def at_end(ending: Callable[[bool], None]) -> None:
    """Call `ending` at the end of the process, with True if no signal ends it."""
    _endings.append(ending)


def owns_process() -> bool:
    """Return True if the process is the command's, from `listen` to `leave`."""
    return bool(_listening)


def _wait(receiver: int) -> None:
    while True:
        number = os.read(receiver, 1)[0]
        if number in SIGNALS:
            _end(number)


def _end(number: int) -> None:
    try:
        for folder in tuple(_folders):
            with suppress(Exception):
                _clear(folder)
        _call_endings(False)
        with suppress(Exception):
            say("; ".join([SIGNALS[signal.Signals(number)], *_remarks]) + ".")
    finally:
        os._exit(128 + number)


def _clear(folder: Path) -> None:
    for left in folder.glob(f".*.{os.getpid()}{SUFFIX}"):
        with suppress(OSError):
            left.unlink()


def _call_endings(done: bool) -> None:
    """Call the functions that `at_end` was given; an error in one prevents neither the others nor the end."""
    for ending in tuple(_endings):
        with suppress(Exception):
            ending(done)


def say(text: str) -> None:
    """Write one line directly on stderr, as the main thread may hold the streams; show a bar's cursor again."""
    clear = b"\r\x1b[K\x1b[?25h" if os.isatty(2) else b""
    with suppress(OSError):  # stderr is closed
        os.write(2, clear + f"widelimit: {text}\n".encode())


def clear_at_end(folder: Path) -> None:
    """Mark this folder: its unfinished files are deleted when a signal ends the process."""
    _folders.add(folder)


@contextmanager
def announce_resumption(remark: str) -> Iterator[None]:
    """Print this remark if the work inside is interrupted."""
    _remarks.append(remark)
    try:
        yield
    except Exception:
        _remarks.remove(remark)
        raise
    _remarks.remove(remark)


def remarks() -> list[str]:
    """Remove and return the remarks on the work that was interrupted."""
    taken = list(_remarks)
    _remarks.clear()
    return taken


def leave(code: int) -> None:
    """Write what is left for stdout, and end the process without the shutdown of the interpreter."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        code = code or CLOSED_PIPE
    except OSError as error:
        if not code:
            say(f"failed: stdout: {error.strerror}")
        code = code or 1
    _call_endings(True)
    os._exit(code)
