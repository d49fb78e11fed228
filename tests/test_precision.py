"""Products run at full precision: a GPU would take TF32 for float32 products, which is off by 4e-4."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from cases import IMAGE_NETWORKS, KERNELS, STANDARD_KERNELS, points
from widelimit.compute import device_tiles, implicit

HIGHEST = jax.lax.Precision.HIGHEST
PRODUCTS = ("dot_general", "conv_general_dilated")
RNG = np.random.default_rng(3)
X, Z, Y = (RNG.standard_normal(shape).astype(np.float32) for shape in ((12, 3), (4, 3), (12,)))


def products(jaxpr):
    """All products of a program, in its loops, branches and functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            yield equation
        for inner in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def lower_than_full(function, *arguments):
    """The number of products, and those that may round their operands."""
    found = list(products(jax.make_jaxpr(function)(*arguments).jaxpr))
    return len(found), [str(one) for one in found if one.params["precision"] != (HIGHEST, HIGHEST)]


def loss(k, X, y, noise, Z):
    post = wl.posterior(k, X, y, noise=noise)
    flow, law = wl.gradient_flow(k, X, y), wl.trained_ensemble(wl.mlp(depth=2), X, y)
    parts = (
        *post.predict(Z), post.covariance(Z), post.log_marginal_likelihood(), *post.leave_one_out(), post.residual,
        flow.predict(Z, jnp.array([0.5, jnp.inf])), flow.loss(1.0), law.variance(Z, 1.0),
    )  # fmt: skip
    return sum(jnp.sum(part) for part in parts)


def kernel_programs():
    for name, (k, _) in STANDARD_KERNELS.items():
        A, B = (jnp.asarray(part, jnp.float32) for part in points(name))
        if name != "conditioned":
            yield name, lambda k, A, B: (k.gram(A), k.cross(A, B), k.diag(A)), (k, A, B)
    for activation in ("tanh", "gelu"):
        k = wl.ntk(wl.mlp(depth=3, activation=activation)).prepared(X)
        yield activation, lambda k, A: (device_tiles.gram(k, A), device_tiles.diagonal(k, A)), (k, jnp.asarray(X))


@pytest.mark.parametrize(("name", "function", "given"), [pytest.param(*c, id=c[0]) for c in kernel_programs()])
def test_kernels_compute_at_full_precision(name, function, given):
    del name
    assert not lower_than_full(function, *given)[1]


def test_networks_of_images_compute_at_full_precision():
    for name in list(IMAGE_NETWORKS)[::8]:
        shape, layers, _ = IMAGE_NETWORKS[name]
        net = wl.network(*layers, inputs=wl.Image(*shape))
        A = jnp.asarray(RNG.standard_normal((3, *shape)), jnp.float32)
        params = net.init(0, width=4)
        for function in (KERNELS["nngp"](net).gram, lambda A, net=net, params=params: net.apply(params, A)):
            assert not lower_than_full(function, A)[1], name


def test_inference_computes_at_full_precision_and_so_do_its_derivatives():
    given = wl.rbf(0.7), *map(jnp.asarray, (X, Y)), jnp.float32(0.1), jnp.asarray(Z)
    count, lower = lower_than_full(jax.grad(loss, argnums=(0, 1, 2, 3, 4)), *given)
    assert count > 10
    assert not lower


def test_a_product_without_precision_is_found(monkeypatch):
    monkeypatch.setattr(implicit, "product", jnp.matmul)
    assert lower_than_full(lambda A: implicit.product(A, A), jnp.eye(3))[1]


def test_the_digits_that_tf32_would_lose(monkeypatch):
    """On a GPU this test sees a product in TF32; here one is planted, whose operands keep 11 bits."""
    A = RNG.standard_normal((20, 100)).astype(np.float32)
    k = wl.ntk(wl.mlp(depth=2, bias_std=0.1))
    expected, exact = k.gram(A.astype(float)), A.astype(float) @ A.astype(float).T
    eps, size = np.finfo(np.float32).eps, np.linalg.norm(A.astype(float), axis=1)

    def errors(n):
        found = np.asarray(k.gram(jnp.asarray(A[:n]))), np.asarray(implicit.product(jnp.asarray(A[:n]), A[:n].T))
        apart = (exact - np.pad(found[1], (0, 20 - n)))[:n, :n] / np.outer(size, size)[:n, :n]
        return np.abs(found[0] - expected[:n, :n]).max() / expected.max(), np.abs(apart).max()

    assert max(errors(20)) <= 64 * eps
    product = jnp.matmul

    def rounded(a, b, **precision):
        return product(*(jax.lax.reduce_precision(jnp.asarray(part), 8, 10) for part in (a, b)), **precision)

    monkeypatch.setattr(jnp, "matmul", rounded)
    assert min(errors(19)) > 64 * eps  # programs of another shape, as those of 20 rows are compiled
