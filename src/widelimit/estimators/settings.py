"""Some parameters of an estimator must agree with others: those of its network, and those of a search."""

from __future__ import annotations

import warnings
from typing import Any, get_args

import jax
import numpy as np

from widelimit import validation
from widelimit.activations.names import BY_NAME
from widelimit.architecture.inputs import Image, Sited
from widelimit.architecture.network import Network
from widelimit.estimators import model_state, preparation
from widelimit.estimators.parameters import (
    REPLACED,
    AverageParameters,
    ClassParameters,
    InputScales,
    Invariance,
    KernelParameters,
    NetworkParameters,
    RegressorParameters,
    Solver,
    WideParameters,
    by_name,
)
from widelimit.inference.scaled_evidence import Activation


def given_network(estimator: NetworkParameters) -> Network | None:
    """Return the network that is given, its numbers as Python's own; None: there is none.

    Raises:
        TypeError: not a network.
        ValueError: a parameter beside it that the network replaces.
    """
    net = estimator.network
    if net is None:
        return None
    if not isinstance(net, Network):
        raise TypeError(
            f"network must be a network, as wl.network(...) and wl.mlp(...) make it, or None; got "
            f"{validation.shown(net)}. wl.read_network makes one of a text."
        )
    for name in REPLACED:
        value, usual = validation.plain(getattr(estimator, name)), by_name(type(estimator))[name].default
        if not isinstance(value, int | float | str) or value != usual:
            raise ValueError(
                f"network says all of the network: leave {name} at its default, {usual!r}, beside it, got "
                f"{validation.shown(value)}; or leave network=None."
            )
    own: Network = jax.tree.map(float, net)
    return own


def image_of(net: Any) -> Sited | None:
    """Return the images, sequences or graphs that a network reads; None: it reads rows, or is none."""
    return net.inputs if isinstance(net, Network) and isinstance(net.inputs, Sited) else None


def invariance(value: Any, net: Network | None) -> Any:
    """Return the moves of images over which a kernel is averaged. Raises: TypeError, ValueError: none; no images."""
    validation.choice("invariance", value, (*get_args(Invariance), None))
    if value is not None and not isinstance(image_of(net), Image):
        raise ValueError(
            f"invariance={value!r} moves images, and the estimator has no network that reads them: pass network="
            f"wl.convnet(inputs=wl.Image(height, width, channels)), or leave it at None."
        )
    return value


def require_same_tree(net: Network, given: Network) -> None:
    """Refuse a network that differs from the one that was given in more than its numbers. Raises: ValueError."""
    if jax.tree.structure(net) != jax.tree.structure(given):  # type: ignore[operator]
        raise ValueError("another network than was given")


def scaling(estimator: KernelParameters) -> InputScales | None:
    """Return how scales of the inputs are learned, or None: "auto" changes nothing that is given.

    It needs standardised columns, a kernel that it knows (through a tree of layers it is slow), and a noise and a scale
    of the output that are searched. Estimators that choose their network know no other way.

    Raises: ValueError: other columns than are scaled.
    """
    how, normalize = estimator.input_scales, estimator.normalize
    if how == "auto" and not isinstance(estimator, WideParameters):
        named = isinstance(estimator.activation, str) and estimator.activation in get_args(Activation)
        free = all(isinstance(getattr(estimator, name, "auto"), str) for name in ("noise", "output_scale"))
        return how if named and free and estimator.network is None and normalize == "standardize" else None
    if how is not None and normalize != "standardize":
        raise ValueError(
            f'input_scales={how!r} scales standardised columns: it needs normalize="standardize", got {normalize!r}. '
            "On the sphere, or for columns as they are, fit NNGPRegressor or NTKRegressor with input_scales=None."
        )
    if how is not None and image_of(estimator.network) is not None:
        raise ValueError(
            f"input_scales={how!r} gives every column a scale, and the pixels of a channel share theirs: for networks "
            "of images use an estimator with input_scales=None, as NNGPClassifier(network=...)."
        )
    return how


