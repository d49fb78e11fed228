"""Remark 3.9: Gram matrices of reproducing kernels have no negative eigenvalue; tanh(x.y) is none."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import EPS, Claim, Data, Effort, Measurement, at_most

SEED = 3901


def kernels() -> dict[str, wl.Kernel]:
    """Return every kind of kernel of the library."""
    deep = wl.mlp(depth=4, weight_std=2**0.5, bias_std=0.1)
    smooth = wl.mlp(depth=3, activation="erf", weight_std=1.5, bias_std=0.3)
    return {
        "NNGP relu": wl.nngp(deep),
        "NTK relu": wl.ntk(deep),
        "NNGP erf": wl.nngp(smooth),
        "NTK erf": wl.ntk(smooth),
        "NTK tanh": wl.ntk(wl.mlp(depth=2, activation="tanh", bias_std=0.2)),
        "NNGP step": wl.nngp(wl.mlp(depth=2, activation="step")),
        "RBF": wl.rbf(1.5),
        "Laplace": wl.laplace(1.5),
        "linear": wl.linear(),
        "sum, product": wl.rbf(2.0) * wl.linear() + 0.5 * wl.ntk(deep),
    }


def inputs(effort: Effort) -> np.ndarray:
    """Draw normal points in five dimensions, with duplicates, antipodes and 0."""
    X = np.random.default_rng(SEED).standard_normal((effort.pick(quick=80, full=600), 5))
    return np.vstack([X, X[:5], -X[:5], np.zeros((1, 5))])


def smallest(gram: np.ndarray) -> float:
    """Return the most negative eigenvalue over n eps times the largest."""
    values = np.linalg.eigvalsh(gram)
    return float(max(-values[0], 0.0) / (len(gram) * EPS * values[-1]))


def measure(effort: Effort) -> Measurement:
    """Measure the smallest eigenvalue of every Gram matrix, by LAPACK and by the library's certificate."""
    X = inputs(effort)
    sizes, spectra = {}, {}
    for name, k in kernels().items():
        gram = np.asarray(k.gram(X))
        sizes[name] = smallest(gram)
        spectra[name] = np.linalg.eigvalsh(gram)[::-1]
    certified = sum(bool(wl.rkhs.is_positive_semidefinite(k, X)) for k in kernels().values())
    checks = [
        at_most(f"{name}: negative part", size, 10.0, "n eps times the largest eigenvalue: rounding of the matrix")
        for name, size in sizes.items()
    ]
    checks.append(at_most("kernels without a certificate", len(sizes) - certified, 0, "the library agrees"))
    return Measurement(tuple(checks), {"spectra": np.array(list(spectra.values())), "n": np.array(len(X))})


def violate(effort: Effort) -> Measurement:
    """Use tanh(x.y), a popular "kernel" that is none."""
    X = inputs(effort)
    gram = np.tanh(X @ X.T)
    k = wl.precomputed(gram)
    certified = bool(wl.rkhs.is_positive_semidefinite(k, k.indices))
    checks = (
        at_most("tanh(x.y): negative part", smallest(gram), 10.0, "n eps times the largest eigenvalue"),
        at_most("tanh(x.y): certificates refused", float(not certified), 0.0, "as for the kernels above"),
    )
    return Measurement(checks, {"values": np.linalg.eigvalsh(gram)[::-1]})


def draw(data: Data, control: Data) -> Figure:
    """Draw spectra, the sizes of negative eigenvalues below the axis."""
    figure, (upper, lower) = plots.panels(2)
    rank = np.arange(1, int(data["n"]) + 1)
    for values, name in zip(data["spectra"], kernels(), strict=True):
        upper.plot(rank, values / values[0], ".", markersize=3, label=name)
    values = control["values"] / control["values"][0]
    lower.plot(rank, values, ".", color=plots.DESCENT, markersize=3, label="tanh(x.y)")
    for axes, title in ((upper, "Kernels of the library"), (lower, "Control")):
        axes.axhline(0, color=plots.BAYES, linewidth=1, label="0: the theory's floor")
        axes.set_yscale("symlog", linthresh=1e-12)
        axes.set_yticks([-1e-3, -1e-7, 0, 1e-7, 1e-3, 1])
        plots.finish(axes, xlabel="rank of the eigenvalue", ylabel=r"$\lambda/\lambda_1$", title=title)
    return figure


CLAIM = Claim(
    title="Gram matrices are positive semi-definite",
    statement="A symmetric function K is a reproducing kernel exactly when all its Gram matrices are positive "
    "semi-definite. The limiting kernels of networks are, at every depth and activation; tanh(x.y) is not.",
    source="Remark 3.9 of the paper.",
    prediction="No eigenvalue below zero by more than rounding, for ten kernels, on points with duplicates, antipodes "
    "and 0.",
    tolerance="The entries are right to a few eps, so eigenvalues are right to about n eps times the largest; ten "
    "times that.",
    control="tanh(x.y) on the same points.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
