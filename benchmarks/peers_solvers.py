"""Peers of solvers.py and training_times.py run here, each by its own interpreter; imports nothing of widelimit.

python benchmarks/peers_solvers.py PEER inputs.npz output.npz, with PEER one of neural-tangents, neural-tangents-times,
gpytorch, scikit-learn. The inputs hold X, y, Z, noise (and times); the output the mean, the variance, the seconds of
the first call and of a second one, for which nothing is compiled.
"""

import contextlib
import sys
import time

import numpy as np


def network():
    """Make the same network: three layers of weights, relu, weight_std 1.4, bias_std 0.2, NTK parameterisation."""
    from neural_tangents import stax

    dense = [stax.Dense(1, W_std=1.4, b_std=0.2, parameterization="ntk") for _ in range(3)]
    return stax.serial(dense[0], stax.Relu(), dense[1], stax.Relu(), dense[2])[2]


def neural_tangents(data):
    """Compute mean and full covariance, as it has no variance alone."""
    import jax
    import neural_tangents as nt

    jax.config.update("jax_enable_x64", True)
    kernel = network()
    X, y, Z = data["X"], data["y"][:, None], data["Z"]

    def work():
        predict = nt.predict.gradient_descent_mse_ensemble(
            kernel, X, y, diag_reg=float(data["noise"]), diag_reg_absolute_scale=True
        )
        mean, covariance = predict(x_test=Z, get="nngp", compute_cov=True)
        return np.asarray(mean)[:, 0], np.diagonal(np.asarray(covariance))

    return work


def neural_tangents_times(data):
    """Compute predictions at several times by its eigendecomposition."""
    import jax
    import neural_tangents as nt

    jax.config.update("jax_enable_x64", True)
    kernel = network()
    X, y, Z = data["X"], data["y"][:, None], data["Z"]

    def work():
        train, test = kernel(X, None, "ntk"), kernel(Z, X, "ntk")
        predict = nt.predict.gradient_descent_mse(train, y)
        # its loss is |f - y|^2/(2 n c): twice our time
        _, moved = predict(2 * data["times"], 0.0, 0.0, test)
        return np.asarray(moved)[..., 0], np.zeros(0)

    return work


def gpytorch(data, *, default=False):
    """Fit an exact process, fixed hyper-parameters, on torch's default device: by Cholesky, or by its default."""
    import gpytorch as gp
    import torch

    X, y, Z = (torch.as_tensor(data[name], device=torch.get_default_device()) for name in "XyZ")
    cholesky = (
        () if default else (gp.settings.fast_computations(False, False, False), gp.settings.max_cholesky_size(10**9))
    )

    class Model(gp.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(X, y, likelihood)
            self.mean_module, self.covar_module = gp.means.ZeroMean(), gp.kernels.RBFKernel()

        def forward(self, x):
            return gp.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def work():
        likelihood = gp.likelihoods.GaussianLikelihood()
        likelihood.noise = float(data["noise"])
        model = Model(likelihood).double()
        model.covar_module.lengthscale = float(np.sqrt(X.shape[1]))
        model.eval()
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for way in cholesky:
                stack.enter_context(way)
            law = model(Z)
            return law.mean.cpu().numpy(), law.variance.cpu().numpy()

    return work


def scikit_learn(data):
    """Fit GaussianProcessRegressor with a fixed RBF kernel."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    kernel = RBF(float(np.sqrt(data["X"].shape[1])), length_scale_bounds="fixed")

    def work():
        peer = GaussianProcessRegressor(kernel, alpha=float(data["noise"]), optimizer=None).fit(data["X"], data["y"])
        mean, deviation = peer.predict(data["Z"], return_std=True)
        return mean, deviation**2

    return work


PEERS = {
    "neural-tangents": neural_tangents,
    "neural-tangents-times": neural_tangents_times,
    "gpytorch": gpytorch,
    "scikit-learn": scikit_learn,
}

if __name__ == "__main__":
    name, source, target = sys.argv[1:]
    work, seconds = PEERS[name](np.load(source)), []
    for _ in range(2):
        start = time.perf_counter()
        mean, variance = work()
        seconds.append(time.perf_counter() - start)
    np.savez(target, first=seconds[0], seconds=seconds[1], mean=mean, variance=variance)
