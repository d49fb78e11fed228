"""Attention: both limits against the recursion in high precision, finite layers, laws, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_oracle
import by_numpy
import widelimit as wl
from widelimit.layers import (
    Attention,
    Dense,
    Frozen,
    GlobalAveragePool,
    LastSite,
    LayerNorm,
    PositionalEncoding,
    Residual,
)

STDS = {"query_std": 1.2, "key_std": 0.9, "value_std": 1.1, "output_std": 0.8, "bias_std": 0.3}
PRODUCTS = {"qk": 1.2 * 0.9, "vo": 1.1 * 0.8, "b": 0.3}
KINDS = [("softmax", "d", True), ("relu", "sqrt_d", False)]
OTHERS = [("softmax", "d", False), ("identity", "d", True), ("relu", "d", False), ("identity", "sqrt_d", True)]
ALL = [*KINDS, *(pytest.param(kind, marks=pytest.mark.claims) for kind in OTHERS)]
ENCODING = np.random.default_rng(1).standard_normal((4, 5))
INPUTS = wl.Sequence(4, 3)
SERIES = [np.random.default_rng(t).standard_normal((t, 3)) for t in (3, 2, 1)]


@functools.cache
def network(scores, scaling, causal):
    attention = Attention(scores, scaling, causal=causal, **STDS)
    return wl.network(
        Dense(1.2, 0.2),
        PositionalEncoding(ENCODING, 0.7),
        Residual(LayerNorm(), attention),
        LayerNorm(),
        attention,
        GlobalAveragePool(),
        Dense(),
        inputs=INPUTS,
    )


@functools.cache
def grams(*kind):
    return wl.limits(network(*kind)).gram(SERIES)


def steps(scores, scaling, causal, **other):
    attention = ("attention", {"scores": scores, "scaling": scaling, "causal": causal, **PRODUCTS, **other})
    first = ("dense", {"w": 1.2, "b": 0.2}), ("positions", ENCODING, 0.7)
    return [*first, ("residual", "norm", attention), "norm", attention, "pool", ("dense", {})]


def test_branches_with_and_without_attention_stand_side_by_side():
    """Pairs of sites are known for both parts of the width; those of the branch without attention were missing."""
    sides = wl.layers.Concatenate([Attention()], [Dense()]), wl.layers.Concatenate([Dense()], [Attention()])
    ends = wl.layers.Activate("erf"), GlobalAveragePool(), Dense()
    one, other = (wl.ntk(wl.network(Dense(), both, *ends, inputs=INPUTS)).gram(SERIES) for both in sides)
    np.testing.assert_allclose(one, other, rtol=1e-13)


@pytest.mark.parametrize("kind", ALL)
def test_both_kernels_to_64_eps_with_unequal_lengths(kind):
    assert max(attention_oracle.errors(steps(*kind), SERIES, grams(*kind), [(0, 1), (0, 2)])) <= 64


@pytest.mark.parametrize(
    "wrong",
    [
        {"qk": 1.2 * 0.9 + 1e-13},
        {"qk": PRODUCTS["qk"] ** 2},
        {"vo": PRODUCTS["vo"] ** 0.5},
        {"b": 0.0},
    ],
)
def test_other_recursions_are_refused(wrong):
    kind = KINDS[0]
    given = steps(*kind, **wrong)
    assert min(attention_oracle.errors(given, SERIES, grams(*kind), [(0, 1)])) > 64


def test_what_is_padded_or_masked_has_no_influence():
    net, longer = network(*KINDS[0]), wl.Sequence(5, 3)
    encoding = PositionalEncoding(np.pad(ENCODING, ((0, 1), (0, 0)), constant_values=9.0), 0.7)
    padded = wl.network(net.layers[0], encoding, *net.layers[2:], inputs=longer)
    hidden = np.asarray(net.inputs.pack(SERIES))
    hidden[1, 6:12] = 1e3
    for K, more, other in zip(
        grams(*KINDS[0]), by_numpy.limits(padded, SERIES), wl.limits(net).gram(hidden), strict=True
    ):
        assert np.abs(more / K - 1).max() <= 64 * np.finfo(float).eps
        assert np.array_equal(other, K)
    params = net.init(0, width=16, dtype=np.float64)
    assert np.array_equal(net.apply(params, hidden), net.apply(params, SERIES))


@pytest.mark.parametrize("scores", ["softmax", "relu"])
def test_causal_finite_layers_ignore_the_future(scores):
    layers = [
        wl.network(Dense(), Attention(scores, causal=causal), LastSite(), Dense(), inputs=wl.Sequence(3, 3)).layers[1]
        for causal in (True, False)
    ]
    signals = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 16)), jnp.float32)
    for layer, same in zip(layers, (True, False), strict=True):
        params = layer.init(jax.random.key(0), 16, 16, jnp.float32)
        before, after = (layer.apply(params, x)[:, :2] for x in (signals, signals.at[:, 2].set(7.0)))
        assert np.array_equal(before, after) == same


@pytest.mark.parametrize("kind", ALL)
def test_positive_semi_definite_and_symmetric(kind):
    for K in grams(*kind):
        assert np.array_equal(K, K.T)
        assert np.linalg.eigvalsh(K).min() > 0
    diagonal = wl.limits(network(*kind)).diag(SERIES)
    assert all(np.array_equal(np.diag(K), own) for K, own in zip(grams(*kind), diagonal, strict=True))


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1e-15), (np.float64, 1e100), (np.float64, 1e-100)])
def test_scales(dtype, scale):
    """Scores of 1e200 choose one site, those of 1e-200 weigh all alike."""
    net = wl.network(Dense(), Attention(), GlobalAveragePool(), Dense(), inputs=wl.Sequence(3, 3))
    X = [(scale * x).astype(dtype) for x in SERIES[:2]]
    given = [("dense", {}), ("attention", {}), "pool", ("dense", {})]
    assert max(attention_oracle.errors(given, X, wl.limits(net).gram(X), [(0, 1)])) <= 64


def test_frozen_attention_and_positions_add_nothing_to_theta():
    layers = Frozen(Dense()), Frozen(PositionalEncoding("learned")), Frozen(Attention())
    net = wl.network(*layers, GlobalAveragePool(), Frozen(Dense()), inputs=INPUTS)
    assert np.abs(by_numpy.gram(wl.ntk(net), SERIES)).max() == 0


def test_finite_layers_count_check_and_learn():
    net = wl.transformer(inputs=INPUTS, depth=1, heads=3, head_size=5, positions="learned")
    params = net.init(0, width=16)
    assert params[2][1][1]["query"].shape == (3, 5, 16)
    assert wl.transformer(inputs=INPUTS, depth=1).init(0, width=30)[2][1][1]["value"].shape == (6, 6, 30)
    rows = jnp.asarray(net.inputs.pack([s.astype(np.float32) for s in SERIES]))
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(net.signals_of(p, rows) ** 2)))(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes[2]) if leaf.ndim > 1)
    with pytest.raises(ValueError, match="not parameters of this network"):
        wl.transformer(inputs=INPUTS, depth=1, scaling="sqrt_d", scores="relu").apply(params, np.asarray(rows))


@pytest.mark.parametrize(
    "given",
    [
        {"norm": "post", "positions": "learned", "end": "last", "causal": True},
        {"norm": "pre", "positions": None, "end": "flatten", "branch_scale": "depth", "scores": "identity"},
        {"positions": ENCODING, "scores": "relu", "scaling": "sqrt_d", "heads": 2, "head_size": 3, "query_std": 0.5},
    ],
)
def test_transformers_by_name(given):
    net = wl.transformer(inputs=INPUTS, depth=2, bias_std=0.1, **given)
    assert wl.read_network(repr(net)) == net
    assert net.depth == 1 + 2 * 3 + 1


def test_long_sequences_are_within_the_plan():
    k = wl.ntk(wl.transformer(inputs=wl.Sequence(128, 4), depth=2, causal=True))
    assert k.numbers_per_input(640) >= 2 * 128 * 128, "the weights of every layer of attention"


SITES = wl.Image(2, 3, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention("softmax", "sqrt_d"), "no closed form"),
        (lambda: Attention("sigmoid"), "scores must be one of"),
        (lambda: Attention(query_std=0.0), "query_std"),
        (lambda: Attention(bias_std=-1.0), "bias_std"),
        (lambda: Attention(heads=0), "heads"),
        (lambda: wl.network(Dense(), Attention(), Dense()), r"layers\[1\]: Attention needs inputs with sites"),
        (lambda: wl.network(Attention(), GlobalAveragePool(), Dense(), inputs=INPUTS), "begins with"),
        (lambda: wl.network(Dense(), Attention(causal=True), Dense(), inputs=SITES), "sites in a row"),
        (lambda: wl.network(Dense(), PositionalEncoding(), Dense()), "needs inputs with sites"),
        (lambda: wl.network(Dense(), PositionalEncoding(), Dense(), inputs=SITES), "pass encoding"),
        (lambda: wl.network(Dense(), PositionalEncoding(np.eye(3)), Dense(), inputs=INPUTS), "3 positions"),
        (lambda: PositionalEncoding("rotary"), "encoding must be one of"),
        (lambda: PositionalEncoding(features=3), "even"),
        (lambda: PositionalEncoding(np.full((2, 2), np.nan)), "NaN|finite"),
        (lambda: wl.network(Dense(), LastSite(), Dense(), inputs=SITES), "sites in a row"),
        (
            lambda: wl.network(Dense(), Attention(), LastSite(), Dense(), inputs=INPUTS, parameterization="standard"),
            "NTK param",
        ),
        (lambda: wl.transformer(inputs=INPUTS, depth=0), "depth"),
        (lambda: wl.transformer(inputs=INPUTS, norm="both"), "norm must be one of"),
        (lambda: wl.transformer(inputs=INPUTS, end="first"), "end must be one of"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message) as found:
        make()
    assert len(str(found.value)) < 400
