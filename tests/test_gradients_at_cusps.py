"""Gradients where kinked kernels have a cusp: one value, the mean of both sides, by every transformation.

theta(x, x') has the slope 1 to either side of x = x', so that Theta has a cusp there: autodiff must give the limit of
central differences. The oracle takes these differences of values alone and extrapolates them.
"""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import oracles
import widelimit as wl
from cases import ACTIVATIONS, KERNELS
from compiled import quick_jit
from widelimit.series import root_of_gap

KINKED = {name: ACTIVATIONS[name] for name in ("relu", "leaky_relu", "abs", "abrelu", "rectified_power")}
JUMPS = {name: ACTIVATIONS[name] for name in ("sign", "step")}
CLOSED = [(name, kind) for name in KINKED for kind in KERNELS] + [(name, "nngp") for name in JUMPS]
WHERE = {"equal": 1.0, "opposite": -1.0, "zero": 0.0}
BOUND = {"float64": 1e-12, "float32": 1e-5}
"""Of transformations from each other, relative to the largest entry: a few roundings of terms up to 100 times it."""


def kernel(name, kind, bias_std, depth=2):
    activation = (KINKED | JUMPS)[name]
    return KERNELS[kind](wl.mlp(depth=depth, activation=activation, weight_std=1.4, bias_std=bias_std))


def points(d, dtype):
    """Rows x and rows x': equal, opposite and zero, and both zero; in three columns, whatever their dimension d.

    Zeros beside x sqrt(3/d) have the kernels of x: one shape, hence one program, serves every d.
    """
    x = np.zeros((2, 3))
    x[:, :d] = np.random.default_rng(d).standard_normal((2, d)) * np.sqrt(3 / d)
    x = x.astype(dtype)
    others = [factor * x for factor in WHERE.values()]
    return np.concatenate([x, x, x, np.zeros_like(x[:1])]), np.concatenate([*others, np.zeros_like(x[:1])])


def entry(k):
    return lambda a, b: k.cross(a[None], b[None])[0, 0]


def slopes(k, x, y):
    return jax.vmap(jax.grad(entry(k)))(x, y)


compiled_slopes = quick_jit(slopes)


def transformed(k, x, y):
    """{transformation: gradients (n, d) in the first input}."""
    return {
        "jit(vmap(grad))": compiled_slopes(k, x, y),
        "vmap(grad)": slopes(k, x, y),
        "grad of a matrix": jax.grad(lambda a: jnp.sum(k.cross(a, y) * np.eye(len(x), dtype=x.dtype)))(x),
    }


def one_by_one(k, x, y, rows=(0, 1, 2, 3, 5)):
    """The same, without vmap, at some rows."""
    transformations = {"grad": jax.grad(entry(k)), "jacfwd": jax.jacfwd(entry(k))}
    return {name: (rows, jnp.stack([f(x[i], y[i]) for i in rows])) for name, f in transformations.items()}


def worst(found, scale):
    """The largest difference from the first, relative to `scale`."""
    first = np.asarray(found["jit(vmap(grad))"])
    differences = {}
    for name, value in found.items():
        rows, value = value if isinstance(value, tuple) else (range(len(first)), value)
        assert np.isfinite(value).all(), name
        differences[name] = np.abs(np.asarray(value) - first[list(rows)]).max() / scale
    return max(differences.values()), differences


def by_differences(k, x, y, levels=6):
    """The limit of central differences of k's values in x, by extrapolation in powers of h (Richardson)."""
    d = x.shape[1]
    sizes = 0.02 / 2.0 ** np.arange(levels)
    steps = (sizes[:, None, None] * np.eye(d)).reshape(-1, d)
    table = []
    for a, b in zip(x, y, strict=True):
        ends = [k.cross(a + sign * steps, b[None])[:, 0].reshape(levels, d) for sign in (1, -1)]
        row = (ends[0] - ends[1]) / (2 * sizes[:, None])
        for power in range(1, levels):
            row = (2**power * row[1:] - row[:-1]) / (2**power - 1)
        table.append(row[0])
    return np.array(table)


def agreeing(k, dtype, d, *ways):
    """Gradients by all transformations, which agree."""
    x, y = points(d, dtype)
    with jax.enable_x64(dtype == "float64"):
        found = {name: value for way in ways for name, value in way(k, jnp.asarray(x), jnp.asarray(y)).items()}
    scale = np.abs(np.asarray(found["jit(vmap(grad))"])).max() or 1.0
    largest, all_of_them = worst(found, scale)
    assert largest <= BOUND[dtype], all_of_them
    wrong = found | {"vmap(grad)": np.asarray(found["vmap(grad)"]) + 10 * BOUND[dtype] * scale}
    assert worst(wrong, scale)[0] > BOUND[dtype]
    return {name: np.asarray(value) for name, value in found.items() if not isinstance(value, tuple)}


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.claims)])
@pytest.mark.parametrize("kind", KERNELS)
def test_relu_one_by_one(kind, dtype):
    found = agreeing(kernel("relu", kind, 0.2), dtype, 3, transformed, one_by_one)
    assert {"jit(vmap(grad))", "vmap(grad)"} < set(found)
    assert all(np.isfinite(values).all() for values in found.values())


