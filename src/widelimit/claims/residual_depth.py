"""Residual networks with branches of 1/sqrt(L) have a limit in the depth L; with branches of 1 they have none."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp

import widelimit as wl
from widelimit import plots
from widelimit.arithmetic import arithmetic
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_least, at_most, slope_check, within
from widelimit.claims.statistics import power_law
from widelimit.layers import Dense, Frozen, LayerNorm, Repeat, Residual, Scale
from widelimit.signals import scaled
from widelimit.validation import Array

SEED = 2101
POINTS = np.random.default_rng(SEED).standard_normal((48, 3))
W, B = 1.3, 0.2
ALPHA = W**2 / 2
"""Factor of variances and squared gradients by weights of variance W^2 after relu."""
DEPTHS = np.array([10, 100, 1000, 10_000])
ROWS = 256
"""Rows of the matrix whose memory is measured."""
MEMOS = "none; some numbers a row and block"
EPS = float(np.finfo(float).eps)
COLLAPSE = 9 * np.pi**2 / 2 * ((1 + ALPHA) / ALPHA) ** 2
"""(1 - rho) L^2 as L grows with branches of 1: a block takes (alpha/(1 + alpha)) (sqrt(8)/(3 pi)) (1 - rho)^(3/2)."""


def network(blocks: int, scale: str, *end: wl.layers.Layer) -> wl.Network:
    """Make a residual network of relu, with other layers at its end if there are any."""
    net = wl.resmlp(blocks=blocks, branch_scale="depth" if scale == "depth" else "one", weight_std=W, bias_std=B)
    return wl.network(*net.layers[:-1], *end) if end else net


def frozen(blocks: int, scale: str) -> wl.Network:
    """Make the same network with only its first layer trained: Theta is Sigma of that layer times chi of the others."""
    branch = Residual("relu", Frozen(Dense(W, B)), Scale(blocks**-0.5 if scale == "depth" else 1.0))
    return wl.network(Dense(W, B), Repeat((branch,), blocks), Frozen(Dense(W, B)))


def continuum(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve for both kernels at L = inf: dK/dt = W^2 E[phi phi'] + B^2, dTheta/dt = W^2 Theta E[phi' phi'] + dK/dt."""
    n = len(X)

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        K, theta = state.reshape(2, n, n)
        norm = np.sqrt(np.outer(np.diag(K), np.diag(K)))
        angle = np.arccos(np.clip(K / norm, -1, 1))
        np.fill_diagonal(angle, 0.0)
        moved = W**2 * norm / (2 * np.pi) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) + B**2
        return np.stack([moved, W**2 * theta * (np.pi - angle) / (2 * np.pi) + moved]).ravel()

    start = W**2 * X @ X.T / X.shape[1] + B**2
    found = solve_ivp(velocity, (0, 1), np.stack([start, start]).ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
    K, theta = found.y[:, -1].reshape(2, n, n)
    return W**2 * K + B**2, W**2 * theta + W**2 * K + B**2


def gradient(blocks: int) -> np.ndarray:
    """Differentiate K(x, z) in x through all blocks, (3,)."""
    net, z = network(blocks, "depth"), POINTS[1:2]

    def value(x: jax.Array) -> jax.Array:
        left, right = net.encode(x), net.encode(jnp.asarray(z))
        state = net.pairwise(left, right, same=False)
        return scaled(state.correlation.rho, left.variance, right.variance)[0, 0]

    with arithmetic(True):
        return np.asarray(jax.jit(jax.jacfwd(value))(jnp.asarray(POINTS[:1]))[0])


def continuum_gradient() -> np.ndarray:
    """Differentiate the same at L = inf, by central differences, right to 1e-6."""
    steps = 1e-5 * np.eye(3)
    ends = [[continuum(np.stack([POINTS[0] + s * step, POINTS[1]]))[0][0, 1] for s in (1, -1)] for step in steps]
    return np.array([(up - down) / 2e-5 for up, down in ends])


def gap(found: Array, limit: np.ndarray) -> float:
    """Return the relative distance."""
    return float(np.linalg.norm(np.asarray(found) - limit) / np.linalg.norm(limit))


def correlations(K: Array) -> np.ndarray:
    """Return 1 - rho of the pairs of the first four points, from a kernel."""
    scale = np.sqrt(np.diag(K))
    return np.asarray(1 - K / np.outer(scale, scale))[np.triu_indices(4, 1)]


def chi(blocks: int, scale: str) -> float:
    """Return the growth of squared gradients through the blocks, by the kernel of the first layer alone."""
    first = W**2 * np.mean(POINTS[:2] ** 2, axis=1) + B**2
    return float((wl.ntk(frozen(blocks, scale)).diag(POINTS[:2]) / (W**2 * first)).max())


def temporary(blocks: int) -> int:
    """Return the bytes that the program of all pairs takes beside its arguments and its result."""
    with arithmetic(True):
        net = network(blocks, "depth")
        encoded = jax.eval_shape(net.encode, jnp.zeros((ROWS, 3)))
        program: Any = jax.jit(lambda x: net.pairwise(x, x, same=True)).lower(encoded).compile()
    return int(program.memory_analysis().temp_size_in_bytes)


def seconds(blocks: int) -> float:
    """Return the processor time of a Gram matrix, the shortest of three."""
    kernel, times = wl.limits(network(blocks, "depth")), []
    for _ in range(4):
        start = time.process_time()
        kernel.gram(POINTS)
        times.append(time.process_time() - start)
    return min(times[1:])


def deep(effort: Effort) -> dict[str, np.ndarray]:
    """Compute gaps to L = inf of kernels and gradient, correlations, chi, and the cost, by depth."""
    limits, slope = continuum(POINTS), continuum_gradient()
    grams = [wl.limits(network(blocks, "depth")).gram(POINTS) for blocks in DEPTHS.tolist()]
    kernels = [[gap(found, limit) for found, limit in zip(gram, limits, strict=True)] for gram in grams]
    ends = DEPTHS if effort is Effort.FULL else DEPTHS[[0, -1]]
    return {
        "depths": DEPTHS,
        "kernels": np.array(kernels).T,
        "gradient": np.array([gap(gradient(blocks), slope) for blocks in ends.tolist()]),
        "correlations": np.stack([correlations(gram.nngp) for gram in grams]),
        "limit": correlations(limits[0]),
        "ends": ends,
        "chi": np.array([chi(blocks, "depth") for blocks in ends.tolist()]),
        "seconds": np.array([seconds(blocks) for blocks in DEPTHS[2:].tolist()]),
        "bytes": np.array([temporary(blocks) for blocks in DEPTHS[1:3].tolist()]),
    }


def collapsing() -> dict[str, np.ndarray]:
    """Compute 1 - rho of the same networks with branches of 1, by depth; the layer norm keeps numbers in range."""
    nets = [network(blocks, "one", LayerNorm(), Dense()) for blocks in DEPTHS[1:].tolist()]
    return {
        "depths": DEPTHS[1:],
        "correlations": np.stack([correlations(wl.nngp(net).gram(POINTS[:4])) for net in nets]),
    }


def slope_of(name: str, depths: np.ndarray, values: np.ndarray, predicted: float) -> Check:
    """Check an exponent in the depth: the next order, of relative size 1/L, counts as error."""
    return slope_check(name, power_law(depths.astype(float), values, values / np.sqrt(depths)), predicted, 0.05)


def gradient_check(blocks: int, found: float, name: str) -> Check:
    """Check chi against (1 + alpha/L)^L, to one rounding error per block."""
    predicted = (1 + ALPHA / blocks) ** blocks
    why = f"(1 + W^2/(2 L))^L = {predicted:.5g}; a rounding a block"
    return within(name, found / predicted, 1.0, (64 + blocks) * EPS, why)


def measure(effort: Effort) -> Measurement:
    """Measure the limit in the depth; the collapse and the growth of the others; time and memory."""
    found, other = deep(effort), collapsing()
    checks = [
        slope_of(f"gap of {name} to that of L = inf: slope", DEPTHS, values, -1.0)
        for name, values in zip(("K", "Theta"), found["kernels"], strict=True)
    ]
    steepness = np.diff(np.log10(found["gradient"][[0, -1]])).item() / np.diff(np.log10(DEPTHS[[0, -1]])).item()
    checks.append(within("gap of dK/dx to that of L = inf: slope", steepness, -1.0, 0.05, "the next order in 1/L"))
    kept = float((found["correlations"][-1] / found["limit"]).min())
    checks.append(at_least("1 - rho at L = 10,000 over that at L = inf", kept, 0.99, "correlations do not collapse"))
    checks += [
        gradient_check(int(blocks), value, f"chi at L = {blocks} over its formula")
        for blocks, value in zip(found["ends"], found["chi"], strict=True)
    ]
    last = other["correlations"][-1] * DEPTHS[-1] ** 2 / COLLAPSE
    q0 = W**2 * np.mean(POINTS**2, axis=1) + B**2
    grown = W**2 * ((q0 + B**2 / ALPHA) * (1 + ALPHA) ** 1000 - B**2 / ALPHA) + B**2
    ratio = np.asarray(wl.nngp(network(1000, "one")).diag(POINTS)) / grown
    array = 8.0 * ROWS**2
    checks += [
        slope_of("branches of 1: 1 - rho, slope", DEPTHS[1:], other["correlations"].max(axis=1), -2.0),
        within("branches of 1: (1 - rho) L^2 over its formula", float(last.max()), 1.0, 0.02, "order log(L)/L"),
        at_most(
            "branches of 1: relative error of variances", np.abs(ratio - 1).max(), 1064 * EPS, "a rounding a block"
        ),
        within("time: slope in L", float(np.log10(found["seconds"][1] / found["seconds"][0])), 1.0, 0.3, "linear"),
        at_most(
            "memory of 900 more blocks, in n x n arrays a block", np.ptp(found["bytes"]) / 900 / array, 0.05, MEMOS
        ),
    ]
    return Measurement(tuple(checks), found)


def violate(effort: Effort) -> Measurement:  # noqa: ARG001, the same for both
    """Use branches of 1."""
    other, limit = collapsing(), correlations(continuum(POINTS[:4])[0])
    gaps = np.array([gap(values, limit) for values in other["correlations"]])
    kept = float((other["correlations"][-1] / limit).min())
    checks = (
        slope_of("gap of 1 - rho to that of L = inf: slope, branches of 1", DEPTHS[1:], gaps, -1.0),
        at_least("1 - rho at L = 10,000 over that at L = inf, branches of 1", kept, 0.99, "they collapse"),
        gradient_check(10, chi(10, "one"), "chi at L = 10 over its formula, branches of 1"),
    )
    return Measurement(checks, other)


def draw(data: Data, control: Data) -> Figure:
    """Draw correlations and gaps against the depth."""
    figure, (one, two) = plots.panels(2)
    depths = data["depths"]
    for k, color in enumerate(plots.palette(3)):
        one.axhline(data["limit"][k], color=color, linewidth=0.8)
        one.plot(depths, data["correlations"][:, k], "o", color=color, label=f"pair {k + 1}")
        label = "control: branches of 1" if k == 0 else ""
        one.plot(control["depths"], control["correlations"][:, k], "x", color=plots.DESCENT, label=label)
    one.plot(depths[1:], COLLAPSE / depths[1:] ** 2.0, ":", color=plots.DESCENT, label="its formula, L$^{-2}$")
    rows = {
        "K": (depths, data["kernels"][0]),
        "Theta": (depths, data["kernels"][1]),
        "dK/dx": (data["ends"], data["gradient"]),
    }
    for (name, (x, values)), color in zip(rows.items(), plots.palette(3), strict=True):
        two.plot(x, values[0] * x[0] / x, color=color, linewidth=0.8)
        two.plot(x, values, "o", color=color, label=name)
    for axes in (one, two):
        axes.set(xscale="log", yscale="log")
    plots.finish(one, xlabel="blocks L", ylabel=r"$1 - \rho$", title="Correlations; lines: L = infinity")
    plots.finish(two, xlabel="blocks L", ylabel="relative gap", title="Gap to L = infinity; lines: 1/L")
    return figure


CLAIM = Claim(
    title="Residual networks have a limit in the depth",
    statement="A residual network a <- a + c affine(phi(a)) of L blocks with c = 1/sqrt(L) has kernels, correlations "
    "and gradients that tend to finite limits as L grows, the solutions of an ordinary differential equation in l/L, "
    "of which the network is Euler's method. With c = 1 variances and squared gradients grow like (1 + W^2/2)^L for "
    "relu, and all inputs become alike: 1 - rho falls like L^-2.",
    source="Hayou et al. 2021, arXiv 2010.12859, for the limit; Yang and Schoenholz 2017, arXiv 1712.08969, for the "
    "collapse; mean-field recursions as in Lee et al. 2018, arXiv 1711.00165. Relu, W = 1.3, B = 0.2.",
    prediction="dK/dt = W^2 E[phi phi'] + B^2 and dTheta/dt = W^2 Theta E[phi' phi'] + dK/dt at t = 1; gaps to it of "
    "order 1/L for K, Theta and dK/dx, from L = 10 to 10,000; chi = (1 + W^2/(2 L))^L. With c = 1: variances (q + 2 "
    "B^2/W^2)(1 + W^2/2)^L - 2 B^2/W^2, and (1 - rho) L^2 = (9 pi^2/2)(1 + 2/W^2)^2. Time is linear in L, and "
    "no n x n array is kept for a block.",
    tolerance="Slopes within 0.05, the next order in 1/L; formulas to a rounding a block; the slope of time within "
    "0.3, where a quadratic cost has 2.",
    control="Branches of 1: all statements of the limit must fail.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
