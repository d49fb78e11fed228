"""NTK Gram matrices of relu networks are timed beside neural-tangents, NumPy to NumPy, in turns: the shortest seconds.

python benchmarks/gram.py [n] [repeats]     (8192 and 3 unless given)
"""

import sys
import time

import numpy as np
from common import report
from gram_data import inputs
from peers import Peer

import widelimit as wl

SMALL = True
STD, BIAS = 2**0.5, 0.1
CASES = [
    {"d": 100, "dtype": "float64", "hidden": 3, "equal_norms": False, "goal": 5.0},
    {"d": 100, "dtype": "float32", "hidden": 3, "equal_norms": False, "goal": 12.0},
    {"d": 100, "dtype": "float64", "hidden": 9, "equal_norms": True, "goal": 20.0},
    {"d": 784, "dtype": "float64", "hidden": 3, "equal_norms": False, "goal": 3.0},
]


def row(n: int, repeats: int, case: dict, peer: Peer) -> dict:
    """Measure both libraries in turns on one case."""
    case = dict(case)
    goal = case.pop("goal")
    X = inputs(n, case["d"], case["dtype"], equal_norms=case["equal_norms"])
    k = wl.ntk(wl.mlp(depth=case["hidden"] + 1, activation="relu", weight_std=STD, bias_std=BIAS))
    start = time.perf_counter()
    K = k.gram(X)
    first = time.perf_counter() - start
    ours, theirs = [], []
    for _ in range(repeats):
        del K  # its pages are used again, as those of the peer are
        start = time.perf_counter()
        K = k.gram(X)
        ours.append(time.perf_counter() - start)
        answer = peer.ask(n=n, **case)
        theirs.append(answer["seconds"])
    assert answer["dtype"] == case["dtype"] == str(K.dtype)
    difference = float(np.max(np.abs(K[0, :4] - answer["entries"]) / K[0, 0]))
    assert difference < 1e-3, difference
    return {
        "n": n,
        **case,
        "widelimit_s": min(ours),
        "first_call_s": first,
        "neural_tangents_s": min(theirs),
        "ratio": min(theirs) / min(ours),
        "goal": goal,
    }


def main() -> None:
    """Measure all cases."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    rows = []
    with (
        Peer("nt", "peer_neural_tangents.py") as single,
        Peer("nt", "peer_neural_tangents.py", JAX_ENABLE_X64="1") as double,
    ):
        for case in CASES:
            rows.append(row(n, repeats, case, double if case["dtype"] == "float64" else single))
            print(rows[-1], flush=True)
    report(
        "gram",
        rows,
        repeats=repeats,
        peer="neural-tangents 0.6.5, JAX 0.5.3, jitted, warm",
        weight_std=STD,
        bias_std=BIAS,
    )


if __name__ == "__main__":
    main()
