"""The command `widelimit fit` makes a model in a file from a table."""

from __future__ import annotations

import enum
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


class Estimator(enum.StrEnum):
    """The estimator is a limit of the network."""

    NTK = "ntk"
    NNGP = "nngp"


class Task(enum.StrEnum):
    """The task says what is predicted."""

    REGRESSION = "regression"
    CLASSIFICATION = "classification"


class Hyperparameters(enum.StrEnum):
    """These rules choose weight_std, bias_std and noise."""

    FIXED = "fixed"
    MARGINAL_LIKELIHOOD = "marginal_likelihood"
    LEAVE_ONE_OUT = "leave_one_out"


class Likelihood(enum.StrEnum):
    """The likelihood of classes is one of these."""

    DIRICHLET = "dirichlet"
    LEAST_SQUARES = "least_squares"


class Solver(enum.StrEnum):
    """The linear system is solved in one of these ways."""

    AUTO = "auto"
    CHOLESKY = "cholesky"
    CG = "cg"


class Normalize(enum.StrEnum):
    """The inputs are normalised in one of these ways."""

    STANDARDIZE = "standardize"
    SPHERE = "sphere"
    NONE = "none"


TableFile = Annotated[Path, typer.Argument(metavar="TABLE", help="A file with a header: .csv, .tsv, .txt or .parquet.")]
Target = Annotated[str, typer.Option(metavar="COLUMN", help="The column to predict.")]
TaskOption = Annotated[Task | None, typer.Option(help="What the target is; decided by its values if not given.")]
Drop = Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="A column to leave out; may be repeated.")]
Categorical = Annotated[
    list[str] | None, typer.Option(metavar="COLUMN", help="A column of numbers that are categories; may be repeated.")
]
Impute = Annotated[bool, typer.Option("--impute", help="Fill missing values: median, or most frequent category.")]
Rows = Annotated[int | None, typer.Option(min=2, metavar="N", help="Use at most so many rows, drawn at random.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of everything random.")]
Depth = Annotated[int | None, typer.Option(min=1, metavar="N", help="Affine layers of the network.")]
Activation = Annotated[
    str | None, typer.Option(metavar="NAME", help="relu, erf, gelu, tanh, ...; all: widelimit info.")
]
WeightStd = Annotated[float | None, typer.Option(help="Scale of the weights.")]
BiasStd = Annotated[float | None, typer.Option(help="Scale of the biases.")]
HyperparametersOption = Annotated[Hyperparameters | None, typer.Option(help="How scales and noise are chosen.")]
NormalizeOption = Annotated[Normalize | None, typer.Option(help="What is done to the inputs.")]


def number_or_auto(text: str | None) -> float | str | None:
    """Accept a number, or "auto".

    Raises:
        typer.BadParameter: anything else.
    """
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"--noise must be a number or auto, not {text!r}.") from error


def fit(
    table: TableFile,
    target: Target,
    model: Annotated[Path, typer.Option(metavar="FILE", help="The file to write: .npz.")],
    estimator: Annotated[
        Estimator, typer.Option(help="Trained networks, or their Bayesian posterior.")
    ] = Estimator.NTK,
    task: TaskOption = None,
    drop: Drop = None,
    categorical: Categorical = None,
    impute: Impute = False,
    rows: Rows = None,
    depth: Depth = None,
    activation: Activation = None,
    weight_std: WeightStd = None,
    bias_std: BiasStd = None,
    noise: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Variance of the noise of the standardised target, or auto.")
    ] = None,
    time: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Training time of the networks; inf: to the end.")
    ] = None,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Spread over random starts of the networks.")] = False,
    likelihood: Annotated[Likelihood | None, typer.Option(help="Of classes; least_squares is quicker.")] = None,
    alpha_epsilon: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Pseudo-count of every class in the Dirichlet likelihood.")
    ] = None,
    solver: Annotated[Solver | None, typer.Option(help="cg: conjugate gradients, for many rows.")] = None,
    hyperparameters: HyperparametersOption = None,
    normalize: NormalizeOption = None,
    seed: Seed = 0,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit a model to a table and write it to a file.

    Text columns become categories. Options of the network that are not given are those of the estimator in Python.
    """
    del config  # its callback has made it the options' defaults
    with plain_errors(debug=debug), warnings_as_notes(quiet=quiet):
        from widelimit.cli import models
        from widelimit.cli.files import check_output
        from widelimit.cli.training_data import Choices

        check_output(model, (".npz",), option="--model")
        choices = Choices(target, task, drop or (), categorical or (), impute, rows, seed)
        given = {
            "depth": depth,
            "activation": activation,
            "weight_std": weight_std,
            "bias_std": bias_std,
            "noise": number_or_auto(noise),
            "time": time,
            "ensemble": ensemble or None,
            "likelihood": likelihood,
            "alpha_epsilon": alpha_epsilon,
            "solver": solver,
            "hyperparameters": hyperparameters,
            "normalize": normalize,
        }
        result = models.fit(table, choices, estimator, given, model, quiet=quiet)
        for text in result.notes:
            note(text, quiet=quiet)
        if as_json:
            print_json({"widelimit": version(), **result.document()})
        elif not quiet:
            typer.echo(result.summary())
