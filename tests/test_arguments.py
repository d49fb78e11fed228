"""Every argument of every public function: a wrong type or size is refused at the door, briefly and by name."""

import inspect
import re
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from later import Later
from widelimit.claims.finite import one_network, parameters

X = np.random.default_rng(0).standard_normal((6, 3))
Y = X[:, 0]
NET = wl.mlp(depth=2, bias_std=0.1)
SMOOTH = wl.mlp(depth=2, activation="identity", bias_std=0.1)
FIELD = wl.mlp(depth=2, activation="identity", parameterization="mean_field")
CHECK = wl.CoordinateCheck(np.array([2, 4]), ("Dense()",), np.ones((2, 1)), np.ones((2, 1)), np.zeros(1))
K = wl.nngp(NET)
PARAMS = one_network(NET, (3, 4, 1), rng=np.random.default_rng(0))
MANY = parameters(NET, (3, 4, 1), count=2, rng=np.random.default_rng(0))
LONG = [0.1] * 60
THINGS = [np.full(60, 0.1), LONG, "high" * 100, {"a": LONG}]
ODD = [np.complex64(0.5 + 2j), jnp.array(1 + 2j), jnp.array(True), np.timedelta64(3)]
"""Scalars of NumPy and JAX that are no real numbers."""
if np.dtype(np.longdouble).itemsize > 8:
    ODD.append(np.longdouble(1) / 3)
NO_NUMBERS = [*THINGS, *ODD, None, True, 1j, np.nan, np.inf]
BAD = {
    "number": NO_NUMBERS,
    "positive": [*NO_NUMBERS, 0.0, -1.0, 10**400],
    "not negative": [*NO_NUMBERS, -1.0, 10**400],
    "deviation": [*NO_NUMBERS, 0.0, -1.0, 1e200, 1e-200, 10**400],
    "bias": [*NO_NUMBERS, -1.0, 1e200, 1e-200],
    "base": [*(value for value in NO_NUMBERS if value is not None), 0.0, -1.0, 10**400],
    "rates": ["high" * 100, {"a": LONG}, True, 3, 1j, np.nan, [0.0, 1.0, 1.0], [LONG], ["a"] * 60, np.full(60, np.nan)],
    "key": [*THINGS, True, 3, np.zeros(2, np.uint32), "key" * 100],
    "sizes": [*THINGS, None, True, "3", 1.5, 0, -1],
    "counts": [*THINGS, None, True, 3, "2", [], [0], [1.5]],
    "image": [*THINGS, None, True, 3, (8, 8, 1), "Image"],
    "time": [*ODD, *THINGS, None, True, 1j, np.nan, -1.0],
    "times": [*ODD, "high" * 100, {"a": LONG}, None, True, 1j, np.nan, -1.0, -np.ones(60), [[1.0]]],
    "variances": [*ODD, np.full(5, 0.1), "high" * 100, {"a": LONG}, None, True, 1j, np.nan, np.inf, -1.0, [LONG]],
    "entries": [*ODD, "high" * 100, {"a": LONG}, None, True, 1j, np.nan, np.inf, np.full(60, np.nan), ["a"] * 60],
    "scales": [*ODD, "high" * 100, {"a": LONG}, None, True, 1j, np.nan, np.inf, -1.0, [LONG], -np.ones(60), ["a"] * 60],
    "output axes": [*THINGS, None, True, 3, 1j, "0", [0.5], [None], ["a" * 60]],
    "patterns": [*THINGS, None, True, 3, 1j, "weight", [3], ["missing" * 60]],
    "share": [*NO_NUMBERS, 0.0, 1.0, -1.0, 95, 10**400],
    "levels": [
        *ODD,
        "high" * 100,
        {"a": LONG},
        None,
        True,
        1j,
        np.nan,
        0.0,
        1.0,
        95,
        [],
        [[0.5]],
        [0.5, np.nan],
        ["a"],
    ],
    "integer": [*ODD, *THINGS, None, True, 1j, np.nan, np.inf, 2.0, 1e9, -1, -(10**400)],
    "groups": [*ODD, *THINGS, True, 1j, 3, "auto", [0, 1.5], [LONG], np.full(60, 0.5), [[0, 1]], [0] * 60],
    "flag": [*THINGS, None, 2, 1.0, np.nan],
    "name": [*THINGS, None, True, 3, 1.5, np.nan],
    "optional name": [*THINGS, True, 3, np.nan],
    "function": [*THINGS, True, 3, np.nan],
    "layer": [np.full(60, 0.1), LONG, "high" * 100, {"a": LONG}, None, True, 3, np.nan, wl.Relu],
    "activation": [*THINGS, None, True, 3, np.nan, wl.Relu],
    "kernel": [*THINGS, None, True, 3, NET, "relu"],
    "network": [*THINGS, None, True, 3, K, "relu"],
    "points": [
        *ODD,
        *THINGS,
        None,
        True,
        1j,
        np.nan,
        X[0],
        X[:0],
        X * np.nan,
        X + 1j,
        X.astype(str),
        X.astype("M8[s]"),
    ],
    "targets": [*ODD, "high" * 100, {"a": LONG}, None, True, 1j, np.nan, Y[:5], Y * np.nan, Y + 1j, ["a"] * 6],
    "builder": [*THINGS, None, True, 3, "relu"],
    "class weights": [np.full(60, 0.1), LONG, "high" * 100, True, 3, {True: np.nan}, {True: -1.0}, {"high" * 100: 1.0}],
    "mapping": [np.full(60, 0.1), LONG, "high" * 100, True, 3],
    "extra": [np.full(60, 0.1), LONG, "high" * 100, True, 3, {"a": X}],
    "axes": [*ODD, *THINGS, True, 3, np.nan],
    "names": [*ODD, *THINGS, True, 3, np.nan],
    "path": [np.full(60, 0.1), LONG, {"a": LONG}, True, 3, 1.5],
}
ALIASES = {
    "k": "kernel",
    "shape": "shape|Image",
    "net": "network",
    "phi": "phi|activation",
    "other": "other|function",
    "time": "time|t",
}
"""What an argument may be called instead in a message."""


