"""One accelerator against plain JAX and GPyTorch on the same one: matrices, posteriors, flows, gradients, digits.

python benchmarks/gpu.py [--small] [--minutes 6]        or: make bench-gpu, which makes an environment with CUDA first

Every line is a goal of docs/accelerators.md: `seconds` the shortest of warm calls, `peer_s` the same work in plain JAX
(the textbook recursion under one jit; cho_factor) or GPyTorch, `first_s` the first call, compilation included. What
would begin after the minutes given is left out, and says so. `--small` divides the rows and forces the route of an
accelerator on the CPU platform: it shows that the script runs, and its figures mean nothing.
"""

import argparse
import contextlib
import importlib.util
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import report

import widelimit as wl
from widelimit.compute import devices

NOISE = 1e-2
FEATURES = 20
DEPTH = 3
ACCURACY = ("test_kernel_values.py", "test_device_tiles.py", "test_precision.py", "test_devices.py")
Row = dict[str, Any]


def data(n: int, d: int = FEATURES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw X (n, d), y (n,) and 1,000 test points, or n where these are more."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    return X, np.sin(X[:, 0]) + 0.1 * rng.standard_normal(n), rng.standard_normal((min(n, 1000), d))


def timed(work: Callable[[], Any], *, repeats: int = 3) -> tuple[float, float]:
    """Return the seconds of the first call, and the shortest of the next ones."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return times[0], min(times[1:])


def ratio(seconds: float, peer: float, goal: float) -> Row:
    """Return the columns of a comparison."""
    return {"seconds": seconds, "peer_s": peer, "ratio": seconds / peer, "goal": f"ratio {goal:g}"}


def network() -> wl.Network:
    """Return the relu network of all lines."""
    return wl.mlp(depth=DEPTH + 1, activation="relu", weight_std=math.sqrt(2), bias_std=0.1)


def textbook(X: jax.Array) -> jax.Array:
    """Compute the NTK of a relu network by the recursion of textbooks, which loses digits at near inputs."""
    w, b = math.sqrt(2), 0.1
    sigma = w**2 * jnp.matmul(X, X.T, precision="highest") / X.shape[1] + b**2
    theta = sigma
    for _ in range(DEPTH):
        s = jnp.sqrt(jnp.diagonal(sigma))
        c = jnp.clip(sigma / (s[:, None] * s), -1, 1)
        angle = jnp.arccos(c)
        dot = w**2 * (math.pi - angle) / (2 * math.pi)
        size = w**2 / (2 * math.pi) * s[:, None] * s
        sigma = size * (jnp.sqrt(1 - c**2) + (math.pi - angle) * c) + b**2
        theta = sigma + theta * dot
    return theta


def gram(n: int, dtype: str, goal: float) -> Row:
    """Compare a Gram matrix, from device to device, with the textbook's under one jit."""
    X = jnp.asarray(data(n, 100)[0], dtype)
    k, plain = wl.ntk(network()), jax.jit(textbook)
    first, own = timed(lambda: k.gram(X))
    return {"first_s": first, **ratio(own, timed(lambda: plain(X))[1], goal)}


@jax.jit
def plain_posterior(X: jax.Array, y: jax.Array, Z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute means and variances by cho_factor, of the textbook's kernel."""
    whole = textbook(jnp.concatenate([X, Z]))
    n = len(X)
    factor = jax.scipy.linalg.cho_factor(whole[:n, :n] + NOISE * jnp.eye(n), lower=True)
    cross = whole[:n, n:]
    solved = jax.scipy.linalg.cho_solve(factor, jnp.column_stack([y, cross]))
    return cross.T @ solved[:, 0], jnp.diagonal(whole)[n:] - jnp.sum(cross * solved[:, 1:], axis=0)


def posterior(n: int, goal: float) -> Row:
    """Fit, and compute means and 1,000 variances, from NumPy to NumPy."""
    X, y, Z = data(n)
    k = wl.ntk(network())
    first, own = timed(lambda: wl.posterior(k, X, y, noise=NOISE, solver="cholesky").predict(Z))
    there = tuple(map(jnp.asarray, (X, y, Z)))
    return {"first_s": first, "seconds": own, "peer_s": timed(lambda: plain_posterior(*there))[1], "goal": f"{goal} s"}


def large(n: int, goal: float) -> Row:
    """Fit so many points exactly, once."""
    X, y, _ = data(n)
    start = time.perf_counter()
    post = wl.posterior(wl.ntk(network()), X, y, noise=NOISE, solver="cholesky")
    fitted = time.perf_counter() - start
    return {"seconds": fitted, "residual": float(post.residual), "goal": f"{goal:g} s, residual 1e-08"}


def flow(n: int, goal: float) -> Row:
    """Predict at ten times of gradient flow."""
    X, y, Z = data(n)
    times = np.logspace(0, 5, 10)
    first, own = timed(lambda: wl.gradient_flow(wl.ntk(network()), X, y).predict(Z, times), repeats=1)
    return {"first_s": first, "seconds": own, "goal": f"{goal:g} s"}


def evidence(n: int, goal: float) -> Row:
    """Compute the evidence with its gradient in 50 input scales."""
    X, y, _ = data(n, 50)

    def score(scales: jax.Array, X: jax.Array, y: jax.Array) -> jax.Array:
        k = wl.scale_inputs(wl.ntk(network()), scales)
        return wl.posterior(k, X, y, noise=NOISE).log_marginal_likelihood()

    step = jax.jit(jax.value_and_grad(score))
    first, own = timed(lambda: step(jnp.ones(50), jnp.asarray(X), jnp.asarray(y)))
    return {"first_s": first, "seconds": own, "goal": f"{goal} s a step"}


def gpytorch(n: int, *, default: bool) -> Row:
    """Compare with GPyTorch on the same device, by Cholesky or as it comes (conjugate gradients from 800 rows on)."""
    if importlib.util.find_spec("gpytorch") is None:
        return {"note": "GPyTorch is not installed in this environment"}
    import peers_solvers  # it needs torch
    import torch

    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    X, y, Z = data(n)
    peer = peers_solvers.gpytorch({"X": X, "y": y, "Z": Z, "noise": NOISE}, default=default)
    k = wl.rbf(math.sqrt(FEATURES))
    first, own = timed(lambda: wl.posterior(k, X, y, noise=NOISE, solver="cholesky").predict(Z))
    return {"first_s": first, **ratio(own, timed(peer)[1], 1 / 3 if default else 1.0)}


def accuracy(seconds: float, *, small: bool) -> Row:
    """Run the tests of digits on this device, in a process of their own."""
    tests = [str(Path(__file__).parents[1] / "tests" / name) for name in ACCURACY[1 : 2 if small else None]]
    tests = tests if small else [str(Path(__file__).parents[1] / "tests" / ACCURACY[0]), *tests]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not claims", "-p", "no:cacheprovider", *tests]
    start = time.perf_counter()
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        last = (ran.stdout.strip().splitlines() or [ran.stderr.strip()[-200:]])[-1]
    except subprocess.TimeoutExpired as late:
        last = f"not finished: {(late.stdout or b'').decode()[-80:]}"
    return {"seconds": time.perf_counter() - start, "note": last, "goal": "all pass"}


def lines(small: bool, left: Callable[[], float]) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Name the goals in order, and how each is measured."""
    cut = 64 if small else 1

    def rows(n: int) -> int:
        return n // cut

    for n, goal in ((32768, 1.3), (8192, 1.5)):
        for dtype in ("float32", "float64"):
            yield f"Gram {rows(n)}, {dtype}", lambda n=n, dtype=dtype, goal=goal: gram(rows(n), dtype, goal)
    for n, goal in ((10000, 0.15), (30000, 0.8)):
        yield f"fit and variances, n = {rows(n)}", lambda n=n, goal=goal: posterior(rows(n), goal)
    yield f"evidence and gradient in 50 scales, n = {rows(5000)}", lambda: evidence(rows(5000), 0.3)
    yield f"flow at 10 times, n = {rows(10000)}", lambda: flow(rows(10000), 10)
    yield f"exact posterior, n = {rows(60000)}", lambda: large(rows(60000), 20)
    for default in (False, True):
        name = "as it comes" if default else "Cholesky"
        yield f"GPyTorch, {name}, n = {rows(10000)}", lambda default=default: gpytorch(rows(10000), default=default)
    yield "tests of digits on this device", lambda: accuracy(max(60.0, left()), small=small)


def measured(work: Callable[[], Row], left: Callable[[], float]) -> Row:
    """Return a line; what fails, or has no time left, says so and does not end the table."""
    if left() < 0:
        return {"note": "left out: no time left; pass --minutes"}
    try:
        return work()
    except Exception as error:
        return {"note": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}


def main() -> None:
    """Measure all lines and print them as one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few rows, on any platform")
    parser.add_argument("--minutes", type=float, default=6.0, help="what would begin later is left out")
    options = parser.parse_args()
    platform = jax.devices()[0].platform
    if platform == "cpu" and not options.small:
        sys.exit("JAX sees no accelerator (jax.devices() is the CPU): pass --small to try the script.")
    end = time.perf_counter() + 60 * options.minutes

    def left() -> float:
        return end - time.perf_counter()

    found = []
    with jax.enable_x64(), devices.forced() if platform == "cpu" else contextlib.nullcontext():
        for name, work in lines(options.small, left):
            found.append({"work": name, "seconds": "", "goal": "", **measured(work, left)})
            print(name, found[-1], flush=True)
    report("gpu", found, keep=not options.small, device=str(jax.devices()[0].device_kind))


if __name__ == "__main__":
    main()
