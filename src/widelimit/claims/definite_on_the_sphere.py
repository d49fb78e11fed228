"""After Corollary 4.4, this claim shows where the limiting tangent kernel is strictly definite on the sphere."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import EPS, Claim, Data, Effort, Measurement, at_least, at_most, within

SEED = 4401
DIMENSION = 3
DEGREE = 12
ZERO = 1e-12
"""Relative to the trace: quadrature of a function of the angle, to rounding."""
CASES = {
    "depth 2, bias 0": (2, 0.0),
    "depth 2, bias 0.5": (2, 0.5),
    "depth 3, bias 0": (3, 0.0),
    "depth 3, bias 0.5": (3, 0.5),
}


def kernel(name: str, activation: str = "relu") -> wl.Kernel:
    """Make the tangent kernel of a case."""
    depth, bias_std = CASES[name]
    return wl.ntk(wl.mlp(depth=depth, activation=activation, bias_std=bias_std))


def spectrum(k: wl.Kernel) -> np.ndarray:
    """Compute eigenvalues of degree 0 to 12 over the kernel's trace."""
    found = wl.rkhs.spherical_eigenvalues(k, dimension=DIMENSION, degree=DEGREE)
    return np.asarray(found.eigenvalues) / found.trace


def antipodes(pairs: int) -> np.ndarray:
    """Return (2 pairs, 3) points of the unit sphere in antipodal pairs."""
    U = np.random.default_rng(SEED).standard_normal((pairs, DIMENSION))
    U /= np.linalg.norm(U, axis=1, keepdims=True)
    return np.vstack([U, -U])


def null_directions(k: wl.Kernel, pairs: int) -> int:
    """Count eigenvalues of the Gram matrix on antipodal pairs below n eps of the largest."""
    values = np.linalg.eigvalsh(np.asarray(k.gram(antipodes(pairs))))
    return int(np.sum(values < len(values) * EPS * values[-1]))


def measure(effort: Effort) -> Measurement:
    """Measure harmonic coefficients, and the rank of Gram matrices on antipodal pairs."""
    pairs = effort.pick(quick=6, full=12)
    spectra = {name: spectrum(kernel(name)) for name in CASES}
    blind, lost = spectra["depth 2, bias 0"], null_directions(kernel("depth 2, bias 0"), pairs)
    checks = [
        at_most("depth 2, bias 0: odd degrees >= 3", np.abs(blind[3::2]).max(), ZERO, "they vanish"),
        within(
            "... null directions on antipodal pairs", lost, pairs - 3, 0, "pairs - dimension: the odd part is linear"
        ),
    ]
    for name in list(CASES)[1:]:
        checks += [
            at_least(f"{name}: smallest coefficient", spectra[name].min(), 1e3 * ZERO, "positive"),
            within("... null directions", null_directions(kernel(name), pairs), 0, 0, "strictly definite"),
        ]
    return Measurement(tuple(checks), {"spectra": np.array(list(spectra.values()))})


def violate(effort: Effort) -> Measurement:
    """Use the paper's sentence as printed, for depth 2 without bias; and a polynomial activation, of finite rank."""
    pairs = effort.pick(quick=6, full=12)
    lost = null_directions(kernel("depth 2, bias 0"), pairs)
    values = spectrum(wl.ntk(wl.mlp(depth=2, activation=wl.Monomial(2), bias_std=0.5)))
    checks = (
        within("depth 2, bias 0: null directions", lost, 0, 0, "as printed"),
        at_least("u^2, bias 0.5: smallest coefficient", values.min(), 1e3 * ZERO, "degrees above 2 are lost"),
    )
    return Measurement(checks, {"spectrum": values})


def draw(data: Data, control: Data) -> Figure:
    """Draw coefficients by degree."""
    figure, (axes,) = plots.panels(1)
    degrees = np.arange(DEGREE + 1)
    for values, name, marker in zip(data["spectra"], CASES, "osDv", strict=True):
        axes.semilogy(degrees, np.maximum(values, 1e-18), f"{marker}-", linewidth=0.6, markersize=4, label=name)
    axes.semilogy(degrees, np.maximum(control["spectrum"], 1e-18), "x", color=plots.DATA, label="control: $u^2$")
    axes.axhspan(1e-18, ZERO, color=plots.BAYES, alpha=0.12, label="zero, to rounding")
    plots.finish(
        axes,
        xlabel="degree of the spherical harmonic",
        ylabel="eigenvalue / trace",
        title="relu networks, sphere in 3 dimensions",
    )
    return figure


CLAIM = Claim(
    title="Strict definiteness on the sphere",
    statement="The limiting tangent kernel is strictly definite on the sphere if every spherical harmonic has a "
    "positive coefficient. Bias or a third layer gives that for relu. Without bias a relu network of depth 2 lacks "
    "all odd degrees from three on, so that antipodal pairs make singular Gram matrices: the paper's sentence for all "
    "depths of at least two needs a bias, and a nonlinearity that is not polynomial.",
    source="After Corollary 4.4 of the paper, corrected; Bietti and Mairal 2019, arXiv 1905.12173; Basri et al. 2019, "
    "arXiv 1906.00425.",
    prediction="Zero odd coefficients, and p - 3 null directions on p antipodal pairs in three dimensions, for depth "
    "2 without bias; all coefficients positive and no null direction else.",
    tolerance="Quadrature in the angle to rounding: 1e-12 of the trace is zero, and a thousand times that is not.",
    control="The sentence as printed, for depth 2 without bias; a network of u^2, whose kernel is a polynomial.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
