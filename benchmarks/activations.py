"""This benchmark measures the seconds of an NTK Gram matrix for every activation, beside relu's.

python benchmarks/activations.py [n] [equal | unequal | depth] [name ...]

Inputs of equal and of unequal norm (standard normal, 20 features), float64, depth 4; with `depth`, depth 32 beside
depth 4 on equal norms. The shortest of three calls after one that compiles; relu's is taken before and after each
activation in the same run, and the ratio is to their mean. `depth` ends with 50 residual blocks of 1/sqrt(50).
"""

import sys

import numpy as np
from common import report, seconds

import widelimit as wl

TABULATED = ["tanh", "sigmoid", "silu", "softplus", "mish", "gelu_tanh", "elu", "selu"]
PIECES = ["hard_tanh", "hard_swish", "relu6"]
CLOSED = ["erf", "gelu", "sin", "cos", "snake", "rbf", "exp", "gaussian", "monomial", "hermite"]
NAMES = {"equal": [*CLOSED, *TABULATED, *PIECES], "unequal": [*TABULATED, *PIECES], "depth": ["relu", "gelu", "tanh"]}


RESIDUAL = "relu, residual blocks"


def gram(activation: str, depth: int, X: np.ndarray) -> float:
    """Measure seconds of one call."""
    if activation == RESIDUAL:
        net = wl.resmlp(blocks=depth, branch_scale="depth", weight_std=1.2, bias_std=0.2)
    else:
        net = wl.mlp(depth=depth, activation=activation, weight_std=1.2, bias_std=0.2)
    k = wl.ntk(net)
    return seconds(lambda: k.gram(X))


def row(name: str, X: np.ndarray, *, depth: int, peer: str, peer_depth: int) -> dict[str, str | float]:
    """Measure an activation between two measurements of its peer."""
    before = gram(peer, peer_depth, X)
    own = gram(name, depth, X)
    mean = (before + gram(peer, peer_depth, X)) / 2
    return {"activation": name, "depth": depth, "seconds": own, "peer": peer, "peer_seconds": mean, "ratio": own / mean}


def main() -> None:
    """Measure the rows of one kind."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    kind = sys.argv[2] if len(sys.argv) > 2 else "equal"
    X = np.random.default_rng(0).standard_normal((n, 20))
    if kind != "unequal":
        X = X / np.linalg.norm(X, axis=1, keepdims=True) * np.sqrt(20)
    rows = []
    for name in sys.argv[3:] or NAMES[kind]:
        if kind == "depth":
            rows.append(row(name, X, depth=32, peer=name, peer_depth=4))
        else:
            rows.append(row(name, X, depth=4, peer="relu", peer_depth=4))
    if kind == "depth":
        rows.append(row(RESIDUAL, X, depth=50, peer="relu", peer_depth=4))
    report(f"activations_{kind}", rows, n=n, features=20, dtype="float64", norms=kind)


if __name__ == "__main__":
    main()
