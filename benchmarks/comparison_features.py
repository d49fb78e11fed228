"""Checks of the features that docs/comparison.md compares: code that prints yes, no or a number.

A "no" is found, not assumed: the code searches the public names, or shows that what comes nearest does not do it.
"""

NO_NAME = """
import re, importlib
names = [n for m in {modules!r} for n in dir(importlib.import_module(m))]
assert len(names) > 20
print("yes" if any(re.search({pattern!r}, n) for n in names) else "no")
"""
SKLEARN = [
    "sklearn.gaussian_process",
    "sklearn.gaussian_process.kernels",
    "sklearn.kernel_ridge",
    "sklearn.metrics.pairwise",
]
GPYTORCH = ["gpytorch.kernels", "gpytorch.models", "gpytorch.mlls"]
BOTORCH = ["botorch.models", "botorch.models.kernels", "botorch.models.kernels.infinite_width_bnn", "gpytorch.kernels"]
NT = ["neural_tangents", "neural_tangents.stax", "neural_tangents.predict"]


def names(modules: list[str], pattern: str) -> str:
    """Return code that looks for a public name."""
    return NO_NAME.format(modules=modules, pattern=pattern)


WL = "import numpy as np, widelimit as wl\nX = np.random.default_rng(0).standard_normal((8, 3))\n"
NT_HEAD = (
    "import numpy as np, neural_tangents as nt\nfrom neural_tangents import stax\n"
    "X = np.random.default_rng(0).standard_normal((8, 3))\n"
    "_, _, k = stax.serial(stax.Dense(1, 2**0.5, 0.1), stax.Relu(), stax.Dense(1, 2**0.5, 0.1))\n"
)
IBNN = (
    "import torch\nfrom botorch.models.kernels import InfiniteWidthBNNKernel\n"
    "X = torch.randn(8, 3, dtype=torch.float64)\nk = InfiniteWidthBNNKernel(2).double()\n"
)
NEAR = """
import numpy as np
from mpmath import mp, mpf, sqrt, acos, pi, sin, cos
mp.dps = 60
step = mpf(2) ** -24
q, theta = [mpf("1.01"), mpf("1.01"), 1 + step**2 + mpf("0.01")], mpf("1.01")
for _ in range(2):
    s = sqrt(q[0] * q[2])
    t = acos(q[1] / s)
    q = [q[0] + mpf("0.01"), s * (sin(t) + (pi - t) * cos(t)) / pi + mpf("0.01"), q[2] + mpf("0.01")]
    theta = theta * (pi - t) / pi + q[1]
X = np.array([[1.0, 0.0], [1.0, 2.0**-24]])
def answer(found, exact): print(f"{abs(float(found / exact - 1)):.0e}")
"""
"""Both kernels of a relu network of depth 3 (sqrt(2), 0.1) at two inputs at a distance of 2^-24, in 60 digits."""
NEAR_NNGP = "NNGP kernel of two inputs at a distance of 6e-8: relative error in float64"
NEAR_NTK = "NTK of two inputs at a distance of 6e-8: relative error in float64"
NT_NEAR = (
    "import jax; jax.config.update('jax_enable_x64', True)\nfrom neural_tangents import stax\n"
    + NEAR
    + "D = lambda: stax.Dense(1, 2**0.5, 0.1)\n_, _, k = stax.serial(D(), stax.Relu(), D(), stax.Relu(), D())\n"
)
WL_NEAR = NEAR + "import widelimit as wl\nnet = wl.mlp(depth=3, weight_std=2**0.5, bias_std=0.1)\n"

