"""A transformer block tends to its limit: over d with the width of its heads, over the root of d with their number."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, slope_check
from widelimit.claims.statistics import power_law, root_mean_and_error
from widelimit.layers import LayerNorm

SEED = 2401
TOKENS = np.random.default_rng(SEED).standard_normal((2, 3, 2)).astype(np.float32)
"""Two sequences of three tokens."""
KINDS = {"softmax over d": ("softmax", "d"), "relu over sqrt(d)": ("relu", "sqrt_d")}
WIDTHS = {"softmax over d": np.array([32, 128, 512]), "relu over sqrt(d)": np.array([24, 64, 160])}
NETWORKS = np.array([128, 48, 16])
"""Networks of each width; four times as many with full settings."""
STDS = {"d": (2.0, 1.5), "sqrt_d": (0.5, 1.0)}
"""query_std and key_std."""
OTHERS = {"d": (1e-9, 1.0), "sqrt_d": (1.0, 1.0)}
"""Those of the control."""
VALUE = 2.0


def network(kind: str, width: int, deviations: Mapping[str, tuple[float, float]]) -> wl.Network:
    """Make a block whose heads are as wide as the network and, over sqrt(d), as many."""
    scores, scaling = KINDS[kind]
    sizes = {"heads": 2 if scaling == "d" else width, "head_size": width}
    query, key = deviations[scaling]
    stds = {"query_std": query, "key_std": key, "value_std": VALUE, "bias_std": 0.1}
    inputs = wl.Image(*TOKENS.shape[1:])
    given = {
        "scores": scores,
        "scaling": scaling,
        "positions": "learned",
        "causal": True,
        "end": "last",
        **stds,
        **sizes,
    }
    block = wl.transformer(inputs=inputs, depth=1, **given)  # type: ignore[arg-type]
    kept = [layer for layer in block.layers if not isinstance(layer, LayerNorm)]
    return wl.network(*kept, inputs=inputs)  # the last LayerNorm would hide the size of the signals


@jax.jit
def finite(net: wl.Network, params: tuple[object, ...], rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute K, as its mean over last layers is given the hidden ones, and Theta of one finite network."""
    slopes = jax.jacrev(net.signals_of)(params, rows)
    flat = list(map(_rows, jax.tree.leaves(slopes)))
    last = list(map(_rows, jax.tree.leaves(slopes[-1])))
    return sum(row @ row.T for row in last), sum(row @ row.T for row in flat)  # type: ignore[return-value]


def _rows(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(len(leaf), -1)


def errors(kind: str, limits: wl.BothKernels, count: int) -> np.ndarray:
    """Return rms relative errors of K and Theta and standard errors, (2, 2, widths); count: times NETWORKS."""
    rows, found = jnp.asarray(TOKENS.reshape(len(TOKENS), -1)), []
    for width, networks in zip(WIDTHS[kind].tolist(), (count * NETWORKS).tolist(), strict=True):
        net = network(kind, width, STDS)
        drawn = (net.init(SEED + 1000 * width + k, width=width) for k in range(networks))
        squares = [
            [np.sum((np.asarray(own) - limit) ** 2) / np.sum(limit**2) for own, limit in zip(both, limits, strict=True)]
            for both in (finite(net, params, rows) for params in drawn)
        ]
        found.append([root_mean_and_error(column) for column in np.array(squares).T])
    return np.array(found).transpose(1, 2, 0)


def slopes(kind: str, found: np.ndarray, name: str) -> list[Check]:
    """Check the exponents of the errors of K and Theta in the width."""
    widths = WIDTHS[kind].astype(float)
    return [
        slope_check(f"{kind}: error of {kernel} in the width, slope{name}", power_law(widths, *own), -0.5, 0.15)
        for kernel, own in zip(("K", "Theta"), found, strict=True)
    ]


def measured(effort: Effort, name: str, stds: Mapping[str, tuple[float, float]]) -> Measurement:
    """Measure the slopes against the limits with these deviations of queries and keys."""
    checks, data = list[Check](), {}
    for k, kind in enumerate(KINDS):
        limits = wl.limits(network(kind, 8, stds)).gram(TOKENS.astype(float))
        data[f"errors{k}"] = errors(kind, limits, effort.pick(quick=1, full=4))
        checks += slopes(kind, data[f"errors{k}"], name)
    return Measurement(tuple(checks), data)


def measure(effort: Effort) -> Measurement:
    """Measure the errors of finite blocks."""
    return measured(effort, "", STDS)


def violate(effort: Effort) -> Measurement:
    """Compare with the limit of independent queries and keys, whose scores vanish, and with one without query_std."""
    return measured(effort, ", of another limit", OTHERS)


def draw(data: Data, control: Data) -> Figure:
    """Draw errors against the width."""
    figure, panels = plots.panels(2)
    for k, (kind, axes) in enumerate(zip(KINDS, panels, strict=True)):
        widths = WIDTHS[kind].astype(float)
        for row, color in zip((0, 1), plots.palette(2), strict=True):
            label = ("K", "Theta")[row]
            axes.errorbar(
                widths, data[f"errors{k}"][row][0], data[f"errors{k}"][row][1], fmt="o", color=color, label=label
            )
            axes.plot(widths, control[f"errors{k}"][row][0], "x", color=color, label=f"control: {label}")
        axes.plot(widths, data[f"errors{k}"][0][0][0] * (widths / widths[0]) ** -0.5, color=plots.DATA, linewidth=0.8)
        axes.set(xscale="log", yscale="log")
        plots.finish(axes, xlabel="width", ylabel="relative error", title=f"{kind}; line: slope -1/2")
    return figure


CLAIM = Claim(
    title="Transformers tend to their limits",
    statement="The kernels of a causal transformer block (attention and two affine layers, each after a LayerNorm in a "
    "residual branch, with learned positions) tend to their limits: softmax scores over d with tied queries and keys "
    "as d grows, relu scores over the root of d as d and the number of heads grow.",
    source="Hron et al. 2020, arXiv 2006.10540, theorems 1 and 3.",
    prediction="Errors of K and Theta fall like width^(-1/2).",
    tolerance="Slope -1/2 +- 0.15: three widths with 128 to 16 networks, whose rms errors are known to 5 to 20 %.",
    control="The limits with scores of 0, those of independent queries and keys over d, and without query_std: all "
    "slopes must fail.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
