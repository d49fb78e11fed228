"""Sequences and graphs are read from arrays of .npz files, and from list columns of Parquet tables."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import polars as pl

from widelimit import memory
from widelimit.architecture.inputs import Sited
from widelimit.architecture.sequences import Graph, Sequence
from widelimit.cli import list_columns, tables
from widelimit.cli.adjacency import adjacencies
from widelimit.cli.matrices import read_arrays, real
from widelimit.messages import list_names

SUFFIXES = (".npz", *tables.PARQUET_FILES)
PARTS = ("X", "lengths", "mask", "offsets")
EDGES = ("A", "A_data", "A_indices", "A_indptr")
LABELS = "y"


@final
@dataclass(frozen=True)
class Structured:
    """The sequences or graphs of a file are packed to rows, with the targets that the file has."""

    path: Path
    inputs: Sequence | Graph
    X: np.ndarray
    """(n, size), as `inputs.pack` makes them."""
    target: pl.Series | None
    """(n,) classes or values; None if the file has none."""
    columns: list[str]
    """The list columns of a Parquet table, in the order of the features."""
    notes: list[str]

    def document(self) -> dict[str, Any]:
        """Return what the inputs are, in JSON."""
        return {self.inputs.kind: list(self.inputs.shape)}

    def summary(self, rows: str, drawn: str) -> str:
        """Describe the inputs."""
        most, features = self.inputs.shape
        site = "nodes" if isinstance(self.inputs, Graph) else "sites"
        return f"{rows} {self.inputs.kind}s{drawn} of at most {most} {site} with {features} features"


def structure_of(network: Any) -> Sequence | Graph | None:
    """Return the sequences or graphs that a network reads; None for rows, images, and what is not a network."""
    inputs: Sited | None = getattr(network, "inputs", None)
    return inputs if isinstance(inputs, (Sequence, Graph)) else None


def read(
    path: Path,
    inputs: Sequence | Graph,
    target: str = "",
    *,
    test: bool = False,
    drop: Many[str] = (),
    columns: Many[str] = (),
) -> Structured:
    """Read sequences or graphs (the formats are in docs/command_line.md).

    Args:
        path: .npz; of sequences also .parquet.
        inputs: the form of input that the network reads.
        target: the array of labels (y unless given), or the column of a table.
        test: take X_test and y_test if an .npz file has them; note columns of a table that are not used.
        drop: columns of a table to leave out.
        columns: the list columns of a table; all of them unless given.

    Raises:
        ValueError: another suffix, no such file, a damaged one, objects; a missing array; sizes that do not agree.
        MemoryError: memory does not hold it.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: {inputs.kind}s are read from .npz{_OTHER[inputs.kind]}; convert the file.")
    tables.check_readable(path)
    memory.require(4.0 * path.stat().st_size, f"{path}: reading it", remedy="cut it to fewer inputs")
    if suffix != ".npz":
        return _of_table(path, inputs, target, test, drop, columns)
    if drop:
        raise ValueError(f"--drop {drop[0]}: is for the columns of tables, and {path.name} has arrays; leave it out.")
    return _of_arrays(path, inputs, target, test)


_OTHER = {"sequence": " and .parquet files", "graph": " files"}


def _of_arrays(path: Path, inputs: Sequence | Graph, target: str, test: bool) -> Structured:
    found: dict[str, np.ndarray] = read_arrays(path, list)  # type: ignore[assignment]
    known = [*PARTS, *(EDGES if isinstance(inputs, Graph) else ())]
    end = next((end for end in (("_test", "", "_train") if test else ("_train", "")) if f"X{end}" in found), None)
    if end is None:
        raise ValueError(f"{path}: has no array X or X_train of {inputs.kind}s, but {list_names(list(found))}.")
    given = {name: real(path, found[name + end]) for name in known if name + end in found}
    rows = _rows(path, inputs, given)
    name = (target or LABELS).removesuffix(end) + end
    if target and name not in found and not test:
        raise ValueError(f"--target {target}: {path.name} has no such array, but {list_names(list(found))}.")
    labels = found.get(name)
    if labels is not None and labels.shape not in ((len(rows),), (len(rows), 1)):
        raise ValueError(
            f"{path}: {name} has shape {labels.shape}, and there are {len(rows)} {inputs.kind}s; one label each."
        )
    used = {part + end for part in given} | {name}
    notes = _unused(path, [other for other in found if other not in used], [*known, LABELS], end)
    return Structured(path, inputs, rows, None if labels is None else _labels(name, labels.ravel(), end), [], notes)


def _labels(name: str, values: np.ndarray, end: str) -> pl.Series:
    """Return labels as a column. Raises: ValueError: neither numbers nor text."""
    if values.dtype.kind not in "fiubU":
        raise ValueError(f"{name}: labels are numbers or text, not {values.dtype}.")
    return pl.Series(name.removesuffix(end), values)


