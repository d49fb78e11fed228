"""Section 5.2: the limit stops describing networks with learned features, large steps, or small widths."""

import warnings
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_least, at_most
from widelimit.claims.finite import one_network, parameters, train_many
from widelimit.claims.statistics import mean_and_error, root_mean_and_error

SEED = 5201
N = 24
FLAT = wl.mlp(depth=2, activation="relu", weight_std=2**0.5)
"""The network of the catapult: two layers, no bias, as in its theory."""
STEPS = 200


def deep(parameterization: str = "ntk") -> wl.Network:
    """Make the network of all checks except the catapult."""
    return wl.mlp(depth=3, activation="erf", weight_std=1.5, bias_std=0.3, parameterization=parameterization)


class LargeRateRun(NamedTuple):
    """These are the losses of a network at a large learning rate, and of kernel descent at the same rate."""

    loss: np.ndarray
    """Losses of the network, (steps + 1,)."""
    kernel: np.ndarray
    """Losses of kernel descent with the network's kernel at the start, at the same steps."""
    sharpness: tuple[float, float]
    """learning_rate lambda_max/n of the empirical kernel, at the start and at the end: above 1, descent diverges."""


def problem() -> tuple[np.ndarray, np.ndarray]:
    """Return 24 points in four dimensions and a target that depends on one of them."""
    X = np.random.default_rng(SEED).standard_normal((N, 4))
    return X, np.sin(2 * X[:, 0])


def features(parameterization: str, effort: Effort) -> tuple[np.ndarray, float]:
    """Compute drift of the kernel in training, mean and error, and its alignment's growth with the target, mean."""
    X, y = problem()
    width = effort.pick(quick=256, full=1024)
    net = deep(parameterization)
    params = parameters(net, (4, width, width, 1), count=4, rng=np.random.default_rng(SEED))
    rate = 0.1 * (width if parameterization == "mean_field" else 1)
    run = train_many(net, params, X, y, learning_rate=rate, steps=2 * STEPS, record_every=2 * STEPS, kernel_points=N)
    alignment = run.history.alignment
    return np.array(mean_and_error(run.history.kernel_drift[-1])), float((alignment[-1] - alignment[0]).mean())


