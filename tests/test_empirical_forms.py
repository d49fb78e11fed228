"""Empirical kernels of inputs and outputs of any form, of some outputs and parameters, and of each layer alone."""

import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from compiled import quick_jit
from widelimit import memory

EPS = np.finfo(np.float64).eps
N, TOKENS, VOCABULARY, WIDTH = 6, 4, 7, 5
RNG = np.random.default_rng(0)
X = {
    "ids": RNG.integers(0, VOCABULARY, (N, TOKENS)),
    "mask": np.arange(TOKENS) < RNG.integers(2, TOKENS + 1, N)[:, None],
    "scale": RNG.uniform(1, 2, N),
}
Y = {name: values[:4][::-1] for name, values in X.items()}
LABELS = RNG.integers(0, 3, N)


def parameters():
    draw = np.random.default_rng(1).standard_normal
    return {
        "embedding": draw((VOCABULARY, WIDTH)),
        "blocks": [{"weight": draw((WIDTH, WIDTH)), "bias": draw(WIDTH)} for _ in range(2)],
        "head": {"weight": draw((WIDTH, 3)), "bias": draw(3)},
    }


PARAMS = parameters()


def tokens(params, X):
    """Return (n, tokens, 3), and a second output (n,)."""
    h = params["embedding"][X["ids"]] * X["scale"][:, None, None]
    for block in params["blocks"]:
        h = h + jnp.tanh(h @ block["weight"] + block["bias"])
    share = X["mask"] / X["mask"].sum(axis=1, keepdims=True)
    h = h + jnp.einsum("nt,ntw->nw", share, h)[:, None]
    return {"tokens": h @ params["head"]["weight"] + params["head"]["bias"], "energy": jnp.sum(h**2, axis=(1, 2))}


def per_token(params, X):
    return tokens(params, X)["tokens"]


def jacobian(apply, params, X):
    """(n, ..., P), forward mode, all rows at once."""
    with jax.enable_x64(True):
        found = quick_jit(jax.jacfwd(lambda p: apply(p, jax.tree.map(jnp.asarray, X))))(params)
    leaves = [
        (np.asarray(leaf), np.ndim(own))
        for leaf, own in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True)
    ]
    return np.concatenate([leaf.reshape(*leaf.shape[: leaf.ndim - axes], -1) for leaf, axes in leaves], axis=-1)


J, J_Y = (jacobian(per_token, PARAMS, Z) for Z in (X, Y))  # (n, tokens, 3, P)


def close(values, wanted):
    """64 eps of the largest entry: sums of P products of which each is right to a few eps."""
    assert values.shape == wanted.shape
    assert values.dtype == np.float64
    return np.abs(values - wanted).max() <= 64 * EPS * np.abs(wanted).max()


def kernel(**options):
    return wl.empirical_ntk(per_token, PARAMS, **options)


@pytest.mark.parametrize("method", ["jacobian", "vector_products", "layerwise"])
def test_trees_of_arrays_and_outputs_of_more_axes(method):
    flat, flat_y = (j.reshape(len(j), -1, j.shape[-1]) for j in (J, J_Y))
    full = np.einsum("nap,mbp->nmab", flat, flat_y)
    assert close(kernel(method=method).cross(X, Y), full)
    assert close(kernel(method=method, output="trace").cross(X, Y), np.einsum("nmaa->nm", full) / flat.shape[1])
    assert close(kernel(method=method, output="diagonal").diag(X), np.einsum("nap,nap->na", flat, flat))
    assert not close(kernel(output="trace").cross(X, Y), np.einsum("nmaa->nm", full[:, ::-1]) / flat.shape[1])


AXES = [
    ((-1,), (), "ntcp,msdp->nmts"),
    ((), (), "ntcp,msdp->nmtscd"),
    ((0,), (), "ntcp,msdp->nmcd"),
    ((0, 1), (), "ntcp,msdp->nm"),
    ((1,), (0,), "ntcp,msdp->nmt"),
    ((), (0,), "ntcp,msdp->nmtcd"),
    ((), (-1, 0), "ntcp,msdp->nmtc"),
    ((), (1,), "ntcp,msdp->nmtsc"),
]


@pytest.mark.parametrize("method", ["jacobian", "layerwise"])
@pytest.mark.parametrize(("trace", "diagonal", "rule"), AXES)
def test_axes(trace, diagonal, rule, method):
    left, right = rule.split("->")[0].split(",")
    for axes in (trace, diagonal):
        for k in axes:
            place = k % 2
            right = right.replace("sd"[place], "tc"[place])
    count = np.prod([(TOKENS, 3)[k] for k in trace])
    k = kernel(trace_axes=trace, diagonal_axes=diagonal, method=method)
    rule = f"{left},{right}->{rule.split('->')[1]}"
    assert close(k.cross(X, Y), np.einsum(rule, J, J_Y, optimize=True) / count)
    gram = np.einsum(rule, J, J, optimize=True) / count
    assert close(k.gram(X), gram)
    own = np.stack([gram[i, i] for i in range(N)])
    assert close(k.diag(X), own)
    if gram.ndim > 2:
        assert not close(k.cross(X, Y), np.einsum(rule, J, J_Y[:, ::-1], optimize=True) / count)


