"""Commands do more than typer's: an option that counts once must be given once, and compiled programs are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, final

from typer._click.core import Context
from typer._click.exceptions import UsageError
from typer.core import TyperCommand

from widelimit.cli import imports, interruption, program_cache
from widelimit.cli.reporting import note

INSTEAD: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "export": {"": ("port", "browser")},
    "listed": {"": ("quick", "out", "keep", "mnist")},
    "solver": {
        "gram": ("inducing", "iterations", "outputs"),
        "cholesky": ("inducing", "iterations"),
        "cg": ("inducing",),
        "nystrom": ("iterations", "tile"),
    },
}
"""Parameters that do not apply where another one is given, with this value or ("") with any."""


@final
class Command(TyperCommand):
    """A command takes each option once, except those that may be repeated, and none that another one leaves idle."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse options and arguments of the line. Raises: UsageError: one given twice, or one that does not apply."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        given = Counter(parameter.name for parameter in order if parameter.param_type_name == "option")
        for parameter in order:
            if given[parameter.name] > 1 and not parameter.multiple:
                raise UsageError(f"{parameter.opts[0]} is given {given[parameter.name]} times; give it once.", ctx)
        names = {parameter.name: parameter.opts[0] for parameter in order}
        for name in INSTEAD.keys() & names.keys():
            value = str(values[name]) if values[name] in INSTEAD[name] else ""
            for other in INSTEAD[name].get(value, ()):
                if other in names:
                    said = f"{names[name]} {value}".strip()
                    raise UsageError(f"{names[other]} does not apply beside {said}; leave it out.", ctx)
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
