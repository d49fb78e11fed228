"""NTKs of convolutional relu networks are timed on 32 x 32 x 3 images, beside neural-tangents and a textbook loop in C.

python benchmarks/images.py [repeats]     (3 unless given; needs gcc and benchmarks/peers.sh)

In turns, milliseconds a pair, the shortest of the repeats: ours and neural-tangents' by wall time on all cores, NumPy
to NumPy; the loop (images_textbook.c: gcc -O3 -march=native -ffast-math) and ours again by CPU seconds, as one core.
3 x 3 convolutions, "same", weight_std sqrt(2), bias_std 0.1; then global average pooling or all sites side by side.
"""

import ctypes
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import report
from images_data import BIAS, CHANNELS, SIZE, STD, images
from peers import HERE, Peer

import widelimit as wl

SMALL = False
CASES = [(end, layers, dtype) for end in ("pool", "flatten") for layers in (4, 21) for dtype in ("float32", "float64")]
GOALS = {("pool", 21, "float32"): 60.0, ("flatten", 21, "float32"): 5.0}
PAIRS = {"pool": (32, 2, 2), "flatten": (100, 100, 20)}
"""Rows of a block of ours, of neural-tangents' and of the loop's."""


class Loop:
    """The loop in C, compiled for one dtype."""

    def __init__(self, folder: Path, dtype: str) -> None:
        real = {"float32": "float", "float64": "double"}[dtype]
        flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", f"-DREAL={real}", "-o", folder / dtype]
        subprocess.run(["gcc", HERE / "images_textbook.c", *flags, "-lm"], check=True)
        self._library = ctypes.CDLL(str(folder / dtype))
        self._real = {"float": ctypes.c_float, "double": ctypes.c_double}[real]

    def seconds(self, X: np.ndarray, layers: int, end: str) -> tuple[float, float]:
        """Return CPU seconds for the first half of the images with the second, and one entry of the NTK."""
        n, pointer = len(X) // 2, lambda array: array.ctypes.data_as(ctypes.c_void_p)
        scales = self._real(STD**2), self._real(BIAS**2)
        start = time.process_time()
        s = np.empty((2 * n, layers, SIZE, SIZE), X.dtype)
        for image, own in zip(X, s, strict=True):
            self._library.deviations(pointer(image), SIZE, SIZE, CHANNELS, layers, *scales, pointer(own))
        out = np.empty((n, n, 2))
        for i in range(n):
            for j in range(n):
                arrays = map(pointer, (X[i], X[n + j], s[i], s[n + j]))
                self._library.pair(*arrays, SIZE, SIZE, CHANNELS, layers, *scales, end == "pool", pointer(out[i, j]))
        return time.process_time() - start, float(out[0, 0, 1])


def network(layers: int, end: str) -> wl.Network:
    """Return the network of a case."""
    body = [wl.layers.Conv(3, weight_std=STD, bias_std=BIAS), "relu"] * layers
    last = wl.layers.GlobalAveragePool() if end == "pool" else wl.layers.Flatten()
    return wl.network(*body, last, wl.layers.Dense(), inputs=wl.Image(SIZE, SIZE, CHANNELS))


def row(case: tuple, repeats: int, loop: Loop, peer: Peer) -> dict:
    """Measure all three in turns on one case."""
    end, layers, dtype = case
    own, theirs, loops = PAIRS[end]
    X, k = images(2 * own, dtype), wl.ntk(network(layers, end))
    start = time.perf_counter()
    K = k.cross(X[:own], X[own:])
    first = time.perf_counter() - start
    walls, cpus, peers, cs = [], [], [], []
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        K = k.cross(X[:own], X[own:])
        walls.append((time.perf_counter() - start) / own**2)
        cpus.append((time.process_time() - cpu) / own**2)
        answer = peer.ask(n=theirs, layers=layers, end=end, dtype=dtype)
        peers.append(answer["seconds"] / theirs**2)
        seconds, entry = loop.seconds(images(2 * loops, dtype), layers, end)
        cs.append(seconds / loops**2)
    assert str(K.dtype) == answer["dtype"] == dtype
    for found, count in ((entry, loops), (answer["entry"], theirs)):
        known = K[0, 0] if count == own else k.cross(X[:1], X[count : count + 1])[0, 0]
        assert abs(found - known) < 1e-3 * abs(known), (found, known)
    ms = {
        "widelimit": 1e3 * min(walls),
        "neural_tangents": 1e3 * min(peers),
        "widelimit_cpu": 1e3 * min(cpus),
        "loop_cpu": 1e3 * min(cs),
    }
    return {
        "end": end,
        "convolutions": layers,
        "dtype": dtype,
        **{f"{name}_ms": value for name, value in ms.items()},
        "first_call_s": first,
        "times_neural_tangents": ms["neural_tangents"] / ms["widelimit"],
        "goal": GOALS.get(case, ""),
        "loops": ms["widelimit_cpu"] / ms["loop_cpu"],
        "goal_loops": 1.5 if end == "pool" else "",
    }


def main() -> None:
    """Measure all cases."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Peer("nt", "peer_images.py") as single,
        Peer("nt", "peer_images.py", JAX_ENABLE_X64="1") as double,
    ):
        loops = {dtype: Loop(Path(folder), dtype) for dtype in ("float32", "float64")}
        for case in CASES:
            peer = single if case[2] == "float32" else double
            rows.append(row(case, repeats, loops[case[2]], peer))
            print(rows[-1], flush=True)
    report("images", rows, repeats=repeats, peer="neural-tangents 0.6.5, JAX 0.5.3, jitted, warm", images="32 x 32 x 3")


if __name__ == "__main__":
    main()
