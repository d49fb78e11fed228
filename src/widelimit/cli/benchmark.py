"""The command `widelimit benchmark` compares this library with scikit-learn's models on a user's table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from widelimit.cli.fit import (
    Activation,
    BiasStd,
    Categorical,
    Depth,
    Drop,
    HyperparametersOption,
    Impute,
    Rows,
    Seed,
    TableFile,
    Target,
    TaskOption,
    WeightStd,
)
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


def benchmark(
    table: TableFile,
    target: Target,
    task: TaskOption = None,
    folds: Annotated[int, typer.Option(min=2, metavar="N", help="Folds of the cross-validation.")] = 5,
    drop: Drop = None,
    categorical: Categorical = None,
    impute: Impute = False,
    rows: Rows = None,
    depth: Depth = None,
    activation: Activation = None,
    weight_std: WeightStd = None,
    bias_std: BiasStd = None,
    hyperparameters: HyperparametersOption = None,
    costly: Annotated[bool, typer.Option("--all", help="Also models that take minutes.")] = False,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="A figure to write: .png, .pdf or .svg.")] = None,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare this library with scikit-learn on your table.

    Cross-validation of NTK and NNGP beside Gaussian processes with RBF and Matern kernels, random forest, gradient
    boosting, and ridge or logistic regression. Options of the network are for NTK and NNGP.
    """
    del config  # its callback has made it the options' defaults
    with plain_errors(debug=debug), warnings_as_notes(quiet=quiet):
        from widelimit.cli.files import FIGURES, check_output

        if out is not None:
            check_output(out, FIGURES)
        from widelimit.cli import benchmark_report, benchmarking, terminal
        from widelimit.cli.training_data import Choices

        choices = Choices(target, task, drop or (), categorical or (), impute, rows, seed)
        given: dict[str, Any] = {
            "depth": depth,
            "activation": activation,
            "weight_std": weight_std,
            "bias_std": bias_std,
            "hyperparameters": hyperparameters,
        }
        result = benchmarking.run(
            table,
            choices,
            given,
            folds=folds,
            costly=costly,
            progress=lambda steps: terminal.progress(steps, "fits", quiet=quiet),
        )
        for text in result.notes:
            note(text, quiet=quiet)
        if out is not None:
            benchmark_report.draw(result, out)
        if as_json:
            print_json({"widelimit": version(), **result.document(), **({"figure": str(out)} if out else {})})
        else:
            benchmark_report.show(result, out)
