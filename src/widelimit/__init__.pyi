# The public door: one import list, read by type checkers and, lazily, at run time (`widelimit --help` never loads JAX).
from . import layers, rkhs
from .activations.base import Activation
from .activations.closed.arc_cosine import RectifiedPower, Sign, Step
from .activations.closed.erf import Erf, Gelu
from .activations.closed.exponentials import Exp, Gaussian, Rbf
from .activations.closed.linear import ABRelu, Abs, Identity, LeakyRelu, Relu
from .activations.closed.polynomials import Hermite, Monomial, Polynomial
from .activations.closed.trigonometric import Cos, Sin, Snake
from .activations.names import activation, elu
from .activations.piecewise.polynomial import PiecewisePolynomial
from .activations.tabulated.numerical import Numerical
from .architecture.builders import mlp, network, resmlp
from .architecture.convnets import convnet, garriga_alonso_2019, myrtle, resnet
from .architecture.graphs import du_2019, gnn
from .architecture.inputs import Image, Rows
from .architecture.network import Network
from .architecture.phases import FixedPoint, Phase, critical, phase
from .architecture.sequences import Graph, Sequence
from .architecture.transformers import transformer
from .columns.encoder import TableEncoder
from .displays.calibration import CalibrationDisplay
from .displays.dependence import DependenceDisplay
from .displays.importance import ImportanceDisplay, plot_importance
from .estimators.classifiers import NNGPClassifier, NTKClassifier
from .estimators.features import NTKFeatures
from .estimators.persistence import load, save
from .estimators.regressors import NNGPRegressor, NTKRegressor
from .estimators.sklearn_kernels import SklearnKernel, sklearn_kernel
from .estimators.wide import WideClassifier, WideRegressor
from .gaussian import Expectation, gaussian_expectation
from .inference.conditioning import posterior
from .inference.costs import Cost, Machine, predict_cost
from .inference.ensemble import KrylovEnsemble, TrainedEnsemble, trained_ensemble
from .inference.gaussian_process import Conditioned, GaussianProcess
from .inference.gradient_descent import GradientDescent, gradient_descent, max_learning_rate
from .inference.gradient_flow import GradientFlow, Modes, gradient_flow
from .inference.hyperparameters import HyperparameterFit, Run, fit_hyperparameters
from .inference.inducing import SparsePosterior
from .inference.krylov_flow import KrylovFlow
from .inference.linear_model import LinearModel
from .inference.losses import (
    CustomLoss,
    Huber,
    Logistic,
    Loss,
    Poisson,
    SoftmaxCrossEntropy,
    SquaredError,
    WeightedSquaredError,
)
from .inference.numerical_flow import Flow, NumericalFlow, Solution
from .inference.posterior import LeaveOneOut, LikelihoodGradient, Posterior
from .inference.training_set import Prediction
from .kernels.averaged import Averaged, averaged
from .kernels.base import Kernel, Product, Scaled, ScaledInputs, Sum, scale_inputs
from .kernels.empirical.expansion import linearize, taylor
from .kernels.empirical.functions import empirical_nngp, empirical_ntk
from .kernels.empirical.kernels import EmpiricalAxes, EmpiricalDiagonal, EmpiricalKernel, EmpiricalMatrixKernel
from .kernels.functions import FunctionKernel, kernel
from .kernels.matrix_valued import MatrixFunction, MatrixKernel, Separable, matrix_valued, separable
from .kernels.network import NNGP, NTK, BothKernels, Limits, limits, nngp, ntk
from .kernels.standard import (
    Laplace,
    Linear,
    PolynomialKernel,
    Precomputed,
    RadialBasis,
    laplace,
    linear,
    polynomial,
    precomputed,
    rbf,
)
from .kernels.stored import stored_gram
from .network_text import read_network
from .pytrees import pytree
from .signals import Correlation, Variance
from .tangents.attribution import attribution
from .tangents.drift import KernelDrift
from .tangents.linearized import LinearizedPosterior, linearized_posterior
from .tangents.models import Tangents, tangents
from .tangents.rows import ExactRows, TangentRows
from .tangents.selection import Selection, select
from .tangents.sketch import Sketch
from .theory.coordinates import CoordinateCheck, coordinate_check
from .theory.deep_linear import DeepLinearFlow, deep_linear_flow
from .theory.finite_width import FiniteWidth, finite_width
from .theory.finite_width_training import FiniteWidthTraining, finite_width_training
from .theory.generalization import Generalization, generalization
from .theory.lazy import LazyReport, lazy_report
from .theory.mean_field import MeanFieldFlow, mean_field_flow
from .theory.proportional import ProportionalPosterior, proportional_posterior
from .training.history import History
from .training.loop import Training
from .training.train import train
from .version import __version__

