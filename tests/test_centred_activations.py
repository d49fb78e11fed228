"""Norms after activations that are nearly constant: all digits where these have a closed form, else refused."""

import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import by_numpy
import widelimit as wl
from random_trees import ACTIVATIONS
from tree_oracle import exact
from widelimit.layers import Activate, Concatenate, Dense, Dropout, LayerNorm, Repeat, Residual, Scale, Serial, Sum

EPS = np.finfo(float).eps
BASE = np.random.default_rng(0).standard_normal((2, 4))
ROWS = np.stack([BASE[0], BASE[1], BASE[0] * (1 + 1e-9), -3 * BASE[1], np.zeros(4)])
NEARLY_CONSTANT = ("gaussian", "cos", "sin", "rbf", "exp", "polynomial", "hermite 2", "erf, parameters")
END = [Dense(1.1), "relu", Dense(1.3, 0.2)], [["d", 1.1, 0], "relu", ["d", 1.3, 0.2]]


def worst(layers, described, X, digits=60):
    """The largest error of both kernels over sqrt(K(x, x) K(x', x')), in eps."""
    grams = by_numpy.limits(wl.network(*layers), X)
    errors = []
    with mp.workdps(digits):
        known = {(i, j): exact(described, X[i], X[j]) for i in range(len(X)) for j in range(i + 1)}
        for (i, j), values in known.items():
            for kind, value in enumerate(values):
                size = mp.sqrt(known[i, i][kind] * known[j, j][kind])
                errors.append(float(abs(mp.mpf(float(grams[kind][i, j])) - value) / size) / EPS)
    return max(errors)


OPAQUE = Dropout(1.0)
"""Changes nothing, but layers are not changed beyond it: the mean is taken off afterwards."""


@pytest.mark.parametrize("name", NEARLY_CONSTANT)
def test_a_norm_after_an_activation_to_64_eps(name):
    """The zero row with a small bias, and rows of 1e-80 without one; a kink behind sees 1 - rho and 1 + rho."""

    def errors(bias, X, *between):
        layers = [Dense(1.3, bias), ACTIVATIONS[name], *between, LayerNorm(), *END[0]]
        return worst(layers, [["d", 1.3, bias], name, "norm", *END[1]], X, 60 if bias else 1000)

    assert max(errors(1e-3, ROWS), errors(0.02, ROWS)) <= 64 < errors(0.02, ROWS, OPAQUE)
    if name != "hermite 2":  # whose coefficients the oracle has to 80 digits
        assert errors(0, 1e-80 * ROWS[:4]) <= 64
    with pytest.raises(ValueError, match="nearly constant"):
        errors(1e-5, ROWS, OPAQUE)


W, B = (1.3, 1e-3), ["d", 1.3, 1e-3]
BETWEEN = {
    "scaled": lambda cos: ([cos, Scale(3.0), "identity", LayerNorm()], ["cosine", ["scale", 3], "norm"]),
    "two": lambda cos: (
        [Sum([Dense(*W), cos], [Dense(*W), ACTIVATIONS["gaussian"]]), LayerNorm()],
        [["sum", [B, "cosine"], [B, "gaussian"]], "norm"],
    ),
    "residual": lambda cos: ([Residual(Dense(*W), cos), LayerNorm()], [["sum", [], [B, "cosine"]], "norm"]),
    "in a branch": lambda cos: (
        [Sum([cos, LayerNorm()], [Dense(*W), cos]), Dense(*W)],
        [["sum", ["cosine", "norm"], [B, "cosine"]], B],
    ),
    "repeated": lambda cos: (
        [Repeat([LayerNorm(), Scale(1e-3), Dense(*W), cos], 3), LayerNorm()],
        [*["norm", ["scale", 1e-3], B, "cosine"] * 3, "norm"],
    ),
    "once": lambda cos: ([Repeat([cos], 1), LayerNorm()], ["cosine", "norm"]),
    "repeated norms": lambda cos: ([cos, Repeat([LayerNorm()], 3)], ["cosine", "norm", "norm", "norm"]),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_layers_between_an_activation_and_a_norm(name):
    layers, described = BETWEEN[name](Activate("cos"))
    X = np.concatenate([1e-3 * ROWS[:4], ROWS[4:]])
    assert worst([Dense(*W), *layers, *END[0]], [B, *described, *END[1]], X) <= 64
    layers, _ = BETWEEN[name](Serial("cos", OPAQUE))
    try:
        assert worst([Dense(*W), *layers, *END[0]], [B, *described, *END[1]], X) > 64
    except ValueError as error:
        assert "nearly constant" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", NEARLY_CONSTANT)
def test_compiled_programs_in_float32_at_any_scale(name):
    """XLA makes one quotient of two, whose denominator was below float32 for Gaussians of rows of 1e15."""
    net = wl.network(Dense(), ACTIVATIONS[name], LayerNorm(), Dense(1.0, 0.5))
    for scale in (1e-15, 1e15):
        X = (scale * BASE).astype(np.float32)
        for found, known in zip(wl.limits(net).gram(X), by_numpy.limits(net, X.astype(float)), strict=True):
            size = np.sqrt(np.outer(np.diag(known), np.diag(known)))
            room = 64 * np.finfo(np.float32).eps
            assert np.abs(found / size - known / size).max() <= room < np.abs(1.001 * found / size - known / size).max()


@pytest.mark.parametrize("phi", ["sigmoid", "softplus"])
def test_tabulated_activations_that_are_nearly_linear(phi):
    """Of rows of 1e-6 their norm is that of the signals, up to 1e-12 and the 1e-10 of tables."""
    found, linear = (
        wl.limits(wl.network(Dense(1.3), *middle, LayerNorm(), Dense(1.3, 0.2))).gram(1e-6 * BASE)
        for middle in ([phi], [])
    )
    for one, other in zip(found, linear, strict=True):
        assert np.abs(one - other).max() < 1e-9 * other.max() < np.abs(1.001 * one - other).max()


@pytest.mark.parametrize(
    "layers",
    [
        [lambda u: 2 + jnp.tanh(u), LayerNorm()],
        [Concatenate([Dense(), "cos"], [Dense(), "cos"]), LayerNorm()],
    ],
)
def test_where_digits_are_lost_a_norm_is_refused(layers):
    """An unknown function; parts of the width, whose means differ."""
    kernel = wl.nngp(wl.network(Dense(), *layers, Dense()))
    assert np.isfinite(kernel.gram(BASE)).all()
    with pytest.raises(ValueError, match="nearly constant"):
        kernel.gram(1e-5 * BASE)
