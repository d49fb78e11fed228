"""Tangent kernels of a user's own JAX network are timed: this library's methods beside neural-tangents' three.

python benchmarks/own_model_jax.py [repeats] [NAME ...]     (5 unless given; needs benchmarks/peers.sh)

A ResNet-18 for 32 x 32 images (11.2 million parameters), a transformer encoder (4 layers, width 256, 64 tokens) and a
relu network, each one function of jax.numpy for all (own_model_nets.py), float32, 10 outputs. In turns, CPU seconds of
one warm call, the shortest of the repeats; the first call's with compilation. All n x n pairs of n inputs.
"""

import resource
import sys
import time

import numpy as np
from common import report
from own_model_nets import network
from peers import Peer

import widelimit as wl

CASES = [
    ("mlp", 16, "trace"),
    ("transformer", 8, "trace"),
    ("resnet", 4, "trace"),
    ("mlp", 16, "full"),
    ("transformer", 4, "full"),
    ("resnet", 2, "full"),
]
METHODS = ("layerwise", "jacobian", "vector_products")
PEERS = {1: "Jacobian contraction", 2: "vector products", 3: "structured derivatives"}
PRODUCTS = ("mlp",)
"""Networks for which vector products are timed; for the others a call takes minutes."""
SLOW = 8.0
"""A way of which one call takes longer (CPU seconds) is not repeated."""


class Ours:
    """One method of this library on one case."""

    def __init__(self, name: str, n: int, output: str, method: str) -> None:
        apply, params, self._X = network(name, n)
        self._kernel = wl.empirical_ntk(apply, params, output=output, method=method, memory=8)

    def measure(self) -> tuple[float, list[float]]:
        """Return CPU seconds of a call, and some entries."""
        start = time.process_time()
        K = self._kernel.gram(self._X)
        return time.process_time() - start, np.asarray(K[0, :2], np.float64).ravel()[:3].tolist()


class Theirs:
    """One implementation of neural-tangents on one case; its trace is a mean over outputs too."""

    def __init__(self, peer: Peer, **case: object) -> None:
        self._peer, self._case = peer, case

    def measure(self) -> tuple[float, list[float]]:
        """Return CPU seconds of a call, and some entries."""
        answer = self._peer.ask(**self._case)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["cpu"], answer["entries"]


def rows_of(case: tuple[str, int, str], repeats: int, peer: Peer) -> list[dict]:
    """Measure all ways of one case in turns."""
    name, n, output = case
    products = name in PRODUCTS
    methods = METHODS if products else METHODS[:2]
    ways: dict[str, Ours | Theirs] = {f"widelimit, {method}": Ours(name, n, output, method) for method in methods}
    for k, way in PEERS.items():
        if k == 2 and not products:
            continue
        ways[f"neural-tangents, {k} ({way})"] = Theirs(peer, name=name, n=n, output=output, implementation=k)
    first, times, entries, failed = {}, {}, {}, []
    for way, runner in list(ways.items()):
        start = time.perf_counter()
        try:
            _, entries[way] = runner.measure()
            first[way] = time.perf_counter() - start
            times[way] = [runner.measure()[0]]
            print(name, n, output, way, f"{times[way][0]:.3f} CPU s, first call {first[way]:.1f} s", flush=True)
        except (RuntimeError, MemoryError) as error:
            failed.append({"way": way, "failed": str(error).split("\n")[0][:150]})
            del ways[way]
    for _ in range(repeats - 1):
        for way, runner in ways.items():
            if times[way][0] < SLOW:
                times[way].append(runner.measure()[0])
    reference = np.array(entries["widelimit, layerwise"])
    best = min(min(times[way]) for way in ways if way.startswith("neural"))
    found = [
        {
            "way": way,
            "cpu_s": min(times[way]),
            "first_call_s": first[way],
            "best_peer_over_it": best / min(times[way]),
            "difference": float(np.abs(np.array(entries[way]) - reference).max() / np.abs(reference).max()),
        }
        for way in ways
    ]
    return [{"network": name, "pairs": f"{n} x {n}", "output": output} | row for row in (*found, *failed)]


def main() -> None:
    """Measure all cases, or those of the networks named."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rows = []
    with Peer("nt", "peer_own_model.py") as peer:
        for case in CASES:
            if case[0] in (sys.argv[2:] or case[0]):
                rows += rows_of(case, repeats, peer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report("own_model_jax", rows, repeats=repeats, peer="neural-tangents 0.6.5, JAX 0.5.3, jitted", peak_gib_ours=peak)


if __name__ == "__main__":
    main()
