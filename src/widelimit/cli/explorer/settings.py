"""The settings of the page are checked by the library's own checks, and bounded so that every answer is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np

from widelimit import validation
from widelimit.shapes import Float

RULES = ("bayes", "descent")
"""Bayes' rule with the NNGP kernel, or gradient descent, whose kernel is the NTK."""
INPUTS = ("line", "circle")
"""The input of the network is the row (x), or the point (cos x, sin x) of the unit circle."""
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu", "tanh", "erf", "sin", "identity")
DEEPEST = 6
MOST_POINTS = 128
EDGE = float(np.pi)
"""Inputs are in [-EDGE, EDGE], so that a line and a circle hold the same ones."""
LARGEST_TARGET = 100.0


@final
@dataclass(frozen=True)
class NetworkSettings:
    """The network is one of `wl.mlp`, and sees x as a row or on the circle."""

    inputs: str = "line"
    depth: int = 3
    activation: str = "relu"
    weight_std: float = 1.5
    bias_std: float = 0.3

    def __post_init__(self) -> None:
        validation.choice("inputs", self.inputs, INPUTS)
        validation.integer("depth", self.depth, at_least=1, below=DEEPEST + 1)
        validation.choice("activation", self.activation, ACTIVATIONS)
        validation.finite_scalar("weight_std", self.weight_std, at_least=0.1, at_most=3.0)
        validation.finite_scalar("bias_std", self.bias_std, at_least=0.0, at_most=3.0)


@final
@dataclass(frozen=True)
class Settings:
    """The settings are a network, the points that were drawn, and what is learned from them how."""

    network: NetworkSettings = NetworkSettings()
    rule: str = "bayes"
    noise_std: float = 0.1
    """Standard deviation of the observations' noise, for Bayes' rule."""
    points: tuple[tuple[float, float], ...] = ()
    """Pairs (x, y)."""

    def __post_init__(self) -> None:
        validation.choice("rule", self.rule, RULES)
        validation.finite_scalar("noise_std", self.noise_std, at_least=0.0, at_most=10.0)

    @property
    def x(self) -> Float[np.ndarray, " n"]:
        """Return the inputs."""
        return np.array([point[0] for point in self.points], np.float64)

    @property
    def y(self) -> Float[np.ndarray, " n"]:
        """Return the targets."""
        return np.array([point[1] for point in self.points], np.float64)


def settings(document: Any) -> Settings:
    """Read the settings of a request: a flat JSON object. Raises: TypeError, ValueError: what is wrong, in one line."""
    if not isinstance(document, Mapping):
        raise TypeError(f"the settings must be a JSON object, got {validation.shown(document)}.")
    network = {entry.name for entry in fields(NetworkSettings)}
    known = network | {"rule", "noise_std", "points"}
    for name in document:
        if name not in known:
            raise ValueError(f"there is no setting {validation.shown(name)}; known are {', '.join(sorted(known))}.")
    chosen = {name: value for name, value in document.items() if name not in network}
    points = _points(chosen.pop("points", []))
    of_network = NetworkSettings(**{name: value for name, value in document.items() if name in network})
    return Settings(network=of_network, points=points, **chosen)


def _points(value: Any) -> tuple[tuple[float, float], ...]:
    """Return pairs (x, y) in range. Raises: TypeError, ValueError."""
    if not isinstance(value, list):
        raise TypeError(f"points must be a list of pairs [x, y], got {validation.shown(value)}.")
    if not value:
        return ()
    if len(value) > MOST_POINTS:
        raise ValueError(f"points has {len(value)} pairs; the page takes at most {MOST_POINTS}.")
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise TypeError(f"points must be pairs [x, y], got {validation.shown(pair)}.")
        validation.finite_scalar("x of points", pair[0], at_least=-EDGE, at_most=EDGE)
        validation.finite_scalar("y of points", pair[1], at_least=-LARGEST_TARGET, at_most=LARGEST_TARGET)
    return tuple((float(x), float(y)) for x, y in value)
