"""Claims run one after another; results are kept, so that an interrupted run continues where it stopped."""

import functools
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

import widelimit
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, load
from widelimit.fingerprints import sha256
from widelimit.writing import atomic_write

HELD, FAILED, CONTROL_PASSES, BROKEN = "holds", "fails", "control passes", "error"


@final
@dataclass(frozen=True)
class Outcome:
    """An outcome is the result of a claim."""

    name: str
    effort: str
    checks: tuple[Check, ...]
    controls: tuple[Check, ...]
    data: Data
    control_data: Data
    seconds: float
    error: str
    """The exception that ended the experiment; empty if none did."""

    @property
    def verdict(self) -> str:
        """Return one of holds, fails, control passes (the experiment could not have failed), error."""
        if self.error:
            return BROKEN
        if not (self.checks and all(check.holds for check in self.checks)):
            return FAILED
        if not self.controls or any(check.holds for check in self.controls):
            return CONTROL_PASSES
        return HELD


def run(name: str, effort: Effort, *, claim: Claim | None = None) -> Outcome:
    """Measure a claim and its negative control; an exception in it becomes part of the outcome.

    claim: measured in place of the claim of that name, e.g. one that reads a user's file.
    """
    claim, start = claim or load(name), time.perf_counter()
    empty = Measurement((), {})
    found = control = empty
    error = ""
    try:
        found, control = claim.measure(effort), claim.violate(effort)
    except Exception as exception:
        error = f"{type(exception).__name__}: {exception}"
    seconds = time.perf_counter() - start
    return Outcome(name, effort.value, found.checks, control.checks, found.data, control.data, seconds, error)


def run_all(
    claims: Mapping[str, Claim], effort: Effort, *, folder: Path | None, advance: Callable[[str], None]
) -> list[Outcome]:
    """Run the claims in order, and return their outcomes.

    With a folder, finished claims are kept in it, and not run again until the code or what they read changes.
    """
    outcomes = []
    for name, claim in claims.items():
        advance(name)
        outcome = _kept(folder, name, effort, claim.reads) if folder else None
        if outcome is None:
            outcome = run(name, effort, claim=claim)
            if folder and outcome.verdict == HELD:
                _keep(folder, outcome, claim.reads)
        outcomes.append(outcome)
    return outcomes


@functools.cache
def fingerprint() -> str:
    """Hash the library's code, as results of other code do not count."""
    root = Path(widelimit.__file__).parent
    return sha256(*(f"{path.relative_to(root)}\0".encode() + path.read_bytes() for path in sorted(root.rglob("*.py"))))


def document(outcome: Outcome, claim: Claim) -> dict[str, Any]:
    """Return an outcome without its arrays, for JSON."""
    return {
        "name": outcome.name,
        "verdict": outcome.verdict,
        "effort": outcome.effort,
        "seed": claim.seed,
        "reads": claim.reads,
        "seconds": outcome.seconds,
        "error": outcome.error,
        "checks": [_plain(check) for check in outcome.checks],
        "controls": [_plain(check) for check in outcome.controls],
    }


def _plain(check: Check) -> dict[str, Any]:
    """Write infinities and NaN as text, because JSON has neither."""
    numbers = {key: v if np.isfinite(v) else str(v) for key, v in asdict(check).items() if isinstance(v, float)}
    return {"name": check.name, **numbers, "why": check.why, "holds": check.holds}


def _keep(folder: Path, outcome: Outcome, reads: str) -> None:
    header = {
        "fingerprint": fingerprint(),
        "reads": reads,
        "seconds": outcome.seconds,
        "checks": [asdict(check) for check in outcome.checks],
        "controls": [asdict(check) for check in outcome.controls],
    }
    arrays = {f"data/{key}": value for key, value in outcome.data.items()}
    arrays |= {f"control/{key}": value for key, value in outcome.control_data.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = _file(folder, outcome.name, outcome.effort)
    with atomic_write(path) as file:
        np.savez(file, **{"header": np.asarray(json.dumps(header)), **arrays})  # type: ignore[arg-type]


def _file(folder: Path, name: str, effort: str) -> Path:
    return folder / f"{name}-{effort}.npz"


def _kept(folder: Path, name: str, effort: Effort, reads: str) -> Outcome | None:
    """Return the outcome kept in the folder if it is complete, and of this code and this input file; else None."""
    path = _file(folder, name, effort.value)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        header = json.loads(str(arrays.pop("header")))
        if (header["fingerprint"], header["reads"]) != (fingerprint(), reads):
            return None
        parts = {
            prefix: {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
            for prefix in ("data/", "control/")
        }
        checks, controls = (tuple(Check(**c) for c in header[key]) for key in ("checks", "controls"))
        return Outcome(name, effort.value, checks, controls, parts["data/"], parts["control/"], header["seconds"], "")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
