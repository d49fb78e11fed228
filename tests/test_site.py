"""The site without Sphinx: every public name has a place and its equation, every page and link is there."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest

import widelimit as wl
from widelimit.claims import NAMES
from widelimit.claims.base import load

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def part(folder, name):
    """A module beside the package, under a name that no other module has."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    sys.path[:0] = [str(ROOT / folder)]
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / folder))
    return module


equations = part("docs/site", "equations")
reference = part("docs/site", "reference")
claim_pages = part("docs/site", "claim_pages")
offline = part("docs/site", "offline")
project_pages = part("docs/site", "project_pages")


def test_every_public_name_is_on_one_page_of_the_reference(tmp_path):
    reference.write(tmp_path)
    pages = {path.stem: path.read_text() for path in tmp_path.glob("*.rst")}
    entries = re.findall(r"^\.\. (?:autoclass|autofunction|data):: widelimit\.(.+)$", "\n".join(pages.values()), re.M)
    modules = [f"{owner}.{name}" for owner in reference.MODULES for name in getattr(wl, owner).__all__]
    assert sorted(entries) == sorted([*(set(wl.__all__) - set(reference.MODULES)), *modules])
    assert set(re.findall(r"^   (\w+)$", pages["index"], re.M)) == set(pages) - {"index"}


def test_a_public_name_without_a_page_is_found(monkeypatch):
    monkeypatch.setitem(reference.GROUPS, "losses", ("Losses", "", ()))
    with pytest.raises(LookupError, match="Huber"):
        reference.grouped()


EQUATION = re.compile(
    r"(phi\(u\)|K\(x, x'\)|f|l|l_i|df/dt|p\(class k\)|Theta|Sigma|C\(f_t\)|f_\{s\+1\}|alpha_\{s\+1\})\S* = "
)
"""How a docstring begins whose first line is an equation of the common kinds."""


def without_equation(names):
    """Public names whose docstring begins with an equation that is not typeset."""
    found = {name for name in names if EQUATION.match(inspect.getdoc(getattr(wl, name)) or "")}
    assert len(found) > 30
    return found - set(equations.EQUATIONS)


def test_equations_are_typeset():
    assert set(equations.EQUATIONS) <= set(wl.__all__)
    for name, tex in equations.EQUATIONS.items():
        for line in tex.split(reference.QUAD):  # each is a line of its own
            assert line.count("{") == line.count("}"), name
            assert len(re.findall(r"\\left\b", line)) == len(re.findall(r"\\right\b", line)), name
    assert without_equation(wl.__all__) == {"network"}  # whose line is prose


def test_an_equation_that_is_not_typeset_is_found(monkeypatch):
    monkeypatch.delitem(equations.EQUATIONS, "Relu")
    assert "Relu" in without_equation(wl.__all__)


def test_docstrings_become_restructured_text():
    lines = inspect.cleandoc(
        """phi(u) = a*u_1 | `mlp`, `wl.Kernel.gram`, `net.x`.

        Args:
            a, b: in [0, 1], `rbf`;
                or more.
            k: 2.

        Returns: (n, m): positive.
        Raises: TypeError, ValueError: not k*.
        """
    ).split("\n")
    reference.docstring(None, "class", "widelimit.Relu", None, None, lines)
    text = "\n".join(lines)
    assert text.startswith(".. math::\n\n   & \\phi(u) = \\max(u, 0) \\\\ & ")
    assert (
        r"phi(u) = a\*u\_1 \| :py:obj:`mlp <widelimit.mlp>`, :py:obj:`Kernel.gram <widelimit.Kernel.gram>`, ``net.x``."
        in text
    )
    assert ":Arguments:\n\n    ``a, b``\n        in [0, 1], :py:obj:`rbf <widelimit.rbf>`;\n        or more." in text
    assert "    ``k``\n        2." in text
    assert ":Returns:\n    (n, m): positive." in text
    assert r":Raises:" + "\n    TypeError, ValueError: not k\\*." in text
    assert reference.code("GradientFlow.loss") == ":py:obj:`GradientFlow.loss <widelimit.Flow.loss>`"


def test_every_claim_has_a_page_with_what_it_states(tmp_path):
    claim_pages.write(tmp_path, ROOT / "tests" / "test_every_claim.py")
    index = (tmp_path / "index.rst").read_text()
    for name in NAMES:
        text, claim = (tmp_path / f"{name}.rst").read_text(), load(name)
        for field in ("statement", "source", "prediction", "tolerance", "control"):
            assert reference.prose(getattr(claim, field)) in text, (name, field)
        assert f"--only {name}" in text
        assert re.search(r"planted in the library: here ``\w+``", text), name
        assert f"<{name}>`" in index


def pages_of_toctrees(texts):
    """Pages that a toctree of the site names."""
    blocks = [block for text in texts for block in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)]
    return {line for block in blocks for line in block.split("\n") if line and not line.startswith(":")}


def test_every_page_is_in_the_navigation():
    texts = {path.stem: path.read_text() for path in DOCS.glob("*.md")}
    listed = pages_of_toctrees(texts.values())
    generated = {"generated/" + name for name in ("tutorials/index", "api/index", "gallery/index", "claims/index")}
    generated |= {f"generated/project/{name}" for name in project_pages.PAGES}
    assert listed == set(texts) - {"index"} | generated
    assert "tour" not in pages_of_toctrees(text.replace("\ntour\n", "\n") for text in texts.values())


def slugs(text):
    """Anchors of the headings of a page, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(path, text):
    """Links of a page to headings that are not there."""
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text)
    return [
        (file, anchor)
        for file, anchor in links
        if anchor not in slugs((path.parent / file if file else path).read_text())
    ]


def test_links_to_headings_are_there():
    pages = [*DOCS.glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    assert {path.name: broken(path, path.read_text()) for path in pages} == {path.name: [] for path in pages}
    planted = "see [there](solvers.md#no-such-heading)"
    assert broken(DOCS / "index.md", planted) == [("solvers.md", "no-such-heading")]


def test_links_of_the_project_pages_are_those_of_the_site(tmp_path):
    project_pages.write(tmp_path / "docs" / "generated" / "project", ROOT)
    for name in project_pages.PAGES:
        text = (tmp_path / "docs" / "generated" / "project" / f"{name}.md").read_text()
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            known = (DOCS / "generated" / "project" / link).resolve()
            assert known.exists() or link.removesuffix(".md") in project_pages.PAGES, (name, link)


def test_a_page_that_loads_from_another_host_is_found(tmp_path):
    page = tmp_path / "a.html"
    page.write_text('<script src="_static/a.js"></script><a href="https://example.org">x</a><img alt="" src="b.png">')
    offline.check(tmp_path)
    for tag in ('<script async src="https://cdn.example/m.js">', "<link rel=icon href=//cdn.example/x>"):
        page.write_text(tag)
        with pytest.raises(ValueError, match=r"a\.html loads .*cdn\.example"):
            offline.check(tmp_path)


def test_nothing_of_the_site_is_on_another_host():
    for path in [*(DOCS / "static").rglob("*"), DOCS / "conf.py", *(DOCS / "site").glob("*.py")]:
        assert path.name == "offline.py" or "http" not in path.read_text(), path


def test_the_comparison_page_is_made_from_the_results():
    comparison = part("benchmarks", "comparison")
    assert (DOCS / "comparison.md").read_text() == comparison.page()
