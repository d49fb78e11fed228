"""docs/extending.md: its examples are short and can fail, and its table of files is what the code shows."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)

ERRORS = {
    "overlap": ("scale * jnp.sum", "1.01 * scale * jnp.sum"),
    "Cosine": ("self.scale * x @ y.T", "self.scale**2 * x @ y.T"),
    "hermegauss": ("jnp.exp(-(u**2) / 8)", "jnp.exp(-(u**2) / 8.01)"),
    "Parabola": ("2 * b * b2 * correlation.rho", "b * b2 * correlation.rho"),
    "log_cosh": ("jnp.cosh(f - y)", "jnp.cosh(1.01 * (f - y))"),
    "limit =": ("wl.nngp(net)", "wl.nngp(plain)"),
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


def documents():
    """{path: text} of the library, its documentation and the tables of its tests."""
    source = [path for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".pyi")]
    pages = [path for path in (ROOT / "docs").glob("*.md") if not path.name.startswith(("benchmarks", "extending"))]
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
