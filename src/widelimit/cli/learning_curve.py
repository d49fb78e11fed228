"""The command `widelimit learning-curve` predicts how the error of a model falls with the number of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from widelimit.cli.kernel import NETWORK, chosen_kernel
from widelimit.cli.options import OUTPUT, TABLE, Output, TableChoices, with_options
from widelimit.cli.reporting import note, print_json

_LARGEST = 2000
"""Rows that are used unless --rows says otherwise."""


@with_options(choices=TABLE, network=NETWORK, output=OUTPUT)
def learning_curve(
    *,
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A file with a header: .csv, .tsv, .txt or .parquet.")],
    choices: TableChoices,
    sizes: Annotated[
        list[int] | None, typer.Option("--size", min=1, metavar="N", help="Training rows; again for more sizes.")
    ] = None,
    kind: Annotated[Literal["ntk", "nngp"], typer.Option(help="Which kernel of the network.")] = "nngp",
    network: dict[str, Any],
    noise: Annotated[
        float, typer.Option(min=0.0, help="Added to the kernel's diagonal; targets have variance 1.")
    ] = 0.1,
    draws: Annotated[int, typer.Option(min=0, metavar="N", help="Random training sets to fit beside it; 0: none.")] = 0,
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture to write as well: .png.")] = None,
    output: Output,
) -> None:
    """Predict the test error of a network's kernel on random training sets of a table, without fitting any.

    Columns and a numeric target are standardised, so that an error of 1 is that of the mean; classes are one column
    each. Errors are means of squares over rows left out. At most 2000 rows are used unless --rows is given.
    """
    from widelimit.cli.files import check_output, save_figure

    if figure is not None:
        check_output(figure, (".png",), option="--figure", inputs=(table,))
    X, y, notes = _data(table, choices)
    for text in notes:
        note(text, quiet=output.quiet)
    import widelimit as wl
    from widelimit.cli import terminal
    from widelimit.displays.axes import figure_of

    counts = sizes or _even_sizes(len(X))
    with terminal.busy_bar("learning curve", quiet=output.quiet):
        curve = wl.generalization(chosen_kernel(kind, network), X, y, sizes=counts, noise=noise, draws=draws)
    if figure is not None:
        save_figure(figure_of(curve.plot()), figure)
    if output.as_json:
        print_json(_document(curve, len(X), notes))
    else:
        _show(curve)


def _data(path: Path, choices: TableChoices) -> tuple[Any, Any, list[str]]:
    """Return standardised inputs and targets, (n, c), and notes."""
    import numpy as np

    from widelimit.cli import training_data
    from widelimit.estimators.preparation import standardise

    table = training_data.load(path, choices)
    found = training_data.encode(table, choices)
    rng, rows = np.random.default_rng(choices.seed), len(found.X)
    kept = np.arange(rows) if choices.rows or rows <= _LARGEST else np.sort(rng.permutation(rows)[:_LARGEST])
    notes = [
        *found.notes,
        *([f"{_LARGEST} of {rows} rows are used; --rows N takes others."] if len(kept) < rows else []),
    ]
    X, _, _ = standardise(found.X[kept], np.ones(len(kept)))
    X, target = X[:, X.any(axis=0)], table.target[kept]
    if not X.shape[1]:
        raise ValueError(f"{path}: every input has one value only, up to rounding.")
    if table.task == "classification":
        of_class = (target[:, None] == np.unique(target)).astype(np.float64)
        y = (of_class - of_class.mean(axis=0)) / np.sqrt(np.sum(np.var(of_class, axis=0)) or 1.0)
    else:
        y, _, _ = standardise(np.asarray(target, np.float64).reshape(len(X), -1), np.ones(len(X)))
    if not y.any():
        raise ValueError(f"--target {choices.target}: has one value only; there is nothing to learn.")
    return X, y, notes


def _even_sizes(rows: int) -> list[int]:
    """Return about eight sizes, evenly spaced on a logarithmic axis, up to nine tenths of the rows."""
    import numpy as np

    largest = max(1, int(0.9 * rows))
    return sorted({round(n) for n in np.geomspace(min(10, largest), largest, 8)})


def _document(curve: Any, rows: int, notes: list[str]) -> dict[str, Any]:
    names = ("test_error", "train_error", "bias", "variance", "learnability")
    values = {name: getattr(curve, name).tolist() for name in names}
    fields = () if curve.measured is None else ("test_error", "standard_error", "train_error")
    drawn = {name: getattr(curve.measured, name).tolist() for name in fields}
    document = {"rows": rows, "method": curve.method, "sizes": curve.sizes.tolist(), **values, "notes": notes}
    return document | ({"drawn": drawn} if drawn else {})


def _show(curve: Any) -> None:
    from widelimit.cli import terminal

    table, drawn = terminal.grid(), curve.measured
    for name in ("rows", "test error", "training", "learned", *(["drawn"] if drawn else [])):
        table.add_column(name, justify="right")
    for i, n in enumerate(curve.sizes.tolist()):
        more = [f"{drawn.test_error[i]:.4g} +- {drawn.standard_error[i]:.2g}"] if drawn else []
        learned = f"{100 * curve.learnability[i]:.1f} %"
        table.add_row(f"{n}", f"{curve.test_error[i]:.4g}", f"{curve.train_error[i]:.4g}", learned, *more)
    terminal.console().print(table)
