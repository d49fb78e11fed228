"""The page is an HTML file with its choices and its start inside, and style and scripts beside it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from widelimit.cli.explorer import wire
from widelimit.cli.explorer.finite import EFFORTS
from widelimit.cli.explorer.settings import ACTIVATIONS, DEEPEST, INPUTS

START: dict[str, Any] = {
    "inputs": "line",
    "rule": "descent",
    "depth": 3,
    "activation": "relu",
    "weight_std": 1.5,
    "bias_std": 0.5,
    "noise_std": 0.1,
    "width": 64,
    "points": [[-2.3, 0.7], [-1.2, -0.5], [-0.3, 0.2], [0.9, 1.1], [2.1, -0.6]],
}
"""The settings that a page starts with; for a table it has other points."""
EVERY_CHOICE: dict[str, list[Any]] = {
    "inputs": list(INPUTS),
    "depth": list(range(1, DEEPEST + 1)),
    "activation": list(ACTIVATIONS),
    "weight_std": [round(0.1 * k, 1) for k in range(2, 31)],
    "bias_std": [round(0.1 * k, 1) for k in range(21)],
    "noise_std": [0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0],
    "width": list(EFFORTS),
}
"""Choices of the page with a server behind it."""


def read(name: str) -> bytes:
    """Read a file of the page, which is packaged with the library."""
    return resources.files("widelimit.cli.explorer").joinpath("page", name).read_bytes()


def live(start: Mapping[str, Any]) -> bytes:
    """Return the page that asks its server for numbers."""
    return with_data({"choices": EVERY_CHOICE, "start": dict(start)})


def with_data(document: dict[str, Any]) -> bytes:
    """Return the page with a JSON document inside, in which no text can end the element that holds it."""
    counts = {str(width): effort.networks for width, effort in EFFORTS.items()}
    data = wire.text(document | {"counts": counts}).replace(b"<", b"\\u003c")
    return read("index.html").replace(b"DATA_OF_THE_PAGE", data)
