"""Theorem 4.1, corrected: the empirical tangent kernel tends to Theta times the identity at rate width^-1/2."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_most, slope_check
from widelimit.claims.finite import tangent_kernels
from widelimit.claims.statistics import power_law, root_mean_and_error

SEED = 4101
POINTS = np.random.default_rng(SEED).standard_normal((3, 3))
OUTPUTS = 2
SLOPE = 0.1
"""The fitted exponents may differ by this: next orders in depth/width, a few hundredths, and the statistical error."""
LEVEL = 5.0


def networks(effort: Effort) -> dict[str, wl.Network]:
    """Return depth 2 and 3."""
    networks = {
        "relu, depth 2": wl.mlp(depth=2, weight_std=2**0.5, bias_std=0.3),
        "relu, depth 3": wl.mlp(depth=3, weight_std=2**0.5, bias_std=0.3),
        "erf, depth 3": wl.mlp(depth=3, activation="erf", weight_std=1.3, bias_std=0.3),
        "tanh, depth 2": wl.mlp(depth=2, activation="tanh", weight_std=1.3, bias_std=0.3),
    }
    kept = effort.pick(quick=("relu, depth 2", "erf, depth 3"), full=tuple(networks))
    return {name: networks[name] for name in kept}


def widths(net: wl.Network, effort: Effort) -> np.ndarray:
    """Return the widths of all hidden layers."""
    return 32 * (net.depth - 1) * effort.pick(quick=np.array([1, 2, 4]), full=np.array([1, 2, 4, 8]))


def study(net: wl.Network, limit: np.ndarray, effort: Effort) -> dict[str, np.ndarray]:
    """Compute relative errors of diagonal blocks and sizes of off-diagonal ones, (2, widths): value and error."""
    count = effort.pick(quick=400, full=1000)
    diagonal, off = [], []
    for width in widths(net, effort).tolist():
        found = tangent_kernels(
            net, POINTS, widths=(width,) * (net.depth - 1), output_dim=OUTPUTS, count=count, seed=SEED + width
        )
        blocks = np.einsum("eijaa->eaij", found)
        errors = np.mean(np.sum((blocks - limit) ** 2, axis=(2, 3)), axis=1)
        diagonal.append(root_mean_and_error(errors / np.sum(limit**2)))
        off.append(root_mean_and_error(np.sum(found[..., 0, 1] ** 2, axis=(1, 2)) / np.sum(limit**2)))
    return {"widths": widths(net, effort), "diagonal": np.array(diagonal).T, "off": np.array(off).T}


def mean_deviation(effort: Effort, *, factor: float = 1.0) -> float:
    """Compute the largest deviation of the mean kernel of many networks of depth 2 from the limit, in standard errors.

    At depth 2 the mean is the limit at every width: the layer's neurons are independent.
    """
    net = wl.mlp(depth=2, weight_std=2**0.5, bias_std=0.3)
    limit = factor * np.asarray(wl.ntk(net).gram(POINTS))
    count = effort.pick(quick=8000, full=40_000)
    found = tangent_kernels(net, POINTS, widths=(64,), output_dim=1, count=count, seed=SEED)[..., 0, 0]
    return float(np.abs((found.mean(axis=0) - limit) / (found.std(axis=0, ddof=1) / np.sqrt(count))).max())


def kernel_as_printed(net: wl.Network) -> np.ndarray:
    """Compute the kernel that solves Theta = Theta Sdot^{L+1} + Sigma^{L+1}, the recursion as printed with L for l."""
    deeper = wl.mlp(depth=net.depth + 1, weight_std=2**0.5, bias_std=0.3)
    sigma, variance = np.asarray(wl.nngp(net).gram(POINTS)), np.asarray(wl.nngp(net).diag(POINTS))
    slope = 2 * np.asarray(wl.Relu().dual_derivative(variance[:, None] + 0 * sigma, sigma, variance + 0 * sigma))
    return np.asarray(np.asarray(wl.nngp(deeper).gram(POINTS)) / np.where(slope < 0.999, 1 - slope, np.inf))


def measure(effort: Effort) -> Measurement:
    """Measure slopes of both parts; the exact mean."""
    checks: list[Check] = []
    data: dict[str, np.ndarray] = {}
    for name, net in networks(effort).items():
        found = study(net, np.asarray(wl.ntk(net).gram(POINTS)), effort)
        x = found["widths"].astype(float)
        checks += [
            slope_check(f"{name}: slope of the error", power_law(x, *found["diagonal"]), -0.5, SLOPE),
            slope_check(f"{name}: slope of off-diagonal blocks", power_law(x, *found["off"]), -0.5, SLOPE),
        ]
        data |= {f"{name}/{key}": value for key, value in found.items()}
    off = mean_deviation(effort)
    checks.append(at_most("mean kernel at depth 2, width 64: deviation", off, LEVEL, "standard errors, 6 entries"))
    return Measurement(tuple(checks), data)


def violate(effort: Effort) -> Measurement:
    """Use the recursion as printed; and the limit times 1.02."""
    net = wl.mlp(depth=2, weight_std=2**0.5, bias_std=0.3)
    found = study(net, kernel_as_printed(net), effort)
    line = power_law(found["widths"].astype(float), *found["diagonal"])
    checks = (
        slope_check("slope of the error, L printed for l", line, -0.5, SLOPE),
        at_most("mean kernel, limit times 1.02", mean_deviation(effort, factor=1.02), LEVEL, "a planted factor"),
    )
    return Measurement(checks, found)


def draw(data: Data, control: Data) -> Figure:
    """Draw errors and off-diagonal blocks against width."""
    figure, panels = plots.panels(2)
    names = [key.removesuffix("/off") for key in data if key.endswith("/off")]
    titles = {"diagonal": "Error of a diagonal block", "off": "Size of an off-diagonal block"}
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        for name, color in zip(names, plots.palette(len(names)), strict=True):
            x, value = data[f"{name}/widths"], data[f"{name}/{kind}"][0]
            axes.plot(x, value[0] * (x / x[0]) ** -0.5, color=color, linewidth=0.8)
            plots.error_bars(axes, x, data[f"{name}/{kind}"], color=color, label=name if kind == "diagonal" else "")
        if kind == "diagonal":
            label = "control: recursion as printed"
            plots.error_bars(axes, control["widths"], control[kind], "x", color=plots.DESCENT, label=label)
        seen = np.unique(np.concatenate([data[f"{name}/widths"] for name in names]))
        title = f"{title}; lines: width$^{{-1/2}}$"
        plots.finish_over_widths(axes, seen, ylabel=r"relative to $|\Theta|$", title=title)
    return figure


CLAIM = Claim(
    title="The tangent kernel has a limit",
    statement="As the widths grow the empirical tangent kernel of a random network tends to Theta^L times the "
    "identity over outputs, with Theta^{l+1} = w^2 Theta^l E[phi' phi'] + Sigma^{l+1}. (The paper prints Theta^L "
    "Sdot^{L+1} + Sigma^{L+1} on the right.)",
    source="Theorem 4.1 of the paper, corrected; Jacot et al. 2018, Theorem 1.",
    prediction="Slopes of -1/2 in log width for the error of diagonal blocks and for the size of off-diagonal ones; "
    "at depth 2 the mean over networks is the limit at every width.",
    tolerance="Slopes within 0.1; the mean within 5 standard errors of 8,000 or 40,000 networks, about 0.2 %.",
    control="The kernel that solves the recursion as printed; the limit times 1.02.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
