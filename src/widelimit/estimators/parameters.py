"""This table of the estimators' parameters serves Python, the command line and the documentation.

This module loads nothing heavy: the command line reads it for its help.
"""

# ruff: noqa: RUF009 -- `parameter` makes a field of a dataclass

from __future__ import annotations

import abc
import math
import textwrap
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, TypeVar, dataclass_transform, get_args

Solver = Literal["auto", "cholesky", "cg", "nystrom"]
Hyperparameters = Literal["fixed", "marginal_likelihood", "leave_one_out"]
InputScales = Literal["auto", "agop"]
Architecture = Literal["auto", "nngp", "ntk"]
NoiseModel = Literal["constant", "per_output", "input", "student_t"]
Likelihood = Literal["dirichlet", "least_squares", "logistic"]
Normalize = Literal["standardize", "sphere"]
Invariance = Literal["flips", "shifts", "flips_and_shifts"]
C = TypeVar("C", bound=type)
REPLACED = ("depth", "activation", "weight_std", "bias_std")
"""Parameters that a network replaces."""
LATER = (
    "network",
    "input_scales",
    "input_groups",
    "output_scale",
    "noise_model",
    "class_weight",
    "invariance",
    "inducing",
    "average",
)
"""Parameters that an older file of a model may lack: they get its default, and a given noise the scale 1."""
WIDTH = 116
"""Columns of a docstring's line."""


def parameter(default: Any, text: str, more: str = "", *, choices: tuple[Any, ...] = (), kw_only: bool = True) -> Any:
    """Declare a parameter by a sentence, by more for users of Python, and by the values that it takes."""
    return field(default=default, kw_only=kw_only, metadata={"text": text, "more": more, "choices": choices})


@dataclass(kw_only=True, eq=False, repr=False)
class NetworkParameters(abc.ABC):  # noqa: B024
    """A network and its inputs have these parameters."""

    depth: int = parameter(3, "Affine layers of the network, L >= 1.")
    activation: Any = parameter(
        "relu",
        "Activation: relu, erf, gelu, tanh, ...; all: widelimit info.",
        "A name, a `widelimit.Activation` or a function.",
    )
    weight_std: float = parameter(
        math.sqrt(2), "Scale of the weights, > 0.", "sqrt(2) keeps the variance of relu signals."
    )
    bias_std: float = parameter(0.5, "Scale of the biases, >= 0.")
    network: Any = parameter(
        None,
        "Network in place of depth, activation and scales; on the command line a file with its text.",
        "As `widelimit.network` and `mlp` make it; with `hyperparameters` its positive numbers are searched.",
    )
    normalize: Normalize | None = parameter(
        "standardize",
        "Normalisation of the inputs.",
        '"standardize" (columns), "sphere" (then rows to norm sqrt(d)) or None.',
        choices=(*get_args(Normalize), None),
    )


@dataclass(kw_only=True, eq=False, repr=False)
class KernelParameters(NetworkParameters, abc.ABC):
    """All regressors and classifiers have these parameters beside those of the network."""

    noise: float | Literal["auto"] = parameter(
        "auto",
        "Variance of the noise beside K, or auto: y = mean + scale (f + e), f ~ GP(0, K), var e = noise.",
        "Their scale is fitted (`output_scale`), and no mean depends on it. With output_scale=1, and in "
        "WideRegressor, which learns the size of K too, a number is in units of the variance of the target. "
        '"auto": noise and one scale for each output by marginal (or leave-one-out) likelihood, above 4000 '
        "rows of 4000 of them, evenly spread. The Dirichlet and logistic likelihoods of classes have a noise of "
        "their own.",
    )
    time: float = parameter(
        math.inf,
        "Training time of the networks, >= 0; inf: to the end.",
        "That of d theta/dt = -grad C, C = (1/N) (sum_i w_i |f(x_i) - y_i|^2 + noise |theta - theta_0|^2), "
        "N = sum_i w_i; theta are all parameters with the NTK, those of the last layer with the NNGP.",
    )
    input_scales: InputScales | None = parameter(
        "auto",
        "Scale of each input; auto: by likelihood, with amplitude and noise; agop: by gradients.",
        '"auto" is for standardised inputs of erf, relu and rbf, where network, noise and output_scale are not '
        "given, and for classes with at most 50 scales; else, and with None, every column counts the same. "
        '"agop", the average gradient outer product of what is fitted, takes any activation.',
        choices=(*get_args(InputScales), None),
    )
    input_groups: Any = parameter(
        None,
        "Columns that share a scale.",
        "(d,) integers, or None: columns of one number share a learned scale, as those of one category should.",
    )
    invariance: Invariance | None = parameter(
        None,
        "Moves of an image that change little: the kernel is averaged over them.",
        'Of a `network` of images: "flips", mirror images; "shifts", by up to one site; "flips_and_shifts". A pair '
        "costs 2 or 4, 81, and 324 kernels (`widelimit.averaged`).",
        choices=(*get_args(Invariance), None),
    )
    hyperparameters: Hyperparameters = parameter(
        "fixed",
        "Objective of the choice of scales and noise.",
        '"fixed": weight_std and bias_std, or the numbers of `network`, are as given; "marginal_likelihood" or '
        '"leave_one_out": they are searched too.',
        choices=get_args(Hyperparameters),
    )
    solver: Solver = parameter(
        "auto",
        "Solver of the linear system; cg: conjugate gradients, for many rows; nystrom: inducing points, for more.",
        "For time inf without ensemble; see `widelimit.posterior`. Classes take Cholesky, or nystrom with the "
        "Dirichlet likelihood or least squares. WideRegressor and WideClassifier take nystrom above 20,000 rows, "
        "with a warning.",
        choices=get_args(Solver),
    )
    inducing: int = parameter(
        2000,
        "Inducing points of the solver nystrom, at most.",
        "Time grows with their square: 2 n m^2 flops; the fitted model holds m^2 numbers, for each class with the "
        "Dirichlet likelihood, and no training rows.",
    )
    random_state: Any = parameter(None, "Not used: fits are deterministic.")
    verbose: bool = parameter(False, "Show a bar on stderr where that is a terminal, for more than 4000 rows.")


