"""docs/extending.md and CONTRIBUTING.md say what the code shows: examples, counts of files, the map, a value's path."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import threading
from functools import cache, reduce

import jax
import numpy as np
import pytest

import widelimit as wl
from test_structure import ORDER, SOURCE

ROOT = pathlib.Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)

ERRORS = {
    "overlap": ("scale * jnp.sum", "1.01 * scale * jnp.sum"),
    "Cosine": ("self.scale * x @ y.T", "self.scale**2 * x @ y.T"),
    "hermegauss": ("jnp.exp(-(u**2) / 8)", "jnp.exp(-(u**2) / 8.01)"),
    "Parabola": ("2 * b * b2 * correlation.rho", "b * b2 * correlation.rho"),
    "log_cosh": ("jnp.cosh(f - y)", "jnp.cosh(1.01 * (f - y))"),
    "tangent =": ("wl.ntk(net)", "wl.nngp(net)"),
    "limit =": ("wl.nngp(net)", "wl.nngp(wl.mlp(depth=2, bias_std=0.3))"),
}
"""{a word of an example: (text, the same with an error)}."""


def test_examples_have_fewer_than_twenty_lines():
    for block in BLOCKS:
        lines = [line for line in block.splitlines() if line.strip()]
        assert len(lines) < 20, block


def test_an_error_in_any_example_fails_its_check():
    checked = [block for block in BLOCKS if "assert" in block]
    namespace = {}
    for block in BLOCKS:
        words = [word for word in ERRORS if word in block]
        assert len(words) == (block in checked), block
        for old, new in map(ERRORS.get, words):
            assert old in block
            with pytest.raises(AssertionError):
                exec(block.replace(old, new), dict(namespace))
        definitions = re.sub(r"^(assert|wl\.).*\n", "", block, flags=re.MULTILINE)
        exec(definitions, namespace)


TABLES = ("cases.py", "oracles.py", "test_arguments.py", "test_every_claim.py")
"""Tests that are tables of the library's things; others name some of them as examples."""
KINDS = {
    "activation": ["Gelu|'gelu'", "Snake|'snake'", "Hermite|'hermite'", "Cos|'cos'", "Sign|'sign'", "Erf|'erf'"],
    "kernel": [
        r"RadialBasis|wl\.rbf",
        r"Laplace|wl\.laplace",
        r"PolynomialKernel|wl\.polynomial",
        r"Precomputed|wl\.precomputed",
        r"Linear|wl\.linear",
    ],
    "layer": ["Dense", "Activate"],
    "loss": ["Huber", "Logistic", "Poisson", "SoftmaxCrossEntropy", "WeightedSquaredError"],
    "estimator": ["NNGPRegressor", "NTKRegressor", "NNGPClassifier", "NTKClassifier"],
    "claim": ["reproducing_kernels", "gaussian_vectors", "linear_regression", "gram_matrices", "primal_is_dual"],
    "solver": ["Cholesky|cholesky", "Packed|packed", "Iterative|iterative|cg"],
}
"""{kind: patterns of the names of existing ones}."""


def without_docstrings(path):
    """The text of a file; of a module, its code only."""
    if path.suffix != ".py":
        return path.read_text()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            strings = [s for s in node.body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)]
            node.body = [s for s in node.body if s not in strings] or [ast.Pass()]
    return ast.unparse(tree)


@cache
def documents():
    """{path: text} of the library, its documentation and the tables of its tests."""
    source = [path for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".pyi")]
    left_out = ("benchmarks", "comparison", "extending")  # results, and the page that the test is about
    pages = [path for path in (ROOT / "docs").glob("*.md") if not path.name.startswith(left_out)]
    tables = [ROOT / "tests" / name for name in TABLES]
    return {p.relative_to(ROOT).as_posix(): without_docstrings(p) for p in (*source, *pages, *tables)}


def files_of(kind, texts):
    """Files that name every one of the existing things of a kind."""
    patterns = [re.compile(rf"(?<!\w)({pattern})(?!\w)") for pattern in KINDS[kind]]
    return {path for path, text in texts.items() if all(pattern.search(text) for pattern in patterns)}


def rows():
    """{kind: (number of files, own file or folder, other files)} of the table."""
    found = re.findall(r"^\| (\w+) \| (\d+) \| ([^|]*) \| ([^|]*) \|$", PAGE, flags=re.MULTILINE)
    return {
        kind: (int(count), re.findall(r"`(.*?)`", own)[0], set(re.findall(r"`(.*?)`", others)))
        for kind, count, own, others in found
    }


def test_the_table_lists_the_files_that_adding_one_touches():
    texts, table = documents(), rows()
    assert set(table) == set(KINDS)
    for kind, (count, own, others) in table.items():
        assert (ROOT / own).exists(), own
        assert files_of(kind, texts) - {own} == others, kind
        assert count == 1 + len(others), kind


def test_another_file_to_touch_is_found():
    texts = documents()
    for kind, (_, own, others) in rows().items():
        names = " ".join(pattern.split("|")[0] for pattern in KINDS[kind])
        assert files_of(kind, texts | {"src/widelimit/registry.py": names}) - {own} == others | {
            "src/widelimit/registry.py"
        }
        missing = sorted(others)[0]
        assert files_of(kind, texts | {missing: ""}) - {own} == others - {missing}


def section(title):
    """The text of CONTRIBUTING.md under a heading."""
    return CONTRIBUTING.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]


