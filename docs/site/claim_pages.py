"""Each claim has a page, from the registry: statement, source, experiment, tolerance, control."""

import inspect
import re
from pathlib import Path

from reference import prose, replace

from widelimit.claims import NAMES
from widelimit.claims.base import Claim, load, source_code


def page(name: str, claim: Claim, planted: str) -> str:
    """Return the page of one claim."""
    rows = {
        "Statement": claim.statement,
        "Source": claim.source,
        "Prediction": claim.prediction,
        "How the intervals were derived": claim.tolerance,
        "How it is measured": sentence(claim.measure),
        "Control: what is planted, and must fail": claim.control,
    }
    head = f"{claim.title}\n{'=' * len(claim.title)}\n\n"
    body = "".join(f"**{title}.** {prose(text)}\n\n" for title, text in rows.items())
    run = f"Run it, with figures::\n\n   widelimit verify --quick --only {name}\n\nThe seed is {claim.seed}. "
    run += "``make test-claims`` and ``make test-slow`` run all claims, and each again with an error planted in the "
    run += f"library: here {planted}.\n\n"
    text = source_code(name).replace("\n", "\n   ")
    return (
        head
        + body
        + run
        + f".. dropdown:: The code\n\n   .. code-block:: python\n\n      {text}\n".replace("\n   ", "\n      ").replace(
            "\n      .. code-block", "\n   .. code-block"
        )
    )


def sentence(function: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(function) or "").split("\n")[0]


def plants(tests: Path) -> dict[str, list[str]]:
    """Return the errors that the tests plant in the library for each claim, by name of their function."""
    table = re.search(r"^PLANTS = \[\n(.*?)^\]", tests.read_text(), re.DOTALL | re.MULTILINE)
    found: dict[str, list[str]] = {}
    for fault, claim in re.findall(r'\((\w+), "(\w+)"\)', table[1] if table else ""):
        found.setdefault(claim, []).append(fault)
    return found


def write(folder: Path, tests: Path) -> None:
    """Write the pages of all claims, and their list."""
    folder.mkdir(parents=True, exist_ok=True)
    planted = plants(tests)
    claims = {name: load(name) for name in NAMES}
    for name, claim in claims.items():
        faults = ", ".join(f"``{fault}``" for fault in planted[name])
        replace(folder / f"{name}.rst", page(name, claim, faults))
    rows = "".join(
        f"   * - :doc:`{claim.title} <{name}>`\n     - {prose(claim.statement)}\n" for name, claim in claims.items()
    )
    toctree = "".join(f"   {name}\n" for name in NAMES)
    says = "Statements as experiments that can fail, in the order of the paper. :doc:`/claims` says how they are run."
    replace(
        folder / "index.rst",
        f"The claims\n==========\n\n{says}\n\n.. list-table::\n   :class: overview\n   :widths: 30 70\n\n{rows}\n"
        f".. toctree::\n   :hidden:\n\n{toctree}",
    )