@dataclass(kw_only=True, eq=False, repr=False)
class RegressorParameters(KernelParameters, abc.ABC):
    """Regressors have these parameters beside the others."""

    output_scale: float | Literal["auto"] = parameter(
        "auto",
        "Scale of f in standard deviations of the target, > 0; auto: the most likely one, for each output.",
        "With 1, f ~ GP(0, K) for the standardised target, and noise is in units of its variance. It changes "
        "standard deviations, and no mean. Of an ensemble and at a finite time by leave-one-out.",
    )
    noise_model: NoiseModel = parameter(
        "constant",
        "Law of the noise: of one variance, of one for each output, depending on the input, or with outliers.",
        '"constant": one noise, relative to the scale of each output. "per_output": chosen for each output. '
        '"input": a second process for the logarithm of its variance (Kersting et al. 2007). "student_t": a weight '
        "for each row. All but the first for time inf without ensemble; each output has its own.",
        choices=get_args(NoiseModel),
    )


@dataclass(kw_only=True, eq=False, repr=False)
class ClassParameters(KernelParameters, abc.ABC):
    """Classifiers have these parameters beside the others."""

    likelihood: Likelihood = parameter(
        "dirichlet",
        "Likelihood of classes; least_squares is quicker.",
        '"dirichlet" (Milios et al. 2018, arXiv 1805.10915), "least_squares" on one-hot labels, or "logistic", by '
        "expectation propagation.",
        choices=get_args(Likelihood),
    )
    alpha_epsilon: float | Literal["auto"] = parameter(
        "auto", "Pseudo-count of every class in the Dirichlet likelihood, > 0; auto: it and the scale by leave-one-out."
    )
    class_weight: Any = parameter(
        None,
        "Factor of the weights of a class's rows; balanced: all classes weigh as much.",
        'None, "balanced" or a dictionary {label: factor > 0}, 1 for labels that it leaves out.',
    )


@dataclass(kw_only=True, eq=False, repr=False)
class EnsembleParameters(KernelParameters, abc.ABC):
    """The estimators of the NTK have this parameter beside the others."""

    ensemble: bool = parameter(
        False,
        "Spread over random starts of the networks.",
        "The law over random starts, in place of a Gaussian process whose covariance is the NTK.",
    )


@dataclass(kw_only=True, eq=False, repr=False)
class WideParameters(KernelParameters, abc.ABC):
    """The estimators that choose their network have these parameters, with defaults of their own."""

    kernel: Architecture = parameter(
        "auto", "Kernel of the network; auto: the more likely one.", choices=get_args(Architecture)
    )
    depth: Any = parameter("auto", "Affine layers of the network, L >= 2; auto: the most likely of 2 and 3.")
    activation: Any = parameter(
        "auto", "Activation; auto: the most likely one.", choices=("auto", "erf", "relu", "rbf")
    )
    input_scales: InputScales | None = parameter(
        "auto",
        "Scale of each input; auto: one a column, by likelihood; agop: by gradients.",
        choices=get_args(InputScales),
    )
    hyperparameters: Hyperparameters = parameter(
        "marginal_likelihood",
        "Objective of the choice of network, scales and noise.",
        choices=get_args(Hyperparameters)[1:],
    )


@dataclass(kw_only=True, eq=False, repr=False)
class AverageParameters(KernelParameters, abc.ABC):
    """The regressor that chooses its network has this parameter beside the others."""

    average: bool = parameter(
        True,
        "Average the networks that are left in the race; else the most likely one alone.",
        'For up to 4000 rows, with noise_model="constant", a noise other than 0, input_scales="auto", time=inf and '
        "room in memory for the factor of each.",
    )


def describe(cls: type[NetworkParameters]) -> Iterator[str]:
    """Yield the lines on the parameters for a docstring."""
    for entry in fields(cls):
        text = f"{entry.name}: {entry.metadata['text']} {entry.metadata['more']}".strip()
        yield textwrap.fill(text, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 12)


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(field,))
def estimator(cls: C) -> C:
    """Give a class of parameters its `__init__`, and its docstring the parameters: they take the place of "{}"."""
    made: Any = dataclass(kw_only=True, eq=False, repr=False)(cls)
    made.__doc__ = (made.__doc__ or "").replace("{}", "\n".join(describe(made)).strip())
    return made  # type: ignore[no-any-return]


def by_name(*classes: type[NetworkParameters]) -> dict[str, Field[Any]]:
    """Return the fields of these classes by name, each once."""
    return {entry.name: entry for cls in classes for entry in fields(cls)}