def test_a_tree_of_outputs_has_a_kernel_each():
    k = wl.empirical_ntk(tokens, PARAMS, trace_axes=())
    with pytest.raises(ValueError, match=r"trace_axes has -1.*shape \(\)"):
        wl.empirical_ntk(tokens, PARAMS, trace_axes=(-1,)).gram(X)
    energy = jacobian(lambda p, X: tokens(p, X)["energy"], PARAMS, X)
    found = k.gram(X)
    assert close(found["energy"], energy @ energy.T)
    assert close(found["tokens"], np.einsum("ntcp,msdp->nmtscd", J, J, optimize=True))
    both = np.concatenate([energy[:, None], J.reshape(N, -1, J.shape[-1])], axis=1)
    assert close(wl.empirical_ntk(tokens, PARAMS, output="trace").gram(X), np.einsum("nap,map->nm", both, both) / 13)
    by_block = k.parts(X, by="block")
    assert close(sum(part["tokens"] for part in by_block.values()), found["tokens"])


def log_probability(outputs, X):
    values, label = X
    del values
    return jnp.take_along_axis(jax.nn.log_softmax(outputs), label[:, None], axis=1)[:, 0]


def test_a_function_of_outputs_and_labels_in_the_inputs():
    def apply(params, X):
        return per_token(params, X[0]).mean(axis=1)

    inputs = (X, LABELS)
    wanted = jacobian(lambda p, Z: log_probability(apply(p, Z), Z), PARAMS, inputs)
    k = wl.empirical_ntk(apply, PARAMS, of=log_probability, output="trace")
    assert close(k.gram(inputs), wanted @ wanted.T)
    assert not close(k.gram((X, (LABELS + 1) % 3)), wanted @ wanted.T)
    some = wl.empirical_ntk(per_token, PARAMS, of=lambda outputs, _: outputs[:, 1, :2])
    assert close(some.gram(X), np.einsum("ncp,mdp->nmcd", J[:, 1, :2], J[:, 1, :2]))


def names_and_places():
    named = jax.tree_util.tree_leaves_with_path(PARAMS)
    ends = np.cumsum([leaf.size for _, leaf in named])
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in named]
    return {name: slice(end - leaf.size, end) for name, end, (_, leaf) in zip(names, ends, named, strict=True)}


PLACES = names_and_places()


def of_parameters(names):
    part = np.concatenate([J[..., PLACES[name]] for name in names], axis=-1)
    return np.einsum("ntcp,mtcp->nm", part, part) / 12


@pytest.mark.parametrize("chosen", [["blocks.0.*"], ["*.bias", "embedding"], lambda name: name.endswith("weight")])
@pytest.mark.parametrize("method", ["vector_products", "layerwise"])
def test_some_parameters(chosen, method):
    rule = chosen if callable(chosen) else lambda name: any(fnmatch.fnmatch(name, pattern) for pattern in chosen)
    names = [name for name in PLACES if rule(name)]
    k = kernel(parameters=chosen, output="trace", method=method)
    assert close(k.gram(X), of_parameters(names))
    assert not close(k.gram(X), of_parameters(list(PLACES)))
    assert k.explain(X).cost.parameters == sum(PLACES[name].stop - PLACES[name].start for name in names)


def test_kernels_of_layers_sum_to_the_whole():
    k = kernel(output="trace")
    for by, labels in {
        "parameter": set(PLACES),
        "layer": {"blocks.0", "blocks.1", "embedding", "head"},
        "block": {"blocks.0", "blocks.1", "embedding", "head"},
    }.items():
        parts = k.parts(X, by=by)
        assert set(parts) == labels
        assert close(sum(parts.values()), k.gram(X))
        for label, values in parts.items():
            assert close(values, of_parameters([name for name in PLACES if name.startswith(label)]))
    assert close(k.parts(X, Y)["head"], k.parts(X)["head"][:, :4][:, ::-1])
    plan = kernel(output="trace", method="layerwise").explain(X)
    least = (plan.result + plan.blocks + 1.1 * plan.chosen.least) / memory.GIB
    with pytest.raises(MemoryError, match="kernels and the factors"):
        kernel(output="trace", memory=least).parts(X)
    with pytest.raises(ValueError, match="no sum over layers"):
        wl.empirical_nngp(per_token, PARAMS).parts(X)


