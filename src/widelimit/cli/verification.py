"""The command `widelimit verify` runs the claims: outcomes, and files with the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from widelimit.claims import NAMES, jacot_figures
from widelimit.claims.base import Claim, Effort, load
from widelimit.claims.report import page
from widelimit.claims.run import HELD, Outcome, document, run_all
from widelimit.cli import images, info
from widelimit.writing import atomic_write

FACTS = ("widelimit", "python", "jax", "numpy", "scipy", "cores")
PICTURED = "jacot_figures"


def choose_claims(only: Sequence[str], *, mnist: Path | None) -> dict[str, Claim]:
    """Return the claims to run, in the paper's order; all if none is named.

    `mnist`: a file for Figure 3 of Jacot et al.

    Raises:
        ValueError: an unknown name; a file of images that is none, or that no claim would read.
    """
    named = {name: load(name) for name in only or NAMES}
    claims = {name: named[name] for name in NAMES if name in named}
    if mnist is not None:
        if PICTURED not in claims:
            raise ValueError(f"--mnist is for the claim {PICTURED}, which --only leaves out; add --only {PICTURED}.")
        claims[PICTURED] = jacot_figures.claim(images.mnist(mnist))
    return claims


def verify(
    claims: Mapping[str, Claim],
    effort: Effort,
    *,
    out: Path,
    folder: Path | None,
    version: str,
    advance: Callable[[str], None],
) -> tuple[list[Outcome], dict[str, Any]]:
    """Return outcomes and their JSON document; writes `out` (HTML) and, beside it, the document."""
    start = time.perf_counter()
    outcomes = run_all(claims, effort, folder=folder, advance=advance)
    facts = info.collect(version)
    made = {key: facts[key] for key in FACTS} | {
        "effort": effort.value,
        "seconds": round(time.perf_counter() - start, 1),
    }
    documents = [document(outcome, claims[outcome.name]) for outcome in outcomes]
    result = {**made, "holds": all(o.verdict == HELD for o in outcomes), "claims": documents}
    with atomic_write(out) as stream:
        stream.write(page(outcomes, claims, made).encode())
    with atomic_write(out.with_suffix(".json")) as stream:
        stream.write((json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return outcomes, result


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Format one line for each claim and, below a claim that does not hold, the problem."""
    text = []
    for outcome in outcomes:
        text.append(f"{outcome.verdict:15} {outcome.name:26} {outcome.seconds:6.1f} s")
        if outcome.error:
            text.append(f"    {outcome.error}")
        text += [
            f"    {check.name}: {check.measured:.4g}, required {check.low:.4g} to {check.high:.4g}"
            for check in outcome.checks
            if not check.holds
        ]
        text += [
            f"    control, {check.name}: {check.measured:.4g} is within {check.low:.4g} to {check.high:.4g}"
            for check in outcome.controls
            if check.holds
        ]
    return text