def test_relu_in_one_dimension():
    """Without jit, where at some points a rounding of the gap once gave a slope to one side."""
    k, x = kernel("relu", "ntk", 0.2), np.random.default_rng(1).standard_normal((12, 1))
    rows, others = np.vstack([x, x]), np.vstack([x, -x])
    expected = by_differences(k, rows, others)
    with jax.enable_x64(True):
        found = np.array([jax.grad(entry(k))(*map(jnp.asarray, pair)) for pair in zip(rows, others, strict=True)])
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(1.001 * found - expected).max() > 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize(("name", "kind"), CLOSED)
def test_every_transformation_gives_the_limit_of_central_differences(name, kind):
    agreeing(kernel(name, kind, 0.0), "float64", 3, transformed)
    k = kernel(name, kind, 0.3)
    rows = slice(1, 5, 2)  # one equal, one opposite: at zero inputs the norms have no corner, as bias_std > 0
    for d in (1, 3):
        x, y = points(d, "float64")
        expected = by_differences(k, x[rows], y[rows])
        scale = np.abs(expected).max()
        for way, found in agreeing(k, "float64", d, transformed).items():
            assert np.abs(found[rows] - expected).max() <= 1e-6 * scale, (way, found[rows], expected)
            assert np.abs(1.001 * found[rows] - expected).max() > 1e-6 * scale


@pytest.mark.parametrize("kind", KERNELS)
def test_differences_of_high_precision_agree(kind):
    """Differences of 1e-30 in 80 digits, at an equal pair: no value of the library is in them."""
    net = {"depth": 2, "activation": "relu", "weight_std": 1.4, "bias_std": 0.3}
    x, step = [0.5, -1.25, 0.75], mp.mpf(10) ** -30
    index = list(KERNELS).index(kind)
    expected = []
    for i in range(3):
        ends = [oracles.kernels([v + s * step * (i == j) for j, v in enumerate(x)], x, **net)[index] for s in (1, -1)]
        expected.append(float((ends[0] - ends[1]) / (2 * step)))
    side = [float((end - oracles.kernels(x, x, **net)[index]) / step) for end in ends[:1]]
    with jax.enable_x64(True):
        found = np.asarray(jax.grad(entry(kernel("relu", kind, 0.3)))(jnp.asarray(x), jnp.asarray(x)))
    assert np.abs(found - expected).max() <= 64 * np.finfo(float).eps * np.abs(expected).max()
    if kind == "ntk":  # either side by itself is another value
        assert abs(side[0] - found[-1]) > 0.01


@pytest.mark.parametrize("name", ["relu", "abs"])
def test_second_derivatives_of_the_nngp_kernel(name):
    """K is linear in x up to theta^3: its second derivatives are 0 at x = x', jitted or not, and not beside it."""
    x, y = np.array([0.5, -1.25]), np.array([0.7, -1.1])
    k = kernel(name, "nngp", 0.3)
    with jax.enable_x64(True):
        f = entry(k)
        compiled = quick_jit(jax.hessian(f))
        scale = float(f(jnp.asarray(x), jnp.asarray(x))) / np.sum(x**2)
        assert np.abs(jax.hessian(f)(jnp.asarray(x), jnp.asarray(x))).max() <= 1e-12 * scale
        x, y = jnp.asarray(x), jnp.asarray(y)
        assert np.abs(compiled(x, x)).max() <= 1e-12 * scale
        h, slope = 1e-5, quick_jit(jax.grad(f))
        differences = np.array([slope(x + h * e, y) - slope(x - h * e, y) for e in np.eye(2)]) / (2 * h)
        found = np.asarray(compiled(x, y))
    assert np.abs(found - differences).max() <= 1e-7 * scale
    assert np.abs(found).max() > 1e-3 * scale


def test_the_root_of_a_gap_keeps_its_value_and_holds_its_slope():
    with jax.enable_x64(True):
        gap = jnp.asarray([0.0, 1e-300, 1e-32, 1e-24, 0.25])
        value, slope = jax.jvp(root_of_gap, (gap,), (jnp.ones_like(gap),))
        second = jax.vmap(jax.grad(jax.grad(root_of_gap)))(gap)
    assert np.array_equal(value, np.sqrt(gap))
    assert np.allclose(slope, [0, 0, 0, 5e11, 1.0])
    assert np.allclose(second, [0, 0, 0, -2.5e35, -2.0])
