"""One finite layer of attention on given signals, written out without the library, and what its means should be."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

import attention_oracle

T = 2
QK, VO, BIAS = (1.2, 0.9), (1.1, 0.8), 0.3


def signals_of(width):
    """(2, T, width) signals with exactly this Sigma, (2 T, 2 T), and the Theta of the layers before."""
    rng = np.random.default_rng(2)
    A, B = rng.standard_normal((2 * T, 4)), rng.standard_normal((2 * T, 5))
    theta = A @ A.T / 4
    sigma = theta + B @ B.T / 10
    frame = np.linalg.qr(rng.standard_normal((width, 2 * T)))[0].T * np.sqrt(width)
    return (np.linalg.cholesky(sigma) @ frame).reshape(2, T, width), sigma, theta


def phi(scores, causal, values):
    read = np.tril(np.ones((T, T), bool)) if causal else np.ones((T, T), bool)
    if scores == "softmax":
        return jax.nn.softmax(jnp.where(read, values, -jnp.inf), axis=-1)
    return jnp.where(read, values if scores == "identity" else jax.nn.relu(values), 0)


def layer(params, x, scores, scaling, causal):
    """Outputs (2 T,) of one unit, and what it reads, (2 T, heads size)."""
    wq, wk, wv, wo, b = params
    heads, size, width = wq.shape
    q, k, v = (
        std * jnp.einsum("hdc,npc->nhpd", w, x) / np.sqrt(width)
        for std, w in zip((*QK, VO[0]), (wq, wq if scaling == "d" else wk, wv), strict=True)
    )
    given = jnp.einsum("nhpd,nhid->nhpi", q, k) / (size if scaling == "d" else np.sqrt(size))
    read = jnp.einsum("nhpi,nhid->nphd", phi(scores, causal, given), v).reshape(2 * T, -1)
    return VO[1] / np.sqrt(heads * size) * read @ wo.reshape(-1) + BIAS * b, read


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _draws(keys, x, theta, scores, scaling, causal, heads, size):
    width = x.shape[-1]

    def draw(key):
        own = jax.random.split(key, 5)
        shapes = [(heads, size, width)] * 3 + [(heads, size), ()]
        params = [jax.random.normal(k, shape) for k, shape in zip(own, shapes, strict=True)]
        read = layer(params, x, scores, scaling, causal)[1]
        K = VO[1] ** 2 * read @ read.T / (heads * size) + BIAS**2
        slopes, back = jax.jacrev(lambda p, x: layer(p, x, scores, scaling, causal)[0], (0, 1))(params, x)
        rows = [slope.reshape(2 * T, -1) for slope in slopes]
        back = back.reshape(2 * T, 2 * T, width)
        return K, sum(row @ row.T for row in rows) + jnp.einsum("aic,bjc,ij->ab", back, back, theta)

    return jax.lax.map(draw, keys)


@functools.cache
def means(scores, scaling, causal, count=256, size=32):
    """Means of K and Theta over networks and their standard errors, (2, 2, 2 T, 2 T).

    Over d the means are off by 1/size, so that they are extrapolated from two sizes.
    """
    found = []
    for factor in (1, 2) if scaling == "d" else (1,):
        x, _, theta = signals_of(factor * size)
        keys = jax.random.split(jax.random.key(factor), count)
        heads = 2 if scaling == "d" else 16
        both = _draws(keys, jnp.float32(x), jnp.float32(theta), scores, scaling, causal, heads, factor * size)
        stacked = np.array(both, np.float64)
        found.append((stacked.mean(axis=1), stacked.std(axis=1) / np.sqrt(count)))
    if scaling == "sqrt_d":
        return found[0]
    (small, small_error), (large, error) = found
    return 2 * large - small, np.sqrt(4 * error**2 + small_error**2)


def expected(scores, scaling, causal, attend=attention_oracle.attend):
    """Sigma and Theta after the layer by the recursion in high precision, (2, 2 T, 2 T)."""
    _, sigma, theta = signals_of(2 * T)
    sites = [(a, p) for a in "xy" for p in range(T)]
    places = {(*s, *t): (i, j) for i, s in enumerate(sites) for j, t in enumerate(sites)}
    state = [{key: mp.mpf(float(part[at])) for key, at in places.items()} for part in (sigma, theta)]
    after = attend(state, scores, scaling, mp.mpf(QK[0]) * mp.mpf(QK[1]), mp.mpf(VO[0]) * mp.mpf(VO[1]), BIAS, causal)
    return np.array([[[float(part[*s, *t]) for t in sites] for s in sites] for part in after])
