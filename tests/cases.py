"""The tables that drive the tests; test_structure.py fails where a class of the library is in none of them."""

import pathlib
import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.spatial.distance
import scipy.special
from sklearn.metrics import pairwise

import oracles
import widelimit as wl
from widelimit.compute.device_factors import DeviceCholesky, DeviceEigen
from widelimit.compute.device_rows import DeviceOperator
from widelimit.compute.iterative import Iterative
from widelimit.compute.linalg import Cholesky, Eigen
from widelimit.compute.operators import Recomputed, Shifted, StoredOperator, Tiles
from widelimit.compute.packed import Packed
from widelimit.compute.streamed_cholesky import StreamedCholesky
from widelimit.compute.tile_cholesky import StoredFactor
from widelimit.inference.gaussian_process import Conditioned
from widelimit.layers import (
    Activate,
    Aggregate,
    Attention,
    AveragePool,
    Concatenate,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    GlobalSumPool,
    LastSite,
    LayerNorm,
    LocallyConnected,
    Mix,
    PositionalEncoding,
    Product,
    Recurrent,
    Repeat,
    Residual,
    Resize,
    Scale,
    Select,
    Serial,
    Sum,
)

# --- activations --------------------

ACTIVATIONS = {
    "identity": wl.Identity(),
    "relu": wl.Relu(),
    "leaky_relu": wl.LeakyRelu(),
    "abs": wl.Abs(),
    "abrelu": wl.ABRelu(-0.3, 1.5),
    "sign": wl.Sign(),
    "step": wl.Step(),
    "rectified_power": wl.RectifiedPower(2),
    "erf": wl.Erf(),
    "gelu": wl.Gelu(),
    "sin": wl.Sin(1.2, 0.4),
    "cos": wl.Cos(0.8),
    "snake": wl.Snake(0.7),
    "rbf": wl.Rbf(0.6),
    "exp": wl.Exp(0.5, 0.5),
    "gaussian": wl.Gaussian(1.3, 0.5),
    "monomial": wl.Monomial(2),
    "polynomial": wl.Polynomial((0.3, -1.0, 0.2, 0.1)),
    "hermite": wl.Hermite(3),
    "numerical": wl.activation("tanh"),
    "piecewise_polynomial": wl.activation("hard_tanh"),
}

CORE = {name: ACTIVATIONS[name] for name in ("identity", "relu", "leaky_relu", "abs", "erf")}
"""Those whose whole networks are tested to the last digits and at the ends of the range."""

TABULATED = ("tanh", "sigmoid", "silu", "softplus", "mish", "gelu_tanh", "elu", "selu", "celu")
"""Names of activations whose duals are tabulated."""

PIECES = {
    "hard_tanh": wl.activation("hard_tanh"),
    "hard_swish": wl.activation("hard_swish"),
    "relu6": wl.activation("relu6"),
    "clip": wl.PiecewisePolynomial((-0.5, 2.0), ((-0.5,), (0.0, 1.0), (2.0,))),
    "all kinds": wl.PiecewisePolynomial(
        (-1.25, 0.0, 0.5), ((1.0, 2.0), (-1.5, 0.0), (-1.5, 1.0, 0.5), (-1.25, 0.5, 0.5))
    ),
}
"""Polynomials between kinks: lines and parabolas, without and with a kink at 0, none, even, odd and mixed."""

# --- layers --------------------


def _dense(q1, c, q2, theta, b=0.3):
    after = tuple(1.3**2 * q + b**2 for q in (q1, c, q2))
    return *after, 1.3**2 * theta + after[1]


def _activate(q1, c, q2, theta):
    slope = oracles.DUALS["erf"](q1, c, q2)[1]
    return *(oracles.DUALS["erf"](*triple)[0] for triple in ((q1, q1, q1), (q1, c, q2), (q2, q2, q2))), theta * slope


def _dense_then_activate(*state):
    return _activate(*_dense(*state))


def _add(*states):
    return tuple(map(sum, zip(*states, strict=True)))


def _gate(*state):
    (q1, c, q2, t), (p1, d, p2, u) = _dense(*state), _activate(*_dense(*state, b=4))
    return q1 * p1, c * d, q2 * p2, t * d + c * u


