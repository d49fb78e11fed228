"""The command `widelimit explore` serves a page on this machine, or writes it to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from widelimit.cli.options import OUTPUT, Output, with_options
from widelimit.cli.reporting import note, print_json
from widelimit.progress import progress_bar

PORT = 8477
"""The port of the page unless another is asked for."""


@with_options(output=OUTPUT)
def explore(
    *,
    table: Annotated[
        Path | None, typer.Argument(metavar="[TABLE]", help="A table with two columns of numbers, input and target.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port of the page; 0: any free one.")] = PORT,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page to this .html file, and serve nothing.")
    ] = None,
    output: Output,
) -> None:
    """Show infinitely wide networks in the browser: draw points, move sliders, watch them learn.

    The page is served to this machine only and needs no network; Ctrl-C ends it. --export writes one file to send or to
    put on a site: with these points, and with numbers for some choices of the network. That takes minutes.
    """
    start = _start(table)
    if export is not None:
        facts = _write(export, start, quiet=output.quiet)
        print_json(facts) if output.as_json else typer.echo(f"wrote {export}")
        return
    _serve(port, start, browser=browser, output=output)


def _start(table: Path | None) -> dict[str, Any]:
    """Return the choices and points that the page starts with. Raises: ValueError: no such table."""
    from widelimit.cli import tables
    from widelimit.cli.explorer import pages, uploads

    if table is None:
        return pages.START
    return pages.START | uploads.points_of(tables.read(table), str(table))


def _write(path: Path, start: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    from widelimit.cli.explorer.export import export
    from widelimit.cli.files import check_output
    from widelimit.writing import atomic_write

    check_output(path, (".html", ".htm"), option="--export")
    with progress_bar(not quiet, unit="parts") as report:
        page = export(start, report)
    with atomic_write(path) as stream:
        stream.write(page)
    return {"path": str(path), "bytes": len(page)}


def _serve(port: int, start: dict[str, Any], *, browser: bool, output: Output) -> None:
    import threading

    from widelimit.cli.explorer import server

    listener = server.listen(port)
    url = f"http://{server.HOST}:{listener.getsockname()[1]}/"
    if output.as_json:
        print_json({"url": url})
    else:
        typer.echo(f"{url} shows the page on this machine; Ctrl-C ends it.")
    if browser and not _opened(url):
        note("no browser was found; open the address yourself, or pass --no-browser.", quiet=output.quiet)
    with listener:
        server.run(listener, threading.Event(), start)


def _opened(url: str) -> bool:
    """Open the address in a graphical browser; one that needs the terminal is not opened."""
    import webbrowser

    try:
        found = webbrowser.get()
        return type(found) is not webbrowser.GenericBrowser and found.open(url)
    except (webbrowser.Error, OSError):
        return False
