"""The rules of the house that a machine can check."""

import abc
import ast
import enum
import graphlib
import importlib
import importlib.util
import inspect
import pathlib
import re
import subprocess
import sys
from typing import final

import pytest
from sklearn.base import BaseEstimator

import cases
import widelimit as wl
from widelimit import extras
from widelimit.architecture.state import Layer
from widelimit.compute.linalg import Factor
from widelimit.compute.operators import Operator

ROOT = pathlib.Path(__file__).parents[1]
SOURCE = ROOT / "src" / "widelimit"
ORDER = [
    "shapes",
    "version",
    "extras",
    "arithmetic",
    "progress",
    "references",
    "pytrees",
    "messages",
    "lossless",
    "processes",
    "memory",
    "writing",
    "fingerprints",
    "interpreter",
    "series",
    "validation",
    "signals",
    "gaussian",
    "activations",
    "architecture",
    "layers",
    "network_text",
    "compute",
    "kernels",
    "inference",
    "rkhs",
    "training",
    "columns",
    "estimators",
    "plots",
    "displays",
    "tangents",
    "torch",
    "libraries",
    "pages",
    "theory",
    "claims",
    "cli",
]
FILES = sorted(SOURCE.rglob("*.py"))


def part(path):
    """The place in ORDER of a file of the package; None for its __init__."""
    name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return None if name in ("__init__", "__main__") else ORDER.index(name)


def imported(text):
    """Parts of the package that a module's text imports, in every way there is but the public door's."""
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import relative to the module"
            names = [f"widelimit.{a.name}" for a in node.names] if node.module == "widelimit" else [node.module]
        yield from (name.split(".")[1] for name in names if name.startswith("widelimit."))


def against_the_flow(path, text):
    """The parts that a file with this text imports from its right in ORDER."""
    here = part(path)
    if here is None or ORDER[here] == "cli":  # the command line comes last and enters by the public door
        return []
    return [name for name in imported(text) if ORDER.index(name) > here]


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(SOURCE)) for f in FILES])
def test_data_flows_one_way(path):
    assert against_the_flow(path, path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "from widelimit.inference import posterior",
        "from widelimit.inference.posterior import Posterior",
        "from widelimit import validation, inference",
        "import widelimit.inference.posterior as posterior",
        "def late():\n    from widelimit import inference",
    ],
)
def test_the_order_can_be_violated(text):
    assert against_the_flow(SOURCE / "signals.py", text) == ["inference"]
    assert against_the_flow(SOURCE / "training" / "train.py", text) == []