FEATURES: dict[str, dict[str, str]] = {
    "NNGP kernel of a deep relu network": {
        "widelimit": WL + "assert wl.nngp(wl.mlp(depth=3)).gram(X).shape == (8, 8); print('yes')",
        "neural-tangents": NT_HEAD + "assert k(X, X, 'nngp').shape == (8, 8); print('yes')",
        "BoTorch": IBNN + "assert k(X).to_dense().shape == (8, 8); print('yes')",
        "GPyTorch": names(GPYTORCH, "(?i)arc.?cos|nngp|infinite|network"),
        "scikit-learn": names(SKLEARN, "(?i)arc.?cos|nngp|infinite|network"),
    },
    "NTK": {
        "widelimit": WL + "assert wl.ntk(wl.mlp(depth=3)).gram(X).shape == (8, 8); print('yes')",
        "neural-tangents": NT_HEAD + "assert k(X, X, 'ntk').shape == (8, 8); print('yes')",
        "BoTorch": names(BOTORCH, "NTK|[Tt]angent"),
        "GPyTorch": names(GPYTORCH, "NTK|[Tt]angent"),
        "scikit-learn": names(SKLEARN, "NTK|[Tt]angent"),
    },
    "convolution, pooling, attention": {
        "widelimit": "import widelimit as wl; wl.layers.Conv, wl.layers.AveragePool, wl.layers.Attention; print('yes')",
        "neural-tangents": "from neural_tangents import stax; stax.Conv, stax.AvgPool, stax.GlobalSelfAttention; print('yes')",
        "BoTorch": names(BOTORCH, "(?i)convolution|attention"),
        "GPyTorch": names(GPYTORCH, "(?i)convolution|attention"),
        "scikit-learn": names(SKLEARN, "(?i)convolution|attention"),
    },
    "tanh by name": {
        "widelimit": WL + "wl.ntk(wl.mlp(depth=3, activation='tanh')).gram(X); print('yes')",
        "neural-tangents": names(NT, "(?i)^tanh$"),
        "BoTorch": names(BOTORCH, "(?i)tanh"),
    },
    "any activation function": {
        "widelimit": WL
        + "import jax.numpy as jnp\nwl.ntk(wl.mlp(depth=3, activation=jnp.arctan)).gram(X); print('yes, to a stated error')",
        "neural-tangents": "import jax.numpy as jnp\nfrom neural_tangents import stax\n"
        "stax.ElementwiseNumerical(jnp.arctan, deg=25); print('yes, by Gauss-Hermite')",
        "BoTorch": "import inspect\nfrom botorch.models.kernels import InfiniteWidthBNNKernel as K\n"
        "print('yes' if 'activation' in inspect.signature(K).parameters else 'no')",
    },
    "float64 in, float64 out, without a global switch": {
        "widelimit": WL + "print('yes' if wl.ntk(wl.mlp(depth=3)).gram(X).dtype == np.float64 else 'no')",
        "neural-tangents": NT_HEAD + "print('yes' if k(X, X, 'ntk').dtype == np.float64 else 'no')",
        "BoTorch": IBNN + "print('yes' if k(X).to_dense().dtype == torch.float64 else 'no')",
        "GPyTorch": "import torch, gpytorch\nX = torch.randn(8, 3, dtype=torch.float64)\n"
        "print('yes' if gpytorch.kernels.RBFKernel().double()(X).to_dense().dtype == torch.float64 else 'no')",
        "scikit-learn": "import numpy as np\nfrom sklearn.gaussian_process.kernels import RBF\n"
        "print('yes' if RBF()(np.ones((2, 2))).dtype == np.float64 else 'no')",
    },
    NEAR_NNGP: {
        "widelimit": WL_NEAR + "answer(wl.nngp(net).gram(X)[0, 1], q[1])",
        "neural-tangents": NT_NEAR + "answer(float(k(X, None, 'nngp')[0, 1]), q[1])",
        "BoTorch": NEAR + "import torch\nfrom botorch.models.kernels import InfiniteWidthBNNKernel\n"
        "k = InfiniteWidthBNNKernel(2).double()\nk.weight_var, k.bias_var = 2.0, 0.01\n"
        "answer(float(k(torch.from_numpy(X)).to_dense()[0, 1]), q[1])",
    },
    NEAR_NTK: {
        "widelimit": WL_NEAR + "answer(wl.ntk(net).gram(X)[0, 1], theta)",
        "neural-tangents": NT_NEAR + "answer(float(k(X, None, 'ntk')[0, 1]), theta)",
    },
    "posterior with error bars": {
        "widelimit": WL + "wl.posterior(wl.rbf(), X, X[:, 0], noise=0.1).variance(X); print('yes')",
        "neural-tangents": NT_HEAD + "f = nt.predict.gp_inference(k(X, X, 'nngp'), X[:, :1], 0.1)\n"
        "f('nngp', k(X, X, 'nngp'), k(X, X, 'nngp')).covariance; print('yes')",
        "BoTorch": "import torch\nfrom botorch.models import SingleTaskGP\nX = torch.rand(8, 3, dtype=torch.float64)\n"
        "SingleTaskGP(X, X[:, :1]).posterior(X).variance; print('yes')",
        "GPyTorch": "import gpytorch; gpytorch.models.ExactGP; print('yes')",
        "scikit-learn": "import numpy as np\nfrom sklearn.gaussian_process import GaussianProcessRegressor as G\n"
        "X = np.random.default_rng(0).random((8, 3))\nG().fit(X, X[:, 0]).predict(X, return_std=True); print('yes')",
    },
    "hyper-parameters by marginal likelihood": {
        "widelimit": WL + "wl.fit_hyperparameters(wl.rbf(), X, X[:, 0], noise=0.1, restarts=0); print('yes')",
        "neural-tangents": names(NT, "(?i)likelihood|evidence|hyper"),
        "BoTorch": "from botorch.fit import fit_gpytorch_mll; print('yes')",
        "GPyTorch": "from gpytorch.mlls import ExactMarginalLogLikelihood; print('yes')",
        "scikit-learn": "from sklearn.gaussian_process import GaussianProcessRegressor as G; G.log_marginal_likelihood; print('yes')",
    },
    "gradient descent at any time, and the law over initialisations": {
        "widelimit": WL + "wl.trained_ensemble(wl.mlp(depth=3), X, X[:, 0]).variance(X, 1.0); print('yes')",
        "neural-tangents": "from neural_tangents.predict import gradient_descent_mse_ensemble; print('yes')",
        "BoTorch": names(BOTORCH, "(?i)gradient_(flow|descent)"),
        "GPyTorch": names(GPYTORCH, "(?i)gradient_(flow|descent)"),
        "scikit-learn": names(SKLEARN, "(?i)gradient_(flow|descent)"),
    },
    "tangent kernel of your own network": {
        "widelimit": "import widelimit as wl; wl.empirical_ntk; import inspect; print('JAX, PyTorch')",
        "neural-tangents": "import neural_tangents as nt; nt.empirical_ntk_fn; print('JAX')",
        "BoTorch": names(BOTORCH, "NTK|[Tt]angent"),
        "GPyTorch": names(GPYTORCH, "NTK|[Tt]angent"),
        "scikit-learn": names(SKLEARN, "NTK|[Tt]angent"),
    },
    "estimators after scikit-learn (`fit`, `predict`, `clone`)": {
        "widelimit": "import widelimit as wl; from sklearn.base import clone; clone(wl.NNGPRegressor()); print('yes')",
        "neural-tangents": names(NT, "Regressor|Classifier"),
        "BoTorch": names(BOTORCH, "Regressor|Classifier"),
        "GPyTorch": names(GPYTORCH, "Regressor|Classifier"),
        "scikit-learn": "from sklearn.base import clone; from sklearn.gaussian_process import GaussianProcessRegressor as G; "
        "clone(G()); print('yes')",
    },
    "kernel matrices on disk, resumed after a kill": {
        "widelimit": "import widelimit as wl; wl.stored_gram; print('yes')",
        "neural-tangents": names([*NT], "(?i)stored|disk|checkpoint|resume"),
        "BoTorch": names(BOTORCH, "(?i)stored|disk|resume"),
        "GPyTorch": names(GPYTORCH, "(?i)stored|disk|resume"),
        "scikit-learn": names(SKLEARN, "(?i)stored|disk|resume"),
    },
    "variational inference for any likelihood": {
        "widelimit": names(["widelimit"], "(?i)variational"),
        "neural-tangents": names(NT, "(?i)variational"),
        "BoTorch": "from botorch.models import SingleTaskVariationalGP; print('yes')",
        "GPyTorch": "from gpytorch.models import ApproximateGP; print('yes')",
        "scikit-learn": names(SKLEARN, "(?i)variational"),
    },
    "acquisition functions of Bayesian optimisation": {
        "widelimit": names(["widelimit"], "(?i)acquisition|expected_?improvement"),
        "neural-tangents": names(NT, "(?i)acquisition|expected_?improvement"),
        "BoTorch": "from botorch.acquisition import LogExpectedImprovement; print('yes')",
        "GPyTorch": names(GPYTORCH, "(?i)acquisition|expected_?improvement"),
        "scikit-learn": names(SKLEARN, "(?i)acquisition|expected_?improvement"),
    },
}
"""Feature: code for each library. A library without code is "not checked"."""
