"""This benchmark times the training of an ensemble in one compiled call, beside compiled loops over its networks.

python benchmarks/training_ensemble.py [networks] [steps]

Full-batch gradient descent on 64 points of 10 features, float32: depth 2 at widths 64 and 256, depth 3 at width 64.
`one call` is wl.train(..., ensemble=True). Its peers have the same network and steps, written by hand: `networks in
turn` runs the compiled loop over all steps for one network after the other; `steps in turn` calls a compiled step from
Python, as training loops are usually written (2 networks are timed and multiplied). `wl.train in turn` is the library
without ensembles.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import report, seconds

import widelimit as wl

RATE = 0.05
SAMPLE = 5
"""Networks that are timed of those in turn; the rest take as long."""


def setting(depth: int, width: int, networks: int) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """Return network, stacked parameters and data."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((64, 10)).astype(np.float32)
    net = wl.mlp(depth=depth, activation="relu", weight_std=1.4, bias_std=0.1)
    return net, net.init_many(range(networks), input_dim=10, width=width), X, np.sin(X[:, 0])


def by_hand(net: Any, X: np.ndarray, y: np.ndarray) -> Callable[[Any], Any]:
    """Do one step of gradient descent."""
    points, targets = jnp.asarray(X), jnp.asarray(y, jnp.float32)[:, None]

    def step(params: Any) -> Any:
        slope = jax.grad(lambda p: jnp.mean((net.apply(p, points) - targets) ** 2))(params)
        return jax.tree.map(lambda p, g: p - RATE * g, params, slope)

    return step


def row(depth: int, width: int, networks: int, steps: int) -> dict[str, Any]:
    """Measure one line of the table."""
    net, many, X, y = setting(depth, width, networks)
    members = [jax.tree.map(lambda leaf: leaf[e], many) for e in range(SAMPLE)]  # noqa: B023
    settings = {"learning_rate": RATE, "steps": steps, "record_every": steps, "kernel_points": 0, "progress": False}
    step = by_hand(net, X, y)
    alone = jax.jit(lambda p: jax.lax.fori_loop(0, steps, lambda _, p: step(p), p))
    compiled = jax.jit(step)

    def in_turn(run: Callable[[Any], Any], count: int) -> float:
        return seconds(lambda: [jax.block_until_ready(run(p)) for p in members[:count]]) * networks / count

    def from_python(params: Any) -> Any:
        for _ in range(steps):
            params = compiled(params)
        return params

    together = seconds(lambda: wl.train(net.apply, many, X, y, ensemble=True, **settings), repeats=2)
    loop = in_turn(alone, SAMPLE)
    stepwise = in_turn(from_python, 2)
    singly = in_turn(lambda p: wl.train(net.apply, p, X, y, **settings).params, SAMPLE)
    return {
        "depth": depth,
        "width": width,
        "one call s": together,
        "networks in turn s": loop,
        "ratio": loop / together,
        "steps in turn s": stepwise,
        "ratio of steps": stepwise / together,
        "wl.train in turn s": singly,
        "ratio of wl.train": singly / together,
    }


def main() -> None:
    """Measure the table."""
    networks = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    start = time.perf_counter()
    rows = [row(depth, width, networks, steps) for depth, width in ((2, 64), (2, 256), (3, 64))]
    settings = {"networks": networks, "steps": steps, "points": 64, "features": 10, "dtype": "float32"}
    report("training_ensemble", rows, **settings, load_average=os.getloadavg()[0])
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
