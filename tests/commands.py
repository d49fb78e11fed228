"""Running the command line in the tests' process."""

import contextlib
import io
import signal
from typing import NamedTuple

from widelimit.cli.app import main


class Outcome(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


def invoke(*arguments):
    """What `widelimit ARGUMENTS` prints, and its exit code; nothing is a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    return Outcome(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def listening():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