__all__ = [
    "NNGP",
    "NTK",
    "ABRelu",
    "Abs",
    "Activation",
    "Averaged",
    "BothKernels",
    "CalibrationDisplay",
    "Conditioned",
    "CoordinateCheck",
    "Correlation",
    "Cos",
    "Cost",
    "CustomLoss",
    "DeepLinearFlow",
    "DependenceDisplay",
    "EmpiricalAxes",
    "EmpiricalDiagonal",
    "EmpiricalKernel",
    "EmpiricalMatrixKernel",
    "Erf",
    "ExactRows",
    "Exp",
    "Expectation",
    "FiniteWidth",
    "FiniteWidthTraining",
    "FixedPoint",
    "Flow",
    "FunctionKernel",
    "Gaussian",
    "GaussianProcess",
    "Gelu",
    "Generalization",
    "GradientDescent",
    "GradientFlow",
    "Graph",
    "Hermite",
    "History",
    "Huber",
    "HyperparameterFit",
    "Identity",
    "Image",
    "ImportanceDisplay",
    "Kernel",
    "KernelDrift",
    "KrylovEnsemble",
    "KrylovFlow",
    "Laplace",
    "LazyReport",
    "LeakyRelu",
    "LeaveOneOut",
    "LikelihoodGradient",
    "Limits",
    "Linear",
    "LinearModel",
    "LinearizedPosterior",
    "Logistic",
    "Loss",
    "Machine",
    "MatrixFunction",
    "MatrixKernel",
    "MeanFieldFlow",
    "Modes",
    "Monomial",
    "NNGPClassifier",
    "NNGPRegressor",
    "NTKClassifier",
    "NTKFeatures",
    "NTKRegressor",
    "Network",
    "Numerical",
    "NumericalFlow",
    "Phase",
    "PiecewisePolynomial",
    "Poisson",
    "Polynomial",
    "PolynomialKernel",
    "Posterior",
    "Precomputed",
    "Prediction",
    "Product",
    "ProportionalPosterior",
    "RadialBasis",
    "Rbf",
    "RectifiedPower",
    "Relu",
    "Rows",
    "Run",
    "Scaled",
    "ScaledInputs",
    "Selection",
    "Separable",
    "Sequence",
    "Sign",
    "Sin",
    "Sketch",
    "SklearnKernel",
    "Snake",
    "SoftmaxCrossEntropy",
    "Solution",
    "SparsePosterior",
    "SquaredError",
    "Step",
    "Sum",
    "TableEncoder",
    "TangentRows",
    "Tangents",
    "TrainedEnsemble",
    "Training",
    "Variance",
    "WeightedSquaredError",
    "WideClassifier",
    "WideRegressor",
    "__version__",
    "activation",
    "attribution",
    "averaged",
    "convnet",
    "coordinate_check",
    "critical",
    "deep_linear_flow",
    "du_2019",
    "elu",
    "empirical_nngp",
    "empirical_ntk",
    "finite_width",
    "finite_width_training",
    "fit_hyperparameters",
    "garriga_alonso_2019",
    "gaussian_expectation",
    "generalization",
    "gnn",
    "gradient_descent",
    "gradient_flow",
    "kernel",
    "laplace",
    "layers",
    "lazy_report",
    "limits",
    "linear",
    "linearize",
    "linearized_posterior",
    "load",
    "matrix_valued",
    "max_learning_rate",
    "mean_field_flow",
    "mlp",
    "myrtle",
    "network",
    "nngp",
    "ntk",
    "phase",
    "plot_importance",
    "polynomial",
    "posterior",
    "precomputed",
    "predict_cost",
    "proportional_posterior",
    "pytree",
    "rbf",
    "read_network",
    "resmlp",
    "resnet",
    "rkhs",
    "save",
    "scale_inputs",
    "select",
    "separable",
    "sklearn_kernel",
    "stored_gram",
    "tangents",
    "taylor",
    "train",
    "trained_ensemble",
    "transformer",
]