def module(path):
    """The name of a file of the package as an import writes it."""
    return ".".join(("widelimit", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def edges(text, modules):
    """The modules that a module's text imports, at its top, in functions and for types, but for the public door."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in names}
    return (found & set(modules)) - {"widelimit"}


def circle(modules):
    """A circle of imports among modules, {name: text}; empty if there is none."""
    try:
        graphlib.TopologicalSorter({name: edges(text, modules) for name, text in modules.items()}).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_through_others():
    assert circle({module(path): path.read_text() for path in FILES}) == []


@pytest.mark.parametrize(
    "text",
    [
        "from widelimit.estimators.persistence import save",
        "from widelimit.estimators import persistence",
        "import widelimit.estimators.persistence as files",
        "def save():\n    from widelimit.estimators.persistence import save",
        "if TYPE_CHECKING:\n    from widelimit.estimators.persistence import save",
    ],
)
def test_a_circle_is_found(text):
    modules = {
        "widelimit.estimators.persistence": "from widelimit.estimators import regressors",
        "widelimit.estimators.regressors": "from widelimit.estimators.base import KernelEstimator",
    }
    assert circle(modules | {"widelimit.estimators.base": "import widelimit as wl"}) == []
    assert len(circle(modules | {"widelimit.estimators.base": text})) == 4


def classes():
    """Every class of the package; those for PyTorch and other libraries where these are installed."""
    for path in FILES:
        name = module(path)
        absent = [p for p in name.split(".")[1:] if p in extras.PACKAGES and not importlib.util.find_spec(p)]
        if absent or name.endswith("__main__"):
            continue
        found = vars(importlib.import_module(name)).values()
        yield from (cls for cls in found if inspect.isclass(cls) and cls.__module__ == name)


def made(cls):
    """Whether a class is of a kind that Python finishes itself: tuples with names, enumerations, protocols, errors."""
    return issubclass(cls, (tuple, enum.Enum, BaseException)) or getattr(cls, "_is_protocol", False)


def fault(cls):
    """The rule of the house that a class breaks; empty if none.

    Abstract: it has abstract methods, or abc.ABC is named among its bases. Final: it says so, and extends abstract
    classes only, so that fields and __init__ are in one place.
    """
    final = "__final__" in vars(cls)
    parents = [base for base in cls.__mro__[1:] if base.__module__.startswith("widelimit")]
    if made(cls):
        return "extends what is finished" if any(made(base) for base in parents) else ""
    if inspect.isabstract(cls) or abc.ABC in cls.__bases__:
        return "final, and abstract" if final else ""
    if not final:
        return "neither abstract nor final"
    return "" if all(inspect.isabstract(base) or abc.ABC in base.__bases__ for base in parents) else "extends a class"


def test_classes_are_abstract_or_final():
    found = list(classes())
    assert {cls.__name__ for cls in found} >= {"Operator", "KernelEstimator", "Layer", "Factor", "Factors", "Kernel"}
    assert [(cls, fault(cls)) for cls in found if fault(cls)] == []


def test_a_class_that_is_neither_is_found():
    class Between(wl.Kernel):
        pairwise = diagonal = encode = None

    class Unsealed(Between):
        pass

    @final
    class Extended(Unsealed):
        pass

    @final
    class Both(wl.Kernel):
        pass

    Between.__module__ = Unsealed.__module__ = "widelimit.planted"
    Between.__abstractmethods__ = Unsealed.__abstractmethods__ = Extended.__abstractmethods__ = frozenset()
    faults = ["neither abstract nor final", "neither abstract nor final", "extends a class", "final, and abstract"]
    assert [fault(cls) for cls in (Between, Unsealed, Extended, Both)] == faults


def test_bases_cannot_be_made():
    for cls in classes():
        if inspect.isabstract(cls):
            with pytest.raises(TypeError, match="abstract"):
                cls()


def final_classes(base):
    """The package's below a base."""
    return {cls for cls in classes() if issubclass(cls, base) and "__final__" in vars(cls)}


def of(table):
    """The package's types of the first entry of every row; one layer is that of docs/extending.md."""
    return {cls for cls in (type(row[0]) for row in table.values()) if cls.__module__.startswith("widelimit")}


NETWORKS = [
    entry[1] for table in (cases.IMAGE_NETWORKS, cases.SITE_NETWORKS, cases.MIXED_NETWORKS) for entry in table.values()
]
TABLES = {
    "activations": (wl.Activation, {type(activation) for activation in cases.ACTIVATIONS.values()}),
    "layers": (Layer, of(cases.LAYERS) | {type(a) for net in NETWORKS for a in net} - {str}),
    "kernels": (wl.Kernel, of(cases.STANDARD_KERNELS)),
    "kernels with values in matrices": (wl.MatrixKernel, of(cases.MATRIX_KERNELS)),
    "losses": (wl.Loss, of(cases.LOSSES)),
    "solvers": (Factor, {solver.factor for solver in {**cases.SOLVERS, **cases.SINGULAR}.values()}),
    "operators": (Operator, {operator for solver in cases.SOLVERS.values() for operator in solver.operators}),
    "estimators": (BaseEstimator, {type(estimator) for estimator in cases.ESTIMATORS}),
}
"""{what: (base, classes in the table of cases)}."""


@pytest.mark.parametrize("what", TABLES)
def test_every_class_is_in_its_table(what):
    base, tested = TABLES[what]
    assert final_classes(base) == tested


@pytest.mark.parametrize("what", TABLES)
def test_a_class_without_a_case_is_found(what, monkeypatch):
    base, tested = TABLES[what]
    forgotten = final(type("Forgotten", (base,), {}))
    everything = [*classes(), forgotten]
    monkeypatch.setattr(sys.modules[__name__], "classes", lambda: everything)
    assert final_classes(base) - tested == {forgotten}


def test_every_activation_is_at_the_door_and_in_the_docs():
    assert {cls.__name__ for cls in final_classes(wl.Activation)} <= set(wl.__all__)
    documentation = (ROOT / "docs" / "activations.md").read_text()
    for activation in cases.ACTIVATIONS.values():
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


REACHES = {
    "activations/piecewise/polynomial.py activation._halves",
    "activations/piecewise/polynomial.py PiecewisePolynomial._memo_at",
    "architecture/network.py net._signals",
}
"""Private attributes that are read on another object: none is ever added here."""
SHARED = {"_replace", "_exit", "_getframe", "_BatchNorm", "_DropoutNd", "_linear_pointwise"}
"""Names with an underscore that Python and PyTorch give to all."""


def reaches(name, text):
    """{file and expression} of the private attributes that a module's text reads on other objects than its own."""
    private = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Attribute) and re.match("_[a-zA-Z]", n.attr)]
    own = {"self", "cls"}
    foreign = [n for n in private if not (isinstance(n.value, ast.Name) and n.value.id in own) and n.attr not in SHARED]
    return {f"{name} {ast.unparse(n)}" for n in foreign}


