"""The command `widelimit predict` makes predictions from a model and a table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from widelimit.cli.options import (
    AsJson,
    Config,
    Debug,
    Quiet,
    note,
    plain_errors,
    print_json,
    version,
    warnings_as_notes,
)
from widelimit.writing import atomic_write

FORMATS = (".csv", ".parquet")


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A file that widelimit fit wrote.")],
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A table with the columns of the training table.")],
    std: Annotated[
        bool,
        typer.Option("--std", help="Also the standard deviation of an observation, or each class's probability."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to write, .csv or .parquet; stdout if not given.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Predict the rows of a table with a fitted model.

    If the table has the target's column, the predictions are also scored against it.
    """
    del config  # its callback has made it the options' defaults
    with plain_errors(debug=debug), warnings_as_notes(quiet=quiet):
        from widelimit.cli.files import check_output

        if out is not None:
            check_output(out, FORMATS)
        from widelimit.cli import models

        result = models.predict(model, table, std=std, quiet=quiet)
        for text in result.notes:
            note(text, quiet=quiet)
        if result.scores:
            scores = ", ".join(f"{name} {value:.4g}" for name, value in result.scores.items())
            note(f"the table has the column {result.schema.target}; scores of the predictions: {scores}", quiet=quiet)
        if out is not None:
            with atomic_write(out) as stream:
                if out.suffix.lower() == ".parquet":
                    result.frame.write_parquet(stream)
                else:
                    result.frame.write_csv(stream)
        if as_json:
            predictions = {"out": str(out)} if out else {"predictions": result.frame.to_dict(as_series=False)}
            print_json({"widelimit": version(), **result.document(), **predictions})
        elif out is None:
            sys.stdout.write(result.frame.write_csv())
        else:
            note(f"wrote {out} ({result.frame.height} rows, {result.seconds:.1f} s)", quiet=quiet)
