"""The rules of the house that a machine can check."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import widelimit as wl
from cases import ACTIVATIONS

ROOT = pathlib.Path(__file__).parents[1]
SOURCE = ROOT / "src" / "widelimit"
ORDER = [
    "version",
    "arithmetic",
    "progress",
    "references",
    "pytrees",
    "series",
    "validation",
    "signals",
    "gaussian",
    "activations",
    "architecture",
    "compute",
    "kernels",
    "torch",
    "inference",
    "rkhs",
    "training",
    "estimators",
    "plots",
    "claims",
    "cli",
]
FILES = sorted(SOURCE.rglob("*.py"))


def part(path):
    """The place in ORDER of a file of the package; None for its __init__."""
    name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return None if name == "__init__" else ORDER.index(name)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "widelimit":
            names = [node.module] if node.module != "widelimit" else [f"widelimit.{a.name}" for a in node.names]
            yield from (name.split(".")[1] for name in names if "." in name)


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(SOURCE)) for f in FILES])
def test_data_flows_one_way(path):
    here = part(path)
    if here is None or ORDER[here] == "cli":  # the command line comes last and enters by the public door
        return
    for name in imports(path):
        assert ORDER.index(name) <= here, f"{path.name} imports {name}"


def test_the_order_can_be_violated():
    tree = "from widelimit.inference import posterior\n"
    file = SOURCE / "signals.py"
    assert list(imports_of(tree)) == ["inference"]
    assert ORDER.index("inference") > part(file)


def imports_of(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[1]


def subclasses(base):
    for cls in base.__subclasses__():
        yield cls
        yield from subclasses(cls)


def bases():
    from widelimit.architecture.layers import Layer
    from widelimit.compute.linalg import Factor
    from widelimit.kernels.empirical.contraction import Factors

    return [wl.Activation, wl.Kernel, wl.MatrixKernel, wl.Loss, wl.Flow, Layer, Factor, Factors]


def test_classes_are_abstract_or_final():
    for base in bases():
        assert inspect.isabstract(base)
        for cls in subclasses(base):
            if cls.__module__.startswith("widelimit"):
                assert getattr(cls, "__final__", False), cls
                assert not inspect.isabstract(cls)
                assert cls.__bases__ == (base,), cls


def test_every_activation_is_in_the_table_the_door_and_the_docs():
    names = {cls.__name__ for cls in subclasses(wl.Activation) if cls.__module__.startswith("widelimit")}
    assert names == {type(activation).__name__ for activation in ACTIVATIONS.values()}
    assert names <= set(wl.__all__)
    documentation = (ROOT / "docs" / "activations.md").read_text()
    for activation in ACTIVATIONS.values():
        assert f"`{type(activation).__name__}`" in documentation
        assert f'"{activation.name}"' in documentation


def test_every_public_name_is_in_the_docs_and_has_a_docstring():
    text = (ROOT / "README.md").read_text() + "".join(f.read_text() for f in (ROOT / "docs").glob("*.md"))
    for name in wl.__all__:
        assert re.search(rf"\b{name}\b", text), name
        assert inspect.getdoc(getattr(wl, name)), name


def test_the_docs_name_claims_tests_and_files_that_are_there():
    from widelimit.claims import NAMES

    tests = set(re.findall(r"def (test_\w+)", "".join(f.read_text() for f in (ROOT / "tests").glob("*.py"))))
    for page in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        text = page.read_text()
        if page.name in ("claims.md", "paper.md"):
            assert set(NAMES) <= set(re.findall(r"`(\w+)`", text)), page
        assert set(re.findall(r"`(test_\w+)`", text)) <= tests, page
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert link.startswith("https://") or (page.parent / link).exists(), (page, link)


def test_house_style():
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        assert "jax.config" not in text, path
        assert "hasattr(" not in text, path
        assert "super()" not in text, path


HEAVY = ["jax", "numpy", "scipy", "sklearn", "matplotlib", "polars", "zarr", "diffrax", "equinox", "optax", "rich"]


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, widelimit; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_the_version_is_that_of_the_project_file():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)[1]
    assert wl.__version__ == declared
    assert "__version__" in dir(wl)
    for path in FILES:
        assert declared not in re.findall(r'"([^"]*)"', path.read_text()), path
    code = "import sys, widelimit; print('importlib.metadata' in sys.modules); widelimit.__version__; "
    code += "print('jax' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == ["False", "False"]


PAGES = ["README.md", *(f"docs/{f.name}" for f in sorted((ROOT / "docs").glob("*.md")) if "```python" in f.read_text())]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_in_the_documentation_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def test_no_machine_is_named():
    run = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    for name in run.stdout.split():
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".lock", ".pyi", ""}:
            assert not re.search(r"/(?:home|root|tmp)/|https?://[^ ]*(?:simple|pypi)/", path.read_text()), name
