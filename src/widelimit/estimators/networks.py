"""What the estimators share: the network, its kernel, and a fitted function that can be stored as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Float

from widelimit.architecture.network import Network, mlp
from widelimit.inference.early_stopping import StoppedFlow, stopped_flow
from widelimit.inference.posterior import Posterior, posterior
from widelimit.kernels.base import Kernel
from widelimit.kernels.network import nngp, ntk

Kind = Literal["nngp", "ntk"]
ROWS = 4096
"""Test rows whose kernel with the training rows is held at once."""


@final
@dataclass(frozen=True)
class Design:
    """A network and which of its kernels: all that is needed to make them again."""

    kind: Kind
    depth: int
    activation: Any
    weight_std: float
    bias_std: float

    def network(self) -> Network:
        """The network."""
        return mlp(depth=self.depth, activation=self.activation, weight_std=self.weight_std, bias_std=self.bias_std)

    def kernel(self) -> Kernel:
        """Its kernel of this kind."""
        return ntk(self.network()) if self.kind == "ntk" else nngp(self.network())


def cross_times(kernel: Kernel, Z: np.ndarray, X: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """K(Z, X) coefficients, ROWS rows of Z at a time: (m, c)."""
    parts = [np.asarray(kernel.cross(Z[i : i + ROWS], X)) @ coefficients for i in range(0, len(Z), ROWS)]
    return np.concatenate(parts)


@final
@dataclass(eq=False)
class Fitted:
    """A fitted function as plain arrays; what variances need is made again when they are asked for."""

    design: Design
    X: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, "n c"]
    noise: float
    weights: Float[np.ndarray, " n"]
    time: float
    ensemble: bool
    coefficients: Float[np.ndarray, "n c"] | None = None

    def __post_init__(self) -> None:
        if self.coefficients is None:
            law = self.law
            self.coefficients = law.weights if isinstance(law, Posterior) else law.coefficients

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "law"}

    @cached_property
    def law(self) -> Posterior | StoppedFlow:
        """The Gaussian law of the function."""
        if self.time == np.inf and not self.ensemble:
            return posterior(self.design.kernel(), self.X, self.y, noise=self.noise / self.weights)
        return stopped_flow(
            self.design.kernel(),
            self.X,
            self.y,
            time=self.time,
            noise=self.noise,
            weights=self.weights,
            prior=nngp(self.design.network()) if self.ensemble else None,
        )

    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """K(Z, X) coefficients."""
        assert self.coefficients is not None
        return cross_times(self.design.kernel(), Z, self.X, self.coefficients)
