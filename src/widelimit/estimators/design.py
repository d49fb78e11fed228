"""A design is what an estimator needs to make its network again, with other numbers too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, final

from widelimit.architecture.builders import mlp
from widelimit.architecture.network import Network
from widelimit.estimators.parameters import Invariance
from widelimit.inference.coordinates import numbers, searched, with_numbers
from widelimit.inference.scaled_evidence import AnyFamily, Family, NetworkFamily
from widelimit.kernels.averaged import averaged
from widelimit.kernels.base import Kernel
from widelimit.kernels.network import nngp, ntk
from widelimit.network_text import network_text
from widelimit.references import by_reference

Kind = Literal["nngp", "ntk"]
KERNELS: dict[Kind, Callable[[Network], Kernel]] = {"nngp": nngp, "ntk": ntk}


@final
@by_reference
@dataclass(frozen=True)
class Design:
    """A design is a network and the kind of its kernel: all that is needed to make them again."""

    kind: Kind
    depth: int
    activation: Any
    weight_std: float
    bias_std: float
    given: Network | None = None
    """A network given in place of the one that the numbers above describe; else None."""
    invariance: Invariance | None = None

    def network(self) -> Network:
        """Make the network."""
        if self.given is not None:
            return self.given
        return mlp(depth=self.depth, activation=self.activation, weight_std=self.weight_std, bias_std=self.bias_std)

    def kernel(self) -> Kernel:
        """Make its kernel of this kind."""
        kernel = KERNELS[self.kind](self.network())
        if self.invariance is None:
            return kernel
        return averaged(kernel, flips=self.invariance != "shifts", shifts=int(self.invariance != "flips"))

    @property
    def family(self) -> AnyFamily:
        """Return what a search with input scales knows of it."""
        if self.given is not None:
            return NetworkFamily(self.kind, self.given)
        return Family(self.kind, self.activation, self.depth)

    @property
    def values(self) -> dict[str, float]:
        """Return the numbers of the network by name."""
        if self.given is not None:
            return numbers(self.given)
        return {"weight_std": self.weight_std, "bias_std": self.bias_std}

    @property
    def searched(self) -> tuple[str, ...]:
        """Name the numbers that a search changes: those > 0."""
        if self.given is not None:
            return searched(self.given)
        return ("weight_std", "bias_std") if self.bias_std > 0 else ("weight_std",)

    def changed(self, values: dict[str, float]) -> Design:
        """Return the design with other numbers."""
        if self.given is not None:
            return replace(self, given=with_numbers(self.given, values))
        return replace(self, **values)  # type: ignore[arg-type]

    def document(self) -> dict[str, Any]:
        """Return the numbers in JSON; a given network as its text. Raises: TypeError: it is no text."""
        return self.values if self.given is None else {"network": network_text(self.given)}
