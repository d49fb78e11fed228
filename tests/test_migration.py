"""docs/migration.md: every row of its tables has the values that neural-tangents 0.6.5 gave for the other column.

`benchmarks/migration_values.py` asks neural-tangents, and stores its answers in migration_values.json.
"""

import functools
import json
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl

PAGE = Path(__file__).parents[1] / "docs" / "migration.md"
VALUES = Path(__file__).with_name("migration_values.json")
STORED = json.loads(VALUES.read_text()) if VALUES.exists() else {}
BOUND = 1e-8
"""Rows that say "to 1e-5" have that: the quadrature of neural-tangents is no better there."""

ROWS = "rng = np.random.default_rng(0); X, Z = rng.standard_normal((2, 3)), rng.standard_normal((3, 3))"
IMAGES = ROWS.replace("2, 3", "2, 5, 4, 2").replace("3, 3", "3, 5, 4, 2")
THEIRS = "serial(Conv(1, (2, 2), W_std=1.3, b_std=0.3, padding='SAME'), Relu(), {}, Dense(1)"
OURS = "wl.network(Conv(2, 1.3, 0.3), 'relu', {}, Dense()"
NETWORKS = {
    "Layers on rows": (
        ROWS,
        "serial(Dense(1, 1.3, 0.3), {}, Dense(1, 1.2, 0.1))",
        "wl.network(Dense(1.3, 0.3), {}, Dense(1.2, 0.1))",
    ),
    "Layers on images": (
        IMAGES,
        f"{THEIRS}, GlobalAvgPool(), Dense(1))",
        f"{OURS}, GlobalAveragePool(), Dense(), inputs=wl.Image(5, 4, 2))",
    ),
    "Ends of networks of images": (IMAGES, f"{THEIRS})", f"{OURS}, inputs=wl.Image(5, 4, 2))"),
}
"""Inputs, and the networks in which a row of these sections stands in the place of {}."""
NETWORKS["Nonlinearities"] = NETWORKS["Layers on rows"]


class Row(NamedTuple):
    """A row of a table of the page."""

    section: str
    theirs: str
    ours: str
    note: str


@functools.cache
def sections():
    """The sections of the page by title."""
    parts = PAGE.read_text().split("\n## ")[1:]
    return {part.splitlines()[0]: part for part in parts}


def rows():
    """The rows of the page of which the first two cells are code and nothing else."""
    pattern = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \|(.*)\|$", flags=re.MULTILINE)
    return [Row(title, *found) for title, text in sections().items() for found in pattern.findall(text)]


def kernels(row):
    """Names of the kernels that a row of a network has."""
    return "('nngp',)" if "NNGP only" in row.note else "('nngp', 'ntk')"


def question(row):
    """What neural-tangents is asked: code, and the code before it."""
    if row.section in NETWORKS:
        inputs, theirs, _ = NETWORKS[row.section]
        return {"setup": inputs, "code": f"tuple({theirs.format(row.theirs)}[2](X, Z, {kernels(row)}))"}
    return {"setup": re.findall(r"```py\n(.*?)```", sections()[row.section], re.DOTALL)[0], "code": row.theirs}


@functools.cache
def names_of(section):
    """The names that the first block of code of a section makes."""
    names = dict(vars(wl.layers)) | {"wl": wl, "jax": jax, "jnp": jnp, "np": np}
    blocks = re.findall(r"```python\n(.*?)```", sections()[section], re.DOTALL)
    exec(NETWORKS[section][0] if section in NETWORKS else blocks[0], names)
    return names


def values(row):
    """Our values of a row."""
    code = row.ours
    if row.section in NETWORKS:
        net = NETWORKS[row.section][2].format(row.ours)
        code = f"wl.nngp({net}).cross(X, Z)" if "NNGP only" in row.note else f"wl.limits({net}).cross(X, Z)"
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eval(code, dict(names_of(row.section))))]


def differences(row, theirs, factor=1.0):
    """Largest differences over the largest value, one a value of the row."""
    pairs = zip(values(row), map(np.asarray, theirs), strict=True)
    return [abs(factor * a - b.reshape(a.shape)).max() / abs(b).max() for a, b in pairs]


def test_every_row_of_the_page_has_values_of_neural_tangents():
    assert {row.theirs for row in rows()} == set(STORED)
    assert {*NETWORKS, "Graphs and sequences", "Prediction", "Finite networks"} == {row.section for row in rows()}
    assert len(issues()) == sections()["Their open issues"].count("\n| ") - 1


@pytest.mark.claims
@pytest.mark.slow
@pytest.mark.parametrize("row", rows(), ids=lambda row: row.theirs)
def test_values_of_neural_tangents(row):
    bound = 1e-5 if "to 1e-5" in row.note else BOUND
    assert max(differences(row, STORED[row.theirs])) < bound
    assert max(differences(row, STORED[row.theirs], factor=1 + 10 * bound)) > bound


def issues():
    """{issues of neural-tangents: the line of code that ends them}."""
    found = re.findall(r"^\| ([0-9, ]+) \| .* \| `(.+)` \|$", sections()["Their open issues"], flags=re.MULTILINE)
    return dict(found)


@pytest.mark.claims
@pytest.mark.slow
@pytest.mark.parametrize("issue", issues())
def test_open_issues_of_neural_tangents_end_here(issue):
    found = eval(issues()[issue], dict(names_of("Their open issues")))
    assert np.all(found) if isinstance(found, (bool, np.bool_)) else found is not None