@dataclass
class Door:
    """A call with good arguments, and the kind of each that is checked; `free` ones may be anything, for a reason."""

    call: Any
    good: dict[str, Any]
    kinds: dict[str, str]
    free: tuple[str, ...] = ()
    more: dict[str, list[Any]] = field(default_factory=dict)
    """Values of single arguments that are bad beside those of the kind."""
    fine: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of a kind that are good here."""


def fitting(cls):
    """A call that fits an estimator with these parameters."""
    return lambda **settings: cls(**settings).fit(X, Y > 0 if "Classifier" in cls.__name__ else Y)


SETTINGS = {
    "network": "network",
    "depth": "integer",
    "activation": "activation",
    "weight_std": "deviation",
    "bias_std": "bias",
    "normalize": "optional name",
    "random_state": "integer",
}
SOLVING = {
    "noise": "not negative",
    "time": "time",
    "hyperparameters": "name",
    "input_scales": "optional name",
    "input_groups": "groups",
    "invariance": "optional name",
    "solver": "name",
    "inducing": "integer",
    "verbose": "flag",
} | SETTINGS
REGRESSING = SOLVING | {"output_scale": "positive", "noise_model": "name"}
CLASSIFYING = SOLVING | {"likelihood": "name", "alpha_epsilon": "positive", "class_weight": "class weights"}
FIXED = {"kernel": "nngp", "activation": "erf", "depth": 2}
WIDE = {"kernel": "name", "activation": "name", "input_scales": "name"}
REGRESSOR = Later(lambda: wl.NNGPRegressor(noise=0.1, depth=2).fit(X, Y))
CLASSIFIER = Later(lambda: wl.NTKClassifier(depth=2).fit(X, Y > 0))
FEATURES = Later(lambda: wl.NTKFeatures(3).fit(X))
POSTERIOR = Later(lambda: wl.posterior(K, X, Y, noise=0.1))
SPARSE = Later(lambda: wl.posterior(K, X, Y, noise=0.1, solver="nystrom", inducing=3))
MACHINE = wl.Machine(gflops=50.0, memory_gbytes=8.0)
FLOW = Later(lambda: wl.gradient_flow(K, X, Y))
ENSEMBLE = Later(lambda: wl.trained_ensemble(NET, X, Y))
KRYLOV = Later(lambda: wl.gradient_flow(K, X, Y, solver="krylov"))
LINEAR = wl.LinearModel()
EMPIRICAL = Later(lambda: wl.empirical_ntk(NET.apply, PARAMS, output="trace"))
TANGENTS = Later(lambda: wl.tangents(NET.apply, PARAMS))
ROWS = Later(lambda: TANGENTS.made().at(X))
SKETCH = Later(lambda: TANGENTS.made().sketch(X, size=4))
LINEARIZED = Later(lambda: wl.linearized_posterior(ROWS.made(), Y, noise=1.0))
DRIFT = Later(lambda: wl.KernelDrift(X)(TANGENTS.made()))
BAD |= {  # rows have any form
    "images": [*ODD, "high" * 100, None, True, 1j, np.nan, (), X[:0], X * np.nan, X + 1j, X.astype(str)],
    "rows": [*THINGS, None, True, 3, X],
}
INTERPOLANT = Later(lambda: wl.rkhs.interpolant(K, X, Y))
STEPPED = {"X": X, "y": Y, "learning_rate": 0.1, "steps": 1}
STEPPING = {"X": "points", "y": "targets", "learning_rate": "positive", "steps": "integer"}
PROCESS = wl.GaussianProcess(K)
SEEDED = {"random_state": (None,), "network": (None,)}
DATA = {"X": X, "y": Y}
TRAINING = {"X": "points", "y": "targets"}
SMALL_IMAGE = wl.Image(4, 4, 1)
NETWORK_OF_IMAGES = {
    "size": "sizes",
    "activation": "activation",
    "weight_std": "deviation",
    "bias_std": "bias",
    "end": "name",
    "parameterization": "name",
}
GRAPH = wl.Graph(4, 2)
STDS = ("position_std", "query_std", "key_std", "value_std", "output_std", "weight_std")
TRANSFORMER_NAMES = ("scores", "scaling", "norm", "end", "branch_scale")
GNN = {"inputs": "image", "blocks": "integer", "mlp_layers": "integer", "jumping_knowledge": "flag"}
GNN_NAMES = {
    "activation": "activation",
    "normalize": "optional name",
    "self_loops": "flag",
    "readout": "name",
    "parameterization": "name",
}
DOORS = {
    "network": Door(
        lambda layers="relu", **given: wl.network(wl.layers.Dense(), layers, wl.layers.Dense(), **given),
        {},
        {
            "layers": "layer",
            "inputs": "image",
            "parameterization": "name",
            "base_width": "base",
            "learning_rates": "rates",
        },
    ),
    "Image": Door(lambda shape=3: wl.Image(shape, 2, 1), {}, {"shape": "integer"}),
    "Sequence": Door(wl.Sequence, {"length": 4, "features": 2}, {"length": "integer", "features": "integer"}),
    "Graph": Door(wl.Graph, {"nodes": 4, "features": 2}, {"nodes": "integer", "features": "integer"}),
    "Sequence.pack": Door(
        wl.Sequence(4, 2).pack,
        {"X": np.zeros((2, 4, 2)), "lengths": [4, 2]},
        {"X": "images", "lengths": "counts"},
        free=("mask",),
        fine={"lengths": (None,)},
    ),
    "Graph.pack": Door(wl.Graph(4, 2).pack, {}, {"X": "images"}),
    "gnn": Door(wl.gnn, {"inputs": GRAPH}, {**GNN, "weight_std": "deviation", "bias_std": "bias", **GNN_NAMES}),
    "du_2019": Door(wl.du_2019, {"inputs": GRAPH}, {**GNN, "scale": "name"}),
    "resmlp": Door(
        wl.resmlp,
        {"blocks": 2},
        {
            "blocks": "integer",
            "activation": "activation",
            "branch_scale": "name",
            "weight_std": "deviation",
            "bias_std": "bias",
            "parameterization": "name",
            "base_width": "base",
            "learning_rates": "rates",
        },
        more={"blocks": [0, 10**9]},
    ),
    "mlp": Door(
        wl.mlp,
        {"depth": 2},
        {
            "depth": "integer",
            "activation": "activation",
            "weight_std": "deviation",
            "bias_std": "bias",
            "parameterization": "name",
            "base_width": "base",
            "learning_rates": "rates",
        },
        more={"depth": [0, 10**9]},
    ),
    "transformer": Door(
        wl.transformer,
        {"inputs": wl.Sequence(4, 2), "depth": 1},
        {
            "inputs": "image",
            "depth": "integer",
            "activation": "activation",
            "bias_std": "bias",
            "causal": "flag",
            **dict.fromkeys(TRANSFORMER_NAMES, "name"),
            **dict.fromkeys(STDS, "deviation"),
        },
        free=("heads", "head_size", "positions"),
        more={"depth": [0, 10**9], "positions": [[[np.nan]], "high", 3, ()], "heads": [0, 1.5], "head_size": [0, "a"]},
    ),
    "convnet": Door(
        wl.convnet,
        {"inputs": SMALL_IMAGE},
        {"inputs": "image", "depth": "integer", "padding": "name", **NETWORK_OF_IMAGES},
        more={"depth": [0, 10**9]},
    ),
    "resnet": Door(
        wl.resnet, {"inputs": SMALL_IMAGE, "blocks": [1]}, {"inputs": "image", "blocks": "counts", **NETWORK_OF_IMAGES}
    ),
    "myrtle": Door(
        wl.myrtle,
        {"depth": 5, "inputs": SMALL_IMAGE},
        {"depth": "integer", "inputs": "image"}
        | {name: kind for name, kind in NETWORK_OF_IMAGES.items() if name not in ("size", "end")},
        more={"depth": [6]},
    ),
    "garriga_alonso_2019": Door(
        wl.garriga_alonso_2019,
        {"name": "residual", "inputs": SMALL_IMAGE},
        {"name": "name", "inputs": "image", "uncentred_sums": "flag"},
    ),
    "averaged": Door(
        wl.averaged,
        {"k": wl.nngp(wl.convnet(inputs=SMALL_IMAGE)), "flips": True},
        {"k": "kernel", "flips": "flag", "shifts": "integer"},
        more={"shifts": [4], "k": [K]},
    ),
    "read_network": Door(wl.read_network, {}, {"text": "name"}),
    "nngp": Door(wl.nngp, {}, {"net": "network"}),
    "ntk": Door(wl.ntk, {}, {"net": "network"}),
    "limits": Door(wl.limits, {}, {"net": "network"}),
    "activation": Door(
        wl.activation,
        {"phi": jnp.tanh},
        {"phi": "activation", "kinks": "entries", "rtol": "positive"},
        fine={"rtol": (None,)},
    ),
    "critical": Door(wl.critical, {"activation": "relu"}, {"activation": "activation", "q": "positive"}),
    "phase": Door(
        wl.phase,
        {"activation": "relu", "weight_std": 1.0},
        {"activation": "activation", "weight_std": "positive", "bias_std": "not negative"},
    ),
    "elu": Door(wl.elu, {}, {"alpha": "number", "scale": "number", "length": "positive"}),
    "ABRelu": Door(wl.ABRelu, {"a": 1.0, "b": 1.0}, {"a": "number", "b": "number"}),
    "Cos": Door(wl.Cos, {}, {"a": "number"}),
    "Erf": Door(wl.Erf, {}, {"a": "number", "b": "number", "c": "number"}),
    "Exp": Door(wl.Exp, {}, {"a": "number", "b": "number"}),
    "Gaussian": Door(wl.Gaussian, {}, {"a": "number", "b": "number"}),
    "Hermite": Door(wl.Hermite, {}, {"degree": "integer"}),
    "LeakyRelu": Door(wl.LeakyRelu, {}, {"slope": "number"}),
    "Monomial": Door(wl.Monomial, {}, {"power": "integer"}),
    "Polynomial": Door(wl.Polynomial, {}, {"coefficients": "entries"}),
    "PiecewisePolynomial": Door(
        wl.PiecewisePolynomial,
        {"kinks": (0.0,), "pieces": ((0.0,), (0.0, 1.0))},
        {"kinks": "entries", "pieces": "entries", "rtol": "positive"},
        free=("label", "table"),
        fine={"rtol": (None,)},
    ),
    "Numerical": Door(
        wl.Numerical,
        {"phi": jnp.tanh},
        {"phi": "function", "kinks": "entries", "rtol": "positive"},
        free=("label", "table"),
        fine={"rtol": (None,)},
    ),
    "Rbf": Door(wl.Rbf, {}, {"gamma": "number"}),
    "RectifiedPower": Door(wl.RectifiedPower, {}, {"power": "integer"}),
    "Sin": Door(wl.Sin, {}, {"a": "number", "b": "number"}),
    "Snake": Door(wl.Snake, {}, {"a": "number"}),
    "Relu.dual": Door(
        wl.Relu().dual, {"q1": 1.0, "c": 0.5, "q2": 1.0}, {"q1": "entries", "c": "entries", "q2": "entries"}
    ),
    "Relu.dual_derivative": Door(
        wl.Relu().dual_derivative, {"q1": 1.0, "c": 0.5, "q2": 1.0}, {"q1": "entries", "c": "entries", "q2": "entries"}
    ),
    "Relu.correlation_map": Door(wl.Relu().correlation_map, {"rho": 0.5}, {"rho": "entries", "q": "positive"}),
    "gaussian_expectation": Door(
        wl.gaussian_expectation,
        {"f": np.tanh, "g": np.tanh, "q1": 1.0, "c": 0.5, "q2": 1.0},
        {"f": "function", "g": "function", "q1": "positive", "c": "number", "q2": "positive", "kinks": "entries"},
    ),
    "kernel.gram": Door(K.gram, {}, {"X": "points"}),
    "kernel.diag": Door(K.diag, {}, {"X": "points"}),
    "kernel.cross": Door(K.cross, {"X": X, "Y": X}, {"X": "points", "Y": "points"}),
    "laplace": Door(wl.laplace, {}, {"length_scale": "scales"}),
    "rbf": Door(wl.rbf, {}, {"length_scale": "scales"}),
    "polynomial": Door(wl.polynomial, {"degree": 2}, {"degree": "integer", "offset": "not negative"}),
    "linear": Door(wl.linear, {}, {"feature_map": "function"}),
    "precomputed": Door(wl.precomputed, {}, {"matrix": "points"}),
    "scale_inputs": Door(wl.scale_inputs, {"k": K, "scales": 1.0}, {"k": "kernel", "scales": "entries"}),
    "separable": Door(wl.separable, {"k": K, "mixing": np.eye(2)}, {"k": "kernel", "mixing": "points"}),
    "kernel": Door(wl.kernel, {"function": np.dot}, {"function": "function", "blocks": "flag"}),
    "pytree": Door(
        lambda cls: wl.pytree(make_dataclass("Fresh", ()) if cls is Door else cls), {"cls": Door}, {"cls": "function"}
    ),
    "matrix_valued": Door(
        wl.matrix_valued, {"function": np.dot, "outputs": 2}, {"function": "function", "outputs": "integer"}
    ),
    "sklearn_kernel": Door(
        wl.sklearn_kernel, {"k": K}, {"k": "kernel", "fixed": "number", "bounds": "number", "gradient": "name"}
    ),
    "SklearnKernel.diag": Door(wl.sklearn_kernel(K).diag, {}, {"X": "entries"}),
    "posterior": Door(
        wl.posterior,
        {"k": K, **DATA},
        {
            "k": "kernel",
            **TRAINING,
            "noise": "variances",
            "solver": "name",
            "precision": "name",
            "tolerance": "positive",
            "matrix": "points",
            "checkpoint": "path",
            "client": "extra",
            "device": "extra",
            "inducing": "integer",
            "approximation": "name",
            "seed": "integer",
            "progress": "flag",
        },
        fine={"matrix": (None,)},
    ),
    "predict_cost": Door(
        wl.predict_cost,
        {
            "work": "nystrom",
            "k": K,
            "n": 100,
            "d": 2,
            "inducing": 3,
            "machine": MACHINE,
        },
        {
            "work": "name",
            "k": "kernel",
            **dict.fromkeys(("n", "d", "inducing", "outputs", "iterations", "tile"), "integer"),
            "machine": "network",
        },
        fine={"tile": (None,), "machine": (None,)},
    ),
    "Machine": Door(
        wl.Machine,
        {"gflops": 50.0, "memory_gbytes": 8.0},
        {
            **dict.fromkeys(("cores", "workers"), "integer"),
            **dict.fromkeys(("gflops", "memory_gbytes", "storage_gbytes", "ram"), "positive"),
            "price": "not negative",
        },
    ),
    "SparsePosterior.mean": Door(SPARSE.mean, {}, {"Z": "points"}),
    "SparsePosterior.variance": Door(SPARSE.variance, {}, {"Z": "points"}),
    "SparsePosterior.predict": Door(SPARSE.predict, {}, {"Z": "points"}),
    "SparsePosterior.covariance": Door(SPARSE.covariance, {}, {"Z": "points"}),
    "SparsePosterior.sample": Door(
        SPARSE.sample, {"Z": X, "count": 1}, {"Z": "points", "count": "integer", "seed": "integer"}
    ),
    "Posterior.mean": Door(POSTERIOR.mean, {}, {"Z": "points"}),
    "Posterior.variance": Door(POSTERIOR.variance, {}, {"Z": "points"}),
    "Posterior.predict": Door(POSTERIOR.predict, {}, {"Z": "points"}),
    "Posterior.covariance": Door(POSTERIOR.covariance, {}, {"Z": "points"}),
    "Posterior.sample": Door(
        POSTERIOR.sample, {"Z": X, "count": 1}, {"Z": "points", "count": "integer", "seed": "integer"}
    ),
    "gradient_flow": Door(
        wl.gradient_flow,
        {"k": K, **DATA},
        {
            "k": "kernel",
            **TRAINING,
            "loss": "name",
            "initial": "function",
            "solver": "name",
            "tolerance": "positive",
            "max_steps": "integer",
            "matrix": "points",
            "checkpoint": "path",
            "client": "extra",
            "device": "extra",
        },
        fine={"matrix": (None,)},
    ),
    "GradientFlow.predict": Door(FLOW.predict, {"Z": X, "t": 1.0}, {"Z": "points", "t": "times"}),
    "GradientFlow.loss": Door(FLOW.loss, {}, {"t": "times"}),
    "GradientFlow.coefficients": Door(FLOW.coefficients, {}, {"t": "time"}),
    "Modes.loss": Door(Later(lambda: FLOW.modes().loss), {}, {"t": "times"}),
    "gradient_descent": Door(
        wl.gradient_descent,
        {"k": K, **DATA, "learning_rate": 0.1, "steps": 1},
        {
            "k": "kernel",
            **TRAINING,
            "learning_rate": "positive",
            "steps": "integer",
            "momentum": "not negative",
            "loss": "name",
            "initial": "function",
        },
    ),
    "max_learning_rate": Door(
        wl.max_learning_rate,
        {"k": K, "X": X},
        {"k": "kernel", "X": "points", "loss": "name", "momentum": "not negative"},
    ),
    "trained_ensemble": Door(
        wl.trained_ensemble,
        {"net": NET, **DATA},
        {
            "net": "network",
            **TRAINING,
            "solver": "name",
            "matrix": "points",
            "prior_matrix": "points",
            "client": "extra",
            "device": "extra",
        },
        fine={"matrix": (None,), "prior_matrix": (None,)},
    ),
    "TrainedEnsemble.mean": Door(ENSEMBLE.mean, {"Z": X, "t": 1.0}, {"Z": "points", "t": "times"}),
    "TrainedEnsemble.variance": Door(ENSEMBLE.variance, {"Z": X, "t": 1.0}, {"Z": "points", "t": "times"}),
    "TrainedEnsemble.covariance": Door(ENSEMBLE.covariance, {"Z": X, "t": 1.0}, {"Z": "points", "t": "times"}),
    "GaussianProcess": Door(
        wl.GaussianProcess, {"kernel": K}, {"kernel": "kernel", "mean": "function", "outputs": "number"}
    ),
    "GaussianProcess.rank": Door(PROCESS.rank, {}, {"X": "points"}),
    "GaussianProcess.sample": Door(
        PROCESS.sample, {"X": X, "count": 1}, {"X": "points", "count": "integer", "seed": "integer"}
    ),
    "GaussianProcess.log_density": Door(PROCESS.log_density, DATA, TRAINING),
    "GaussianProcess.condition": Door(PROCESS.condition, DATA, TRAINING | {"noise": "variances"}),
    "fit_hyperparameters": Door(
        wl.fit_hyperparameters,
        {"build": K, **DATA, "noise": 0.1},
        {
            "build": "builder",
            **TRAINING,
            "noise": "not negative",
            "fit_noise": "flag",
            "objective": "name",
            "restarts": "integer",
            "seed": "integer",
            "max_steps": "integer",
            "gradient": "name",
            "start": "mapping",
            "bounds": "mapping",
            "device": "extra",
        },
    ),
    "empirical_ntk": Door(
        wl.empirical_ntk,
        {"apply": NET.apply, "params": PARAMS},
        {
            "apply": "function",
            "output": "name",
            "trace_axes": "output axes",
            "diagonal_axes": "output axes",
            "of": "function",
            "parameters": "patterns",
            "method": "name",
            "memory": "positive",
        },
        free=("params",),
        fine={"memory": (None,), "trace_axes": (None,), "of": (None,), "parameters": (None,)},
    ),
    "empirical_nngp": Door(
        wl.empirical_nngp,
        {"apply": NET.apply, "params": PARAMS},
        {
            "apply": "function",
            "output": "name",
            "trace_axes": "output axes",
            "diagonal_axes": "output axes",
            "of": "function",
            "memory": "positive",
        },
        free=("params",),
        fine={"memory": (None,), "trace_axes": (None,), "of": (None,)},
    ),
    "linearize": Door(wl.linearize, {"apply": NET.apply, "params": PARAMS}, {"apply": "function"}, free=("params",)),
    "taylor": Door(
        wl.taylor,
        {"apply": NET.apply, "params": PARAMS, "order": 1},
        {"apply": "function", "order": "integer"},
        free=("params",),
    ),
    "Huber": Door(wl.Huber, {}, {"delta": "positive"}),
    "CustomLoss": Door(
        wl.CustomLoss, {"function": jnp.subtract}, {"function": "function", "convex": "flag", "curvature": "time"}
    ),
    "WeightedSquaredError": Door(wl.WeightedSquaredError, {}, {"weights": "scales"}),
    "train": Door(
        wl.train,
        {"apply": NET.apply, "params": PARAMS, **DATA, "steps": 1, "learning_rate": 0.1, "progress": False},
        {
            "apply": "function",
            **TRAINING,
            "ensemble": "flag",
            "loss": "name",
            "optimizer": "name",
            "learning_rate": "positive",
            "steps": "integer",
            "momentum": "not negative",
            "batch_size": "integer",
            "seed": "integer",
            "probes": "points",
            "kernel_points": "integer",
            "record_every": "positive",
            "checkpoint": "path",
            "checkpoint_seconds": "not negative",
            "tolerance": "positive",
            "max_steps": "integer",
            "progress": "flag",
        },
        free=("params", "flow_time"),
        fine={
            "learning_rate": (None,),
            "steps": (None,),
            "batch_size": (None,),
            "probes": (None,),
            "record_every": (None,),
        },
    ),
    "stored_gram": Door(
        wl.stored_gram,
        {"k": K, "X": X, "path": "no/such/folder/k.zarr"},
        {"k": "kernel", "X": "points", "path": "path", "client": "extra", "budget": "positive", "progress": "function"},
    ),
    "LinearModel": Door(wl.LinearModel, {}, {"feature_map": "function"}),
    "LinearModel.features": Door(LINEAR.features, {}, {"X": "points"}),
    "LinearModel.minimum_norm": Door(LINEAR.minimum_norm, DATA, TRAINING),
    "LinearModel.weights": Door(LINEAR.weights, {"X": X, "alpha": Y}, {"X": "points", "alpha": "targets"}),
    "LinearModel.predict": Door(LINEAR.predict, {"w": np.ones(3), "Z": X}, {"w": "entries", "Z": "points"}),
    "LinearModel.primal_descent": Door(LINEAR.primal_descent, STEPPED, STEPPING),
    "LinearModel.dual_descent": Door(LINEAR.dual_descent, STEPPED, STEPPING),
    "Huber.value": Door(wl.Huber().value, {"f": Y, "y": Y}, {"f": "entries", "y": "targets"}),
    "Huber.gradient": Door(wl.Huber().gradient, {"f": Y, "y": Y}, {"f": "entries", "y": "targets"}),
    "EmpiricalKernel.matvec": Door(
        EMPIRICAL.matvec, {"X": X, "v": Y}, {"X": "points", "v": "entries", "Y": "points"}, fine={"Y": (None,)}
    ),
    "EmpiricalKernel.parts": Door(
        EMPIRICAL.parts, {"X": X}, {"X": "points", "Y": "points", "by": "name"}, fine={"Y": (None,)}
    ),
    "EmpiricalKernel.explain": Door(EMPIRICAL.explain, {"X": X}, {"X": "points", "Y": "points"}, fine={"Y": (None,)}),
    "KrylovFlow.bound": Door(KRYLOV.bound, {}, {"t": "times"}),
    "KrylovFlow.coefficients": Door(KRYLOV.coefficients, {}, {"t": "time"}),
    "NumericalFlow.solution": Door(wl.gradient_flow(K, X, Y, loss="huber").solution, {}, {"t": "times"}),
    "rkhs.Function.inner": Door(INTERPOLANT.inner, {}, {"other": "kernel"}),
    "rkhs.Function.distance": Door(INTERPOLANT.distance, {}, {"other": "kernel"}),
    "load": Door(wl.load, {}, {"path": "path"}),
    "save": Door(
        wl.save,
        {"model": REGRESSOR, "path": "no/such/folder/m.npz"},
        {"model": "kernel", "path": "path", "extra": "extra"},
    ),
    "Network.init": Door(
        NET.init,
        {"seed": 0, "input_dim": 3},
        {"seed": "integer", "input_dim": "integer", "width": "integer", "output_dim": "integer", "dtype": "name"},
    ),
    "Network.init_many": Door(
        NET.init_many,
        {"seeds": [0], "input_dim": 3},
        {"seeds": "number", "input_dim": "integer", "width": "integer", "output_dim": "integer", "dtype": "name"},
    ),
    "Network.apply": Door(NET.apply, {"params": PARAMS, "X": X}, {"params": "kernel", "X": "points", "key": "key"}),
    "Network.apply_many": Door(NET.apply_many, {"params": MANY, "X": X}, {"params": "kernel", "X": "points"}),
    "rkhs.ridge": Door(
        wl.rkhs.ridge,
        {"k": K, **DATA, "regularization": 0.1},
        {"k": "kernel", **TRAINING, "regularization": "not negative"},
    ),
    "rkhs.interpolant": Door(wl.rkhs.interpolant, {"k": K, **DATA}, {"k": "kernel", **TRAINING}),
    "rkhs.power_function": Door(
        wl.rkhs.power_function, {"k": K, "X": X, "Z": X}, {"k": "kernel", "X": "points", "Z": "points"}
    ),
    "rkhs.is_positive_semidefinite": Door(
        wl.rkhs.is_positive_semidefinite, {"k": K, "X": X}, {"k": "kernel", "X": "points"}
    ),
    "rkhs.eigenvalues": Door(wl.rkhs.eigenvalues, {"k": K, "X": X}, {"k": "kernel", "X": "points"}),
    "rkhs.effective_dimension": Door(
        wl.rkhs.effective_dimension,
        {"k": K, "X": X, "regularization": 0.1},
        {"k": "kernel", "X": "points", "regularization": "not negative"},
    ),
    "rkhs.spherical_eigenvalues": Door(
        wl.rkhs.spherical_eigenvalues,
        {"k": K, "dimension": 3, "degree": 2},
        {"k": "kernel", "dimension": "integer", "degree": "integer", "radius": "positive"},
    ),
    "rkhs.spectrum": Door(
        wl.rkhs.spectrum,
        {"k": K, "on": "hypercube", "dimension": 3, "degree": 2},
        {"k": "kernel", "on": "name", "dimension": "integer", "degree": "integer", "radius": "positive"},
        free=("X",),
    ),
    "rkhs.Spectrum": Door(
        wl.rkhs.Spectrum,
        {"eigenvalues": [1.0, 0.5]},
        {"eigenvalues": "entries", "unseen": "not negative", "error": "not negative"},
        free=("multiplicities",),
    ),
    "lazy_report": Door(
        wl.lazy_report,
        {"apply": NET.apply, "params": PARAMS, "X": X, "y": Y, "steps": 1},
        {
            "apply": "function",
            "X": "points",
            "y": "targets",
            "learning_rate": "positive",
            "steps": "integer",
            "tolerance": "positive",
            "largest_scale": "positive",
        },
        free=("params", "probes"),
        fine={"learning_rate": (None,)},
    ),
    "finite_width": Door(
        wl.finite_width,
        {"net": NET, "X": X},
        {"net": "network", "X": "points", "width": "sizes"},
    ),
    "finite_width_training": Door(
        wl.finite_width_training,
        {"net": SMOOTH, "X": X, "y": Y, "times": 1.0, "draws": 2, "sample_width": 2},
        {
            "net": "network",
            "X": "points",
            "y": "targets",
            "times": "times",
            "width": "integer",
            "draws": "integer",
            "sample_width": "integer",
            "seed": "integer",
        },
        free=("probes",),
    ),
    "mean_field_flow": Door(
        wl.mean_field_flow,
        {"net": FIELD, "X": X, "y": Y, "times": 0.1, "particles": 2, "draws": 2},
        {
            "net": "network",
            "X": "points",
            "y": "targets",
            "times": "times",
            "particles": "integer",
            "draws": "integer",
            "seed": "integer",
        },
        free=("probes",),
    ),
    "deep_linear_flow": Door(
        wl.deep_linear_flow,
        {"X": X, "y": Y, "depth": 2, "start": np.ones(3), "times": 0.1},
        {"X": "points", "y": "targets", "depth": "integer", "times": "times"},
        free=("probes", "start"),
    ),
    "proportional_posterior": Door(
        wl.proportional_posterior,
        {"net": NET, "X": X, "y": Y, "width": 4, "noise": 0.1},
        {"net": "network", "X": "points", "y": "targets", "width": "sizes", "noise": "not negative"},
        free=("probes",),
    ),
    "coordinate_check": Door(
        wl.coordinate_check,
        {"net": NET, "X": X, "y": Y, "learning_rate": 0.1, "widths": [2, 3], "steps": 1, "draws": 2},
        {
            "net": "network",
            "X": "points",
            "y": "targets",
            "learning_rate": "positive",
            "steps": "integer",
            "draws": "integer",
            "seed": "integer",
        },
        free=("widths",),
    ),
    "CoordinateCheck.holds": Door(CHECK.holds, {}, {"tolerance": "positive"}),
    "FiniteWidth.width_for": Door(wl.finite_width(NET, X).width_for, {"error": 0.1}, {"error": "positive"}),
    "generalization": Door(
        wl.generalization,
        {"k": K, "X": X, "y": Y, "sizes": [2, 3]},
        {
            "k": "kernel",
            "X": "points",
            "y": "targets",
            "sizes": "counts",
            "noise": "not negative",
            "time": "time",
            "method": "name",
            "draws": "integer",
            "key": "integer",
            "label_noise": "not negative",
        },
        free=("powers",),
        fine={"draws": (0,), "sizes": (3,)},
    ),
    "NNGPRegressor": Door(fitting(wl.NNGPRegressor), {}, REGRESSING, fine=SEEDED),
    "NTKRegressor": Door(fitting(wl.NTKRegressor), {}, REGRESSING | {"ensemble": "flag"}, fine=SEEDED),
    "NNGPClassifier": Door(fitting(wl.NNGPClassifier), {}, CLASSIFYING, fine=SEEDED),
    "NTKClassifier": Door(fitting(wl.NTKClassifier), {}, CLASSIFYING | {"ensemble": "flag"}, fine=SEEDED),
    "WideRegressor": Door(
        fitting(wl.WideRegressor), FIXED, REGRESSING | WIDE | {"average": "flag"}, fine=SEEDED | {"depth": ("auto",)}
    ),
    "WideClassifier": Door(fitting(wl.WideClassifier), FIXED, CLASSIFYING | WIDE, fine=SEEDED | {"depth": ("auto",)}),
    "NTKFeatures": Door(
        fitting(wl.NTKFeatures), {}, SETTINGS | {"n_components": "integer", "kernel": "name"}, fine=SEEDED
    ),
    "NNGPRegressor.fit": Door(
        wl.NNGPRegressor().fit, DATA, TRAINING | {"sample_weight": "scales"}, fine={"sample_weight": (None,)}
    ),
    "NNGPRegressor.predict": Door(
        REGRESSOR.predict,
        {"X": X},
        {"X": "points", "return_std": "flag", "return_cov": "flag", "include_noise": "flag"},
    ),
    "NNGPRegressor.predict_quantiles": Door(
        REGRESSOR.predict_quantiles, {"X": X, "q": 0.5}, {"X": "points", "q": "levels", "recalibrate": "flag"}
    ),
    "NNGPRegressor.predict_interval": Door(
        REGRESSOR.predict_interval, {"X": X}, {"X": "points", "level": "share", "method": "name"}
    ),
    "NNGPRegressor.sample_y": Door(
        REGRESSOR.sample_y, {"X": X}, {"X": "points", "n_samples": "integer", "random_state": "integer"}, fine=SEEDED
    ),
    "NNGPRegressor.score": Door(
        REGRESSOR.score, DATA, TRAINING | {"sample_weight": "scales"}, fine={"sample_weight": (None,)}
    ),
    "NNGPRegressor.save": Door(REGRESSOR.save, {"path": "no/such/folder/m.npz"}, {"path": "path", "extra": "extra"}),
    "NTKClassifier.fit": Door(
        wl.NTKClassifier().fit,
        {"X": X, "y": Y > 0},
        {"X": "points", "sample_weight": "scales"},
        free=("y",),
        fine={"sample_weight": (None,)},
    ),
    "NTKClassifier.predict": Door(CLASSIFIER.predict, {}, {"X": "points"}),
    "NTKClassifier.predict_proba": Door(CLASSIFIER.predict_proba, {}, {"X": "points"}),
    "NTKClassifier.predict_latent": Door(CLASSIFIER.predict_latent, {"X": X}, {"X": "points", "return_std": "flag"}),
    "NTKClassifier.decision_function": Door(CLASSIFIER.decision_function, {}, {"X": "points"}),
    "NTKClassifier.predict_log_proba": Door(CLASSIFIER.predict_log_proba, {}, {"X": "points"}),
    "tangents": Door(
        wl.tangents,
        {"apply": NET.apply, "params": PARAMS},
        {"apply": "function", "of": "name", "parameters": "patterns", "memory": "positive"},
        free=("params",),  # a pytree, as of empirical_ntk
        fine={"of": (None,), "parameters": (None,), "memory": (None,)},
    ),
    "Tangents.at": Door(
        TANGENTS.at, {"X": X}, {"X": "images", "labels": "images", "output": "name"}, fine={"labels": (None, ())}
    ),
    "Tangents.sketch": Door(
        TANGENTS.sketch,
        {"X": X, "size": 4},
        {
            "X": "images",
            "labels": "images",
            "size": "integer",
            "seed": "integer",
            "output": "name",
            "path": "path",
            "progress": "function",
        },
        fine={"labels": (None, ())},
        more={"size": [0]},
    ),
    "ExactRows.matrix": Door(ROWS.matrix, {}, {"other": "rows"}, fine={"other": (None,)}),
    "ExactRows.product": Door(ROWS.product, {}, {"v": "targets"}),
    "ExactRows.eigenpairs": Door(ROWS.eigenpairs, {"count": 1}, {"count": "integer"}, more={"count": [0, 6]}),
    "ExactRows.alignment": Door(ROWS.alignment, {"y": Y}, {"y": "targets", "seed": "integer"}),
    "ExactRows.effective_dimension": Door(
        ROWS.effective_dimension, {"noise": 1.0}, {"noise": "positive", "seed": "integer"}
    ),
    "Sketch.error": Door(
        SKETCH.error, {}, {"other": "rows", "confidence": "share"}, fine={"other": (None,), "confidence": (None,)}
    ),
    "linearized_posterior": Door(
        wl.linearized_posterior,
        {"rows": ROWS, "y": Y, "noise": 1.0},
        {"rows": "rows", "y": "targets", "noise": "not negative", "time": "time", "prior_variance": "positive"},
        fine={"noise": (0.0,)},
    ),
    "LinearizedPosterior.predict": Door(LINEARIZED.predict, {}, {"rows": "rows"}, fine={"rows": ()}),
    "attribution": Door(
        wl.attribution,
        {"train": ROWS, "test": ROWS, "method": "trak", "weights": np.ones(6)},
        {"train": "rows", "test": "rows", "method": "name", "noise": "positive", "weights": "targets"},
        free=("y",),  # goes with another method
        fine={"noise": (None,), "weights": ()},
    ),
    "select": Door(
        wl.select,
        {"rows": ROWS, "count": 2},
        {"rows": "rows", "count": "integer", "noise": "not negative", "known": "groups"},
        more={"count": [0, 7]},
    ),
    "KernelDrift": Door(
        wl.KernelDrift, {"X": X}, {"X": "images", "labels": "images", "output": "name"}, fine={"labels": (None, ())}
    ),
    "KernelDrift.plot": Door(DRIFT.plot, {}, {"ax": "axes"}, fine={"ax": (None,)}),
    "ImportanceDisplay.plot": Door(
        wl.ImportanceDisplay(Y, feature_names=[f"x{j}" for j in range(6)]).plot,
        {},
        {"ax": "axes", "max_features": "integer"},
        fine={"ax": (None,)},
    ),
    "plot_importance": Door(
        wl.plot_importance,
        {"estimator": REGRESSOR, "X": X, "y": Y, "n_repeats": 1},
        {
            "X": "points",
            "feature_names": "names",
            "n_repeats": "integer",
            "random_state": "integer",
            "max_features": "integer",
            "ax": "axes",
        },
        free=("estimator", "y", "scoring"),
        fine={"feature_names": (None,), "ax": (None,)},
    ),
    "NTKFeatures.fit": Door(wl.NTKFeatures(3).fit, {}, {"X": "points"}, free=("y",)),
    "NTKFeatures.transform": Door(FEATURES.transform, {}, {"X": "points"}),
    "NTKFeatures.kernel_error": Door(FEATURES.kernel_error, {}, {"X": "points"}),
    "TableEncoder.get_feature_names_out": Door(
        wl.TableEncoder().fit(X).get_feature_names_out, {}, {}, free=("input_features",)
    ),
}


def wrong(door, name):
    """The bad values of an argument."""
    fine = door.fine.get(name, ())
    return [v for v in BAD[door.kinds[name]] if not any(v is f for f in fine)] + door.more.get(name, [])


def complaint(door, name, value):
    """What is wrong with how the door refuses this value; empty if nothing."""
    good = {key: known.made() if isinstance(known, Later) else known for key, known in door.good.items()}
    try:
        door.call(**(good | {name: value}))
    except (TypeError, ValueError) as error:
        text = str(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    else:
        return "accepted"
    if len(text) > 400:
        return f"{len(text)} characters: {text[:80]}"
    if not re.search(rf"\b({ALIASES.get(name, name)})\b", text):
        return f"does not name {name}: {text[:150]}"
    return ""


@pytest.mark.parametrize("name", DOORS)
def test_what_is_wrong_is_refused_briefly_by_name(name):
    door = DOORS[name]
    found = {(a, str(v)[:30]): complaint(door, a, v) for a in door.kinds for v in wrong(door, a)}
    assert not {where: what for where, what in found.items() if what}


MADE = {
    *(
        "Averaged",
        "BothKernels",
        "Conditioned",
        "EmpiricalAxes",
        "EmpiricalDiagonal",
        "EmpiricalKernel",
        "FunctionKernel",
        "EmpiricalMatrixKernel",
        "Correlation",
        "Expectation",
        "CoordinateCheck",
        "DeepLinearFlow",
        "FiniteWidth",
        "FiniteWidthTraining",
        "ProportionalPosterior",
        "FixedPoint",
        "Flow",
        "Generalization",
        "LazyReport",
        "MeanFieldFlow",
    ),
    *(
        "GradientDescent",
        "GradientFlow",
        "History",
        "HyperparameterFit",
        "KrylovEnsemble",
        "KrylovFlow",
        "Laplace",
        "LeaveOneOut",
    ),
    *("Cost", "KrylovEnsemble", "Limits", "SparsePosterior"),
    *("LikelihoodGradient", "Linear", "MatrixFunction", "Modes", "NNGP", "NTK", "Network", "NumericalFlow", "Phase"),
    *("PolynomialKernel", "Posterior", "Precomputed", "Prediction", "Product", "RadialBasis", "Run", "Scaled"),
    *("ScaledInputs", "Separable", "SklearnKernel", "Solution", "Sum", "TrainedEnsemble", "Training"),
    *(
        "CalibrationDisplay",
        "DependenceDisplay",
        "ImportanceDisplay",
        "Certificate",
        "Function",
        "SphericalSpectrum",
        "Variance",
    ),
    *("ExactRows", "LinearizedPosterior", "Selection", "Sketch", "Tangents"),
}
"""Classes whose instances the library makes."""
INNER = {
    *("at", "encode", "pairwise", "diagonal", "prepared", "correlate", "second_moment", "tabulated", "rtol_in", "rtol"),
    *(
        "in_few_shapes",
        "itself",
        "points",
        "restore",
        "mean",
        "result_dtype",
        "variance_without",
        "start",
        "refine",
        "rows",
        "channels",
        "degree",
        "read",
        "embed",
        "deviations",
        "structure",
    ),
    *(
        "derivative",
        "block",
        "examples",
        "check",
        "gain",
        "projected",
        "init_with_key",
        "output_scale",
        "feature_map",
        "numbers_per_input",
        "quick_in",
        "covariance_error",
        "times",
        "factors",
        "parts",
        "require_same",
        "targets",
        "signals_of",
    ),
}
"""Methods that the library calls on its own values, many of them traced."""


def public():
    """(name, callable) of every public function and class."""
    for module, names in ((wl, wl.__all__), (wl.rkhs, wl.rkhs.__all__)):
        yield from ((name, getattr(module, name)) for name in names if callable(getattr(module, name)))


def settings_of(function):
    return set(inspect.signature(function).parameters) - {"self"}


def test_every_argument_of_every_public_callable_is_in_the_table():
    doors = {name.removeprefix("rkhs."): door for name, door in DOORS.items()}
    methods = {}
    for name, door in doors.items():
        methods.setdefault(name.rpartition(".")[2], set()).update(door.kinds, door.free)
    missing = []
    for name, thing in public():
        if name not in MADE and not inspect.isabstract(thing) and settings_of(thing):
            door = doors.get(name)
            known = set() if door is None else {*door.kinds, *door.free}
            missing += [f"{name}({argument})" for argument in settings_of(thing) - known]
        for method, function in inspect.getmembers(thing, inspect.isfunction) if inspect.isclass(thing) else ():
            if method.startswith("_") or method in INNER or not function.__module__.startswith("widelimit"):
                continue
            missing += [f"{name}.{method}({a})" for a in settings_of(function) - methods.get(method, set())]
    assert not missing


def test_the_table_rejects_a_door_that_lets_things_in():
    careless = Door(lambda depth=1: depth, {}, {"depth": "integer"})
    assert complaint(careless, "depth", "high") == "accepted"
    noisy = Door(lambda depth=1: int(depth), {}, {"depth": "integer"})
    assert "does not name depth" in complaint(noisy, "depth", "high")
    assert "TypeError" not in complaint(noisy, "depth", None)
    deep = Door(lambda depth=1: 1 / depth, {}, {"depth": "integer"})
    assert complaint(deep, "depth", 0).startswith("ZeroDivisionError")

    def verbose(**_):
        raise ValueError(f"depth: {LONG}" * 3)

    assert complaint(Door(verbose, {}, {}), "depth", 0).startswith("9")


def test_traced_settings_of_a_network_stay_differentiable():
    def total(weight_std, bias_std):
        return wl.nngp(wl.mlp(depth=1, weight_std=weight_std, bias_std=bias_std)).diag(jnp.asarray(X)).sum()

    slope = jax.jit(jax.grad(total, (0, 1)))(1.3, 0.2)
    # diag = weight_std^2 |x|^2/d + bias_std^2
    np.testing.assert_allclose(slope, (2 * 1.3 * np.sum(X**2) / 3, 2 * 0.2 * len(X)), rtol=1e-5)
    with pytest.raises(ValueError, match="weight_std"):
        wl.mlp(depth=2, weight_std=1e200)
