"""The command `widelimit benchmark` compares this library with scikit-learn's models on a user's table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from widelimit.cli.options import OUTPUT, TABLE, Output, TableChoices, TableFile, parameter_group, with_options
from widelimit.cli.reporting import note, print_json, version

PARAMETERS = parameter_group("network", "depth", "activation", "weight_std", "bias_std", "hyperparameters")


@with_options(choices=TABLE, parameters=PARAMETERS, output=OUTPUT)
def benchmark(
    *,
    table: TableFile,
    choices: TableChoices,
    folds: Annotated[int, typer.Option(min=2, metavar="N", help="Folds of the cross-validation.")] = 5,
    costly: Annotated[bool, typer.Option("--all", help="Also models that take minutes.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="A figure to write: .png, .pdf or .svg.")] = None,
    parameters: dict[str, Any],
    output: Output,
) -> None:
    """Compare this library with scikit-learn on your table, or your images.

    Cross-validation of NTK and NNGP beside Gaussian processes with RBF and Matern kernels, random forest, gradient
    boosting, and ridge or logistic regression. Options of the network are for NTK and NNGP.

    On images: a convolutional NNGP (--network as in `fit`), a fully connected one, random forest, support vectors and
    logistic regression.
    """
    from widelimit.cli.files import FIGURES, check_output

    if out is not None:
        check_output(out, FIGURES)
    from widelimit.cli import benchmark_report, comparison, pictures

    if pictures.is_pictures(table):
        from widelimit.cli import picture_models

        found = picture_models.candidates(table, choices, parameters, folds)
    else:
        found = comparison.table_candidates(table, choices, parameters, folds, costly=costly)
    result = comparison.run(found, seed=choices.seed, quiet=output.quiet)
    for text in result.notes:
        note(text, quiet=output.quiet)
    if out is not None:
        benchmark_report.draw(result, out)
    if output.as_json:
        print_json({"widelimit": version(), **result.document(), **({"figure": str(out)} if out else {})})
    else:
        benchmark_report.show(result, out)
