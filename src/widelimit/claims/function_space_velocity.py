"""Equation (3.3): under gradient descent on the parameters, the function moves by its empirical tangent kernel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.arithmetic import arithmetic
from widelimit.claims.base import EPS, Claim, Data, Effort, Measurement, at_most

SEED = 3301
BOUND = 1e3 * EPS
"""The bound is relative to the largest velocity: sums over thousands of parameters have products that partly cancel."""
N, OUTPUTS = 6, 3
WIDTHS = {Effort.QUICK: (1, 32), Effort.FULL: (1, 2, 8, 64, 512)}
"""Widths of all hidden layers, one among them."""


def problem() -> tuple[np.ndarray, np.ndarray, dict[str, tuple[wl.Loss, np.ndarray]]]:
    """Return training inputs, other inputs, and a loss with targets for each kind."""
    rng = np.random.default_rng(SEED)
    X, Z, y = rng.standard_normal((N, 4)), rng.standard_normal((5, 4)), rng.standard_normal((N, OUTPUTS))
    return (
        X,
        Z,
        {
            "squared error": (wl.SquaredError(), y),
            "Huber": (wl.Huber(0.5), y),
            "logistic": (wl.Logistic(), np.sign(y)),
            "softmax": (wl.SoftmaxCrossEntropy(), np.eye(OUTPUTS)[rng.integers(0, OUTPUTS, N)]),
            "Poisson": (wl.Poisson(), rng.poisson(2.0, y.shape).astype(float)),
        },
    )


def velocities(net: wl.Network, width: int, loss: wl.Loss, X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> Any:
    """Compute df/dt at Z along -grad C, (5, c); the kernel at (Z, X), (5, n, c, c); and d|_f, (n, c)."""
    params = net.init(SEED, input_dim=X.shape[1], width=width, output_dim=OUTPUTS, dtype=np.float64)
    with arithmetic(True):

        def cost(params: Any) -> jax.Array:
            return jnp.mean(loss.examples(net.apply(params, X), jnp.asarray(y)))

        step = jax.tree.map(jnp.negative, jax.grad(cost)(params))
        velocity = np.asarray(jax.jvp(lambda params: net.apply(params, Z), (params,), (step,))[1])
        outputs = np.asarray(net.apply(params, X))
    kernel = np.asarray(wl.empirical_ntk(net.apply, params, output="full").cross(Z, X))
    return velocity, kernel, loss.gradient(outputs, y)


def gaps(effort: Effort, *, factor: float = 1.0, coupled: bool = True) -> dict[str, np.ndarray]:
    """Compute the largest |df/dt + (1/n) Theta d| over the largest |df/dt|, for every loss, network and width.

    factor: on the kernel; coupled: whether outputs may move each other. Both are planted errors.
    """
    X, Z, losses = problem()
    networks = {
        "relu, depth 3": wl.mlp(depth=3, weight_std=2**0.5, bias_std=0.3),
        "tanh, depth 2": wl.mlp(depth=2, activation="tanh", bias_std=0.3),
    }
    found: dict[str, np.ndarray] = {}
    for name, (loss, y) in losses.items():
        values = []
        for net in networks.values():
            for width in WIDTHS[effort]:
                velocity, kernel, d = velocities(net, width, loss, X, y, Z)
                kernel = factor * (kernel if coupled else kernel * np.eye(OUTPUTS))
                expected = -np.einsum("znab,nb->za", kernel, d) / N
                values.append(np.abs(velocity - expected).max() / np.abs(velocity).max())
        found[name] = np.array(values).reshape(len(networks), -1)
    return found


def measure(effort: Effort) -> Measurement:
    """Measure the two velocities for five losses, two networks, all widths."""
    found = gaps(effort)
    checks = tuple(at_most(f"{name}: largest gap", v.max(), BOUND, "rounding") for name, v in found.items())
    return Measurement(checks, {"widths": np.array(WIDTHS[effort]), "gaps": np.array(list(found.values()))})


def violate(effort: Effort) -> Measurement:
    """Use a kernel of half the size (time in another unit), and outputs that do not move each other."""
    half, uncoupled = gaps(effort, factor=0.5), gaps(effort, coupled=False)
    checks = tuple(
        at_most(f"{name}: {text}", v.min(), BOUND, "at every width")
        for text, found in (("half the kernel", half), ("no coupling of outputs", uncoupled))
        for name, v in found.items()
    )
    return Measurement(checks, {"gaps": np.array([list(half.values()), list(uncoupled.values())])})


def draw(data: Data, control: Data) -> Figure:
    """Draw the gaps against width."""
    figure, (axes,) = plots.panels(1)
    names = list(problem()[2])
    axes.axhline(BOUND, color=plots.BAYES, label="rounding allowed")
    for values, name, color in zip(data["gaps"], names, plots.palette(len(names)), strict=True):
        axes.plot(data["widths"], np.maximum(values.max(axis=0), EPS / 8), "o", color=color, markersize=4, label=name)
    for values, marker, name in zip(control["gaps"], "x+", ("half the kernel", "separate outputs"), strict=True):
        axes.plot(data["widths"], values.min(axis=(0, 1)), marker, color=plots.DESCENT, label=f"control: {name}")
    title = "$df/dt$ against $-\\Theta d/n$"
    plots.finish_over_widths(axes, data["widths"], ylabel="gap / largest velocity", title=title)
    return figure


CLAIM = Claim(
    title="Gradient descent moves the function by its tangent kernel",
    statement="Under d theta/dt = -grad C the function moves at every point by df/dt(z) = -(1/n) sum_i Theta(z, x_i) "
    "d_i, with the empirical tangent kernel Theta and d the derivative of the loss in the outputs: an identity at "
    "every width, for every network and loss.",
    source="Equation (3.3) of the paper.",
    prediction="Both sides equal to rounding at points off the training set, for five losses, two networks with three "
    "outputs, from width 1 on.",
    tolerance="A thousand eps of the largest velocity: sums over all parameters.",
    control="Half the kernel (a time in another unit), and a kernel without its off-diagonal output blocks.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