def test_inference_takes_inputs_of_any_form(tmp_path):
    k = kernel(output="trace")
    y = RNG.standard_normal(N)
    K = k.gram(X)
    weights = np.linalg.solve(K + 0.1 * np.eye(N), y)
    assert np.abs(wl.posterior(k, X, y, noise=0.1).mean(Y) - k.cross(Y, X) @ weights).max() < 1e-12
    assert np.abs(wl.posterior(2.0 * k + 0.0 * k, X, y, noise=0.2).mean(Y) - k.cross(Y, X) @ weights).max() < 1e-12
    full = kernel(of=lambda outputs, _: outputs[:, 0])
    flow = wl.gradient_flow(full, X, RNG.standard_normal((N, 3)))
    assert flow.predict(Y, [0.0, 1.0]).shape == (2, 4, 3)
    stored = wl.stored_gram(k, X, tmp_path / "k.zarr")
    np.testing.assert_allclose(stored[:], K, rtol=1e-13)
    v = RNG.standard_normal((4, 2))
    assert close(k.matvec(X, v, Y), k.cross(X, Y) @ v)
    linear = wl.linearize(per_token, PARAMS)
    assert close(np.asarray(linear(PARAMS, X)), np.asarray(jax.tree.map(np.asarray, linear(PARAMS, X))))
    rows = k.at(X).points("X", X)
    assert rows.shape == (N, 2 * TOKENS + 1)
    np.testing.assert_array_equal(k.at(X).gram(rows), K)


def test_images_and_jax_arrays():
    images = RNG.standard_normal((5, 4, 4, 2))
    weights = np.random.default_rng(2).standard_normal((3, 3, 2, 3))

    def convolved(params, X):
        rules = jax.lax.conv_dimension_numbers(X.shape, params.shape, ("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(jax.lax.conv_general_dilated(X, params, (1, 1), "SAME", dimension_numbers=rules)).sum((1, 2))

    k = wl.empirical_ntk(convolved, weights, output="trace")
    rows = jacobian(convolved, weights, images)
    wanted = np.einsum("ncp,mcp->nm", rows, rows) / 3
    assert close(k.gram(images), wanted)
    with jax.enable_x64(True):
        values = jax.jit(k.gram)(jnp.asarray(images))
    assert isinstance(values, jax.Array)
    assert close(np.asarray(values), wanted)


def test_inducing_points_of_inputs_of_any_form():
    k, y = kernel(output="trace"), np.arange(N, dtype=float)
    found = wl.posterior(k, X, y, noise=0.1, solver="nystrom", inducing=3)
    bound = wl.posterior(k.at(X), X, y, noise=0.1, solver="nystrom", inducing=3)
    np.testing.assert_array_equal(found.mean(Y), bound.mean(Y))


BAD = [
    ({"ids": X["ids"][:3]}, ValueError, "the same number of rows"),
    ({"mask": np.full((N, TOKENS), np.nan)}, TypeError, "float64"),
    ({"scale": np.full(N, np.nan)}, ValueError, "NaN"),
    ({"ids": np.array([["a"] * TOKENS] * N)}, TypeError, "int64"),
    ({"ids": X["ids"] + 2**60}, ValueError, "integers up to 9007199254740992"),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD)
def test_bad_inputs(change, error, words):
    k = kernel(output="trace").at(X)
    with pytest.raises(error, match=words) as caught:
        k.gram(X | change)
    assert len(str(caught.value)) < 400


def test_other_bad_input():
    k = kernel(output="trace")
    with pytest.raises(ValueError, match="must have the form of the first inputs"):
        k.cross(X, {name: Y[name] for name in ("ids", "mask")})
    with pytest.raises(ValueError, match="fractions"):
        k.at(X).gram(np.full((2, 9), 0.5))
    with pytest.raises(ValueError, match=r"pass k\.at\(X\)"):
        k.points("X", X)
    with pytest.raises(ValueError, match="no parameter has a name like 'block'"):
        kernel(parameters=["block"])
    with pytest.raises(ValueError, match="name an axis twice"):
        kernel(trace_axes=(0,), diagonal_axes=(-2,)).gram(X)
    with pytest.raises(TypeError, match="trace_axes must be axes"):
        kernel(trace_axes=3)
    with pytest.raises(ValueError, match="take the place"):
        kernel(trace_axes=(0,), output="trace")
    with pytest.raises(ValueError, match="mixes rows"):
        wl.empirical_ntk(lambda p, X: per_token(p, X) - per_token(p, X).mean(axis=0), PARAMS).gram(X)