def check_solver(estimator: KernelParameters, *, linear: bool) -> None:
    """Refuse a solver that is not for this estimator; `linear`: its fit is a linear system.

    Raises: TypeError, ValueError.
    """
    validation.integer("inducing", estimator.inducing, at_least=1)
    if estimator.solver != "auto" and not linear:
        raise ValueError(
            f"solver={estimator.solver!r} is for time=inf without ensemble; a finite time and an ensemble take "
            'eigenvectors: leave solver="auto".'
        )
    if estimator.solver == "nystrom" and not _takes_inducing_points(estimator):
        raise ValueError(
            'solver="nystrom" is for regression with noise_model="constant" and input_scales other than "agop", and '
            'for classification with likelihood="dirichlet" or "least_squares".'
        )


def _takes_inducing_points(estimator: KernelParameters) -> bool:
    if isinstance(estimator, RegressorParameters):
        return estimator.noise_model == "constant" and estimator.input_scales != "agop"
    wide = isinstance(estimator, WideParameters)  # whose default likelihood gives way
    return isinstance(estimator, ClassParameters) and (wide or estimator.likelihood != "logistic")


def solver(estimator: KernelParameters, n: int) -> Solver:
    """Return the solver for n rows: inducing points where an estimator that chooses its network has many."""
    many = n > preparation.MOST_ROWS and isinstance(estimator, WideParameters) and estimator.time == np.inf
    return "nystrom" if estimator.solver == "auto" and many and _takes_inducing_points(estimator) else estimator.solver


MOST_AVERAGED = 4000
"""Training rows up to which networks are averaged: beyond, one costs much, and the evidence leaves little doubt."""


def may_average(estimator: KernelParameters, n: int) -> bool:
    """Return True if a fit to n rows averages several networks where memory has room, by the parameters."""
    linear = float(estimator.time) == np.inf and solver(estimator, n) != "nystrom"
    noise = not isinstance(estimator, RegressorParameters) or estimator.noise_model == "constant"
    noise = noise and (isinstance(estimator.noise, str) or estimator.noise > 0)
    average = isinstance(estimator, AverageParameters) and estimator.average
    return bool(average and linear and noise and estimator.input_scales == "auto" and n <= MOST_AVERAGED)


def require_room(estimator: KernelParameters, n: int, matrices: float) -> None:
    """Refuse n rows that memory does not hold, or that take hours; warn of inducing points that are chosen for many.

    Raises: MemoryError, ValueError.
    """
    if solver(estimator, n) == "nystrom":
        _warn_of_inducing_points(estimator, n)
        return
    if isinstance(estimator, WideParameters):
        remedy = "fit a random sample of X, or NNGPRegressor or NNGPClassifier, which take the network that you give"
        preparation.require_few_rows(n, remedy)
    preparation.require_room(n, matrices)


def _warn_of_inducing_points(estimator: KernelParameters, n: int) -> None:
    parts = []
    if estimator.solver == "auto":
        parts += [
            f"{n} rows are fitted through {estimator.inducing} inducing points, which is not exact: an exact fit "
            f'takes at most {preparation.MOST_ROWS}. solver="nystrom" says so without this warning; more points, '
            f"inducing={2 * estimator.inducing}, are nearer to it."
        ]
    if isinstance(estimator, ClassParameters) and estimator.likelihood == "logistic":
        parts += ['Their likelihood of classes is likelihood="dirichlet", in place of the logistic one.']
    if parts:
        warnings.warn(" ".join(parts), stacklevel=5)


def stored_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a fit for JSON. Raises: TypeError: an activation that is no name, a network no text."""
    parameters = given | {"verbose": bool(given["verbose"])}  # how to report is no part of a fit
    if not isinstance(parameters["activation"], str):
        raise TypeError(
            f"a model with the activation {parameters['activation']!r} cannot be saved: only names can be stored "
            f"without executing code on load. Fit with a name ({', '.join(sorted(BY_NAME))}), or with network=."
        )
    state = validation.plain(parameters.pop("random_state"))
    parameters["random_state"] = int(state) if isinstance(state, int) else None
    if parameters["input_groups"] is not None:
        parameters["input_groups"] = np.asarray(parameters["input_groups"]).tolist()
    return {key: model_state.json_value(value) for key, value in parameters.items()}
