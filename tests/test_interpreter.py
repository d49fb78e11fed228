import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

import widelimit as wl
from widelimit import interpreter, signals
from widelimit.interpreter import interpreted

RNG = np.random.default_rng(0)
X = RNG.uniform(-0.9, 0.9, (4, 6))
Y = RNG.uniform(0.1, 2.0, (4, 6))


@jax.custom_jvp
def cubed(x):
    return x**3


cubed.defjvp(lambda primals, tangents: (cubed(*primals), 3 * primals[0] ** 2 * tangents[0]))

ELEMENTWISE = {
    "arithmetic": lambda x, y: (x + y) * (x - y) / y + x**2 - y**0.3 + jnp.sqrt(y) + jax.lax.rsqrt(y) + jnp.cbrt(x),
    "order": lambda x, y: jnp.where(x > y / 2, jnp.maximum(x, y), jnp.clip(x, -0.2, 0.3)) + jnp.sign(x) * jnp.abs(x),
    "exponentials": lambda x, y: jnp.exp(x) + jnp.exp2(x) + jnp.log(y) + jnp.log1p(y) + jnp.expm1(x) + jnp.power(y, x),
    "circular": lambda x, y: jnp.sin(x) + jnp.cos(y) + jnp.tan(x) + jnp.arcsin(x) + jnp.arccos(x) + jnp.arctan2(x, y),
    "hyperbolic": lambda x, y: jnp.tanh(x) + jnp.sinh(x) + jnp.cosh(y) + jnp.arcsinh(x) + jnp.arctanh(x),
    "special": lambda x, y: jax.lax.erf(x) + jax.lax.erfc(y) + jax.nn.sigmoid(x) + jax.scipy.special.gammaln(y),
    "activations": lambda x, y: jax.nn.softplus(x) + jax.nn.silu(y) + jax.nn.gelu(x) + jax.nn.elu(x) + jax.nn.mish(y),
    "rounding": lambda x, y: jnp.floor(3 * x) + jnp.ceil(y) + jnp.round(5 * x) + jax.lax.reduce_precision(x, 11, 26),
    "integers": lambda x, y: (
        (jnp.asarray(9 * x, jnp.int32) // 2 + jnp.asarray(9 * y, jnp.int32) % 3) << 2 >> 1
    ).astype(x.dtype),
    "bits": lambda x, y: (jax.lax.bitcast_convert_type(x, jnp.int64) >> 52).astype(x.dtype) * y,
    "powers of two": lambda x, y: (
        signals.power_of_two(jnp.asarray(20 * x, jnp.int32), jnp.float64) * y + signals.exponent_of(y)
    ),
    "custom derivative": lambda x, y: jax.jvp(lambda v: cubed(v) * y, (x,), (y,))[1],
    "complex": lambda x, y: (jax.lax.complex(x, y) * jnp.conj(jax.lax.complex(y, x))).imag,
}
SHAPES = {
    "broadcast": lambda x, y: x[:, None] * y[None, :, :1] + jnp.ones((4, 4, 1)),
    "parts": lambda x, y: jnp.concatenate([x[1:, ::2], y[:-1, 1::2]], 1).T.reshape(2, -1)[::-1],
    "stack": lambda x, y: sum(jnp.split(jnp.stack([x, y]), 2)),
    "dynamic": lambda x, y: jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(y, (3, 1), (2, 2)), (0, 5)),
    "sums": lambda x, y: (jnp.sum(x, 1), jnp.max(y), jnp.min(x, 0), jnp.prod(y, 0), jnp.argmax(x, 1), jnp.any(x > 0)),
    "running": lambda x, y: (jnp.cumsum(x, 1), jnp.cumprod(y, 0), jax.lax.cummax(x, 1, reverse=True), jnp.sort(x, 0)),
    "products": lambda x, y: (x @ y.T, jnp.tensordot(x, y, ((0, 1), (0, 1))), jnp.einsum("ij,ik->ijk", x, y)),
    "batched": lambda x, y: jnp.matmul(x.reshape(2, 2, 6), y.reshape(2, 2, 6).transpose(0, 2, 1)),
    "ranges": lambda x, y: jnp.arange(6) * x + jnp.linspace(0, 1, 6) + jnp.eye(4, 6),
    "scan": lambda x, y: jax.lax.scan(lambda c, a: (c * a[0] + a[1], c), jnp.ones(6), (x, y)),
    "scan backwards": lambda x, y: jax.lax.scan(lambda c, a: (c + a, c * a), jnp.ones(6), x, reverse=True),
    "loop": lambda x, y: jax.lax.fori_loop(0, 3, lambda i, c: c * y + i, x),
    "while": lambda x, y: jax.lax.while_loop(lambda c: jnp.sum(c) > 0.1, lambda c: c / 2, y),
    "branch": lambda x, y: jax.lax.cond(jnp.sum(x) > 0, lambda a: a + 1, lambda a: a - 1, y),
    "gradient": lambda x, y: jax.grad(lambda a: jnp.sum(jax.nn.softplus(a @ y.T) ** 2))(x),
    "unknown to it": lambda x, y: (jnp.linalg.cholesky(x @ x.T + jnp.eye(4)), jnp.take(x, jnp.array([2, 0]), 1)),
}
ALL = ELEMENTWISE | SHAPES


def differences(function, *arguments):
    """The largest |interpreted - compiled| of every result, in units of its largest entry."""
    with jax.enable_x64(True):
        expected, found = jax.jit(function)(*arguments), interpreted(function)(*arguments)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert isinstance(b, np.ndarray)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        yield float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float))) / max(np.max(np.abs(a)), 1e-300))


@pytest.mark.parametrize("name", ALL)
def test_it_computes_what_the_compiler_computes(name):
    assert max(differences(ALL[name], X, Y)) < 64 * np.finfo(float).eps


@pytest.mark.parametrize(
    ("primitive", "wrong"), [("add", np.subtract), ("tanh", np.sinh), ("select_n", lambda w, a, b: a)]
)
def test_a_wrong_primitive_is_found(monkeypatch, primitive, wrong):
    monkeypatch.setitem(interpreter._PLAIN, primitive, wrong)
    assert max(max(differences(f, X, Y)) for f in ELEMENTWISE.values()) > 1e-3


def test_edges_of_conversions():
    def function(x):
        return x.astype(jnp.int32), jax.lax.div(jnp.array([-7, 7, -7], jnp.int32), jnp.array([2, -2, -3], jnp.int32))

    x = np.array([1e300, -1e300, np.nan, -1.9, 2.9])
    with jax.enable_x64(True):
        expected, found = jax.jit(function)(x), interpreted(function)(x)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_a_network_without_the_compiler(activation):
    """Encoding and pairs of a whole network; nothing is compiled for it."""
    net = wl.mlp(depth=3, activation=activation, weight_std=1.3, bias_std=0.2)

    def kernel(points):
        features = net.encode(points)
        return net.pairwise(features, features, same=True).tangent, net.diagonal(features).correlation.rho

    compiled = []
    monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    points = np.concatenate([X, X[:1] * (1 + 1e-9), 0 * X[:1]])
    with jax.enable_x64(True):
        found = interpreted(kernel)(points)
        assert not [name for name in compiled if "backend_compile" in name]
        expected = jax.jit(kernel)(points)
        assert [name for name in compiled if "backend_compile" in name]
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=64 * np.finfo(float).eps)


def test_single_precision_stays_single():
    found = interpreted(lambda x: (x * 2, jnp.sum(x, 0), x @ x.T))(X.astype(np.float32))
    assert {v.dtype for v in found} == {np.dtype(np.float32)}
