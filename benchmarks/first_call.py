"""The first result of a fresh process, import included, is timed beside the textbook recursion under one jax.jit.

python benchmarks/first_call.py [--before CHECKOUT] [--repeats N] [--only WORD] [--cpu]

Processes run in turns, the textbook's first; times are the shortest of N, ratios are of them. `before` is the same of
another checkout (its folder), once; `programs` counts compilations. `again` is a second call in the same process: other
rows, scaled by 1.3, another number of them. Without the compilation caches that the environment may ask for; Python
keeps compiled modules, as an installation does, so repeat at least twice. `--cpu` counts the processor's seconds, on
all cores, instead of the clock's: a busy machine changes them less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from common import report

SMALL = True
HERE = Path(__file__).parents[1]

DATA = """
import numpy as np
X = np.random.default_rng(0).standard_normal((500, 6))
"""
TEXTBOOK = (
    DATA
    + """
import jax
import jax.numpy as jnp

def ntk(X):
    S = X @ X.T / X.shape[1] + 0.01
    T = S
    for _ in range(2):
        s = jnp.sqrt(jnp.diag(S))
        rho = jnp.clip(S / jnp.outer(s, s), -1, 1)
        theta = jnp.arccos(rho)
        S = jnp.outer(s, s) * (jnp.sin(theta) + (jnp.pi - theta) * rho) / (2 * jnp.pi) + 0.01
        T = T * (jnp.pi - theta) / (2 * jnp.pi) + S
    return T

with jax.enable_x64(True):
    np.asarray(jax.jit(ntk)(X))
"""
)
WITH_SKLEARN = "import sklearn.base\n" + TEXTBOOK
OURS = (
    DATA
    + """
import time
import widelimit as wl
from jax import monitoring
programs = []
def heard(event, seconds, **facts):
    if "backend_compile" in event:
        programs.append(event)
monitoring.register_event_duration_secs_listener(heard)
def first(X):
    {call}
first(X)
count, start = len(programs), time.{clock}()
first(1.3 * np.random.default_rng(1).standard_normal((490, X.shape[1])))
print(count, time.{clock}() - start, len(programs) - count)
"""
)
GRAM = "wl.ntk(wl.mlp(depth=3, activation={}, bias_std=0.1)).gram(X)"
SPLIT = "y, Z = np.sin(X[:, 0]), X[:100]"
NOISY = "y, Z = np.sin(X[:, 0]) + 0.3 * np.random.default_rng(2).standard_normal(len(X)), X[:100]"


class Case(NamedTuple):
    """A case is a program, the one it is compared with, and the largest ratio set for it and for its second call."""

    name: str
    code: str
    beside: str
    goal: float | None
    again: float | None


def _ours(call: str) -> str:
    return OURS.replace("{call}", call)


def cases() -> list[Case]:
    """Return all cases."""
    closed = [(name, repr(name), 2.0) for name in ("relu", "erf", "gelu")]
    tables = [(name, repr(name), 3.0) for name in ("tanh", "silu", "softplus", "elu", "hard_tanh")]
    tables.append(("a function", "lambda u: u / (1 + u * u)", 3.0))
    found = [Case("import", "import widelimit as wl\nwl.ntk", "import jax", 1.2, None)]
    found += [Case(f"gram, {name}", _ours(GRAM.format(a)), TEXTBOOK, goal, 0.3) for name, a, goal in (*closed, *tables)]
    kernel = "k = wl.ntk(wl.mlp(depth=3, bias_std=0.1))"
    for name, call in (
        ("posterior", "wl.posterior(k, X, y, noise=0.1).predict(Z)"),
        ("gradient flow", "wl.gradient_flow(k, X, y).predict(Z, 1.0)"),
    ):
        found.append(Case(name, _ours(f"{kernel}; {SPLIT}; {call}"), TEXTBOOK, 4.0, 0.3))
    for name, split, settings, goal in (
        ("NNGPRegressor, input_scales=None", SPLIT, "input_scales=None", 4.0),
        ("NNGPRegressor", SPLIT, "", None),
        ("NNGPRegressor, noise in y", NOISY, "", None),
    ):
        call = _ours(f"{split}; wl.NNGPRegressor({settings}).fit(X, y).predict(Z)").replace("(500, 6)", "(500, 10)")
        found.append(Case(name, call, WITH_SKLEARN, goal, None))
    return found


def children() -> float:
    """Return the processor's seconds of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


CLOCKS: dict[str, Callable[[], float]] = {"perf_counter": time.perf_counter, "process_time": children}
"""How a process is timed, by the name of the function by which it times its second call."""


def fresh(code: str, checkout: Path, clock: str = "perf_counter") -> tuple[float, list[float]]:
    """Measure seconds of a process from its start to its end, and the numbers that it prints."""
    left_out = "JAX_", "PYTHONDONTWRITEBYTECODE"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    environment["PYTHONPATH"] = str(checkout / "src")
    command = [sys.executable, "-c", code.replace("{clock}", clock)]
    start = CLOCKS[clock]()
    made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return CLOCKS[clock]() - start, [float(word) for word in made.stdout.split()]


def measured(case: Case, before: Path | None, repeats: int, clock: str) -> list[dict[str, Any]]:
    """Measure one row, or two where there is a second call."""
    beside, ours = [], []
    for _ in range(repeats):
        beside.append(fresh(case.beside, HERE, clock)[0])
        ours.append(fresh(case.code, HERE, clock))
    old, printed = fresh(case.code, before, clock) if before else (None, [])
    textbook, seconds = min(beside), min(taken for taken, _ in ours)
    rows: list[dict[str, Any]] = [_row(case.name, seconds, textbook, case.goal, old, ours[0][1][:1])]
    if case.again is not None:
        second = min(found[1] for _, found in ours)
        old = printed[1] if before else None
        rows.append(_row(f"{case.name}: again", second, textbook, case.again, old, ours[0][1][2:]))
    return rows


def _row(
    name: str, seconds: float, textbook: float, goal: float | None, old: float | None, programs: list[float]
) -> dict[str, Any]:
    return {
        "what": name,
        "seconds": seconds,
        "beside": textbook,
        "ratio": seconds / textbook,
        "goal": "" if goal is None else goal,
        "before": "" if old is None else old,
        "programs": int(programs[0]) if programs else "",
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--cpu", action="store_const", const="process_time", default="perf_counter", dest="clock")
    asked = parser.parse_args(arguments)
    chosen = [case for case in cases() if asked.only in case.name]
    rows = [row for case in chosen for row in measured(case, asked.before, asked.repeats, asked.clock)]
    if asked.clock == "perf_counter":
        report("first_call", rows, repeats=asked.repeats)
    else:
        print(*rows, sep="\n")
    goals = [row for row in rows if row["goal"] != ""]
    print(json.dumps({"met": sum(row["ratio"] <= row["goal"] for row in goals), "of": len(goals)}))


if __name__ == "__main__":
    main()
