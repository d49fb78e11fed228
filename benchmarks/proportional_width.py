"""This benchmark compares posteriors at proportional width with drawn networks, beside the package deepbays.

python benchmarks/proportional_width.py    in an environment with widelimit and deepbays (PyTorch, torchvision, cupy)

deepbays 0.1.11 imports torchvision and cupy, which its class for one hidden layer does not use: where they are missing
empty modules stand for them.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
from common import report

import widelimit as wl
from widelimit.claims import proportional_width as claim

SMALL = False
DRAWS = 200_000
WIDTHS = (4, 8, 16, 32)


def peer() -> Any:
    """Return deepbays' class for one hidden layer. Raises: ImportError."""
    for name in ("torchvision", "torchvision.transforms", "cupy", "cupy.cuda"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].Device = None  # type: ignore[attr-defined]
            if "." in name:
                parent, own = name.split(".")
                setattr(sys.modules[parent], own, sys.modules[name])
    return importlib.import_module("deepbays.rkgp.theory_1HL_FC_single_output").FC_1HL


def by_peer(model: Any, activation: str, width: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return mean, variance and scale by deepbays."""
    X, y, Z = claim.problem()
    precision = 1 / claim.WEIGHT**2
    found = model(width, claim.NOISE, l0=precision, l1=precision, act=activation)
    found.preprocess(X, y)
    found.optimize()
    mean = found.predict(Z)
    found.averageLoss(np.zeros(len(Z)))
    return mean, found.rK0 - np.sum(found.K0_invK * found.rK0X, axis=1), found.optQ


def main() -> None:
    """Compare, and write the table."""
    model = peer()
    rows = []
    for activation in ("erf", "relu"):
        for width in WIDTHS:
            drawn = claim.networks(activation, (width,), DRAWS)
            law: wl.ProportionalPosterior = claim.predicted(activation, (width,))
            theirs = by_peer(model, activation, width)
            ways = {
                "proportional_posterior": (law.mean, law.variance, law.scale),
                "its limit": (*law.limit, float(law.order_parameters[0])),
                "deepbays FC_1HL": theirs,
                "infinite width": (*law.infinite, 1.0),
            }
            for name, (mean, variance, scale) in ways.items():
                rows.append(
                    {
                        "activation": activation,
                        "width": width,
                        "rows": claim.ROWS,
                        "method": name,
                        "scale": f"{scale:.4f}",
                        "rms gap of the mean": f"{np.sqrt(np.mean((mean - drawn.mean) ** 2)):.4f}",
                        "standard error": f"{np.sqrt(np.mean(drawn.mean_error**2)):.4f}",
                        "rms relative gap, variance": f"{np.sqrt(np.mean((variance / drawn.variance - 1) ** 2)):.3f}",
                    }
                )
    report("proportional_width", rows, draws=DRAWS, noise=claim.NOISE, peer="deepbays 0.1.11")


if __name__ == "__main__":
    main()