def _unused(path: Path, names: list[str], known: list[str], end: str) -> list[str]:
    """Note arrays that are not used. Raises: ValueError: one whose name is nearly that of one that would be."""
    names = [name for name in names if not name.endswith(tuple({"_train", "_test"} - {end}))]
    plain = {part.casefold(): part for part in known}
    for name in names:
        if near := difflib.get_close_matches(name.removesuffix(end).casefold(), plain, n=1, cutoff=0.75):
            raise ValueError(
                f"{path}: the array {name!r} is not read; did you mean {plain[near[0]] + end!r}? Rename it."
            )
    return [f"the arrays {list_names(names)} are not used"] if names else []


def _rows(path: Path, inputs: Sequence | Graph, given: dict[str, np.ndarray]) -> np.ndarray:
    """Return packed rows. Raises: ValueError: sizes that do not agree, with the path."""
    try:
        if "X" in given and given["X"].ndim == 2 and len(given) == 1 and given["X"].shape[1] == inputs.size:
            return np.asarray(inputs.rows("X", given["X"]))
        places = _places(given, inputs)
        if isinstance(inputs, Sequence):
            return _sequences(given, inputs, places)
        own = [given["X"][at] for at in places]
        return inputs.pack(list(zip(own, adjacencies(given, places), strict=True)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _sequences(given: dict[str, np.ndarray], inputs: Sequence, places: list[Any]) -> np.ndarray:
    X = given["X"]
    if "mask" not in given:
        return np.asarray(inputs.pack([X[at] for at in places]))
    if X.shape[1] > inputs.length:
        raise ValueError(f"X has {X.shape[1]} sites, and {inputs} takes {inputs.length}; shorten X and mask.")
    wide = [(0, 0), (0, inputs.length - X.shape[1])]
    mask = np.pad(given["mask"] != 0, wide)
    return np.asarray(inputs.pack(np.pad(X, wide + [(0, 0)] * (X.ndim - 2)), mask=mask))


def _places(given: dict[str, np.ndarray], inputs: Sequence | Graph) -> list[Any]:
    """Return where in X the sites of each input are. Raises: ValueError: lengths, mask or offsets that do not fit."""
    X, how = given["X"], [name for name in PARTS[1:] if name in given]
    if len(how) > 1:
        raise ValueError(f"it has {' and '.join(how)}; each says which sites are there: keep one of them only.")
    if not X.size:
        raise ValueError(f"X has shape {X.shape}; at least one {inputs.kind} is needed.")
    flat = X.ndim == 1 or (X.ndim == 2 and "offsets" in given)
    if X.ndim != 3 and not (inputs.features == 1 and X.ndim == 2) and not flat:
        raise ValueError(
            f"X has shape {X.shape}; {inputs} takes padded (n, sites, {inputs.features}), with lengths or mask; or all "
            f"sites in a row, (sites, {inputs.features}), with offsets; or packed rows (n, {inputs.size})."
        )
    if flat:
        return _by_offsets(given.get("offsets"), len(X))
    if how == ["mask"]:
        mask = given["mask"]
        if mask.shape != X.shape[:2] or not np.isin(mask, (0, 1)).all():
            raise ValueError(f"mask must be {X.shape[:2]} of True and False; got shape {mask.shape}.")
        return [(i, np.flatnonzero(own)) for i, own in enumerate(mask)]
    lengths = given.get("lengths", np.full(len(X), X.shape[1]))
    if how == ["offsets"] or lengths.shape != (len(X),) or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"X has shape {X.shape}, which is padded: lengths must be {len(X)} integers, one for each {inputs.kind}; "
            f"offsets are for all sites in a row."
        )
    if not ((lengths >= 1) & (lengths <= X.shape[1])).all():
        bad = int(np.argmin((lengths >= 1) & (lengths <= X.shape[1])))
        raise ValueError(f"lengths[{bad}] is {lengths[bad]}, and X has room for 1 to {X.shape[1]} sites.")
    return [(i, np.arange(n)) for i, n in enumerate(lengths)]


def _by_offsets(offsets: np.ndarray | None, sites: int) -> list[Any]:
    if offsets is None:
        raise ValueError(
            f"X has {sites} sites in a row, so an array offsets is needed, which says where each input begins and the "
            f"last ends: [0, ..., {sites}]."
        )
    fine = offsets.ndim == 1 and offsets.dtype.kind in "iu" and len(offsets) > 1
    if not fine or offsets[0] != 0 or offsets[-1] != sites or (np.diff(offsets.astype(np.int64)) < 1).any():
        raise ValueError(
            f"offsets must be integers that begin with 0, end with {sites}, the sites of X, and grow: an input has at "
            f"least one site."
        )
    ends = offsets.astype(np.int64)
    return [np.arange(start, stop) for start, stop in itertools.pairwise(ends)]


def _of_table(
    path: Path, inputs: Sequence | Graph, target: str, test: bool, drop: Many[str], columns: Many[str]
) -> Structured:
    if isinstance(inputs, Graph):
        raise ValueError(f"{path}: graphs are read from .npz files; convert the table.")
    frame = tables.read_raw(path)
    chosen, notes = list_columns.choose(path, frame, target, drop, columns, strict=not test)
    values, offsets = list_columns.flat(path, [frame[name] for name in chosen], inputs.features)
    rows = _rows(path, inputs, {"X": real(path, values), "offsets": offsets})
    own = frame[target] if target in frame.columns else None
    return Structured(path, inputs, rows, own, chosen, notes)
