"""The command `widelimit predict` makes predictions from a model and a table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from widelimit.cli.options import OUTPUT, Output, with_options
from widelimit.cli.reporting import note, print_json, version

if TYPE_CHECKING:
    import polars as pl

FORMATS = (".csv", ".parquet")


@with_options(output=OUTPUT)
def predict(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A file that widelimit fit wrote.")],
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="A file of the same kind as at the fit: a table, images, sequences.")
    ],
    std: Annotated[
        bool, typer.Option("--std", help="Also the standard deviation of an observation, or each class's probability.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to write, .csv or .parquet; stdout if not given.")
    ] = None,
    output: Output,
) -> None:
    """Predict the rows of a table, images, sequences or graphs with a fitted model.

    If the table has the target's column, the predictions are also scored against it; of arrays, if there are labels.
    """
    from widelimit.cli.files import check_output

    if out is not None:
        check_output(out, FORMATS, inputs=(model, table))
    result = _predict(model, table, std=std, quiet=output.quiet)
    for text in result.notes:
        note(text, quiet=output.quiet)
    if result.scores:
        scores = ", ".join(f"{name} {value:.4g}" for name, value in result.scores.items())
        what = f"column {result.schema.target}" if result.schema.columns else f"labels {result.schema.target}"
        note(f"{table.name} has the {what}; scores of the predictions: {scores}", quiet=output.quiet)
    if out is not None:
        write(result.frame, out)
    if output.as_json:
        predictions = {"out": str(out)} if out else {"predictions": result.frame.to_dict(as_series=False)}
        print_json({"widelimit": version(), **result.document(), **predictions})
    elif out is None:
        sys.stdout.write(result.frame.write_csv())
    else:
        note(f"wrote {out} ({result.frame.height} rows, {result.seconds:.1f} s)", quiet=output.quiet)


def _predict(model: Path, table: Path, *, std: bool, quiet: bool) -> Any:
    """Predict the rows of a table, images, sequences or graphs."""
    from widelimit.cli import models, picture_models, pictures, structured, structured_models

    stored = models.load(model, quiet=quiet)
    inputs = structured.structure_of(stored.model.network)
    if inputs is not None and stored.model.encoder_ is None:
        return structured_models.predict(stored, inputs, table, std=std, quiet=quiet)
    kind = picture_models if pictures.is_pictures(table) else models
    return kind.predict(model, stored, table, std=std, quiet=quiet)


def write(frame: pl.DataFrame, path: Path) -> None:
    """Write a table as Parquet or CSV, by its suffix. Raises: OSError."""
    from widelimit.writing import atomic_write

    with atomic_write(path) as stream:
        if path.suffix.lower() == ".parquet":
            frame.write_parquet(stream)
        else:
            frame.write_csv(stream)
