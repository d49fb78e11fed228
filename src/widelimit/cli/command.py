"""Commands do more than typer's: an option that counts once must be given once, and compiled programs are kept."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, final

from typer._click.core import Context
from typer._click.exceptions import UsageError
from typer.core import TyperCommand

from widelimit.cli import imports, interruption, program_cache
from widelimit.cli.reporting import note


@final
class Command(TyperCommand):
    """A command takes each option once, except those that may be repeated."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse options and arguments of the line. Raises: UsageError: an option that is given twice."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        given = Counter(parameter.name for parameter in order if parameter.param_type_name == "option")
        for parameter in order:
            if given[parameter.name] > 1 and not parameter.multiple:
                raise UsageError(f"{parameter.opts[0]} is given {given[parameter.name]} times; give it once.", ctx)
        return TyperCommand.parse_args(self, ctx, args)

    def invoke(self, ctx: Context) -> Any:
        """Run the command; in a process of its own with the cache of compiled programs."""
        if interruption.owns_process():
            try:
                run = program_cache.use(off=bool(ctx.find_root().params.get("no_cache")))
            except OSError as error:  # a cache is not worth an error
                note(program_cache.note_refusal(error), quiet=bool(ctx.params.get("quiet")))
            else:
                interruption.at_end(partial(_end, run))
            imports.defer()
        return TyperCommand.invoke(self, ctx)


def _end(run: Path | None, done: bool) -> None:
    """Keep what the run has compiled, or leave no trace of it."""
    if run is not None:
        (program_cache.publish if done else program_cache.discard)(run)
