"""`pip install widelimit` brings what kernels and inference need; what more is needed is named with its extra."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from widelimit import extras

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDS_TABLES = {
    "CalibrationDisplay", "DependenceDisplay", "ImportanceDisplay", "NNGPClassifier", "NNGPRegressor", "NTKClassifier",
    "NTKFeatures", "NTKRegressor", "SklearnKernel", "TableEncoder", "WideClassifier", "WideRegressor", "load",
    "plot_importance", "save", "sklearn_kernel",
}  # fmt: skip
BLOCK = f"""
import sys

class Missing:
    def find_spec(name, path=None, target=None):
        if name in {sorted(extras.PACKAGES)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing)
"""
LIGHT = (
    BLOCK
    + """
import numpy as np, widelimit as wl
lines = {}
for name in wl.__all__:
    try:
        getattr(wl, name)
    except ModuleNotFoundError as error:
        lines[name] = str(error)
X = np.eye(3)
assert wl.posterior(wl.rbf(1.0), X, X[0], noise=0.1).mean(X).shape == (3,)
for name in ("plots", "torch"):
    try:
        __import__(f"widelimit.{name}")
    except ModuleNotFoundError as error:
        lines[name] = str(error)
print(lines)
"""
)


def run(code, status=0):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_without_extras_all_names_but_those_of_tables_are_there():
    lines = eval(run(LIGHT))  # a dictionary of texts
    assert lines.pop("plots") == 'a figure needs matplotlib: pip install "widelimit[plots]"'
    assert lines.pop("torch") == 'widelimit.torch needs PyTorch: pip install "widelimit[torch]"'
    assert set(lines) == NEEDS_TABLES
    for name, line in lines.items():
        assert re.fullmatch(
            rf'widelimit\.{name} needs (polars|scikit-learn): pip install "widelimit\[tables\]"', line
        ), line


def test_a_command_without_its_extra_is_one_line(tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n1,2\n")
    code = f"{BLOCK}from widelimit.cli import main; main(['fit', r'{tmp_path / 't.csv'}', '--target', 'y', "
    said = run(code + f"'--model', r'{tmp_path / 'm.npz'}'])", status=1)
    assert re.fullmatch(r'widelimit: this command needs .+: pip install "widelimit\[tables\]"\n', said), said


def test_other_missing_modules_are_not_explained():
    error = ModuleNotFoundError("No module named 'polar'", name="polar")
    assert extras.explained(error, "a table") is error
    assert extras.explained(ModuleNotFoundError("no name"), "a table").args == ("no name",)
    deep = ModuleNotFoundError("No module named 'sklearn.new'", name="sklearn.new")
    assert "widelimit[tables]" in str(extras.explained(deep, "a table"))


def names(requirements):
    return {re.match(r"[\w-]+", text)[0] for text in requirements}


@pytest.mark.parametrize("package", extras.PACKAGES)
def test_the_named_extra_brings_the_package(package):
    distribution = {"sklearn": "scikit-learn"}.get(package, package)
    assert distribution in names(PROJECT["optional-dependencies"][extras.PACKAGES[package][1]])
    assert distribution not in names(PROJECT["dependencies"])
