"""Definitions 3.10 and 3.11, Proposition 3.12, Theorem 3.13 describe the space of functions of a kernel."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import EPS, Claim, Data, Effort, Measurement, at_most

SEED = 3101


def kernels() -> dict[str, wl.Kernel]:
    """Return a strictly definite kernel, and one of rank three."""
    return {"NTK relu": wl.ntk(wl.mlp(depth=3, bias_std=0.3)), "linear, rank 3": wl.linear()}


def functions(k: wl.Kernel, pairs: int) -> list[tuple[wl.rkhs.Function, wl.rkhs.Function]]:
    """Draw pairs of random functions with 12 and 7 centres in three dimensions."""
    rng = np.random.default_rng(SEED)
    return [
        (
            wl.rkhs.Function(k, rng.standard_normal((12, 3)), rng.standard_normal(12)),
            wl.rkhs.Function(k, rng.standard_normal((7, 3)), rng.standard_normal(7)),
        )
        for _ in range(pairs)
    ]


def reproduction_error(k: wl.Kernel, pairs: int, weight: float) -> float:
    """Return the largest |<f, weight K(., z)> - f(z)| over |f| |K(., z)|."""
    worst = 0.0
    for f, g in functions(k, pairs):
        z = g.centers[:1]
        at = wl.rkhs.Function(k, z, np.full(1, weight))
        worst = max(worst, abs(float(f.inner(at)) - float(f(z)[0])) / (f.norm() * at.norm()))
    return worst


def cosines(k: wl.Kernel, pairs: int) -> np.ndarray:
    """Compute <f, g>/(|f| |g|) of the pairs, (pairs,)."""
    return np.array([f.inner(g) / (f.norm() * g.norm()) for f, g in functions(k, pairs)])


def measure(effort: Effort) -> Measurement:
    """Measure the reproducing property, the norm, Cauchy-Schwarz, pointwise bounds."""
    pairs = effort.pick(quick=40, full=400)
    checks, angles = [], []
    for name, k in kernels().items():
        f, _ = functions(k, 1)[0]
        gram = np.asarray(k.gram(f.centers))
        quadratic = float(f.coefficients @ gram @ f.coefficients)
        cosine, off = cosines(k, pairs), reproduction_error(k, pairs, 1.0)
        angles.append(cosine)
        f_at = np.abs(f(f.centers)) / (f.norm() * np.sqrt(np.asarray(k.diag(f.centers))))
        checks += [
            at_most(f"{name}: <f, K(., z)> - f(z)", off, 1e4 * EPS, "sums of 12 terms that cancel"),
            at_most(f"{name}: |f|^2/a^T K a - 1", abs(f.norm() ** 2 / quadratic - 1), 1e4 * EPS, "rounding"),
            at_most(f"{name}: largest cosine", np.abs(cosine).max(), 1 + 1e3 * EPS, "Cauchy-Schwarz"),
            at_most(f"{name}: |f(x)|/(|f| K(x, x)^1/2)", f_at.max(), 1 + 1e3 * EPS, "evaluation is bounded"),
        ]
    f, _ = functions(wl.linear(), 1)[0]
    length = np.linalg.norm(f.centers.T @ f.coefficients)
    checks.append(at_most("linear: |f|/|w| - 1", abs(f.norm() / length - 1), 1e4 * EPS, "Theorem 3.13"))
    return Measurement(tuple(checks), {"cosines": np.array(angles)})


def violate(effort: Effort) -> Measurement:
    """Use a feature 1 % too long; and an indefinite "kernel", in which cosines leave [-1, 1]."""
    pairs = effort.pick(quick=40, full=400)
    planted = reproduction_error(kernels()["NTK relu"], pairs, 1.01)
    rng = np.random.default_rng(SEED)
    found = []
    for _ in range(pairs):
        X = rng.standard_normal((12, 3))
        gram = np.tanh(2 * X @ X.T)
        a, b = rng.standard_normal((2, 12))
        squares = (a @ gram @ a) * (b @ gram @ b)
        found.append(abs(a @ gram @ b) / np.sqrt(squares) if squares > 0 else np.inf)
    worst = float(np.max(found))
    checks = (
        at_most("<f, 1.01 K(., z)> - f(z)", planted, 1e4 * EPS, "a planted factor"),
        at_most("largest cosine of tanh(x.y), inf if a square is negative", worst, 1 + 1e3 * EPS, "Cauchy-Schwarz"),
    )
    return Measurement(checks, {"cosines": np.minimum(np.array(found), 3.0)})


def draw(data: Data, control: Data) -> Figure:
    """Draw cosines of random pairs of functions."""
    figure, (axes,) = plots.panels(1)
    axes.axhline(1.0, color=plots.BAYES, label="Cauchy-Schwarz")
    for cosine, marker, name in zip(data["cosines"], "os", kernels(), strict=True):
        axes.plot(np.sort(np.abs(cosine)), marker, color=plots.DATA, markersize=3, label=name, alpha=0.7)
    axes.plot(np.sort(control["cosines"]), "x", color=plots.DESCENT, markersize=4, label="control: tanh(x.y), cut at 3")
    plots.finish(
        axes,
        xlabel="pair of functions, sorted",
        ylabel=r"$|\langle f, g\rangle|/(|f||g|)$",
        title="Angles between functions",
    )
    return figure


CLAIM = Claim(
    title="A kernel is an inner product of functions",
    statement="For a positive semi-definite K the sums f = sum_i a_i K(., x_i) form a space with <f, g> = a^T K b, in "
    "which <f, K(., z)> = f(z): evaluation is a bounded functional. It need not be strictly definite: x.x' in three "
    "dimensions gives the linear functions w.x with norm |w|.",
    source="Definitions 3.10 and 3.11, Proposition 3.12, Theorem 3.13 of the paper.",
    prediction="The reproducing property and |f|^2 = a^T K a to rounding; |cosine| <= 1 for all pairs; |f(x)| <= |f| "
    "K(x, x)^1/2.",
    tolerance="Sums of up to 144 products, which cancel by at most a factor of about a hundred: 1e4 eps.",
    control="A representer 1 % too long, and tanh(x.y), whose squares can be negative.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
