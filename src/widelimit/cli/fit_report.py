"""The report of `widelimit fit` is one HTML file: data, model, importance, and how well rows are predicted."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from widelimit.cli import fit_figures, picture_report, scores, terminal
from widelimit.cli.held_out import Assessment, HeldOut, assess_classes, assess_regression, held_out
from widelimit.cli.models import FitResult
from widelimit.cli.pictures import Pictures
from widelimit.cli.reporting import version
from widelimit.cli.structured import Structured
from widelimit.columns.column import Column
from widelimit.displays.dependence import DependenceDisplay
from widelimit.displays.importance import SHOWN, ImportanceDisplay, learned_scales, shuffle
from widelimit.estimators.settings import scaling
from widelimit.pages import digits, document, picture, table
from widelimit.writing import atomic_write

MEANINGS = {
    "kernel": "nngp: the Bayesian posterior of an infinitely wide network; ntk: one trained by gradient descent",
    "depth": "number of affine layers of the network",
    "network": "layers in order; --network reads a file with this text",
    "factor": "factor of the signals; smaller in a residual branch: the function bends less",
    "activation": "erf: smooth functions; relu: functions with kinks",
    "weight_std": "standard deviation of the weights; larger beside bias_std: the function bends more",
    "bias_std": "standard deviation of the biases; larger beside weight_std: the function is nearer to a straight one",
    "time": "training time of the networks; inf: to the end",
    "noise_std": "standard deviation of what the columns do not explain, in the unit of the target",
}
"""Explanations of what `FitResult.chosen` holds."""
KINDS = {"category": "categories", "rank": "ordered categories", "instant": "dates"}
"""Irregular plurals of kinds of columns."""
COLUMNS = 200
"""Columns that are listed."""
SHUFFLED_ROWS, REPEATS = 500, 5
"""Rows on which columns are shuffled, and how often."""
CURVES, CURVE_ROWS, CURVE_POINTS = 3, 50, 15
"""Columns whose dependence is drawn, rows it is averaged over, values of the column."""
WORST = 5
"""Rows that are listed because they are predicted worst."""


def write(path: Path, result: FitResult, warned: Sequence[str], *, quiet: bool) -> None:
    """Make the report and write it. warned: warnings of the fit. Raises: OSError: it cannot be written."""
    with terminal.busy_bar(f"report {path.name}", quiet=quiet):
        text = page(result, warned)
    with atomic_write(path) as stream:
        stream.write(text.encode())


def page(result: FitResult, warned: Sequence[str]) -> str:
    """Make the whole document."""
    y, target, task = result.table.target, result.table.name, result.table.task
    what = {Pictures: "images", Structured: "inputs"}.get(type(result.data), "rows")
    found = held_out(result.estimator, result.data.images if isinstance(result.data, Pictures) else result.data.X, y)
    kept = y[found.rows]
    if task == "regression":
        score = assess_regression(found, kept, unit=target)
        section = _regression(found, kept, score)
    else:
        score = assess_classes(found, kept, result.estimator.classes_)
        section = _classification(found, kept, score, result.estimator.classes_)
    if isinstance(result.data, Pictures):
        importance, columns = picture_report.importance(result, *_measure(task)), ""
        worst = picture_report.worst(found, kept, result)
    else:
        tabular = not isinstance(result.data, Structured)
        importance, columns = (_importance(result), _columns(result)) if tabular else ("", "")
        worst = _worst(found, kept, result) if task == "regression" else ""
    body = "".join(
        [
            f"<h1>{html.escape(target)}, predicted from {html.escape(result.table.path.name)}</h1>",
            f'<p class="meta">{html.escape(type(result.estimator).__name__)} of widelimit {html.escape(version())}, '
            f"fitted in {result.seconds:.1f} s to {len(y)} {what}; stored in "
            f"{html.escape(str(result.model))}</p>",
            f'<p class="banner{" failed" * bool(score.remarks or warned)}">{score.summary}</p>',
            _warnings([*warned, *result.data.notes, *score.remarks]),
            f"<h2>Data</h2>{table((), _facts(result))}",
            picture(fit_figures.target(y, target), f"distribution of {target}"),
            columns,
            _model(result.chosen()),
            importance,
            section,
            worst,
        ]
    )
    return document(f"{target}: widelimit fit", body)


def _measure(task: str) -> tuple[Any, str]:
    """Return the score by which importance is measured, and its name."""
    if task == "regression":
        return lambda model, X, y: model.score(X, y), "R²"
    return _log_likelihood, "log-likelihood"


def _warnings(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(text)}</li>" for text in dict.fromkeys(texts))
    return f"<h2>Warnings and notes</h2>{f'<ul>{items}</ul>' if items else '<p>None.</p>'}"


def _facts(result: FitResult) -> list[tuple[str, str]]:
    drawn = f", drawn at random from {result.table.rows}" * (result.table.frame.height != result.table.rows)
    if isinstance(result.data, Pictures):
        height, width, channels = result.data.shape
        rows, own = "images", ("size", f"{height} x {width} pixels, {channels} channels, {result.data.images.dtype}")
    elif isinstance(result.data, Structured):
        rows, own = f"{result.data.inputs.kind}s", ("inputs", str(result.data.inputs))
    else:
        schema = result.data.schema
        used = f"{len(schema.columns)} used, which make {len(schema.inputs)} inputs of the model"
        rows, own = "rows", ("columns", used)
    return [
        (rows, f"{result.table.frame.height}{drawn}"),
        own,
        ("task", f"{result.table.task} ({result.table.reason})"),
    ]


def _columns(result: FitResult) -> str:
    frame, schema = result.table.frame, result.data.schema
    lines = [_describe(column, frame[column.name]) for column in schema.columns[:COLUMNS]]
    rest = len(schema.columns) - len(lines)
    return (
        "<h3>Columns</h3><div class=columns>"
        f"{table(('column', 'kind', 'missing', 'different', 'values'), lines)}</div>"
        f"{f'<p>and {rest} more columns</p>' * (rest > 0)}"
    )


def _describe(column: Column, values: pl.Series) -> tuple[str, ...]:
    """Describe a column in a line of the table."""
    present, kind = values.drop_nulls(), column.kind
    line = (column.name, KINDS.get(kind, f"{kind}s"), f"{values.null_count()}", f"{present.n_unique()}")
    if kind == "number":
        low, middle, high = np.quantile(present.to_numpy(), (0, 0.5, 1))
        return *line, f"{digits(low)} to {digits(high)}, median {digits(middle)}"
    if not column.categories:
        return *line, f"{present.min()!s} to {present.max()!s}"
    counts = present.cast(pl.String).value_counts().sort("count", present.name, descending=[True, False]).rows()
    listed = ", ".join(f"{_short(str(text), 30)} {count}" for text, count in counts[:3])
    return *line, listed + ", ..." * (len(counts) > 3)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _model(chosen: dict[str, Any]) -> str:
    lines = [
        (name, digits(value) if isinstance(value, float) else str(value), MEANINGS.get(name.rpartition(".")[2], ""))
        for name, value in chosen.items()
    ]
    return f"<h2>Model</h2>{table(('setting', 'value', 'meaning'), lines)}"


def _importance(result: FitResult) -> str:
    shuffled = shuffled_importance(result)
    parts = [
        "<h2>Which columns matter</h2><p>How much worse the training rows are predicted when the values of a column "
        f"are shuffled (mean of {REPEATS} times, with one standard deviation). It says what the model uses.</p>",
        picture(fit_figures.importance(shuffled, SHOWN), "importance of the columns by shuffling"),
    ]
    if scaling(result.estimator) is not None:
        names, scales = result.data.schema.inputs, learned_scales(result.estimator)[1]
        learned = ImportanceDisplay(scales, feature_names=names, measure="learned scale of the standardised input")
        parts += [
            "<p>The learned scale of each input: how fast the prediction may vary along it. An input of scale 0 is not "
            "used. A category is one input of 0 or 1.</p>",
            picture(fit_figures.importance(learned, SHOWN), "learned scales of the inputs"),
        ]
    return "".join([*parts, _curves(result, shuffled.importances)])


def _groups(result: FitResult) -> list[np.ndarray]:
    """Return the numbers of the inputs of each column."""
    ends = np.cumsum([len(column.inputs) for column in result.data.schema.columns])
    return np.split(np.arange(ends[-1]), ends[:-1])


def shuffled_importance(result: FitResult) -> ImportanceDisplay:
    """Measure the loss of score when a column is shuffled, with all its inputs."""
    rows = np.random.default_rng(0).permutation(len(result.table.target))[:SHUFFLED_ROWS]
    X, y, groups = result.data.X[rows], result.table.target[rows], _groups(result)

    def moved(order: np.ndarray) -> np.ndarray:
        out = np.array(X)
        for j, group in enumerate(groups):
            out[:, group] = X[np.ix_(order[:, j], group)]
        return out

    scoring, what = _measure(result.table.task)
    names = [column.name for column in result.data.schema.columns]
    made = shuffle(result.estimator, moved, y, names, len(rows), scoring, REPEATS, 0)
    return ImportanceDisplay(**(made | {"measure": f"loss of {what} when the column is shuffled"}))


def _log_likelihood(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    p = model.predict_proba(X)[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    return float(np.mean(np.log(np.maximum(p, np.finfo(np.float64).tiny))))


def _curves(result: FitResult, importances: np.ndarray) -> str:
    """Draw the dependence on the most important columns of numbers."""
    columns, groups = result.data.schema.columns, _groups(result)
    order = [j for j in np.argsort(-importances, kind="stable") if columns[j].kind == "number" and importances[j] > 0]
    if not order or result.estimator.fitted_ is None:
        return ""
    places = [int(groups[j][0]) for j in order[:CURVES]]
    figure, panels = fit_figures.dependence_panels(len(places))
    classes, counts = (
        np.unique(result.table.target, return_counts=True) if result.table.task == "classification" else ((), ())
    )
    DependenceDisplay.from_estimator(
        result.estimator,
        result.data.X,
        places,
        target=classes[np.argmax(counts)] if len(counts) else None,
        feature_names=result.data.schema.inputs,
        max_rows=CURVE_ROWS,
        grid_resolution=CURVE_POINTS,
        ax=panels,
    )
    figure.supylabel(panels[0].get_ylabel(), fontsize=9)
    panels[0].set_ylabel("")
    return (
        "<h3>How the prediction depends on them</h3><p>The average prediction over "
        f"{min(CURVE_ROWS, len(result.table.target))} rows when the column has the same value in all of them; the "
        "small lines are deciles of the column. Of the columns of numbers, those that matter most are drawn.</p>"
        + picture(figure, "dependence of the prediction on columns")
    )


def _scores(found: HeldOut, score: Assessment) -> str:
    lines = table(("score", "value", "meaning"), score.lines)
    return f"<h2>How well rows are predicted</h2><p>{html.escape(found.how)}</p>{lines}"


def _regression(found: HeldOut, y: np.ndarray, score: Assessment) -> str:
    """Make the section on rows that were left out."""
    return (
        f"{_scores(found, score)}<h3>Calibration</h3>"
        "<p>The share of rows inside intervals of every level. Below the diagonal error bars are too small, above it "
        "too large.</p>"
        + picture(fit_figures.intervals(y, found.mean, found.std), "coverage of intervals against their level")
        + "<h3>Errors</h3>"
        + picture(fit_figures.residuals(y, found.mean, found.std), "predictions, errors, and their distribution")
    )


def _worst(found: HeldOut, y: np.ndarray, result: FitResult) -> str:
    """List the rows of the largest errors in units of their deviations, if the file's rows were all used."""
    if result.table.frame.height != result.table.rows:
        return ""
    z = scores.standardised(y, found.mean, found.std)
    order = np.argsort(-np.abs(z), kind="stable")[:WORST]
    lines = [
        (f"{found.rows[i] + 1}", digits(y[i], 5), digits(found.mean[i], 5), digits(found.std[i], 3), f"{z[i]:+.2f}")
        for i in order
    ]
    return (
        "<h3>Rows with the largest errors</h3><p>Rows are counted from 1 under the header. An error of more than four "
        "standard deviations is rarely chance: look at the row.</p>"
        + table(("row", "observed", "predicted", "standard deviation", "error/deviation"), lines)
    )


def _classification(found: HeldOut, y: np.ndarray, score: Assessment, classes: np.ndarray) -> str:
    """Make the section on rows that were left out."""
    parts, p = [_scores(found, score)], found.mean
    if len(classes) > 1:
        pair, guess = len(classes) == 2, classes[p.argmax(axis=1)]
        happened, event = (y == classes[1], p[:, 1]) if pair else (y == guess, p.max(axis=1))
        what = f"of {classes[1]}" if pair else "of the most probable class"
        parts += [
            "<h3>Confusion</h3>",
            picture(fit_figures.confusion(y, guess), "true and predicted classes"),
            "<h3>Reliability</h3><p>How often an event of a predicted probability happens, in bins of equally many "
            "rows. Points on the diagonal are right; the bars are one standard error.</p>",
            picture(fit_figures.reliability(happened, event, what), "reliability of the probabilities"),
        ]
    return "".join(parts)
