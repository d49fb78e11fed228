"""Global average pooling averages a convolutional kernel over all shifts of an image, and learns from as many fewer."""

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import EPS, Check, Claim, Data, Effort, Measurement, at_most
from widelimit.layers import Conv, Dense, Flatten, GlobalAveragePool
from widelimit.validation import Array

SEED = 2201
SIDE = 8
BOUND = 256 * EPS
"""64 roundings of each of two kernels, and those of a mean over 64 shifts."""
RIDGE = 1e-2
"""Ridge over the mean of the kernel's diagonal."""
W, B = 1.4, 0.1
KINDS = ("fully connected", "flattened", "pooled")


def network(kind: str, padding: str = "circular") -> wl.Network:
    """Make a network of one of the KINDS: two convolutions or dense layers, each with relu."""
    if kind == "fully connected":
        return wl.mlp(depth=3, activation="relu", weight_std=W, bias_std=B)
    conv = Conv(3, weight_std=W, bias_std=B, padding=padding)
    end = Flatten() if kind == "flattened" else GlobalAveragePool()
    return wl.network(conv, "relu", conv, "relu", end, Dense(), inputs=wl.Image(SIDE, SIDE, 1))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 8, 8) of mean 0, and their labels, in random order."""
    X, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(X))
    return ((X - X.mean()) / 16).reshape(-1, SIDE, SIDE)[order], labels[order]


def shifts(images: np.ndarray) -> np.ndarray:
    """Shift every image (n, 8, 8) round both axes by every distance, (64 n, 8, 8), the shifts of an image together."""
    moved = [np.roll(images, (i, j), (1, 2)) for i in range(SIDE) for j in range(SIDE)]
    return np.stack(moved, axis=1).reshape(-1, SIDE, SIDE)


def rows(images: np.ndarray) -> np.ndarray:
    """Return images as rows."""
    return images.reshape(len(images), -1)


def ridge(K: Array, cross: Array, y: np.ndarray, penalty: float) -> np.ndarray:
    """Return the predictions of kernel ridge regression."""
    return np.asarray(np.asarray(cross) @ np.linalg.solve(np.asarray(K) + penalty * np.eye(len(K)), y))


def theorem(padding: str) -> list[Check]:
    """Compare the pooled kernels with the means of the flattened ones over all shifts, and what both learn."""
    images, labels = digits()
    X, Z, y = images[:5], images[5:9], np.eye(10)[labels[:5]]
    pooled, flat = (wl.limits(network(kind, padding)) for kind in ("pooled", "flattened"))
    everywhere, count = shifts(X), SIDE**2
    checks = []
    means = flat.cross(rows(Z), rows(everywhere))
    whole, moved = pooled.cross(rows(Z), rows(X)), pooled.cross(rows(Z), rows(np.roll(X, (3, 5), (1, 2))))
    sizes = zip(pooled.diag(rows(Z)), pooled.diag(rows(X)), strict=True)
    for name, mean, K, other, (z, x) in zip(("K", "Theta"), means, whole, moved, sizes, strict=True):
        size = np.sqrt(np.outer(z, x))
        average = np.asarray(mean).reshape(len(Z), len(X), count).mean(axis=2)
        why = "equal but for rounding, of sqrt(K(x, x) K(x', x'))"
        checks.append(
            at_most(f"pooled {name} less the mean over shifts", np.abs((K - average) / size).max(), BOUND, why)
        )
        checks.append(at_most(f"pooled {name} of a shifted image", np.abs((K - other) / size).max(), BOUND, why))
    K, K_all = pooled.gram(rows(X))[0], flat.gram(rows(everywhere))[0]
    penalty = RIDGE * float(np.trace(K)) / len(K)
    few = ridge(K, whole[0], y, penalty)
    many = ridge(K_all, means[0], np.repeat(y, count, axis=0), count * penalty)
    bound = BOUND * (1 + 1 / RIDGE) * len(K)
    gap = float(np.abs(few - many).max())
    checks.append(at_most("predictions less those from all shifts of the images", gap, bound, "rounding by condition"))
    return checks


def curves(effort: Effort) -> dict[str, np.ndarray]:
    """Measure test errors on digits shifted at random, (kinds, sizes)."""
    sizes = np.array(effort.pick(quick=[10, 20, 40, 80], full=[10, 20, 40, 80, 160, 320, 640]))
    test = effort.pick(quick=100, full=400)
    images, labels = digits()
    images, labels = images[: sizes[-1] + test], labels[: sizes[-1] + test]
    rng = np.random.default_rng(SEED + 1)
    moved = rows(np.stack([np.roll(image, tuple(rng.integers(0, SIDE, 2)), (0, 1)) for image in images]))
    X, Z = moved[: sizes[-1]], moved[sizes[-1] :]
    targets, errors = np.eye(10)[labels] - 0.1, []
    for kind in KINDS:
        k = wl.nngp(network(kind))
        K, cross = np.asarray(k.gram(X)), np.asarray(k.cross(Z, X))
        penalty = 1e-4 * np.trace(K) / len(K)
        found = [ridge(K[:n, :n], cross[:, :n], targets[:n], penalty).argmax(axis=1) for n in sizes]
        errors.append([np.mean(guess != labels[sizes[-1] :]) for guess in found])
    return {"sizes": sizes, "errors": np.array(errors)}


def gaps(checks: list[Check]) -> np.ndarray:
    """Return what was measured, never below a rounding: for the figure."""
    return np.maximum([check.measured for check in checks], EPS / 10)


def measure(effort: Effort) -> Measurement:
    """Measure the theorem with circular padding, and learning curves."""
    data, checks = curves(effort), theorem("circular")
    last, why = data["errors"][:, -1], "others see another pattern in every shift: less than half of their error"
    ratios = [
        at_most(f"error of the pooled kernel over that of the {kind} one", last[2] / error, 0.5, why)
        for kind, error in zip(KINDS[:2], last[:2], strict=True)
    ]
    return Measurement((*checks, *ratios), data | {"gaps": gaps(checks)})


def violate(effort: Effort) -> Measurement:  # noqa: ARG001, the same for both
    """Pad with zeros, so that an image knows its rim."""
    checks = theorem("same")
    return Measurement(tuple(checks), {"gaps": gaps(checks)})


def draw(data: Data, control: Data) -> Figure:
    """Draw the learning curves, and the gaps between both sides of each statement."""
    figure, (one, two) = plots.panels(2)
    for kind, errors, color in zip(KINDS, data["errors"], plots.palette(3), strict=True):
        one.plot(data["sizes"], errors, "o-", color=color, label=kind)
    one.axhline(0.9, color=plots.DATA, linewidth=0.8, linestyle=":", label="chance")
    one.set(xscale="log", ylim=(0, 1))
    places = np.arange(len(data["gaps"]))
    two.plot(data["gaps"], places, "o", color=plots.BAYES, label="circular padding")
    two.plot(control["gaps"], places, "x", color=plots.DESCENT, label="control: zeros")
    two.set(xscale="log", yticks=places, yticklabels=["K, mean", "K, shifted", "Theta, mean", "Theta, shifted", "fit"])
    two.invert_yaxis()
    plots.finish(one, xlabel="training images", ylabel="test error", title="Digits shifted at random")
    plots.finish(two, xlabel="relative gap", title="Both sides of each statement")
    return figure


CLAIM = Claim(
    title="Pooling averages over shifts",
    statement="With circular padding the kernels of a convolutional network that ends in global average pooling are "
    "the means of those of the same network with all sites side by side, over all shifts of one of the two images. So "
    "they do not change when an image is shifted, and regression with them is regression with the other kernel on all "
    "shifts of the training images.",
    source="Li et al. 2019, arXiv 1911.00809, section 4; Novak et al. 2019, arXiv 1810.05148, for the limits.",
    prediction="Both sides agree to rounding for K, Theta and predictions. On digits shifted at random the pooled "
    "kernel learns from some tens of images; the others, for which every shift is another pattern, do not.",
    tolerance="Rounding: 256 eps of sqrt(K(x, x) K(x', x')), times the condition number for predictions. Learning "
    "curves: less than half of the error of the others.",
    control="Zero padding, which breaks the symmetry: all statements must fail.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
