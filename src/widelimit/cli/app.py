"""Every command has a module of its own and one line here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer._click.exceptions import ClickException, NoArgsIsHelpError, UsageError

from widelimit.cli import benchmark, cost, demo, explore, fit, interruption, kernel, learning_curve, predict, verify
from widelimit.cli.command import Command
from widelimit.cli.options import Output, dataclass_group, with_options
from widelimit.cli.reporting import plain_errors, print_json, version

app = typer.Typer(
    name="widelimit",
    help="Infinitely wide neural networks: exact kernels, Bayesian inference and gradient descent in function space.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command(cls=Command)(fit.fit)
app.command(cls=Command)(predict.predict)
app.command(cls=Command)(benchmark.benchmark)
app.command(cls=Command)(kernel.kernel)
app.command(cls=Command)(learning_curve.learning_curve)
app.command(cls=Command)(cost.cost)
app.command(cls=Command)(demo.demo)
app.command(cls=Command)(explore.explore)
app.command(cls=Command)(verify.verify)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"widelimit {version()}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither read nor keep compiled programs (widelimit info: where).")
    ] = False,
) -> None:
    del no_cache  # the commands look it up


@app.command(cls=Command)
@with_options(output=dataclass_group(Output, "quiet", "config"))
def info(output: Output) -> None:
    """Print versions, devices, cores and memory: to report a problem."""
    from widelimit.cli import info as information

    facts = information.collect(version())
    if output.as_json:
        print_json(facts)
    else:
        typer.echo(information.lines(facts))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the `widelimit` command and exit, with one line on stderr for all that goes wrong."""
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
    except typer.Exit as stop:
        code = stop.exit_code
    except NoArgsIsHelpError as error:
        typer.echo(error.format_message(), err=True)
        code = 2
    except ClickException as error:
        command = error.ctx.command_path if isinstance(error, UsageError) and error.ctx else "widelimit"
        typer.echo(f"widelimit: {' '.join(error.format_message().split())} (see {command} --help)", err=True)
        code = error.exit_code
    except BrokenPipeError:
        code = interruption.CLOSED_PIPE
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run one command; typer's own main would expand * and ? on Windows, and has other exit codes."""
    command = typer.main.get_command(app)
    if "_WIDELIMIT_COMPLETE" in os.environ:  # a shell asks for completions
        return int(command.main(prog_name="widelimit", standalone_mode=False) or 0)
    with plain_errors(debug=False), command.make_context("widelimit", arguments) as context:
        command.invoke(context)
    return 0
