"""A graph network tends to its limit as its layers at every node grow."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims import limits
from widelimit.claims.base import Claim, Data, Effort, Measurement

SEED = 2402
RING = np.roll(np.eye(4), 1, axis=0) + np.roll(np.eye(4), -1, axis=0)
STAR = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
SIGNALS = np.random.default_rng(SEED).standard_normal((7, 2))
GRAPHS = [(SIGNALS[:3], STAR), (SIGNALS[3:], RING)]
"""Two graphs, of three and four nodes."""
WIDTHS = np.array([64, 256, 1024])
NETWORKS = np.array([128, 48, 16])
"""Networks of each width; four times as many with full settings."""
NAME = "graphs"


def network(*, self_loops: bool = True) -> wl.Network:
    """Make a network of two blocks, whose readouts are added."""
    given = {"blocks": 2, "normalize": "mean", "readout": "mean", "jumping_knowledge": True, "bias_std": 0.3}
    return wl.gnn(inputs=wl.Graph(4, 2), self_loops=self_loops, **given)  # type: ignore[arg-type]


def measured(effort: Effort, name: str, limit: wl.Network) -> Measurement:
    """Measure the slopes against the limit of a network."""
    net = network()
    count = effort.pick(quick=1, full=4)
    sizes = zip(WIDTHS.tolist(), (count * NETWORKS).tolist(), strict=True)
    rows = np.asarray(net.inputs.rows("graphs", GRAPHS))
    found = limits.errors(lambda _: net, rows.astype(np.float32), wl.limits(limit).gram(rows), sizes, SEED)
    return Measurement(tuple(limits.slopes(WIDTHS.astype(float), found, NAME, name)), {"errors": found})


def measure(effort: Effort) -> Measurement:
    """Measure the errors of finite networks."""
    return measured(effort, "", network())


def violate(effort: Effort) -> Measurement:
    """Compare with the limit of a network whose nodes read their neighbours but not themselves."""
    return measured(effort, ", of another limit", network(self_loops=False))


def draw(data: Data, control: Data) -> Figure:
    """Draw errors against the width."""
    figure, (axes,) = plots.panels(1)
    limits.draw(axes, WIDTHS.astype(float), data["errors"], control["errors"], NAME)
    return figure


CLAIM = Claim(
    title="Graph networks tend to their limits",
    statement="The kernels of a graph network (two blocks of a mean over neighbours and an affine layer with relu at "
    "every node, whose mean readouts are added) tend to B Sigma B'^T, B Theta B'^T and the recursion of the layers as "
    "the width grows, for two graphs of unequal sizes.",
    source="Du et al. 2019, arXiv 1905.13192, section 3.",
    prediction="Errors of K and Theta fall like width^(-1/2).",
    tolerance="Slope -1/2 +- 0.15: three widths with 128 to 16 networks, whose rms errors are known to 5 to 20 %.",
    control="The limit of a network without self loops: all slopes must fail.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
