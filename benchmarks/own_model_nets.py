"""Networks for own_model_jax.py in jax.numpy alone, for both environments: apply(params, X), params, X."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

STAGES, BLOCKS, CLASSES = (64, 128, 256, 512), 2, 10
LAYERS, WIDTH, TOKENS, HEADS, VOCABULARY = 4, 256, 64, 8, 1000
HIDDEN, FEATURES, DEPTH = 1024, 100, 4


class Draw:
    """Weights are drawn in order, with standard deviation sqrt(2 / inputs)."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def __call__(self, *shape: int, inputs: int) -> np.ndarray:
        return (self._rng.standard_normal(shape) * np.sqrt(2 / inputs)).astype(np.float32)


def conv(X, weight, stride=1):
    """Convolve images (n, h, w, c)."""
    return jax.lax.conv_general_dilated(X, weight, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def resnet(params, X):
    """Return (n, 10) of a residual network with normalisation in evaluation mode."""
    h = jax.nn.relu(conv(X, params["stem"]))
    for blocks in params["stages"]:
        for block in blocks:
            stride = 2 if "short" in block else 1
            z = jax.nn.relu(conv(h, block["first"], stride) * block["gain"] + block["offset"])
            h = jax.nn.relu(conv(z, block["second"]) + (conv(h, block["short"], 2) if "short" in block else h))
    return h.mean(axis=(1, 2)) @ params["head"] + params["bias"]


def resnet_params():
    """Draw the parameters of `resnet`."""
    draw, channels, stages = Draw(), STAGES[0], []
    stem = draw(3, 3, 3, channels, inputs=27)
    for width in STAGES:
        blocks = []
        for k in range(BLOCKS):
            block = {
                "first": draw(3, 3, channels, width, inputs=9 * channels),
                "second": 0.5 * draw(3, 3, width, width, inputs=9 * width),
                "gain": np.ones(width, np.float32),
                "offset": np.zeros(width, np.float32),
            }
            if k == 0 and width != STAGES[0]:
                block["short"] = draw(1, 1, channels, width, inputs=channels)
            blocks.append(block)
            channels = width
        stages.append(blocks)
    head = draw(channels, CLASSES, inputs=channels)
    return {"stem": stem, "stages": stages, "head": head, "bias": np.zeros(CLASSES, np.float32)}


def norm(h, gain, offset):
    """Normalise the last axis."""
    return gain * (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-5) + offset


def transformer(params, X):
    """Return (n, 10) of an encoder of token ids, (n, tokens) integers, or of (n, tokens, width) floats."""
    h = params["embedding"][X] if jnp.issubdtype(X.dtype, jnp.integer) else X
    n, t, w = h.shape
    for layer in params["layers"]:
        z = norm(h, *layer["norms"][0])
        q, k, v = ((z @ layer[name]).reshape(n, t, HEADS, w // HEADS) for name in ("query", "key", "value"))
        scores = jax.nn.softmax(jnp.einsum("nthd,nshd->nhts", q, k) / np.float32(np.sqrt(w // HEADS)))
        h = h + jnp.einsum("nhts,nshd->nthd", scores, v).reshape(n, t, w) @ layer["out"]
        z = norm(h, *layer["norms"][1])
        h = h + jax.nn.gelu(z @ layer["up"] + layer["up_bias"]) @ layer["down"] + layer["down_bias"]
    return h.mean(axis=1) @ params["head"]


def transformer_params():
    """Draw the parameters of `transformer`."""
    draw, w = Draw(), WIDTH
    layers = []
    for _ in range(LAYERS):
        layer = {name: draw(w, w, inputs=2 * w) for name in ("query", "key", "value", "out")}
        layer |= {"up": draw(w, 4 * w, inputs=w), "up_bias": np.zeros(4 * w, np.float32)}
        layer |= {"down": draw(4 * w, w, inputs=4 * w), "down_bias": np.zeros(w, np.float32)}
        layers.append(layer | {"norms": [[np.ones(w, np.float32), np.zeros(w, np.float32)] for _ in range(2)]})
    return {"embedding": draw(VOCABULARY, w, inputs=2), "layers": layers, "head": draw(w, CLASSES, inputs=w)}


def mlp(params, X):
    """Return (n, 10) of a relu network."""
    for weight, bias in params[:-1]:
        X = jax.nn.relu(X @ weight + bias)
    return X @ params[-1][0] + params[-1][1]


def mlp_params():
    """Draw the parameters of `mlp`."""
    draw, sizes = Draw(), [FEATURES, *[HIDDEN] * (DEPTH - 1), CLASSES]
    return [(draw(a, b, inputs=a), np.zeros(b, np.float32)) for a, b in itertools.pairwise(sizes)]


def network(name, n):
    """Return function, parameters and n inputs."""
    rng = np.random.default_rng(1)
    if name == "resnet":
        return resnet, resnet_params(), rng.standard_normal((n, 32, 32, 3)).astype(np.float32)
    if name == "transformer":
        return transformer, transformer_params(), rng.integers(0, VOCABULARY, (n, TOKENS)).astype(np.int32)
    return mlp, mlp_params(), rng.standard_normal((n, FEATURES)).astype(np.float32)
