"""What the command line accepts beyond what typer does: an option that counts once is given once."""

from __future__ import annotations

from collections import Counter
from typing import final

from typer._click.core import Context
from typer._click.exceptions import UsageError
from typer.core import TyperCommand


@final
class Command(TyperCommand):
    """A command whose options are given once, but for those that may be repeated."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Options and arguments of the line. Raises: UsageError: an option that is given twice."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        given = Counter(parameter.name for parameter in order if parameter.param_type_name == "option")
        for parameter in order:
            if given[parameter.name] > 1 and not getattr(parameter, "multiple", False):
                raise UsageError(f"{parameter.opts[0]} is given {given[parameter.name]} times; give it once.", ctx)
        return super().parse_args(ctx, args)
