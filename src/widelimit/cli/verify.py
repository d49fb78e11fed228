"""The command `widelimit verify` runs the paper's statements as experiments and writes a report."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from widelimit.cli.options import OUTPUT, Output, with_options
from widelimit.cli.reporting import print_json, version


@with_options(output=OUTPUT)
def verify(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller experiments: a quarter of the time.")] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A claim's name (again for more).")] = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The report to write, .html; a .json is written beside it.")
    ] = Path("widelimit-verify.html"),
    keep: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keeps finished claims, so that a run can be resumed.")
    ] = None,
    mnist: Annotated[
        Path | None, typer.Option(metavar="FILE", help="MNIST (.npz with X_train), for Figure 3 of jacot_figures.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print the names of the claims with what they state.")] = False,
    output: Output,
) -> None:
    """Run the paper's statements as experiments that can fail.

    Each is measured and repeated with a planted error. Exit code 0 only if every claim holds and every control fails.
    """
    from widelimit.cli.files import check_output

    if not listed:
        check_output(out, (".html",))
    from widelimit.claims.base import Effort
    from widelimit.cli import terminal, verification

    claims = verification.choose_claims(only or (), mnist=mnist)
    if listed:
        _show({name: claim.statement for name, claim in claims.items()}, as_json=output.as_json)
        return
    effort = Effort.QUICK if quick else Effort.FULL
    with terminal.progress(len(claims), "claims", quiet=output.quiet) as advance:
        outcomes, document = verification.verify(
            claims, effort, out=out, folder=keep, version=version(), advance=advance
        )
    if output.as_json:
        print_json(document)
    else:
        typer.echo("\n".join([*verification.lines(outcomes), f"Report: {out}"]))
    if not document["holds"]:
        raise typer.Exit(1)


def _show(statements: dict[str, str], *, as_json: bool) -> None:
    """Print the names of claims with what they state."""
    if as_json:
        print_json(statements)
        return
    from widelimit.cli.terminal import WIDTH

    for name, text in statements.items():
        typer.echo(textwrap.fill(f"{name:26} {text}", WIDTH, subsequent_indent=" " * 27))