def _of_the_page():
    """The entry that docs/extending.md makes for its own layer."""
    page = (pathlib.Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names = {}
    for word in ("import jax.numpy", "class Normalise", "entry ="):
        exec(next(block for block in blocks if word in block), names)
    return names["entry"]


LAYERS = {
    **_of_the_page(),
    "normalise": (LayerNorm(), lambda q1, c, q2, t: (1, c / oracles.mp.sqrt(q1 * q2), 1, t / oracles.mp.sqrt(q1 * q2))),
    "scale": (Scale(0.5), lambda *state: tuple(value / 4 for value in state)),
    "drop out": (Dropout(0.8), lambda q1, c, q2, t: (q1 / oracles.mp.mpf(0.8), c, q2 / oracles.mp.mpf(0.8), t)),
    "serial": (Serial(Dense(1.3, 0.3), "erf"), _dense_then_activate),
    "repeat": (Repeat((Dense(1.3, 0.3),), 2), lambda *state: _dense(*_dense(*state))),
    "residual": (Residual(Dense(1.3, 0.3)), lambda *state: _add(state, _dense(*state))),
    "sum": (Sum(Dense(1.3, 0.3), [Dense(1.3, 0.3), "erf"]), lambda *s: _add(_dense(*s), _dense_then_activate(*s))),
    "concatenate": (
        Concatenate(Dense(1.3, 0.3), [Dense(1.3, 0.3), "erf"]),
        lambda *s: tuple(v / 2 for v in _add(_dense(*s), _dense_then_activate(*s))),
    ),
    "product": (Product(Dense(1.3, 0.3), [Dense(1.3, 4.0), "erf"]), _gate),
    "dense": (Dense(1.3, 0.3), _dense),
    "dense, standard": (Dense(1.3, 0.3, standard=True), _dense),
    "activate": (Activate(wl.Erf()), _activate),
}
"""{name: (layer, (q, c, q', Theta) -> the same after the layer, in high precision)}."""

SITE_NETWORKS = {
    "graph": (
        wl.Graph(4, 2),
        [
            Aggregate(),
            Dense(1.3, 0.2),
            "relu",
            Dense(1.3),
            Aggregate(normalize="mean"),
            "erf",
            GlobalSumPool(),
            Dense(),
        ],
    ),
    "sequence": (
        wl.Sequence(4, 2),
        [Conv(2, 1.3, 0.2), "erf", Conv(3, stride=2), "relu", GlobalAveragePool(), Dense()],
    ),
    "attention": (wl.Sequence(4, 2), [Dense(1.3, 0.2), PositionalEncoding(), Attention(), LastSite(), Dense()]),
}
"""{name: (inputs, layers)}: networks of sequences and graphs."""

MIXED_NETWORKS = {
    "recurrent": (wl.Sequence(4, 2), [Recurrent("tanh", weight_std=1.2), Recurrent("erf", readout="last"), Dense()]),
    "maps": (
        wl.Image(4, 2),
        [Resize(3), Dense(1.3, 0.2), Product(Dense(), [Dense(), "erf"]), Mix(np.eye(3)[:2]), Select([0]), Dense()],
    ),
}
"""{name: (inputs, layers)}: networks with maps over sites that depend on their number, and gates."""

W = IMAGE_WEIGHTS = {"weight_std": 1.3, "bias_std": 0.2}
w = IMAGE_ORACLE = {"w": 1.3, "b": 0.2}

ALL = LayerNorm(over="all")
IMAGE_NETWORKS = {
    "flatten": (
        (4, 3, 2),
        [Conv(3, **W), "relu", Flatten(), Dense(**W)],
        [("conv", 3, w), "relu", "flatten", ("dense", w)],
    ),
    "average": (
        (3, 3, 1),
        [Conv(3), "relu", Conv(3, dilation=2), "relu", GlobalAveragePool(), Dense()],
        [("conv", 3), "relu", ("conv", 3, {"dilation": 2}), "relu", ("pool",), ("dense",)],
    ),
    "strided": (
        (5, 4, 2),
        [Conv(3, **W, stride=2), "erf", Conv(2, **W, padding="circular"), "erf", Flatten(), Dense(**W)],
        [
            ("conv", 3, {**w, "stride": 2}),
            "erf",
            ("conv", 2, {**w, "padding": "circular"}),
            "erf",
            "flatten",
            ("dense", w),
        ],
    ),
    "pooled": (
        (5, 4, 1),
        [Conv(2, **W, padding="valid"), "relu", AveragePool(2, stride=1), Conv(2, **W), "relu", Flatten(), Dense(**W)],
        [
            ("conv", 2, {**w, "padding": "valid"}),
            "relu",
            ("pool", 2, 1),
            ("conv", 2, w),
            "relu",
            "flatten",
            ("dense", w),
        ],
    ),
    "residual, one axis": (
        (5, 2),
        [Conv(3, **W), Repeat([Residual("relu", Conv(3, **W))], 2), LayerNorm(), "relu", GlobalAveragePool(), Dense()],
        [("conv", 3, w), *[("residual", "relu", ("conv", 3, w))] * 2, "norm", "relu", ("pool",), ("dense",)],
    ),
    "normalised over all": (
        (3, 2, 2),
        [Conv(3, **W), ALL, "relu", ALL, Conv(2, **W), ALL, "relu", GlobalAveragePool(), Dense(**W)],
        [("conv", 3, w), "norm all", "relu, norm all", ("conv", 2, w), "norm all", "relu", ("pool",), ("dense", w)],
    ),
    "locally connected": (
        (3, 2, 1),
        [
            LocallyConnected(2, **W),
            "relu",
            LocallyConnected(2, **W, stride=(1, 2)),
            "relu",
            GlobalAveragePool(),
            Dense(),
        ],
        [
            ("conv", 2, {**w, "shared": False}),
            "relu",
            ("conv", 2, {**w, "shared": False, "stride": (1, 2)}),
            "relu",
            ("pool",),
            ("dense",),
        ],
    ),
    "three axes": (
        (2, 2, 2, 1),
        [Conv(2, **W), "relu", Flatten(), Dense()],
        [("conv", 2, w), "relu", "flatten", ("dense",)],
    ),
}
"""{name: (shape of an image, layers, the same as image_oracle reads it)}."""

# --- kernels --------------------

KERNELS = {"nngp": wl.nngp, "ntk": wl.ntk}
DTYPES = {"float64": np.float64, "float32": np.float32}

_RNG = np.random.default_rng(0)
POINTS, OTHERS = _RNG.standard_normal((9, 3)), _RNG.standard_normal((5, 3))
SCALES = np.array([0.5, 1.0, 3.0])
_MIXING = np.array([[2.0, 0.5], [0.5, 1.0]])
_NET = {"depth": 3, "activation": "relu", "weight_std": 1.3, "bias_std": 0.2}


def features(A):
    return jnp.concatenate([A, jnp.cos(A[:, :1]), A[:, 1:2] ** 2], axis=1)


def numpy_features(A):
    return np.concatenate([A, np.cos(A[:, :1]), A[:, 1:2] ** 2], axis=1)


def _inner(A, B):
    return numpy_features(A) @ numpy_features(B).T


def _laplace(A, B):
    return np.exp(-np.linalg.norm(A[:, None] - B[None], axis=-1) / 0.7)


def _rbf(A, B):
    return pairwise.rbf_kernel(A, B, gamma=1 / (2 * 0.7**2))


def _of_network(which):
    return lambda A, B: np.array([[float(oracles.kernels(a, b, **_NET)[which]) for b in B] for a in A])


def linear_model(weight, A):
    return features(A) @ weight


def two_outputs(weight, A):
    return features(A) @ weight * jnp.array([1.0, 2.0])


def _mixed(A, B):
    return _rbf(A, B)[:, :, None, None] * _MIXING


_KNOWN = np.array([[0.3, -0.2, 1.0], [-1.0, 0.4, 0.1]])
_KNOWN_GRAM = _rbf(_KNOWN, _KNOWN) + 0.1 * np.eye(2)


def _conditioned(A, B):
    return _rbf(A, B) - _rbf(A, _KNOWN) @ np.linalg.solve(_KNOWN_GRAM, _rbf(_KNOWN, B))


_WHOLE = _rbf(*[np.vstack([POINTS, OTHERS])] * 2)


def _rational(x, y):
    return 1 / (1 + jnp.sum((x - y) ** 2))


STANDARD_KERNELS = {
    "linear": (wl.linear(), lambda A, B: A @ B.T),
    "linear, features": (wl.linear(features), _inner),
    "polynomial": (
        wl.polynomial(degree=3, offset=0.5),
        lambda A, B: pairwise.polynomial_kernel(A, B, degree=3, gamma=1.0, coef0=0.5),
    ),
    "rbf": (wl.rbf(0.7), _rbf),
    "rbf, scales": (wl.rbf(SCALES), lambda A, B: pairwise.rbf_kernel(A / SCALES, B / SCALES, gamma=0.5)),
    "laplace": (wl.laplace(0.7), _laplace),
    "sum": (wl.rbf(0.7) + wl.linear(), lambda A, B: _rbf(A, B) + A @ B.T),
    "product": (wl.laplace(0.7) * wl.linear(), lambda A, B: _laplace(A, B) * (A @ B.T)),
    "scaled": (2.5 * wl.laplace(0.7), lambda A, B: 2.5 * _laplace(A, B)),
    "function": (wl.kernel(_rational), lambda A, B: 1 / (1 + scipy.spatial.distance.cdist(A, B, "sqeuclidean"))),
    "scaled inputs": (wl.scale_inputs(wl.linear(), SCALES), lambda A, B: (A * SCALES**2) @ B.T),
    "averaged": (
        wl.averaged(wl.nngp(wl.network(Conv(1), Flatten(), Dense(), inputs=wl.Image(3, 1))), flips=True),
        lambda A, B: (A + A[:, ::-1]) @ (B + B[:, ::-1]).T / 12,
    ),
    "nngp": (wl.nngp(wl.mlp(**_NET)), _of_network(0)),
    "ntk": (wl.ntk(wl.mlp(**_NET)), _of_network(1)),
    "conditioned": (
        Conditioned(wl.rbf(0.7), _KNOWN, np.linalg.inv(np.linalg.cholesky(_KNOWN_GRAM)), 1e-15),
        _conditioned,
    ),
    "empirical": (wl.empirical_ntk(linear_model, np.ones(5), output="trace"), _inner),
    "precomputed": (
        wl.precomputed(_WHOLE),
        lambda A, B: _WHOLE[np.ix_(A[:, 0].astype(int), B[:, 0].astype(int))],
    ),
}
"""{name: (kernel, oracle)}: all that are scalar; depths, activations and dtypes of networks have tests of their own."""

MATRIX_KERNELS = {
    "separable": (wl.separable(wl.rbf(0.7), _MIXING), _mixed),
    "function": (wl.matrix_valued(_mixed, outputs=2), _mixed),
    "empirical": (
        wl.empirical_ntk(two_outputs, np.ones((5, 2))),
        lambda A, B: _inner(A, B)[:, :, None, None] * np.diag([1.0, 4.0]),
    ),
}
"""{name: (kernel with values in (2, 2) matrices, oracle)}."""


def points(name):
    """Two sets of inputs of a kernel in STANDARD_KERNELS."""
    return (np.arange(9.0)[:, None], np.arange(9.0, 14.0)[:, None]) if name == "precomputed" else (POINTS, OTHERS)


def networks():
    """{readable name: network} for laws that every network keeps."""
    return {
        f"{name}-depth{depth}-bias{bias_std}": wl.mlp(
            depth=depth, activation=activation, weight_std=1.3, bias_std=bias_std
        )
        for name, activation in CORE.items()
        for depth, bias_std in ((1, 0.1), (3, 0.5), (12, 0.0))
    }


def hard_pairs(dtype, d=6, every=1):
    """[(name, x, y)]: angles from 0 to pi, near duplicates and antipodes, zeros, norms over the dtype's range."""
    rng = np.random.default_rng(1)
    x, z = rng.standard_normal((2, d))
    e = x / np.linalg.norm(x)
    o = z - (z @ e) * e
    o /= np.linalg.norm(o)
    pi = np.pi
    angles = [0, 1e-12, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.13, 0.15, 0.3, 0.46, 1, pi / 2, 2, 2.7, 3]
    angles += [pi - 0.1, pi - 1e-2, pi - 1e-3, pi - 1e-5, pi - 1e-9, pi]
    pairs = [("x=y", x, x), ("x=-y", x, -x), ("y=0", x, 0 * x), ("both 0", 0 * x, 0 * x), ("collinear", x, 3 * x)]
    for a in angles[::every]:
        pairs.append((f"angle {a:.4g}", e, np.cos(a) * e + np.sin(a) * o))
        pairs.append((f"angle {a:.4g}, norms 2 and 0.3", 2 * e, 0.3 * (np.cos(a) * e + np.sin(a) * o)))
    for k in range(1, 16, every):
        pairs.append((f"x, x + 1e-{k} z", x, x + 10.0**-k * z))
        pairs.append((f"x, -x + 1e-{k} z", x, -x + 10.0**-k * z))
    size = 150 if dtype == np.float64 else 15
    for s, t in ((-size, -size), (-size, size), (size, size), (0, size), (-size, 0), (size // 2, -size // 2)):
        pairs.append((f"norms 1e{s}, 1e{t}", x * 10.0**s, z * 10.0**t))
        pairs.append((f"norms 1e{s}, 1e{t}, near", x * 10.0**s, (x + 1e-7 * z) * 10.0**t))
    return [(name, a.astype(dtype), b.astype(dtype)) for name, a, b in pairs]


# --- losses --------------------

_DRAWS = np.random.default_rng(0)
OUTPUTS = 1.5 * _DRAWS.standard_normal((6, 3))
TARGETS = _DRAWS.standard_normal((6, 3))
SIGNS = np.where(TARGETS > 0, 1.0, -1.0)
SHARES = scipy.special.softmax(TARGETS, axis=1)
COUNTS = _DRAWS.poisson(2.0, (6, 3)).astype(float)
WEIGHTS = _DRAWS.uniform(0, 2, 6)


def quartic(f, y):
    return jnp.sum((f - y) ** 4)


def _huber(f, y):
    r = np.abs(f - y)
    return np.where(r <= 0.8, r**2, 0.8 * (2 * r - 0.8)).sum(1)


LOSSES = {
    "squared error": (wl.SquaredError(), TARGETS, lambda f, y: ((f - y) ** 2).sum(1)),
    "weighted": (wl.WeightedSquaredError(WEIGHTS), TARGETS, lambda f, y: WEIGHTS * ((f - y) ** 2).sum(1)),
    "huber": (wl.Huber(0.8), TARGETS, _huber),
    "logistic": (wl.Logistic(), SIGNS, lambda f, y: np.log1p(np.exp(-y * f)).sum(1)),
    "softmax": (
        wl.SoftmaxCrossEntropy(),
        SHARES,
        lambda f, y: -(y * np.log(scipy.special.softmax(f, axis=1))).sum(1),
    ),
    "poisson": (wl.Poisson(), COUNTS, lambda f, y: (np.exp(f) - y * f).sum(1)),
    "custom": (wl.CustomLoss(quartic, convex=True), TARGETS, lambda f, y: ((f - y) ** 4).sum(1)),
}
"""{name: (loss, targets, l by another formula)}; flows and training run over these names too."""

# --- solvers --------------------


class Solver(NamedTuple):
    """A way to K + noise: what `posterior` is given, and what must come of it."""

    factor: type
    operators: tuple[type, ...]
    options: dict[str, str]


SOLVERS = {
    "full": Solver(Cholesky, (), {}),
    "packed": Solver(Packed, (), {}),
    "mixed": Solver(Iterative, (Shifted, Tiles), {"precision": "mixed", "solver": "cholesky"}),
    "tiles": Solver(Iterative, (Shifted, Tiles), {"solver": "cg"}),
    "recomputed": Solver(Iterative, (Shifted, Recomputed), {"solver": "cg"}),
    "single": Solver(Iterative, (Shifted, Tiles), {"solver": "cg", "precision": "mixed"}),
    "stored": Solver(Iterative, (Shifted, StoredOperator), {"solver": "cg"}),
    "disk": Solver(StoredFactor, (), {"solver": "cholesky"}),
    "device": Solver(DeviceCholesky, (), {}),
    "device, cg": Solver(Iterative, (Shifted, DeviceOperator), {"solver": "cg"}),
    "host": Solver(StreamedCholesky, (), {}),
}
"""{name: solver}; memory is what tells packed from full, recomputed from tiles, and host from device."""

SINGULAR = {"eigenvectors": Solver(Eigen, (), {}), "device, eigenvectors": Solver(DeviceEigen, (), {})}
"""{name: solver}: those that a singular matrix gets without noise."""

# --- estimators --------------------

ESTIMATORS = [
    wl.NNGPRegressor(),
    wl.NTKRegressor(),
    wl.NNGPClassifier(),
    wl.NTKClassifier(),
    wl.WideRegressor(kernel="nngp", activation="erf", depth=2),
    wl.WideClassifier(kernel="nngp", activation="erf", depth=2),
    wl.NTKFeatures(),
    wl.TableEncoder(),
]
