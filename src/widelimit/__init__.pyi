# The public door: one import list, read by type checkers and, lazily, at run time (`widelimit --help` never loads JAX).
from .activations.base import Activation
from .activations.erf import Erf
from .activations.linear import Abs, Identity, LeakyRelu, Relu
from .architecture.network import Network, mlp
from .inference.ensemble import TrainedEnsemble, trained_ensemble
from .inference.gradient_flow import GradientFlow, gradient_flow
from .inference.posterior import Posterior, posterior
from .kernels.base import Kernel
from .kernels.network import NNGP, NTK, nngp, ntk

__all__ = [
    "NNGP",
    "NTK",
    "Abs",
    "Activation",
    "Erf",
    "GradientFlow",
    "Identity",
    "Kernel",
    "LeakyRelu",
    "Network",
    "Posterior",
    "Relu",
    "TrainedEnsemble",
    "gradient_flow",
    "mlp",
    "nngp",
    "ntk",
    "posterior",
    "trained_ensemble",
]
