"""Options that several commands share are declared once, and each is an option of the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, final, get_args, get_type_hints

import typer

from widelimit.cli.config import load
from widelimit.cli.reporting import plain_errors, warnings_as_notes
from widelimit.estimators.parameters import (
    AverageParameters,
    ClassParameters,
    EnsembleParameters,
    KernelParameters,
    RegressorParameters,
    WideParameters,
    by_name,
)

TableFile = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE",
        help="A file with a header: .csv, .tsv, .txt or .parquet; or images: .npz, .npy, a folder of classes; or, with "
        "--network, sequences or graphs: .npz, .parquet.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        is_eager=True,
        metavar="FILE",
        callback=load,
        help="A TOML file with a table of options for each command; the command line wins.",
    ),
]


@final
@dataclass(frozen=True)
class Output:
    """The output of a command is text or JSON, with or without progress and notes."""

    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False
    config: ConfigFile = None


@final
@dataclass(frozen=True)
class TableChoices:
    """These are the options of a user for a table."""

    target: Annotated[
        str,
        typer.Option(
            metavar="COLUMN", help="The column to predict; of images the array of labels, y.", show_default=False
        ),
    ] = ""
    task: Annotated[
        Literal["regression", "classification"] | None,
        typer.Option(help="What the target is; decided by its values if not given."),
    ] = None
    drop: Annotated[Sequence[str], typer.Option(metavar="COLUMN", help="A column to leave out; may be repeated.")] = ()
    categorical: Annotated[
        Sequence[str], typer.Option(metavar="COLUMN", help="A column of numbers that are categories; may be repeated.")
    ] = ()
    impute: Annotated[
        bool | None,
        typer.Option(
            "--impute/--no-impute",
            help="Fill missing values (median, or most frequent category) and flag them; or refuse them.",
            show_default="impute",
        ),
    ] = None
    rows: Annotated[int | None, typer.Option(min=2, metavar="N", help="Use at most so many rows, drawn at random.")] = (
        None
    )
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of everything random.")] = 0
    ordered: Annotated[
        Sequence[str],
        typer.Option(metavar="COLUMN=LOW,...", help="A column of categories, the lowest first; may be repeated."),
    ] = ()

    def of_columns(self) -> str:
        """Return the first option given that is for columns of single values only; --drop comes last, "" is none."""
        filling = "" if self.impute is None else "--impute" if self.impute else "--no-impute"
        given = {"--categorical": self.categorical, "--ordered": self.ordered, filling: filling, "--drop": self.drop}
        return next((option for option, value in given.items() if value), "")

    @property
    def ranks(self) -> dict[str, list[str]]:
        """Return the categories of each ordered column. Raises: ValueError: no such list."""
        found = {}
        for text in self.ordered:
            name, sign, levels = text.partition("=")
            ranks = [level.strip() for level in levels.split(",")]
            if not sign or len(ranks) < 2 or len(set(ranks)) < len(ranks) or "" in ranks:
                raise ValueError(f"--ordered {text}: write the column and its categories, as in --ordered size=s,m,l.")
            if name in found:
                raise ValueError(f"--ordered {name} is given 2 times; give it once.")
            found[name] = ranks
        return found

    @property
    def written(self) -> list[str]:
        """Name the columns that are taken as the file has them: target and categories."""
        return [self.target, *self.categorical, *self.ranks]


class OptionGroup(NamedTuple):
    """A group holds options of the command line, and the function that makes one argument of their values."""

    options: dict[str, inspect.Parameter]
    make: Callable[..., Any]


def option(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """Make a parameter of a command."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def dataclass_group(cls: type, *left_out: str) -> OptionGroup:
    """Make an option of each field of a dataclass; what the user does not give has the field's default."""
    hints, options = get_type_hints(cls, include_extras=True), {}
    for entry in fields(cls):
        if entry.name in left_out:
            continue
        kind, about = get_args(hints[entry.name])
        kind = list[str] if kind == Sequence[str] else kind
        default = {MISSING: inspect.Parameter.empty, (): None}.get(entry.default, entry.default)
        options[entry.name] = option(entry.name, Annotated[kind, about], default)

    def make(**values: Any) -> Any:
        return cls(**{name: value for name, value in values.items() if value not in (None, [])})

    return OptionGroup(options, make)


