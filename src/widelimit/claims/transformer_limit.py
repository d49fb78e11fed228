"""A transformer block tends to its limit: with scores over d as heads get wide, over sqrt(d) as heads get many."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims import limits
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement
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
"""query_std and key_std of the negative control."""
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


def errors(kind: str, found: wl.BothKernels, count: int) -> np.ndarray:
    """Return rms relative errors of K and Theta and standard errors, (2, 2, widths); count: times NETWORKS."""
    sizes = zip(WIDTHS[kind].tolist(), (count * NETWORKS).tolist(), strict=True)
    rows = TOKENS.reshape(len(TOKENS), -1)
    return limits.errors(lambda width: network(kind, width, STDS), rows, found, sizes, SEED)


def measured(effort: Effort, name: str, stds: Mapping[str, tuple[float, float]]) -> Measurement:
    """Measure the slopes against the limits with these deviations of queries and keys."""
    checks, data = list[Check](), {}
    for k, kind in enumerate(KINDS):
        found = wl.limits(network(kind, 8, stds)).gram(TOKENS.astype(float))
        data[f"errors{k}"] = errors(kind, found, effort.pick(quick=1, full=4))
        checks += limits.slopes(WIDTHS[kind].astype(float), data[f"errors{k}"], kind, name)
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
        limits.draw(axes, WIDTHS[kind].astype(float), data[f"errors{k}"], control[f"errors{k}"], kind)
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