def catapult(share: float, effort: Effort) -> LargeRateRun:
    """Train a wide network at `share` times the largest learning rate that its kernel at the start allows."""
    X, y = problem()
    sizes = (4, effort.pick(quick=512, full=4096), 1)
    params = one_network(FLAT, sizes, rng=np.random.default_rng(SEED))
    tangent = wl.empirical_ntk(FLAT.apply, params, output="trace")
    gram = np.asarray(tangent.gram(X))
    rate = share * N / float(np.linalg.eigvalsh(gram)[-1])
    k = wl.precomputed(gram)
    start = np.asarray(FLAT.apply(params, X))[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the learning rate and of divergence, both on purpose
        run = train_many(FLAT, params, X, y, stacked=False, learning_rate=rate, steps=STEPS, record_every=1)
        counts = np.arange(STEPS + 1)
        descent = wl.gradient_descent(k, k.indices, y - start, learning_rate=rate, steps=counts)
    end = np.asarray(wl.empirical_ntk(FLAT.apply, run.params, output="trace").gram(X))
    sharpness = tuple(rate * float(np.linalg.eigvalsh(g)[-1]) / N for g in (gram, end))
    kernel = np.minimum(np.asarray(descent.loss()), 1e12)
    return LargeRateRun(np.minimum(run.history.loss, 1e12), kernel, (sharpness[0], sharpness[1]))


def width_gap(width: int, seeds: int) -> tuple[float, float]:
    """Compute the root mean square gap of trained networks to kernel descent off the data, over the targets' size.

    Returns the gap and its standard error.
    """
    X, y = problem()
    net = deep()
    params = parameters(net, (4, width, width, 1), count=seeds, rng=np.random.default_rng(SEED + width))
    Z = np.random.default_rng(SEED + 1).standard_normal((16, 4))
    everything = np.vstack([X, Z])
    run = train_many(net, params, X, y, learning_rate=0.02, steps=STEPS, record_every=STEPS, probes=everything)
    start, end = run.history.outputs[0], run.history.outputs[-1]
    descent = wl.gradient_descent(wl.ntk(net), X, (y - start[:, :N]).T, learning_rate=0.02, steps=STEPS)
    expected = start[:, N:] + np.asarray(descent.predict(Z)).T
    return root_mean_and_error(np.mean((end[:, N:] - expected) ** 2, axis=1) / np.mean(y**2))


def catapult_checks(found: LargeRateRun, text: str) -> list[Check]:
    """Check that the loss rises and then falls, where kernel descent diverges: the catapult."""
    loss, kernel = found.loss / found.loss[0], found.kernel / found.loss[0]
    return [
        at_least(f"{text}: largest loss over the first", loss.max(), 1.5, "it rises"),
        at_most(f"{text}: last loss over the first", loss[-1], 0.1, "then it falls"),
        at_most(f"{text}: learning_rate lambda_max/n at the end", found.sharpness[1], 1.0, "the kernel has flattened"),
        at_least(f"{text}: kernel descent, last loss over the first", kernel[-1], 1e3, "it diverges"),
    ]


def measure(effort: Effort) -> Measurement:
    """Measure features, catapult, small widths."""
    moved, gain = features("mean_field", effort)
    lazy, still = features("ntk", effort)
    thrown = catapult(1.5, effort)
    sizes = effort.pick(quick=np.array([4, 256]), full=np.array([4, 16, 64, 256, 1024]))
    gaps = np.array([width_gap(int(n), effort.pick(quick=8, full=32)) for n in sizes])
    checks = [
        at_least("mean field: drift of the kernel", moved[0], 0.3, "of order 1 at every width"),
        at_most("NTK scaling: drift of the kernel", lazy[0], moved[0] / 3, "of order width^-1/2: less than a third"),
        Check("mean field: growth of alignment over the other's", gain - still, 0.02, 1.0, "features are learned"),
        *catapult_checks(thrown, "1.5 x the stable rate"),
        at_least("width 4: gap to the limit over the targets", gaps[0, 0], 0.3, "the limit says nothing"),
        at_most("largest width: the same gap", gaps[-1, 0], gaps[0, 0] / 3, "the limit describes them"),
    ]
    data = {"loss": thrown.loss, "kernel": thrown.kernel, "widths": sizes, "gaps": gaps}
    return Measurement(tuple(checks), data | {"drifts": np.array([lazy, moved]), "gains": np.array([still, gain])})


def violate(effort: Effort) -> Measurement:
    """Use half the bound as learning rate, which cannot catapult; and a rate from which no network returns."""
    gentle, wild = catapult(0.5, effort), catapult(20.0, effort)
    lost = float(np.nan_to_num(wild.loss[-1] / wild.loss[0], nan=np.inf))
    checks = (
        *catapult_checks(gentle, "0.5 x the stable rate")[::3],
        at_most("20 x the stable rate: last loss over the first", lost, 0.1, "as for 1.5 x the stable rate"),
    )
    return Measurement(checks, {"gentle": gentle.loss, "wild": wild.loss})


def draw(data: Data, control: Data) -> Figure:
    """Draw losses at a large rate; drift; gaps at small widths."""
    figure, (one, two, three) = plots.panels(3)
    one.semilogy(data["kernel"], color=plots.BAYES, label="kernel descent")
    one.semilogy(data["loss"], ".", color=plots.DATA, markersize=3, label="network")
    one.semilogy(control["gentle"], color=plots.DESCENT, linestyle=":", label="control: half the stable rate")
    plots.finish(one, xlabel="step", ylabel="cost", title="1.5 x the stable learning rate").set_ylim(1e-6, 1e4)
    for place, (value, error), color in zip((0, 1), data["drifts"], (plots.BAYES, plots.DESCENT), strict=True):
        two.errorbar(place, value, error, fmt="o", color=color, capsize=2)
    two.set_xticks([0, 1], ["NTK", "mean field"])
    two.set(xlim=(-0.7, 1.7), ylim=(0, None))
    xlabel, ylabel = "scaling of the network's output", r"$|\Theta_t - \Theta_0|/|\Theta_0|$"
    plots.finish(two, xlabel=xlabel, ylabel=ylabel, title="Lazy, and learning features")
    x, gaps = data["widths"], data["gaps"].T
    plots.error_bars(three, x, gaps, label="measured")
    three.plot(x, gaps[0, -1] * (x / x[-1]) ** -0.5, color=plots.BAYES, label="width$^{-1/2}$")
    plots.finish_over_widths(three, x, ylabel="gap to the limit / targets", title="Small widths")
    return figure


CLAIM = Claim(
    title="Where the limit stops describing networks",
    statement="The kernel picture needs the NTK scaling, small learning rates and large widths. In the mean-field "
    "scaling the kernel moves by its own size and aligns with the target. At learning rates above the stable one "
    "kernel descent diverges, but a network can be thrown to a flatter place and converge (the catapult). Narrow "
    "networks are far from the limit.",
    source="Section 5.2 of the paper; Chizat et al. 2019, arXiv 1812.07956; Lewkowycz et al. 2020, arXiv 2003.02218.",
    prediction="Mean field: a drift of at least 0.3 and more alignment; NTK scaling: less than a third of that drift. "
    "At 1.5 times the stable rate the loss first rises, then falls below a tenth, and the kernel's largest eigenvalue "
    "ends below n/learning_rate, while kernel descent diverges. At width 4 the gap to the limit is at least 0.3 of "
    "the targets.",
    tolerance="Statements of order of magnitude: factors of three, fixed before the measurement.",
    control="Half the stable rate, which cannot catapult, and twenty times it, from which nothing returns.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
