"""Options, exit codes and messages of the command line. Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    name="widelimit",
    help="Infinitely wide neural networks: exact kernels, Bayesian inference and gradient descent in function space.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def version() -> str:
    """The version of the installed package."""
    try:
        return installed_version("widelimit")
    except PackageNotFoundError:
        return "unknown (not installed)"


def fail(message: str, code: int) -> NoReturn:
    """One line on stderr, and the exit code."""
    typer.echo(f"widelimit: {message}", err=True)
    raise typer.Exit(code)


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout; NaN, which JSON has not, is refused."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"widelimit {version()}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The figure to write: .png, .pdf or .svg.")] = Path("widelimit-demo.png"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the train/test splits.")] = 0,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Compare NNGP and NTK models with scikit-learn's on real data, and draw how a wide network learns.

    Needs no network and no file. Takes about half a minute.
    """
    from widelimit.cli.files import FIGURES, check_path

    try:
        check_path(out, FIGURES)
    except ValueError as error:
        fail(f"--out {error}", 2)
    from widelimit.cli import demo as demonstration
    from widelimit.cli import demo_report

    try:
        with demo_report.progress(demonstration.step_count(), shown=sys.stderr.isatty() and not quiet) as advance:
            result = demonstration.run(out=out, seed=seed, advance=advance)
    except (OSError, MemoryError) as error:
        fail(f"demo failed: {error}", 1)
    if as_json:
        print_json({"widelimit": version(), **demonstration.document(result)})
    else:
        demo_report.show(result)


@app.command()
def verify(
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller experiments: minutes instead of half an hour.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="The name of a claim; may be given again.")] = None,
    out: Annotated[Path, typer.Option(help="The report to write, .html; a .json is written beside it.")] = Path(
        "widelimit-verify.html"
    ),
    keep: Annotated[
        Path | None, typer.Option(help="A folder that keeps finished claims, so that a run can be resumed.")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Run the paper's statements as experiments that can fail; exit 0 only if all hold and all controls fail."""
    from widelimit.claims.base import Effort
    from widelimit.cli import demo_report
    from widelimit.cli import verify as verification
    from widelimit.cli.files import check_path

    try:
        check_path(out, (".html",))
        names = verification.chosen(only or ())
    except ValueError as error:
        fail(str(error), 2)
    effort = Effort.QUICK if quick else Effort.FULL
    try:
        with demo_report.progress(len(names), shown=sys.stderr.isatty() and not quiet) as advance:
            outcomes, document = verification.verify(
                names, effort, out=out, folder=keep, version=version(), advance=advance
            )
    except OSError as error:
        fail(f"verify failed: {error}", 1)
    if as_json:
        print_json(document)
    else:
        typer.echo("\n".join([*verification.lines(outcomes), f"Report: {out}"]))
    if not document["holds"]:
        raise typer.Exit(1)


@app.command()
def info(as_json: AsJson = False) -> None:
    """Versions, devices, cores and memory: what a report of a problem should contain."""
    from widelimit.cli import info as information

    facts = information.collect(version())
    if as_json:
        print_json(facts)
    else:
        typer.echo(information.lines(facts))


def main() -> None:
    """Entry point of the `widelimit` command."""
    app()
