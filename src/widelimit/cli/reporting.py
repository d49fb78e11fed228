"""All commands share messages and exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer._click.exceptions import ClickException

from widelimit import extras
from widelimit.cli import interruption


def version() -> str:
    """Return the version of the installed package."""
    from widelimit.version import __version__

    return __version__


def fail(message: str, code: int) -> NoReturn:
    """Print one line on stderr, and exit with the code."""
    typer.echo(f"widelimit: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def note(message: str, *, quiet: bool) -> None:
    """Print one line on stderr about what was done with the user's data, unless `quiet`."""
    if message and not quiet:
        typer.echo(f"note: {' '.join(message.split())}", err=True)


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout; NaN, which is not JSON, is refused."""
    import json

    typer.echo(json.dumps(document, indent=2, allow_nan=False))


@contextmanager
def plain_errors(*, debug: bool) -> Iterator[None]:
    """Print errors as one line, with the traceback before it if `debug`.

    ValueError and MemoryError, which name the user's value and the fix, exit with 2, all others with 1.
    """
    try:
        yield
    except (typer.Exit, ClickException, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        fail("; ".join(["interrupted", *interruption.remarks()]) + ".", 130)
    except Exception as error:
        interruption.remarks()
        if debug:
            import traceback

            traceback.print_exc()
        match error:
            case ValueError() | MemoryError():
                fail(str(error), 2)
            case OSError():
                fail(f"failed: {error}", 1)
            case ModuleNotFoundError() if str(extras.explained(error, "")) != str(error):
                fail(str(extras.explained(error, "this command")), 1)
            case _:
                fail(f"failed: {type(error).__name__}: {error} (--debug shows where)", 1)


@contextmanager
def warnings_as_notes(*, quiet: bool) -> Iterator[None]:
    """Print Python's warnings, each once, as notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        note(text, quiet=quiet)


@contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Yield a list that has Python's warnings at the end, each once; they are given all the same."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        yield texts
    texts += dict.fromkeys(str(warning.message) for warning in caught)
    for warning in caught:
        warnings.warn(warning.message, warning.category, stacklevel=2)
