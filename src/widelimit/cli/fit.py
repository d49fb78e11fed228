"""The command `widelimit fit` makes a model in a file from a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from widelimit.cli.options import OUTPUT, TABLE, Output, TableChoices, TableFile, parameter_group, with_options
from widelimit.cli.reporting import note, print_json, recorded_warnings, version
from widelimit.estimators.parameters import WideParameters

PARAMETERS = parameter_group(
    *("network", "depth", "activation", "weight_std", "bias_std", "noise", "time", "ensemble", "likelihood"),
    *("alpha_epsilon", "class_weight", "solver", "inducing", "input_scales", "output_scale", "noise_model"),
    *("hyperparameters", "normalize", "kernel", "invariance", "average"),
    estimator=WideParameters,
)


@with_options(choices=TABLE, parameters=PARAMETERS, output=OUTPUT)
def fit(
    *,
    table: TableFile,
    choices: TableChoices,
    model: Annotated[Path, typer.Option(metavar="FILE", help="The file to write: .npz.")],
    estimator: Annotated[
        Literal["wide", "ntk", "nngp"] | None,
        typer.Option(
            help="A network chosen by evidence, with a scale a column; trained networks; their posterior.",
            show_default="wide; of images, sequences and graphs nngp",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A report with figures to write as well: .html.")
    ] = None,
    parameters: dict[str, Any],
    output: Output,
) -> None:
    """Fit a model to a table, to images, or to sequences or graphs, and write it to a file.

    Text columns become categories or dates. Options that are not given have the estimator's default. Of images,
    --network is a file, convnet (the default), resnet, myrtle5, myrtle7 or myrtle10. Sequences and graphs, .npz or
    .parquet with columns of lists, need a --network file whose inputs are Sequence(..) or Graph(..).
    """
    from widelimit.cli.files import check_output

    inputs = (table, parameters.get("network"))
    check_output(model, (".npz",), option="--model", inputs=inputs)
    if report is not None:
        check_output(report, (".html",), option="--report", inputs=inputs)
    with recorded_warnings() as warned:
        result = _fit(table, choices, estimator, parameters, model, quiet=output.quiet)
    for text in result.data.notes:
        note(text, quiet=output.quiet)
    if report is not None:
        from widelimit.cli import fit_report

        fit_report.write(report, result, warned, quiet=output.quiet)
    if output.as_json:
        written = {"report": str(report)} if report else {}
        notes = [*result.data.notes, *(" ".join(text.split()) for text in warned)]
        print_json({"widelimit": version(), **result.document(), "notes": notes, **written})
    elif not output.quiet:
        typer.echo(result.summary() + f"\nreport {report}" * (report is not None))


def _fit(table: Path, choices: Any, estimator: str | None, parameters: Any, model: Path, *, quiet: bool) -> Any:
    """Fit to a table, to images, or to the sequences or graphs that --network reads."""
    from widelimit.cli import models, pictures, structured_models

    if (inputs := structured_models.inputs_given(parameters)) is not None:
        return structured_models.fit(table, choices, estimator or "nngp", parameters, model, inputs, quiet=quiet)
    if not pictures.is_pictures(table):
        return models.fit(table, choices, estimator or "wide", parameters, model, quiet=quiet)
    from widelimit.cli import picture_models

    return picture_models.fit(table, choices, estimator or "nngp", parameters, model, quiet=quiet)
