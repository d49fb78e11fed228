"""Every kind of layer: kernels from signals, and from Jacobians made of them, against explicit Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from compiled import quick_jit
from widelimit.kernels.empirical import uses
from widelimit.kernels.empirical.contraction import Layerwise, pairs
from widelimit.kernels.empirical.uses import parts_of

EPS = np.finfo(np.float64).eps
N = 4


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def convolution(kernel, shape, layouts=("NHWC", "HWIO", "NHWC"), **options):
    """A convolution, something that bends, and a sum over the sites; the weight has the layout of `layouts`."""

    def apply(params, X):
        rules = jax.lax.conv_dimension_numbers(X.shape, params["weight"].shape, layouts)
        rest = {"window_strides": (1,) * (X.ndim - 2), "padding": "SAME"} | options
        z = jax.lax.conv_general_dilated(X, params["weight"], dimension_numbers=rules, **rest)
        bias = jnp.expand_dims(params["bias"], [k for k, name in enumerate(layouts[2].replace("N", "")) if name != "C"])
        return jnp.tanh(z + bias).sum(axis=[k for k, name in enumerate(layouts[2]) if name not in "NC"])

    out = kernel[layouts[1].index("O")]
    return apply, {"weight": draw(*kernel), "bias": draw(out, seed=1)}, draw(N, *shape, seed=2)


def dense(params, X):
    return jnp.tanh(X @ params["weight"] + params["bias"]) @ params["last"]


def transposed(params, X):
    return jnp.tanh(X @ params["weight"].T * 0.3 + 2.0 * params["bias"]) @ (-params["last"] / 1.7)


def heads(params, X):
    """Products with a weight for each head, and the heads of one weight."""
    h = jnp.einsum("nthd,hdk->nthk", X, params["own"])
    return jnp.einsum("nthk,hkc->nc", jnp.sin(h), params["shared"].reshape(2, 3, 2))


def attention(params, X):
    q, k, v = (jnp.einsum("ntd,dhk->nthk", X, params[name]) for name in ("query", "key", "value"))
    scores = jax.nn.softmax(jnp.einsum("nthk,nshk->nhts", q, k), axis=-1)
    return jnp.einsum("nhts,nshk,hkc->nc", scores, v, params["out"])


def normalised(axes):
    def apply(params, X):
        mean, spread = X.mean(axis=axes, keepdims=True), X.std(axis=axes, keepdims=True)
        return jnp.tanh(params["gain"] * (X - mean) / (spread + 1e-3) + params["offset"]).sum(axis=1)

    return apply


def batch_norm(params, X):
    """Evaluation mode: stored statistics."""
    return jnp.tanh(params["gain"] * (X - 0.3) * jax.lax.rsqrt(1.7) + params["offset"]).sum(axis=1)


def embedding(params, X):
    h = params["table"][X] + jnp.take(params["places"], jnp.arange(X.shape[1]), axis=0)
    return jnp.tanh(h).sum(axis=1) @ params["last"]


def tied(params, X):
    """One weight twice as it is, once transposed by another: the first is one site, the second is not."""
    h = jnp.tanh(X @ params["twice"])
    h = jnp.tanh(h @ params["twice"])
    return jnp.sin(h @ params["both"]) @ params["both"].T


def tied_table(params, X):
    return jnp.tanh(params["table"][X]).sum(axis=1) @ params["table"].T


def frozen(params, X):
    return jnp.tanh(X @ jax.lax.stop_gradient(params["weight"])) @ params["last"]


def scanned(params, X):
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), X, params["stack"])
    return h @ params["last"]


@jax.checkpoint
def remat_block(weight, h):
    return jnp.tanh(h @ weight)


def remat(params, X):
    return jax.jit(remat_block)(params["weight"], X) @ params["last"]


def scaled_by_itself(params, X):
    """A weight of norm 1, times a number that is a parameter."""
    return X @ (params["gain"] * params["weight"] / jnp.linalg.norm(params["weight"])) + X @ params["last"]


def vmapped(params, X):
    return jax.vmap(lambda x: jnp.tanh(params["weight"] @ x) @ params["last"])(X)


PARTLY = {
    "integers": lambda p, X: X @ p["weight"].astype(jnp.int32).astype(X.dtype) + X @ p["last"],
    "complex inputs": lambda p, X: (jnp.fft.fft(X) @ p["weight"]).imag + X @ p["last"],
    "a complex multiple": lambda p, X: (X @ (p["weight"] * (0.5 + 1j))).imag + X @ p["last"],
    "a complex weight": lambda p, X: jnp.abs(jnp.fft.fft(X) @ p["weight"].astype(complex)) ** 2 + X @ p["last"],
}
"""Functions that are not differentiable by the weight as real numbers, step by step."""

IDS = np.random.default_rng(3).integers(0, 6, (N, 3))
SQUARE = {"weight": draw(5, 5), "bias": draw(5), "last": draw(5, 2, seed=1)}
NORM = {"gain": draw(6), "offset": draw(6, seed=1)}
CASES = {
    "dense": (dense, SQUARE, draw(N, 5)),
    "dense, transposed and scaled": (transposed, SQUARE, draw(N, 5)),
    "dense at positions": (lambda p, X: dense(p, X).sum(axis=1), SQUARE, draw(N, 3, 5)),
    "vmap": (vmapped, SQUARE, draw(N, 5)),
    "remat": (remat, SQUARE, draw(N, 5)),
    "heads": (heads, {"own": draw(2, 5, 3), "shared": draw(6, 2)}, draw(N, 3, 2, 5)),
    "attention": (
        attention,
        {name: draw(5, 2, 3, seed=k) for k, name in enumerate(("query", "key", "value"))} | {"out": draw(2, 3, 2)},
        draw(N, 4, 5),
    ),
    "conv": convolution((3, 3, 2, 4), (5, 4, 2)),
    "conv, stride, dilation": convolution((3, 2, 2, 4), (7, 6, 2), window_strides=(2, 1), rhs_dilation=(2, 3)),
    "conv, padding, channels first": convolution(
        (4, 2, 3, 3), (2, 5, 4), ("NCHW", "OIHW", "NCHW"), padding=[(2, 0), (-1, 1)]
    ),
    "conv, groups": convolution((3, 3, 2, 6), (4, 4, 4), feature_group_count=2),
    "conv, depthwise": convolution((3, 3, 1, 4), (4, 4, 4), feature_group_count=4),
    "conv, transposed": convolution((3, 3, 2, 3), (3, 3, 2), padding=[(2, 2)] * 2, lhs_dilation=(2, 2)),
    "conv 1-D": convolution((3, 2, 4), (6, 2), ("NWC", "WIO", "NWC"), window_strides=(2,)),
    "conv 3-D": convolution((2, 3, 2, 2, 3), (3, 4, 3, 2), ("NDHWC", "DHWIO", "NDHWC")),
    "layer norm": (normalised((2,)), NORM, draw(N, 3, 6)),
    "group norm": (
        lambda p, X: normalised((2, 4))({k: v.reshape(2, 1, 3) for k, v in p.items()}, X).sum((1, 2)),
        NORM,
        draw(N, 4, 2, 3).reshape(N, 2, 2, 2, 3),
    ),
    "batch norm": (batch_norm, NORM, draw(N, 3, 6)),
    "embedding": (embedding, {"table": draw(6, 4), "places": draw(5, 4), "last": draw(4, 2)}, IDS),
    "tied": (tied, {"twice": draw(4, 4), "both": draw(4, 4, seed=1)}, draw(N, 4)),
    "tied table": (tied_table, {"table": draw(6, 4)}, IDS),
    "frozen": (frozen, SQUARE, draw(N, 5)),
    "scan": (scanned, {"stack": draw(3, 5, 5), "last": draw(5, 2)}, draw(N, 5)),
    "weight norm": (
        scaled_by_itself,
        {"weight": draw(5, 2), "gain": draw(1)[0] * np.ones(()), "last": draw(5, 2)},
        draw(N, 5),
    ),
}
SIGNALS = {
    "dense": {"weight", "last"},
    "vmap": {"weight", "last"},
    "remat": {"weight", "last"},
    "dense, transposed and scaled": {"weight", "last"},
    "heads": {"own", "shared"},
    "attention": {"query", "key", "value", "out"},
    "embedding": {"table", "places", "last"},
    "tied": {"twice"},
    "tied table": set(),
    "frozen": {"last"},
    "scan": {"last"},
    "weight norm": {"last"},
    "layer norm": set(),
    "group norm": set(),
    "batch norm": set(),
}


def exact(apply, params, X):
    """All pairs and outputs from an explicit Jacobian, forward mode."""
    with jax.enable_x64(True):
        found = quick_jit(jax.jacfwd(lambda p: apply(p, jnp.asarray(X))))(params)
    J = np.concatenate(
        [np.asarray(leaf).reshape(len(X), np.shape(leaf)[1], -1) for leaf in jax.tree.leaves(found)], axis=2
    )
    return np.einsum("nap,mbp->nmab", J, J)


def close(values, wanted):
    """64 eps of the largest entry: sums of products of which each is right to a few eps."""
    assert values.shape == wanted.shape
    return np.abs(values - wanted).max() <= 64 * EPS * np.abs(wanted).max()


def both_ways(apply, params, X):
    """The kernel from signals where there are any, and from Jacobians made of them; the names of the parameters."""
    f = wl.empirical_ntk(apply, params).at(X).model.of_dtype(np.dtype("float64"))
    rows = f.points("X", X)
    parts = parts_of(f, rows.shape[1], rows.dtype)
    found = []
    for way in ("signals", "jacobian"):
        ways = tuple("explicit" if p.use is None else way if p.groups == 1 else "jacobian" for p in parts)
        ways = tuple(w if p.used else "none" for w, p in zip(ways, parts, strict=True))
        factors = Layerwise(f, ways)

        def compute(factors, X):
            kept = factors.of(X)
            return [pairs(kept, kept, output) for output in ("full", "trace", "diagonal")], pairs(
                kept, kept, "full", itself=True
            )

        with jax.enable_x64(True):
            found.append(jax.tree.map(np.asarray, quick_jit(compute)(factors, jnp.asarray(rows))))
    return found, {part.name for part in parts if part.use is not None}


@pytest.mark.parametrize("name", CASES)
def test_kernels_of_every_layer_are_those_of_explicit_jacobians(name):
    apply, params, X = CASES[name]
    full = exact(apply, params, X)
    found, names = both_ways(apply, params, X)
    assert names == SIGNALS.get(name, {"weight"} if name.startswith("conv") else {"weight", "last"})
    for (values, trace, diagonal), own in found:
        assert close(values, full)
        assert close(trace, np.einsum("nmaa->nm", full) / full.shape[2])
        assert close(diagonal, np.einsum("nmaa->nma", full))
        assert close(own, np.einsum("nnab->nab", full))


@pytest.mark.parametrize("name", PARTLY)
def test_steps_of_integers_and_complex_numbers_are_not_read(name):
    params, X = {"weight": 2 * draw(5, 2), "last": draw(5, 2, seed=1)}, draw(N, 5)
    values = wl.empirical_ntk(PARTLY[name], params, method="layerwise", output="full").gram(X)
    assert close(values, exact(PARTLY[name], params, X))
    assert both_ways(PARTLY[name], params, X)[1] == {"last"}


@pytest.mark.filterwarnings("ignore:Casting from complex to real")
@pytest.mark.parametrize("name", PARTLY)
def test_what_is_misread_is_seen_by_a_comparison_with_automatic_differentiation(name, monkeypatch):
    params, X = {"weight": 2 * draw(5, 2), "last": draw(5, 2, seed=1)}, draw(30, 5)
    monkeypatch.setattr(uses, "_real", lambda _: True)  # as if nobody had thought of it

    def misread(p, X):
        return PARTLY[name](p, X)

    k = wl.empirical_ntk(misread, params, output="full")
    assert k.explain(X).method == "jacobian"  # as it is planned after the comparison
    assert close(k.gram(X), exact(misread, params, X))
    assert close(k.diag(X), np.einsum("nnab->nab", exact(misread, params, X)))
    with pytest.raises(ValueError, match=r"automatic differentiation in the parameter weight: pass method=\"jacobian"):
        wl.empirical_ntk(misread, params, method="layerwise").gram(X)
    with pytest.raises(ValueError, match="parameter weight"):
        wl.empirical_ntk(misread, params, output="trace").parts(X)


def test_what_is_misread_is_seen_behind_a_gate_at_0_and_within_a_trace(monkeypatch):
    params = {"weight": 2 * draw(5, 2), "gate": np.zeros(()), "last": draw(5, 2, seed=1)}
    monkeypatch.setattr(uses, "_real", lambda _: True)

    def gated(p, X):
        return p["gate"] * PARTLY["integers"](p, X) + X @ p["last"]

    k = wl.empirical_ntk(gated, params, method="layerwise", output="trace")
    for compute in (k.gram, k.diag, quick_jit(k.gram)):
        with jax.enable_x64(True), pytest.raises(ValueError, match="in the parameter weight"):
            compute(jnp.asarray(draw(N, 5)))


@pytest.mark.parametrize("name", CASES)
def test_no_layer_that_is_read_is_refused(name):
    apply, params, X = CASES[name]
    f = wl.empirical_ntk(apply, params, method="layerwise")
    assert close(f.gram(X), exact(apply, params, X))


CONTROLS = {
    "a transposed weight": ("dense", lambda p: p | {"weight": p["weight"].T}),
    "a missing bias": ("dense", lambda p: p | {"bias": 0 * p["bias"]}),
    "a flipped filter": ("conv", lambda p: p | {"weight": p["weight"][::-1]}),
    "another row of a table": ("embedding", lambda p: p | {"table": p["table"][::-1]}),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_the_oracle_rejects_another_layer(name):
    case, change = CONTROLS[name]
    apply, params, X = CASES[case]
    full = exact(apply, params, X)
    assert not close(both_ways(apply, change(params), X)[0][0][0][0], full)


def test_the_oracle_rejects_a_doubled_tie():
    """The sum of the kernels of the two uses is not the kernel of the weight that both use."""
    params, X = CASES["tied"][1], CASES["tied"][2]

    def two(p, X):
        return tied_twice(p, X)

    def tied_twice(p, X):
        return jnp.tanh(jnp.tanh(X @ p["first"]) @ p["second"])

    apart = wl.empirical_ntk(two, {"first": params["twice"], "second": params["twice"]}).gram(X)
    together = exact(lambda p, X: tied_twice({"first": p, "second": p}, X), params["twice"], X)
    assert not close(apart, together)
    assert close(
        wl.empirical_ntk(lambda p, X: tied_twice({"first": p, "second": p}, X), params["twice"]).gram(X), together
    )


@jax.custom_vjp
def clipped(z):
    return jnp.tanh(z)


clipped.defvjp(lambda z: (jnp.tanh(z), z), lambda z, g: (g / (1 + z**2),))


def reversed_only(params, X):
    return clipped(X @ params["weight"]) @ params["last"]


@pytest.mark.parametrize("method", ["jacobian", "vector_products", "layerwise", "auto"])
def test_functions_with_a_rule_for_reverse_mode_alone(method):
    """The rule here is that of arctan, not of what is computed."""
    params, X = {"weight": draw(5, 3), "last": draw(3, 2, seed=1)}, draw(N, 5)
    with jax.enable_x64(True):
        found = jax.jacrev(lambda p: reversed_only(p, jnp.asarray(X)))(params)
    J = np.concatenate([np.asarray(leaf).reshape(N, 2, -1) for leaf in jax.tree.leaves(found)], axis=2)
    k, full = wl.empirical_ntk(reversed_only, params, method=method, output="full"), np.einsum("nap,mbp->nmab", J, J)
    assert close(k.gram(X), full)
    assert close(k.diag(X), np.einsum("nnab->nab", full))
    v = draw(N, 2, seed=2)
    assert close(k.matvec(X, v), np.einsum("nmab,mb->na", full, v))
    moved = jax.tree.map(lambda leaf: leaf + 0.5, params)
    wanted = reversed_only(params, X) + 0.5 * J.sum(axis=2)
    np.testing.assert_allclose(wl.linearize(reversed_only, params)(moved, X), wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="mixes rows"):
        wl.empirical_ntk(lambda p, X: reversed_only(p, X) - reversed_only(p, X).mean(axis=0), params).gram(X)


def test_float32():
    """256 eps: products of four layers, each of some 10 terms, rounded in another order."""
    for name in ("attention", "conv", "embedding"):
        apply, params, X = CASES[name]
        single = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
        inputs = X if X.dtype.kind == "i" else X.astype(np.float32)
        values = wl.empirical_ntk(apply, single).gram(inputs)
        wide = exact(apply, jax.tree.map(np.float64, single), inputs if X.dtype.kind == "i" else np.float64(inputs))
        assert values.dtype == np.float32
        assert np.abs(values - wide).max() <= 256 * np.finfo(np.float32).eps * np.abs(wide).max()
        assert np.abs(1.0001 * values - wide).max() > 256 * np.finfo(np.float32).eps * np.abs(wide).max()


def test_a_float64_function_that_computes_in_float32_inside_does_not_mix_rows():
    params, X = {"weight": draw(5, 40), "last": draw(40, 2)}, 30 * draw(N, 5)

    def inside(p, X):
        h = jnp.asarray(X, "float32") @ jnp.asarray(p["weight"], "float32")
        return jnp.asarray(jnp.sin(h) @ jnp.asarray(p["last"], "float32"), X.dtype)

    values, wide = wl.empirical_ntk(inside, params).gram(X), exact(inside, params, X)
    assert np.abs(values - wide).max() <= 1e-4 * np.abs(wide).max()
    with pytest.raises(ValueError, match="mixes rows"):
        wl.empirical_ntk(lambda p, X: inside(p, X) + 0.01 * inside(p, X).mean(axis=0), params).gram(X)


def test_a_gradient_that_is_not_finite_names_its_parameters():
    def apply(params, X):
        return jnp.sqrt(jnp.square(X @ params["first"])) @ params["last"]

    X = draw(3, 4)
    X[1] = 0
    with pytest.raises(ValueError, match=r"row 1 of X is NaN or infinite in first\.") as caught:
        wl.empirical_ntk(apply, {"first": np.ones((4, 2)), "last": np.ones((2, 2))}).gram(X)
    assert len(str(caught.value)) < 400
