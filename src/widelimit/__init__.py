"""Infinitely wide neural networks have exact kernels, Bayesian inference and gradient descent in function space."""

from typing import Any

import lazy_loader

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use. Raises: ModuleNotFoundError: an extra is not installed."""
    try:
        return _public(name)
    except ModuleNotFoundError as error:
        from widelimit import extras

        raise extras.explained(error, f"widelimit.{name}") from None
