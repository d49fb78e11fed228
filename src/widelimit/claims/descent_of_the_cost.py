"""Section 3.4: along kernel gradient descent the cost falls at the rate of |d|_K^2."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_least, at_most, within

SEED = 3402
N = 16
STEP = 2e-3
"""The step of central differences, relative to t, is extrapolated: their error is STEP^4 of a fifth derivative."""
AGREEMENT = 1e-6
"""The flow's tolerance is 1e-11 of its size, which the step of the differences turns into 5e-9, times 200."""


def problem() -> tuple[np.ndarray, dict[str, tuple[wl.Loss, np.ndarray]]]:
    """Return inputs, and a loss with targets for each kind."""
    rng = np.random.default_rng(SEED)
    X = rng.standard_normal((N, 3))
    y = X @ [1.0, -1.0, 0.5] + 0.5 * rng.standard_normal(N)
    return X, {
        "squared error": (wl.SquaredError(), y),
        "Huber": (wl.Huber(0.5), y),
        "logistic": (wl.Logistic(), np.sign(y)),
        "Poisson": (wl.Poisson(), rng.poisson(2.0, N).astype(float)),
    }


def rates(
    k: wl.Kernel, X: np.ndarray, loss: wl.Loss, y: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute dC/dt by extrapolated central differences, and |d|_K^2 = (1/n^2) d^T K d, at every time."""
    flow = wl.gradient_flow(k, X, y, loss=loss, tolerance=1e-11)
    # The same times for costs and outputs: a flow is compiled for their number.
    around = (times[:, None] * (1 + np.arange(-2, 3) * STEP)).ravel()
    costs = np.asarray(flow.loss(around)).reshape(len(times), 5)
    slope = (8 * (costs[:, 3] - costs[:, 1]) - (costs[:, 4] - costs[:, 0])) / (12 * STEP * times)
    gram = np.asarray(k.gram(X))
    derivatives = [loss.gradient(f, y) for f in np.asarray(flow.predict(X, around))[2::5]]
    return slope, np.array([d @ gram @ d for d in derivatives]) / N**2


def trajectories(effort: Effort) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Compute the two rates for every loss."""
    times = np.geomspace(0.05, 20, effort.pick(quick=5, full=25))
    X, losses = problem()
    k = wl.ntk(wl.mlp(depth=3, bias_std=0.3))
    return {name: rates(k, X, loss, y, times) for name, (loss, y) in losses.items()}, times


def final_cost(k: wl.Kernel) -> float:
    """Return the squared error at t = inf, relative to that at 0."""
    X, losses = problem()
    end, start = np.asarray(wl.gradient_flow(k, X, losses["squared error"][1]).loss(np.array([np.inf, 0.0])))
    return float(end / start)


def measure(effort: Effort) -> Measurement:
    """Measure rates for four losses, and the end of the descent."""
    found, times = trajectories(effort)
    X, _ = problem()
    k = wl.ntk(wl.mlp(depth=3, bias_std=0.3))
    off = {name: np.abs(slope / -norm - 1).max() for name, (slope, norm) in found.items()}
    largest = max(float(slope.max()) for slope, _ in found.values())
    checks = [
        *(
            at_most(f"{name}: (dC/dt)/(-|d|_K^2) - 1", v, AGREEMENT, "differences of the flow")
            for name, v in off.items()
        ),
        Check("largest dC/dt", largest, -np.inf, -1e-12, "strict descent"),
        at_least("smallest eigenvalue of K(X, X)", wl.rkhs.eigenvalues(k, X)[-1], 1e-6, "strictly definite"),
        at_most("C(inf)/C(0)", final_cost(k), 1e-20, "so the cost falls to 0; rounding squared"),
    ]
    data = {"times": times, **{f"{name}/slope": s for name, (s, _) in found.items()}}
    return Measurement(tuple(checks), data | {f"{name}/norm": n for name, (_, n) in found.items()})


def violate(effort: Effort) -> Measurement:
    """Use the rate as printed, -|d|_K; and a kernel of rank three."""
    found, times = trajectories(effort)
    checks = [
        within(f"{name}: (dC/dt)/(-|d|_K)", float((slope / -np.sqrt(norm))[0]), 1.0, AGREEMENT, "as printed in 3.4")
        for name, (slope, norm) in found.items()
    ]
    checks.append(at_most("C(inf)/C(0), kernel of rank 3", final_cost(wl.linear()), 1e-20, "it stalls where K d = 0"))
    return Measurement(tuple(checks), {"times": times})


def draw(data: Data, control: Data) -> Figure:
    """Draw the rates of fall over time, theory and differences."""
    figure, (axes,) = plots.panels(1)
    _, losses = problem()
    for name, color in zip(losses, plots.LINES[:4], strict=True):
        axes.loglog(data["times"], data[f"{name}/norm"], color=color, label=name)
        axes.loglog(data["times"], -data[f"{name}/slope"], "o", color=color, markersize=4)
    printed = np.sqrt(data["squared error/norm"])
    axes.loglog(control["times"], printed, "x", color=plots.BAYES, markersize=4, label="squared error, as printed")
    plots.finish(
        axes,
        xlabel="time t of d theta/dt = -grad C",
        ylabel="rate of fall of C",
        title="Lines: $|d|_K^2$; dots: $-dC/dt$",
    )
    return figure


CLAIM = Claim(
    title="The cost falls at the squared norm of its derivative",
    statement="Along kernel gradient descent dC/dt = -|d|_K^2 = -(1/n^2) sum_ij d_i K(x_i, x_j) d_j for every "
    "differentiable loss; so with a strictly definite kernel and a convex loss the cost falls to its infimum. The "
    "paper prints -|d|_K, without the square.",
    source="Section 3.4 of the paper, corrected.",
    prediction="The ratio of the two sides is 1 along the trajectories of four losses; the squared error falls to 0 "
    "for the tangent kernel of a network of depth 3, whose Gram matrix is strictly definite.",
    tolerance="Fourth-order differences of a trajectory that is right to 1e-11: 1e-6.",
    control="The rate as printed; and a linear kernel of rank three on 16 points, whose descent stalls above zero.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