def number_or_auto(text: str | None) -> float | str | None:
    """Accept a number, or "auto". Raises: typer.BadParameter."""
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"must be a number or auto, not {text!r}.") from error


def parameter_group(*names: str, estimator: type[KernelParameters] = KernelParameters, **defaults: Any) -> OptionGroup:
    """Make an option of each of these parameters of the estimators; their value is a dictionary, None: not given.

    Args:
        names: parameters whose default is that of the estimator.
        estimator: the help shows the defaults of these parameters.
        defaults: parameters with another default, which the help shows.
    """
    classes = (WideParameters, AverageParameters, ClassParameters, EnsembleParameters, RegressorParameters)
    hints = {name: hint for cls in classes for name, hint in get_type_hints(cls).items()}
    table = by_name(*classes)
    usual = {name: entry.default for name, entry in (table | by_name(estimator)).items()}
    options = {}
    for name in (*names, *defaults):
        default = False if _is_switch(table[name], hints[name]) else None
        annotation = parameter_annotation(table[name], hints[name], defaults.get(name, usual[name]))
        options[name] = option(name, annotation, default)
    switches = [name for name, entry in options.items() if entry.default is False]
    return OptionGroup(
        options,
        lambda **values: {name: value or (None if name in switches else value) for name, value in values.items()},
    )


def _is_switch(entry: Field[Any], hint: Any) -> bool:
    """Return True for a flag that an option can only turn on."""
    return hint is bool and entry.default is False


def parameter_annotation(entry: Field[Any], hint: Any, default: Any) -> Any:
    """Return the annotation that typer reads, of a parameter of the estimators with this default."""
    text, choices = entry.metadata["text"], entry.metadata["choices"]
    if _is_switch(entry, hint):
        return Annotated[bool, typer.Option(f"--{entry.name}", help=text)]
    if hint is bool:
        both = f"--{entry.name}/--no-{entry.name}"
        return Annotated[bool | None, typer.Option(both, help=text, show_default=entry.name)]
    kind, metavar, callback = str, "FILE" if entry.name == "network" else "NAME", None
    if choices:
        kind, metavar = Literal[tuple(str(choice).lower() for choice in choices)], None  # type: ignore[assignment]
    elif hint in (int, float):
        kind, metavar = hint, "N" if hint is int else "NUMBER"
    elif entry.default == "auto" or float in get_args(hint):
        metavar, callback = "NUMBER", number_or_auto
    shown = f"{default:.3g}" if isinstance(default, float) else str(default)
    return Annotated[kind | None, typer.Option(metavar=metavar, callback=callback, help=text, show_default=shown)]


def with_options(**groups: OptionGroup) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function: the options of each group become one argument of it, beside its own options.

    One group is called "output": it says how errors and warnings are printed.
    """

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        options: list[inspect.Parameter] = []
        for name, own in inspect.signature(run, eval_str=True).parameters.items():
            options += groups[name].options.values() if name in groups else [option(name, own.annotation, own.default)]

        def call(**values: Any) -> None:
            made = {
                name: group.make(**{key: values.pop(key) for key in group.options}) for name, group in groups.items()
            }
            output = made["output"]
            with plain_errors(debug=output.debug), warnings_as_notes(quiet=output.quiet):
                run(**made, **values)

        call.__name__, call.__doc__ = run.__name__, run.__doc__
        call.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        return call

    return decorate


OUTPUT, TABLE = dataclass_group(Output), dataclass_group(TableChoices)
