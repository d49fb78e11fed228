"""This peer fits GPyTorch's sparse Gaussian process (SGPR) to tables; it needs an environment with GPyTorch.

python benchmarks/peer_sgpr.py DATA [set ...]    sets of a folder of NAME.npz, split 0, as many_rows.py reads them

Matern kernel (3/2) with one length scale an input, POINTS random rows as inducing points that are optimised too, STEPS
steps of Adam on the evidence bound.
"""

import os
import sys
import time
from pathlib import Path

import gpytorch
import numpy as np
import torch

POINTS = int(os.environ.get("POINTS", "2000"))
STEPS = int(os.environ.get("STEPS", "100"))


class Sparse(gpytorch.models.ExactGP):
    """The model of GPyTorch's documentation for sparse regression."""

    def __init__(self, X: torch.Tensor, y: torch.Tensor, likelihood: gpytorch.likelihoods.GaussianLikelihood) -> None:
        super().__init__(X, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        base = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=X.shape[1]))
        points = X[torch.randperm(len(X))[:POINTS]].clone()
        self.covar_module = gpytorch.kernels.InducingPointKernel(base, inducing_points=points, likelihood=likelihood)

    def forward(self, X: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        """Return the prior."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(X), self.covar_module(X))


def fit(X: torch.Tensor, y: torch.Tensor, Z: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Fit, and predict mean and variance of new observations."""
    torch.manual_seed(0)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Sparse(X, y, likelihood)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    model.train()
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = -objective(model(X), y)
        loss.backward()
        optimiser.step()
    model.eval()
    likelihood.eval()
    with torch.no_grad():
        found = likelihood(model(Z))
    return found.mean.numpy(), found.variance.numpy()


def main() -> None:
    """Measure the sets."""
    for name in sys.argv[2:] or ["kin40k", "protein", "keggdirected"]:
        data = np.load(Path(sys.argv[1]) / f"{name}.npz")
        held = data["test_mask"][:, 0].astype(bool)
        X, y = data["X"].astype(np.float64), data["y"].astype(np.float64)
        scale = X[~held].std(axis=0)
        X, y = (X - X[~held].mean(axis=0)) / np.where(scale > 0, scale, 1), (y - y[~held].mean()) / y[~held].std()
        start = time.process_time()
        mean, variance = fit(*(torch.tensor(a, dtype=torch.float32) for a in (X[~held], y[~held], X[held])))
        error = mean - y[held]
        print(
            {
                "table": name,
                "method": f"SGPR, {POINTS} points, {STEPS} steps",
                "cpu_seconds": time.process_time() - start,
                "rmse": float(np.sqrt(np.mean(error**2))),
                "nlpd": float(np.mean(error**2 / variance + np.log(2 * np.pi * variance)) / 2),
                "coverage": float(np.mean(np.abs(error) < 1.959964 * np.sqrt(variance))),
            },
            flush=True,
        )


if __name__ == "__main__":
    main()
