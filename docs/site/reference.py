"""The reference is made from the docstrings of all public names, in groups by the module that defines them."""

import ast
import inspect
import re
from pathlib import Path

from equations import EQUATIONS

import widelimit as wl

SOURCE = Path(wl.__file__).parent
GROUPS = {
    "estimators": ("Estimators", "Models of tables and images, after scikit-learn.", ("estimators", "columns")),
    "displays": ("Displays", "Figures of a fitted estimator.", ("displays",)),
    "networks": ("Networks", "Descriptions of networks, of no width yet.", ("architecture", "network_text")),
    "activations": (
        "Activations",
        "Nonlinearities and their duals: expectations over centred Gaussian (u, v) with standard deviations s and s', "
        "correlation rho = cos(theta) and covariance c.",
        ("activations", "gaussian", "signals"),
    ),
    "kernels": ("Kernels", "Functions of two inputs, with `gram`, `cross` and `diag`.", ("kernels", "pytrees")),
    "bayes": (
        "Bayes",
        "Exact inference, hyper-parameters, and the price of it.",
        (
            "inference.conditioning",
            "inference.costs",
            "inference.gaussian_process",
            "inference.hyperparameters",
            "inference.inducing",
            "inference.posterior",
            "inference.training_set",
        ),
    ),
    "descent": (
        "Gradient descent",
        "Training in function space; time is that of d theta/dt = -grad C.",
        (
            "inference.ensemble",
            "inference.gradient_descent",
            "inference.gradient_flow",
            "inference.krylov_flow",
            "inference.linear_model",
            "inference.numerical_flow",
        ),
    ),
    "losses": (
        "Losses",
        "C is the mean of a loss over training points; d|_f is its derivative.",
        ("inference.losses",),
    ),
    "finite": ("Finite networks", "Training, and what is kept of it.", ("training",)),
    "tangents": ("Tangents", "A model of your own through its gradients.", ("tangents",)),
    "theory": ("Theory", "Learning curves, corrections of finite width, lazy training.", ("theory",)),
    "version": ("Version", "The installed version.", ("version",)),
}
"""Page: its title, what it says, and the modules whose public names it holds."""
MODULES = {
    "layers": ("Layers", "Parts of `widelimit.network`, in `widelimit.layers`."),
    "rkhs": ("Spaces of functions", "Functions and norms in the space of a kernel, in `widelimit.rkhs`."),
}
"""Public modules, each with a page of its own."""
SECTIONS = {"Args": "Arguments", "Attributes": "Attributes", "Returns": "Returns", "Raises": "Raises", "Warns": "Warns"}
"""Sections of a docstring, and their titles in the reference."""
QUAD = r",\qquad"
"""Stands between the parts of an equation."""
RECURSION = {"nngp": 1, "ntk": 1}
"""The part of an equation that the overview shows, where that is not the first."""
SECTION = re.compile(rf"({'|'.join(SECTIONS)})(, \w+)*:( .*)?$")