def rooms():
    """Modules at the top of the package, and all its folders, as the map writes them."""
    folders = {f"{path.parent.relative_to(SOURCE).as_posix()}/" for path in SOURCE.rglob("__init__.py")} - {"./"}
    return folders | {path.name for path in SOURCE.glob("*.py")} - {"__init__.py", "__main__.py"}


def test_the_map_shows_the_tree_in_the_order_of_imports():
    mapped = re.findall(r"^\| `(.*?)` \| (.+) \|$", section("Map"), flags=re.MULTILINE)
    names = [name for name, _ in mapped]
    assert set(names) == rooms()
    assert len(names) == len(set(names))
    assert list(dict.fromkeys(re.split(r"\.py|/", name)[0] for name in names)) == ORDER


def documented():
    """{file and qualified name} of the functions on the path of a value, from their dotted names in the text."""
    found = set()
    for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", section("From `wl.ntk(net).gram(X)`")):
        parts = name.split(".")
        depth = next(i for i in range(len(parts), 0, -1) if (SOURCE / "/".join(parts[:i])).with_suffix(".py").exists())
        module = importlib.import_module(".".join(("widelimit", *parts[:depth])))
        thing = reduce(getattr, parts[depth:], module)
        if not inspect.isclass(thing):
            found.add((module.__name__, inspect.unwrap(thing).__qualname__))
    return found


def calls(run):
    """{(module, qualified name)} of the functions that are called, in any thread."""
    seen = set()

    def profile(frame, event, _):
        if event == "call":
            seen.add((frame.f_globals.get("__name__"), frame.f_code.co_qualname))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return seen


def test_the_path_of_a_value_is_the_one_described():
    """Two hidden layers of relu on rows of different norms, of the same norm, and an activation with tables."""
    X = np.random.default_rng(0).standard_normal((3, 4))

    def run():
        net = wl.mlp(depth=2)
        wl.ntk(net).gram(X)
        wl.ntk(net).gram(X / np.linalg.norm(X, axis=1, keepdims=True))
        wl.mlp(depth=2, activation="tanh").prepared(1.0, 2.0, np.float64)

    jax.clear_caches()
    seen = calls(run)
    assert documented() - {("widelimit.compute.tiles", "mirror")} <= seen  # three rows are one tile
    assert len(documented()) > 12
    assert ("widelimit.kernels.network", "NNGP.pairwise") not in seen


def test_the_count_of_compilations_is_the_printed_one():
    script, printed = re.findall(r"```(?:python)?\n(.*?)```", section("Counting compilations"), flags=re.DOTALL)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    programs = [re.sub(r"\d+\.\d+ s", "s", text).split("other") for text in (run.stdout, printed)]
    assert [sorted(part.splitlines()) for part in programs[0]] == [sorted(part.splitlines()) for part in programs[1]]


def exists(name):
    """True if a dotted name is a module of the package, or something in one (a field of a dataclass included)."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        path = SOURCE / "/".join(parts[:depth])
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            thing = importlib.import_module(".".join(("widelimit", *parts[:depth])))
            break
    else:
        thing, depth = wl, 0
    for part in parts[depth:]:
        annotated = part in getattr(thing, "__annotations__", {})
        if not annotated and part not in dir(thing):
            return False
        thing = None if annotated else getattr(thing, part)
    return True


def test_new_names_of_the_changelog_exist_and_old_ones_are_gone_or_warn():
    table = (ROOT / "CHANGELOG.md").read_text().split("### Renamed")[1].split("###")[0]
    for before, now in re.findall(r"^\| (.*`) \| (.*`) \|$", table, flags=re.MULTILINE):
        assert all(exists(name) for name in re.findall(r"`(\w+\.[\w.]+)`", now)), now
        old = [name for name in re.findall(r"`(\w+\.[\w.]+)`", before) if name != "activations.piecewise"]
        assert not any(exists(name) for name in old), before
        if before.startswith("with a warning"):
            with pytest.warns(DeprecationWarning, match="Correlation"):
                assert wl.signals.Gaps is wl.signals.Correlation


def test_names_of_the_papers_table_exist():
    table = (ROOT / "docs" / "paper.md").read_text().split("| paper | here |")[1].split("\n\n")[0]
    cells = [row.split(" | ")[1] for row in table.splitlines()[2:]]
    names = [re.sub(r"\(.*", "", name) for cell in cells for name in re.findall(r"`(.*?)`", cell)]
    assert len(names) > 30
    for name in names:
        if name == "widelimit.torch.empirical_ntk":  # PyTorch is an extra
            assert "def empirical_ntk(" in (SOURCE / "torch" / "__init__.py").read_text()
        else:
            assert exists(name), name
    assert not exists("GradientFlow.planted")
    assert not exists("planted")


PRIVATE = re.compile(r"\b(anew|mend(s|ed)?|wanted|told|apart|by itself|silently)\b", flags=re.IGNORECASE)
"""Words for which the field says again, fix, required, reported, separately, automatically, without a message."""


def complaints(text):
    """What a page lacks for a first reader: a sentence on its purpose; and words that it should not have."""
    purpose = [] if re.match(r"# .+\n\nThis (page|file) ", text) else ["purpose"]
    return purpose + [found[0] for found in PRIVATE.finditer(text)]


def test_pages_say_what_they_are_for_in_the_words_of_the_field():
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        assert complaints(path.read_text()) == [], path
    assert complaints("# A\n\nText that is told apart.") == ["purpose", "told", "apart"]
