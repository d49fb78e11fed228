"""The command `widelimit info` prints what the library runs on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import jax
import numpy as np
import scipy
from threadpoolctl import threadpool_info

from widelimit import memory
from widelimit.activations.names import BY_NAME
from widelimit.cli import program_cache
from widelimit.compute import devices
from widelimit.compute.plan import usable_cores


def collect(version: str) -> dict[str, Any]:
    """Collect versions, linear algebra, devices, cores, memory in bytes, activations."""
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    facts = ("internal_api", "version", "architecture", "num_threads")
    return {
        "widelimit": version,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": _installed("scikit-learn"),
        "blas": [{fact: pool.get(fact) for fact in facts} for pool in pools],
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE", ""),
        "devices": [f"{d.platform}:{d.id} {d.device_kind}, {devices.memory_of(d)}" for d in jax.devices()],
        "work_runs_on": devices.choose().describe(),
        "cores": usable_cores(),
        "memory_available_bytes": memory.available(),
        "cluster": {name: _installed(name) for name in ("distributed", "obstore", "cloudpickle")},
        "compiled_programs": program_cache.current_place().document(),
        "activations": sorted(BY_NAME),
    }


def _installed(package: str) -> str:
    """Return the version of an optional package; "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def lines(facts: dict[str, Any]) -> str:
    """Format the facts of `collect` for people, one a line."""
    shown = dict(facts)
    shown["blas"] = "; ".join(
        f"{blas['internal_api']} {blas['version']}, {blas['architecture']}, {blas['num_threads']} threads"
        for blas in facts["blas"]
    )
    shown["memory_available"] = memory.text(shown.pop("memory_available_bytes"))
    shown["cluster"] = ", ".join(f"{name} {version or 'not installed'}" for name, version in facts["cluster"].items())
    for key, mark in (("devices", "; "), ("activations", ", ")):
        shown[key] = mark.join(facts[key])
    kept = facts["compiled_programs"]
    size = f"{kept['folder']}: {kept['entries']} in {memory.text(kept['bytes'])} ({kept['reason']})"
    shown["compiled_programs"] = size if kept["folder"] else kept["reason"]
    if not facts["openblas_coretype"]:
        del shown["openblas_coretype"]
    return "\n".join(f"{key.replace('_', ' '):18} {value}" for key, value in shown.items())
