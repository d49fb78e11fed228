"""The command `widelimit verify` runs the claims: outcomes, and files with the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from widelimit.claims import NAMES, jacot_figures
from widelimit.claims.base import Claim, Effort, load
from widelimit.claims.images import MNIST_LEAST, Images
from widelimit.claims.report import page
from widelimit.claims.run import HELD, Outcome, document, run_all
from widelimit.cli import info
from widelimit.cli.matrices import read_arrays
from widelimit.writing import atomic_write

FACTS = ("widelimit", "python", "jax", "numpy", "scipy", "cores")
PICTURED = "jacot_figures"
SIDE = 28
KEY = "X_train"
"""Side of an image of MNIST, and the array of a file that holds them."""


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
        claims[PICTURED] = jacot_figures.claim(read_mnist(mnist))
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


def read_mnist(path: Path) -> Images:
    """Read the first 512 training images of an .npz file of Keras: X_train or x_train, (n, 28, 28), grey values.

    Raises:
        ValueError: no such file, no archive of arrays, no X_train in it; another shape; fewer than 512 images; values
            that are not whole numbers from 0 to 255.
    """

    def choose(names: list[str]) -> list[str]:
        found = [name for name in names if name.lower() == KEY.lower()]
        if not found:
            raise ValueError(f"no array {KEY} in it, but {', '.join(names) or 'nothing'}")
        return found[:1]

    try:
        arrays = read_arrays(path, choose)
    except ValueError as error:
        raise ValueError(f"--mnist {path}: not an .npz file of images: {str(error).rstrip('.')}.") from None
    found = next(iter(arrays.values())) if isinstance(arrays, dict) else arrays
    if found.ndim != 3 or found.shape[1:] != (SIDE, SIDE) or len(found) < MNIST_LEAST:
        raise ValueError(
            f"--mnist {path}: {KEY} has shape {found.shape}; (n, {SIDE}, {SIDE}) with n >= {MNIST_LEAST} is required."
        )
    return Images(_grey(found[:MNIST_LEAST], path), True)


def _grey(found: np.ndarray, path: Path) -> np.ndarray:
    """Return grey values in [0, 1], (n, 784)."""
    whole = found.dtype.kind in "uif" and bool(np.all(found == np.rint(found)))
    if not (whole and found.min() >= 0 and found.max() <= 255):
        raise ValueError(
            f"--mnist {path}: {KEY} is {found.dtype}, from {found.min()} to {found.max()}; whole grey values from 0 to "
            f"255 are required, as in the file that Keras loads."
        )
    if found.max() <= 1:
        raise ValueError(f"--mnist {path}: the largest grey value is {found.max()}; the images are black or divided.")
    return found.reshape(len(found), -1).astype(np.float64) / 255
