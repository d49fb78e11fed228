"""The tables that drive the tests. A test fails when a public class is missing here."""

import numpy as np

import widelimit as wl

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

KERNELS = {"nngp": wl.nngp, "ntk": wl.ntk}
DTYPES = {"float64": np.float64, "float32": np.float32}


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
