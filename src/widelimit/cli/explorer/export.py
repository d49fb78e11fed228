"""An exported page is one file that needs neither a server nor the internet: its numbers are computed beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from widelimit.cli.explorer import pages, wire
from widelimit.cli.explorer.finite import finite
from widelimit.cli.explorer.scene import TIMES, Arrays, scene
from widelimit.cli.explorer.settings import settings

CHOICES: dict[str, list[Any]] = {
    "inputs": ["line"],
    "depth": [2, 3, 5],
    "activation": ["relu", "erf", "tanh"],
    "weight_std": [1.0, 1.5, 2.0],
    "bias_std": [0.1, 0.5],
    "noise_std": [0.01, 0.1, 0.3],
    "width": [16, 64, 256],
}
"""Choices of an exported page, for which numbers are computed beforehand."""
SCRIPTS = ("data.js", "drawing.js", "explorer.js")
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
TIMES_KEPT = 2
"""Every second training time is kept, 0 and infinity included."""
NETWORKS, PLACES = 60, 3
"""Networks of each width that are kept, at most, and the step between the inputs that are kept."""
LATE = 0.02
"""Times of the limit beyond the last one of finite networks by at most this share are kept for these too."""
NETWORK = ("inputs", "depth", "activation", "weight_std", "bias_std")

Choices = Mapping[str, list[Any]]
Job = tuple[str, Callable[[], dict[str, Any]]]


def export(start: Mapping[str, Any], report: Callable[[str, int, int], None], choices: Choices = CHOICES) -> bytes:
    """Return the page with all numbers for these choices, of 16 bits each; `report` is that of a progress bar."""
    jobs, numbers = list(_jobs(start, choices)), {}
    for done, (name, make) in enumerate(jobs):
        report("exported page", done, len(jobs))
        numbers[name] = make()
    page = pages.with_data({"choices": dict(choices), "start": dict(start), "numbers": numbers})
    style = b"<style>" + pages.read("explorer.css") + b"</style>"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'.encode()
    page = page.replace(b'<link rel="stylesheet" href="explorer.css">', policy + style)
    for name in SCRIPTS:
        page = page.replace(f'<script src="{name}"></script>'.encode(), b"<script>" + pages.read(name) + b"</script>")
    return page


def key(of: Mapping[str, Any]) -> str:
    """Return the name of numbers from the choices that they depend on, as data.js does."""
    used = [of[name] for name in NETWORK]
    if "width" in of:
        used += ["width", of["width"]]
    else:
        used += ["bayes", of["noise_std"]] if of["rule"] == "bayes" else ["descent"]
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in used)


def _jobs(start: Mapping[str, Any], choices: Choices) -> Iterator[Job]:
    """Yield name and job for all numbers of the page; finite networks are those of the start's scales only."""
    for values in itertools.product(*(choices[name] for name in NETWORK)):
        chosen = dict(zip(NETWORK, values, strict=True)) | {"points": start["points"]}
        for noise in choices["noise_std"]:
            of = chosen | {"rule": "bayes", "noise_std": noise}
            yield key(of), partial(_limit, of)
        of = chosen | {"rule": "descent"}
        yield key(of), partial(_limit, of)
        if all(chosen[name] == start[name] for name in ("inputs", "weight_std", "bias_std")):
            for width in choices["width"]:
                yield key(of | {"width": width}), partial(_networks, of, width)


def _limit(of: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(scene(settings(of)))
    if len(found["times"]) > 1:
        found |= {name: found[name][::TIMES_KEPT] for name in ("times", "mean", "sd", "samples")}
    return _packed(found)


def _networks(of: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Pack some networks at every third place, at the states nearest to the times that are kept of the limit."""
    found = finite(settings(of), width)
    kept = TIMES[::TIMES_KEPT]
    kept = kept[kept <= found["times"][-1] * (1 + LATE)]
    states = np.unique(np.abs(found["times"] - kept[:, None]).argmin(axis=1))
    return _packed(
        found | {"times": found["times"][states], "outputs": found["outputs"][states][:, :NETWORKS, ::PLACES]}
    )


def _packed(found: Arrays) -> dict[str, Any]:
    exact = {name: value for name, value in found.items() if name in ("times", "rate", "steps", "evidence")}
    return wire.encode({name: value for name, value in found.items() if name not in exact}, "int16") | wire.encode(
        exact
    )