def defined_in() -> dict[str, str]:
    """Return the module of every public name, after `__init__.pyi`."""
    tree = ast.parse((SOURCE / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: node.module or "" for node in imports for alias in node.names}


def in_group(module: str, prefixes: tuple[str, ...]) -> bool:
    """Return True if the module is one of these, or in one of them."""
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def grouped() -> dict[str, list[str]]:
    """Return the public names of every page, functions first. Raises: LookupError: a name would be on none."""
    modules = defined_in()
    pages = {}
    for page, (_, _, prefixes) in GROUPS.items():
        pages[page] = [name for name in wl.__all__ if in_group(modules[name], prefixes)]
        pages[page].sort(key=lambda name: (inspect.isclass(getattr(wl, name)), name))
    lost = set(wl.__all__) - {name for names in pages.values() for name in names} - set(MODULES)
    if lost:
        raise LookupError(f"add the modules of {sorted(lost)} to a page of GROUPS in docs/site/reference.py")
    return pages


def directive(owner: str, name: str) -> str:
    """Return the entry of one name in reStructuredText."""
    thing = getattr(getattr(wl, owner), name) if owner else getattr(wl, name)
    path = f"widelimit.{owner}.{name}" if owner else f"widelimit.{name}"
    if not callable(thing):
        return f".. data:: {path}\n\n   The version of the installed package.\n"
    if not inspect.isclass(thing):
        return f".. autofunction:: {path}\n"
    return f".. autoclass:: {path}\n   :members:\n   :inherited-members: {inherited(thing)}\n"


def inherited(cls: type) -> str:
    """Return the base classes whose methods are not repeated: those of others, and those with an entry of their own."""
    foreign = {base.__name__ for base in cls.__mro__ if not base.__module__.startswith("widelimit")}
    public = {base.__name__ for base in cls.__mro__[1:] if base.__name__ in wl.__all__}
    return ", ".join(sorted(foreign | public))


def page(title: str, says: str, owner: str, names: list[str]) -> str:
    """Return a page of the reference: an overview, then every name."""
    thing = getattr(wl, owner) if owner else wl
    head = f"{title}\n{'=' * len(title)}\n\n{prose(says)}\n\n"
    rows = [f"   * - :py:obj:`~{thing.__name__}.{name}`\n     - {summary(thing, name)}\n" for name in names]
    head += f".. py:module:: widelimit.{owner}\n\n" if owner else ""
    table = f".. list-table::\n   :class: overview\n   :widths: 30 70\n\n{''.join(rows)}\n"
    return head + table + "\n".join(directive(owner, name) for name in names)


def summary(owner: object, name: str) -> str:
    """Return what a name stands for, in one line: its equation, or the first sentence of its docstring."""
    thing = getattr(owner, name)
    if owner is wl and name in EQUATIONS:
        return f":math:`{EQUATIONS[name].split(QUAD)[RECURSION.get(name, 0)]}`"
    text = inspect.getdoc(thing) if callable(thing) else "The version of the installed package."
    return prose((text or "").split("\n\n")[0].replace("\n", " "))


def prose(text: str) -> str:
    """Return plain text with code in backticks as reStructuredText, public names as links."""
    parts = re.split(r"`([^`\n]+)`", text)
    for i, part in enumerate(parts):
        parts[i] = code(part) if i % 2 else re.sub(r"([*_|\\])", r"\\\1", part)
    return "".join(parts)


def code(text: str) -> str:
    """Return a link if the text is a public name, or a method of one, else literal text."""
    name = text.removeprefix("widelimit.").removeprefix("wl.")
    head, *attribute = name.split(".")
    if head not in wl.__all__ or len(attribute) > 1:
        return f"``{text}``"
    target = owner_of(getattr(wl, head), attribute[0]) if attribute else f"widelimit.{head}"
    return f":py:obj:`{name} <{target}>`" if target else f"``{text}``"


def owner_of(thing: object, attribute: str) -> str:
    """Return the full name under which an attribute has its entry, in the first public class that has it; or ""."""
    if inspect.ismodule(thing):
        return f"{thing.__name__}.{attribute}" if attribute in getattr(thing, "__all__", ()) else ""
    bases = [base for base in getattr(thing, "__mro__", ()) if base.__name__ in wl.__all__]
    found = [base for base in bases if attribute in dir(base) and inspect.getdoc(getattr(base, attribute))]
    return f"widelimit.{found[-1].__name__}.{attribute}" if found else ""


def docstring(_app: object, _what: str, name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Make a docstring in plain text reStructuredText, with its equation typeset (an event of autodoc)."""
    out: list[str] = []
    inside = False
    for line in lines:
        found = SECTION.match(line)
        if found:
            inside = True
            out += ["", f":{SECTIONS[found[1]]}:", *([f"    {prose(found[3].strip())}"] if found[3] else [])]
        elif not inside:
            ended = line and line[0] != " " and out and out[-1].startswith(" ")
            out += ["", prose(line)] if ended else [prose(line)]
        elif line and not line.startswith(" "):  # plain text again
            inside = False
            out += ["", prose(line)]
        else:
            made = entry(line)
            dedented = len(made) == 1 and line and indent(out[-1]) > indent(line)
            out += ["", *made] if dedented else made
    short = name.removeprefix("widelimit.")
    if short in EQUATIONS:
        parts = EQUATIONS[short].split(QUAD)
        aligned = r" \\ ".join(f"& {part}" for part in parts) if len(parts) > 1 else parts[0]
        out[:0] = [".. math::", "", f"   {aligned}", ""]
    lines[:] = out


def indent(line: str) -> int:
    """Return how many spaces a line begins with."""
    return len(line) - len(line.lstrip())


def entry(line: str) -> list[str]:
    """Return a line of a section: a definition where a name or, deeper, a quoted value begins it."""
    found = re.match(r"(    )([\w*][\w*., ]*): (.*)", line) or re.match(r"(        )(\"\w+\"): (.*)", line)
    if not found:
        return [prose(line)]
    space, name, text = found.groups()
    return ["", f"{space}``{name}``", f"{space}    {prose(text)}"]


def write(folder: Path) -> None:
    """Write all pages of the reference."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {name: page(*GROUPS[name][:2], "", names) for name, names in grouped().items()}
    pages |= {name: page(*texts, name, list(getattr(wl, name).__all__)) for name, texts in MODULES.items()}
    for name, text in pages.items():
        replace(folder / f"{name}.rst", text)
    toctree = "".join(f"   {name}\n" for name in [*GROUPS, *MODULES])
    says = "Every public name, from its docstring. `import widelimit as wl` is assumed."
    title = "Reference"
    replace(
        folder / "index.rst",
        f"{title}\n{'=' * len(title)}\n\n{prose(says)}\n\n.. toctree::\n   :maxdepth: 1\n\n{toctree}",
    )


def replace(path: Path, text: str) -> None:
    """Write a page if it changed, so that Sphinx reads only what did."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