def test_no_object_reaches_into_another():
    found = set()
    for path in FILES:
        found |= reaches(path.relative_to(SOURCE).as_posix(), path.read_text())
    assert found <= REACHES


def test_a_reach_is_found():
    assert reaches("a.py", "self._x + cls._y + pair._replace(a=1)") == set()
    assert reaches("a.py", "model.parts[0]._x = model._y") == {"a.py model.parts[0]._x", "a.py model._y"}


LONGEST = 40
LONG = {}
"""Functions that are longer, and their lines: a number here only ever falls, and a function that is short goes."""


def lengths(name, text):
    """{file and function: its lines without the docstring} of a module's text."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            inside = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            key = f"{name} {node.name}"
            found[key] = max(found.get(key, 0), node.end_lineno - node.lineno + 1 - inside)
    return found


def test_functions_are_short():
    found = {}
    for path in FILES:
        found |= lengths(path.relative_to(SOURCE).as_posix(), path.read_text())
    assert {key: lines for key, lines in found.items() if lines > LONGEST} == LONG


def test_a_long_function_is_found():
    body = "\n".join(["    x = 1"] * 39)
    assert lengths("a.py", f'class A:\n  def f(x):\n    """One\n\n    two."""\n{body}\n') == {"a.py f": 40}
    assert lengths("a.py", f"async def f(x):\n{body}\n    return x\n") == {"a.py f": 41}


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


PAGES = [
    "README.md",
    *(f"docs/{f.name}" for f in sorted((ROOT / "docs").glob("*.md")) if "```python\n" in f.read_text()),
]
PAGES.remove("docs/libraries.md")  # tests/test_libraries.py runs it, where those are installed


@pytest.mark.usefixtures("short_searches")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_in_the_documentation_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


FOLDERS = ("src", "tests", "docs", "benchmarks", ".ci")
TEXTS = {".py", ".md", ".toml", ".lock", ".pyi", ""}


def texts():
    """Files of the project that people write, without git (an archive has none), not those of `make docs`."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "generated" not in path.parts]
    return [path for path in [*ROOT.iterdir(), *inside] if path.is_file() and path.suffix in TEXTS]


def machines(text):
    """Places of one machine that a text names."""
    return re.findall(r"/(?:home|root|tmp)/|https?://[^ ]*(?:simple|pypi)/", text)


def test_no_machine_is_named():
    names = {path.relative_to(ROOT).as_posix() for path in texts()}
    assert names >= {
        "Makefile",
        "README.md",
        "requirements.lock",
        ".ci/run",
        "tests/cases.py",
        "src/widelimit/plots.py",
    }
    for path in texts():
        if path.name != ".git":  # of a work tree, a file that says where its repository is
            assert machines(path.read_text()) == [], path


def test_a_machine_that_is_named_is_found():
    for planted in ("home", "root", "tmp"):
        assert machines(f"see /{planted}/someone") == [f"/{planted}/"]
    assert machines("--index-url https://mirror.example/" + "simple/") != []
