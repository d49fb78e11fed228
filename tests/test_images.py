"""Networks of images: both limits against the recursion over all pairs of sites, and against finite networks."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import cases
import image_oracle
import widelimit as wl
from widelimit.layers import (
    AveragePool,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    LayerNorm,
    LocallyConnected,
    MaxPool,
    Repeat,
)

W, NETWORKS = cases.IMAGE_WEIGHTS, cases.IMAGE_NETWORKS
w = cases.IMAGE_ORACLE
POOLED = {"pooled"}
"""A kink behind a pool keeps the root of eps of near duplicates in Theta."""


def images(shape, dtype, scale):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((5, *shape))
    X[1] = X[0] * (1 + 1e-9)
    X[2, :2] = 0
    X[3] = 0.7
    X[4] = -X[0]
    return (X * scale).astype(dtype)


def errors(steps, X, grams, pairs):
    """Errors of both kernels over sqrt(K(x, x) K(x', x')), in units of eps."""
    worst = [0.0, 0.0]
    with mp.workdps(60):
        for i, j in pairs:
            xy, xx, yy = image_oracle.kernels(steps, X[i], X[j])
            for kind, gram in enumerate(grams):
                size = mp.sqrt(xx[kind] * yy[kind])
                known = [((i, j), xy), ((i, i), xx), ((j, j), yy)]
                worst[kind] = max(
                    worst[kind], *(float(abs(mp.mpf(float(gram[at])) - v[kind]) / size) for at, v in known)
                )
    return [value / np.finfo(X.dtype).eps for value in worst]


@pytest.mark.parametrize("name", NETWORKS)
def test_both_kernels_to_64_eps(name):
    shape, layers, steps = NETWORKS[name]
    k = wl.limits(wl.network(*layers, inputs=wl.Image(*shape)))
    X = images(shape, np.float64, 1.0)
    found = errors(steps, X, k.gram(X), [(0, 1), (0, 2), (3, 4)])
    assert found[0] <= 64
    assert found[1] <= (2**26 if name in POOLED else 64)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.float32, 1.0), (np.float64, 1e100), (np.float64, 1e-100), (np.float32, 1e-15)]
)
def test_scales_and_dtypes(dtype, scale):
    shape, _, _ = NETWORKS["average"]
    layers = [Conv(3), "relu", GlobalAveragePool(), Dense()]
    X = images(shape, dtype, scale)
    grams = wl.limits(wl.network(*layers, inputs=wl.Image(*shape))).gram(X)
    assert max(errors([("conv", 3), "relu", ("pool",), ("dense",)], X, grams, [(0, 1), (2, 3)])) <= 64


@pytest.mark.parametrize(
    "wrong",
    [
        [("conv", 3, {**w, "padding": "circular"}), "relu", "flatten", ("dense", w)],  # the rim
        [("conv", 3, w), "relu", ("pool",), ("dense", w)],  # another end
        [("conv", 3, {**w, "b": 0.21}), "relu", "flatten", ("dense", w)],
        [("conv", 3, w), "norm all", "relu", "flatten", ("dense", w)],
    ],
)
def test_other_networks_have_other_kernels(wrong):
    shape, layers, _ = NETWORKS["flatten"]
    X = images(shape, np.float64, 1.0)
    grams = wl.limits(wl.network(*layers, inputs=wl.Image(*shape))).gram(X)
    assert min(errors(wrong, X, grams, [(0, 2)])) > 1e10


def test_images_and_rows_are_the_same_inputs():
    shape, layers, _ = NETWORKS["flatten"]
    k, X = wl.ntk(wl.network(*layers, inputs=wl.Image(*shape))), images(shape, np.float64, 1.0)
    rows = X.reshape(5, -1)
    K = k.gram(X)
    assert np.array_equal(K, k.gram(rows))
    assert np.array_equal(K, K.T)
    assert np.array_equal(np.diag(K), k.diag(X))
    assert np.allclose(k.cross(X[:2], rows[2:]), K[:2, 2:], rtol=1e-13)
    assert wl.posterior(k, rows, np.arange(5.0), noise=0.1).predict(rows).mean.shape == (5,)


@pytest.mark.claims
@pytest.mark.parametrize(
    "name", ["strided", "pooled", "residual, one axis", "normalised over all", "locally connected"]
)
def test_finite_networks_tend_to_both_kernels(name):
    """Networks of 32 channels; the means within 5 standard errors and a bias of 3/width."""
    shape, layers, _ = NETWORKS[name]
    net, X = wl.network(*layers, inputs=wl.Image(*shape)), images(shape, np.float64, 1.0)[[0, 2, 3]].reshape(3, -1)
    K, T = wl.limits(net).gram(X)
    with jax.enable_x64(True):
        outputs = np.asarray(net.apply_many(net.init_many(range(64), width=32, output_dim=16, dtype=np.float64), X))

        def theta(params):
            J = jax.tree.leaves(jax.jacrev(net.signals_of)(params, jnp.asarray(X)))
            J = jnp.concatenate([leaf.reshape(3, -1) for leaf in J], axis=1)
            return J @ J.T

        params = net.init_many(range(16), width=32, dtype=np.float64)
        thetas = np.asarray(jax.jit(lambda params: jax.lax.map(theta, params))(params))
    for found, known in ((np.einsum("eic,ejc->eij", outputs, outputs) / 16, K), (thetas, T)):
        bound = 5 * found.std(0) / np.sqrt(len(found)) + 3 / 32 * np.sqrt(np.outer(np.diag(known), np.diag(known)))
        assert (np.abs(found.mean(0) - known) <= bound).all()
        assert (np.abs(found.mean(0) - 2 * known) > bound).any()


def test_wrong_images_are_refused():
    k = wl.nngp(wl.network(Conv(3), "relu", Flatten(), Dense(), inputs=wl.Image(5, 4, 3)))
    with pytest.raises(ValueError, match=r"channels to the end"):
        k.gram(np.zeros((2, 3, 5, 4)))
    with pytest.raises(ValueError, match=r"5 x 4 x 3 = 60"):
        k.gram(np.zeros((2, 59)))
    with pytest.raises(ValueError, match=r"NaN|finite"):
        k.gram(np.full((2, 60), np.nan))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([Conv(7, padding="valid"), "relu", Flatten(), Dense()], r"layers\[0\].*leaves nothing of 5 x 4 sites"),
        ([Conv(3, stride=6), "relu", Flatten(), Dense()], r"layers\[0\].*leaves nothing"),
        ([Conv(3), "relu", AveragePool(6), Flatten(), Dense()], r"layers\[2\].*leaves nothing"),
        ([Conv(3), "relu", Dense()], r"ends with \(5, 4\) sites"),
        ([Conv((3, 3, 3)), "relu", Flatten(), Dense()], r"size has 3 numbers, and the inputs have 2 axes"),
        ([Conv(3), Repeat(["relu", Conv(3, stride=2)], 2), Flatten(), Dense()], r"the block changes the sites"),
        ([Conv(3), "relu", Dropout(0.5), GlobalAveragePool(), Dense()], r"Dropout"),
        ([Flatten(), Dense()], r"layers\[0\]"),
    ],
)
def test_layers_that_do_not_fit_are_named(layers, message):
    with pytest.raises(ValueError, match=message):
        wl.network(*layers, inputs=wl.Image(5, 4, 3))


def test_a_norm_over_channels_is_another_than_over_all():
    shape = NETWORKS["flatten"][0]
    X = images(shape, np.float64, 1.0)[[0, 2]]
    nets = [[Conv(3, **W), norm, "relu", Flatten(), Dense(**W)] for norm in (LayerNorm(), LayerNorm(over="all"))]
    grams = [wl.nngp(wl.network(*each, inputs=wl.Image(*shape))).gram(X) for each in nets]
    assert (np.abs(grams[0] / grams[1] - 1) > 0.001).any()
    with pytest.raises(ValueError, match=r'LayerNorm\(over="all"\) needs images'):
        wl.network(Dense(), LayerNorm(over="all"), "relu", Dense())
    with pytest.raises(ValueError, match=r"over must be one of channels, all"):
        LayerNorm(over="batch")


def test_locally_connected_is_a_convolution_before_flatten():
    shape, layers, _ = NETWORKS["flatten"]
    X = images(shape, np.float64, 1.0)
    nets = [wl.network(conv(3, **W), *layers[1:], inputs=wl.Image(*shape)) for conv in (Conv, LocallyConnected)]
    assert np.array_equal(*(wl.ntk(net).gram(X) for net in nets))
    counts = [sum(leaf.size for leaf in jax.tree.leaves(net.init(0, width=2)[0])) for net in nets]
    assert counts[1] == 12 * counts[0]
    with pytest.raises(ValueError, match=r"AveragePool"):
        MaxPool(2)
    with pytest.raises(ValueError, match=r"column 18.*AveragePool"):
        wl.read_network("network(Conv(3), MaxPool(2), Flatten(), Dense(), inputs=Image(4, 4, 1))")


def test_convolutions_need_images():
    with pytest.raises(ValueError, match=r"inputs=wl.Image"):
        wl.network(Conv(3), "relu", Flatten(), Dense())
    with pytest.raises(TypeError, match=r"wl.Image"):
        wl.network(Dense(), inputs=(5, 4, 3))
    with pytest.raises(ValueError, match=r"Image\(32, 32, 3\)"):
        wl.Image(5)
