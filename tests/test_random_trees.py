"""Random trees of layers: both kernels beside a recursion in 60 digits that knows nothing of the library's."""

import jax
import mpmath as mp
import numpy as np
import pytest

import by_numpy
import tree_oracle
import widelimit as wl
from random_trees import ACTIVATIONS, FREE_OF_SCALE, random_tree
from tree_oracle import exact
from widelimit.interpreter import interpreted

BASE = np.random.default_rng(0).standard_normal((3, 4))
ROWS = np.stack([BASE[0], BASE[1], BASE[0] * (1 + 1e-9), BASE[0] + 1e-11, -BASE[1], np.zeros(4)])
QUICK, FAULTY = (5, 6, 9, 10, 12), 9
"""Those of `make test` have every layer between them."""
OTHERS = [seed for seed in range(200) if seed not in QUICK]
SLOW = [pytest.mark.slow, pytest.mark.claims]
SEEDS = [*QUICK, *(pytest.param(seed, marks=SLOW) for seed in OTHERS)]


def grams_of(layers, X):
    """Both kernels, without compilation, in the dtype of X."""
    return by_numpy.limits(wl.network(*layers), X)


def worst(described, X, grams, digits=60):
    """The largest error over sqrt(K(x, x) K(x', x')), in eps."""
    errors, eps = [], np.finfo(X.dtype).eps
    with mp.workdps(digits):
        known = {(i, j): exact(described, X[i], X[j], same=i == j) for i in range(len(X)) for j in range(i + 1)}
        for (i, j), values in known.items():
            for gram, value, *own in zip(grams, values, known[i, i], known[j, j], strict=True):
                size = mp.sqrt(own[0] * own[1])
                errors.append(float(abs(mp.mpf(float(gram[i, j])) - value) / size) / eps if size else abs(gram[i, j]))
    return max(errors)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_trees_to_64_eps(seed):
    layers, described = random_tree(seed)
    grams = grams_of(layers, ROWS)
    assert worst(described, ROWS, grams) <= 64 < worst(described, ROWS, [gram * (1 + 1e-13) for gram in grams])


@pytest.mark.parametrize("seed", SEEDS[2::10])
def test_random_trees_in_float32(seed):
    layers, described = random_tree(seed)
    X = ROWS.astype(np.float32)
    grams = grams_of(layers, X)
    assert grams[0].dtype == np.float32
    assert worst(described, X, grams) <= 64 < worst(described, X, [gram * np.float32(1 + 1e-4) for gram in grams])


SCALES = [(np.float64, 1e100), (np.float64, 1e-100), (np.float32, 1e15), (np.float32, 1e-15)]


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
@pytest.mark.parametrize("seed", SEEDS[2::10])
def test_random_trees_at_any_scale(seed, dtype, scale):
    """Rows of one very large or small size, and zero; without biases every scale counts."""
    layers, described = random_tree(seed, kinds=FREE_OF_SCALE, biases=(0.0,))
    X = np.delete(ROWS, 3, axis=0).astype(dtype) * dtype(scale)
    assert worst(described, X, grams_of(layers, X)) <= 64


def entry(kernel, x, y):
    return kernel.pairwise(kernel.encode(x[None]), kernel.encode(y[None]), same=False)[0, 0]


of_entry = jax.grad(entry, argnums=(0, 1))
NUMBERS = ("weight_std", "bias_std", "factor")


def slopes(kernel, x, y):
    """By the numbers of the layers, and by x."""
    found, by_x = interpreted(of_entry)(kernel, x, y)
    named = jax.tree_util.tree_leaves_with_path(found)
    return by_x, np.array([leaf for path, leaf in named if getattr(path[-1], "name", "") in NUMBERS])


PAIRS = [(0, 1), (0, 0), (1, 4), (5, 0), (0, 2)]
"""Of `ROWS`: far ones, equal ones, opposite ones, one at zero, near duplicates."""


@pytest.mark.parametrize("kind", [wl.ntk, pytest.param(wl.nngp, marks=SLOW)])
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=SLOW) for seed in range(12)])
def test_gradients_of_random_trees(seed, kind):
    """To 1e-8 of the largest slope, and of K/|x|; where Theta has a cusp, that is the mean of both sides."""
    layers, described = random_tree(seed, drop=False)
    seen = False
    with jax.enable_x64(True):
        kernel = jax.tree.map(np.float64, kind(wl.network(*layers)))
        for i, j in PAIRS:
            x, y = ROWS[i], ROWS[j]
            size = float(interpreted(entry)(kernel, x, y)) / (np.linalg.norm(x) or 1)
            for found, known in zip(
                slopes(kernel, x, y), tree_oracle.slopes(described, x, y, kind is wl.ntk), strict=True
            ):
                room = 1e-8 * max(np.abs(known).max(), size)
                assert np.abs(found - known).max() <= room
                seen = seen or np.abs(1.001 * found - known).max() > room
    assert seen


def branches_of(described):
    """The places of sums and of their branches, the innermost last."""
    for k, layer in enumerate(described):
        if isinstance(layer, list) and layer[0] in ("sum", "beside"):
            yield described, k
            for branch in layer[1:]:
                if isinstance(branch, list):
                    yield from branches_of(branch)


def without_a_branch(described):
    """The same tree, in which the first branch with weights of the first sum is lost."""
    layers, k = next((layers, k) for layers, k in branches_of(described) if layers[k][0] == "sum")
    lost = next(branch for branch in layers[k][1:] if branch)
    rest = [branch for branch in layers[k] if branch is not lost]
    return [*layers[:k], rest, *layers[k + 1 :]]


def test_a_lost_branch_a_lost_mean_and_a_factor_are_seen(monkeypatch):
    layers, described = random_tree(FAULTY)
    grams = grams_of(layers, BASE)
    assert worst(described, BASE, grams) <= 64
    for wrong in (
        lambda: worst(without_a_branch(described), BASE, grams),
        lambda: worst(described, BASE, [2 * gram for gram in grams]),
        lambda: worst(described, BASE, [grams[0], 2 * grams[1]]),
    ):
        assert wrong() > 1e6
    monkeypatch.setattr(tree_oracle, "MEANS", dict.fromkeys(tree_oracle.MEANS, lambda q: mp.mpf(0)))
    assert worst(described, BASE, grams) > 1e6


def test_the_trees_have_every_layer_and_activation():
    texts = [repr(random_tree(seed)[0]) for seed in QUICK]
    for name in ("Residual", "Sum", "Concatenate", "LayerNorm", "Scale", "Frozen", "Repeat", "Dropout"):
        assert sum(name in text for text in texts) >= 1, name
    kinds = {name for seed in range(20) for name in named(random_tree(seed)[1])}
    assert kinds >= set(ACTIVATIONS)


def named(described):
    """The activations of a description."""
    for layer in described:
        if isinstance(layer, list):
            yield from named(layer)
        elif layer in ACTIVATIONS:
            yield layer
