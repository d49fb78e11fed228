"""Section 3.3: a network of depth 1 is linear regression, and its tangent kernel Sigma^1 does not change."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import EPS, Claim, Data, Effort, Measurement, at_most, within

SEED = 3303
BOUND = 64 * EPS
STEPS = 300


def problem() -> tuple[np.ndarray, np.ndarray]:
    """Return twelve points in four dimensions, two targets."""
    rng = np.random.default_rng(SEED)
    return rng.standard_normal((12, 4)), rng.standard_normal((12, 2))


def train_network(
    net: wl.Network, rate: float, width: int | tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compute kernels before and after, (12, 12); f_0 and the trained outputs at the training points, (12, 2)."""
    X, y = problem()
    params = net.init(SEED, input_dim=4, width=width, output_dim=2, dtype=np.float64)
    run = wl.train(net.apply, params, X, y, learning_rate=rate, steps=STEPS, progress=False)
    kernels = [np.asarray(wl.empirical_ntk(net.apply, p, output="trace").gram(X)) for p in (params, run.params)]
    return kernels[0], kernels[1], np.asarray(net.apply(params, X)), np.asarray(net.apply(run.params, X))


def gaps(net: wl.Network, width: int | tuple[int, ...]) -> tuple[float, float, float, np.ndarray]:
    """Compute relative gaps: kernel at the start to Sigma^1, at the end to the start, outputs to descent; and K."""
    X, y = problem()
    line = wl.mlp(depth=1, weight_std=1.3, bias_std=0.4)
    limit = np.asarray(wl.nngp(line).gram(X))
    rate = 0.5 * wl.max_learning_rate(wl.ntk(line), X)
    before, after, start, end = train_network(net, rate, width)
    kernel = wl.precomputed(limit)
    descent = wl.gradient_descent(kernel, kernel.indices, y - start, learning_rate=rate, steps=STEPS)
    predicted = start + np.asarray(descent.predict(kernel.indices))
    size = np.abs(limit).max()
    return (
        float(np.abs(before - limit).max() / size),
        float(np.abs(after - before).max() / size),
        float(np.abs(end - predicted).max() / np.abs(y).max()),
        after,
    )


def measure(effort: Effort) -> Measurement:
    """Measure depth 1: its kernels, and its training against kernel descent with Sigma^1."""
    X, _ = problem()
    net = wl.mlp(depth=1, weight_std=1.3, bias_std=0.4)
    start, moved, outputs, after = gaps(net, ())
    both = np.abs(np.asarray(wl.ntk(net).gram(X)) - np.asarray(wl.nngp(net).gram(X))).max()
    rank = wl.GaussianProcess(wl.ntk(net)).rank(X)
    checks = (
        at_most("empirical kernel at the start against Sigma^1", start, BOUND, "rounding"),
        at_most("... after 300 steps against the start", moved, BOUND, "the kernel has no parameters in it"),
        at_most("Theta^1 against Sigma^1", both, 0.0, "one recursion, the same start"),
        at_most("trained outputs against kernel descent", outputs, STEPS * 16 * EPS, "16 eps a step"),
        within("rank of Sigma^1 on 12 points", rank, 5, 0, "four features and the bias"),
    )
    del effort
    limit = np.asarray(wl.nngp(net).gram(X))
    return Measurement(checks, {"limit": limit, "after": after})


def violate(effort: Effort) -> Measurement:
    """Use depth 2 in its place."""
    net = wl.mlp(depth=2, weight_std=1.3, bias_std=0.4)
    start, moved, outputs, after = gaps(net, effort.pick(quick=64, full=1024))
    checks = (
        at_most("depth 2: kernel at the start against Sigma^1", start, BOUND, "another kernel"),
        at_most("... after 300 steps against the start", moved, BOUND, "it moves at every finite width"),
        at_most("trained outputs against kernel descent with Sigma^1", outputs, STEPS * 16 * EPS, "as above"),
    )
    return Measurement(checks, {"after": after})


def draw(data: Data, control: Data) -> Figure:
    """Draw kernel entries after training against Sigma^1."""
    figure, (axes,) = plots.panels(1)
    limit = data["limit"].ravel()
    ends = np.array([limit.min(), limit.max()])
    axes.plot(ends, ends, color=plots.BAYES, label=r"$\Sigma^1$")
    axes.plot(limit, data["after"].ravel(), ".", color=plots.DATA, markersize=4, label="depth 1, trained")
    axes.plot(
        limit, control["after"].ravel(), "x", color=plots.DESCENT, markersize=4, label="control: depth 2, trained"
    )
    plots.finish(axes, xlabel=r"$\Sigma^1(x_i, x_j)$", ylabel="empirical tangent kernel", title="Entries of the kernel")
    return figure


CLAIM = Claim(
    title="Depth 1 is linear regression",
    statement="A network without hidden layers is f(x) = w W x/sqrt(d) + beta b. Its tangent kernel is Sigma^1(x, x') "
    "= w^2 x.x'/d + beta^2 at every initialisation and throughout training, so that its training is kernel gradient "
    "descent exactly.",
    source="Section 3.3 of the paper.",
    prediction="The empirical kernel equals Sigma^1 before and after 300 steps; the trained outputs equal kernel "
    "gradient descent with Sigma^1 from the same f_0; Sigma^1 has rank d + 1.",
    tolerance="Rounding: 64 eps for entries, 16 eps a step for outputs.",
    control="A network of depth 2.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
