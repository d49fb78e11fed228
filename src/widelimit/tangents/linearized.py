"""The linearized model is trained in closed form, with error bars."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from widelimit import validation
from widelimit.compute import linalg, threads
from widelimit.inference.early_stopping import StoppedFlow, law_variance, stopped_flow
from widelimit.inference.training_set import Prediction
from widelimit.kernels.standard import precomputed
from widelimit.tangents.rows import TangentRows, require_rows
from widelimit.tangents.sketch import Sketch


@final
@dataclass(frozen=True)
class LinearizedPosterior:
    """The law of f_0 + J (theta - theta_0) after training; made by `linearized_posterior`."""

    rows: TangentRows
    flow: StoppedFlow
    prior_variance: float
    shape: tuple[int, ...]
    """The shape of one row of the targets."""
    frame: np.ndarray | None
    """U, (N, r), if the fewer numbers U^T f(X) determine f(X); else None."""

    def predict(self, rows: TangentRows) -> Prediction:
        """Compute mean and variance of f, without noise, at other rows of the same model and kind.

        Returns: mean, of the form of y; variance, (m, c) for output="full", (m,) for "trace", one for all outputs.

        Raises: TypeError, ValueError: rows of another model or kind.
        """
        require_rows("rows", rows)
        cross = self.prior_variance * self._cross(rows)
        tangent = threads.product(cross, self.flow.modes)
        prior = self.prior_variance * rows.diag()
        moved = threads.product(cross, self.flow.coefficients).reshape(len(rows.values), -1)
        gained = tangent * self.flow.gain
        variance = law_variance(prior, gained, tangent, threads.product(gained, self.flow.spread))
        if rows.output == "full":
            variance = variance.reshape(rows.values.shape)
        mean = (rows.values + moved).reshape(len(rows.values), *self.shape)
        return Prediction(mean, variance if self.shape or rows.output == "trace" else variance[:, 0])

    def _cross(self, rows: TangentRows) -> np.ndarray:
        """Compute K(Z, X), or K(Z, X) U."""
        if self.frame is None or not isinstance(rows, Sketch) or not isinstance(self.rows, Sketch):
            return self.rows.matrix(rows).T
        self.rows.require_same(rows)
        return threads.product(rows.features, threads.product(self.rows.features.T, self.frame))


def linearized_posterior(
    rows: TangentRows, y: Any, *, noise: float, time: float = np.inf, prior_variance: float = 1.0
) -> LinearizedPosterior:
    """Train f_0 + J (theta - theta_0) by gradient flow on C = (1/n) sum_i |f(x_i) - y_i|^2 + ridge, for any time.

    Before training theta - theta_0 ~ N(0, prior_variance). At t = inf this is the Bayesian posterior for targets with
    N(0, noise), a Laplace-like approximation around theta_0; at a time t the law of linearized models that start from
    the prior, each trained for t on labels with noise of its own (as `WideRegressor(time=...)`). By `stopped_flow` on
    the kernel of the rows: one eigendecomposition of N x N, or of size x size for a sketch of fewer features. Time is
    that of d theta/dt = -grad C.

    Args:
        rows: training rows of `Tangents.at`, exact, or of `Tangents.sketch`.
        y: (n, c) targets of the outputs of `rows`, or (n,) for one output.
        noise: variance of the targets, > 0 (or 0 where K is not singular), in the square of y's unit.
        time: training time in [0, inf], in the unit of d theta/dt = -grad C.
        prior_variance: prior variance of each parameter around theta_0, > 0.

    Returns: a `LinearizedPosterior`; predict(rows) gives mean and variance.

    Raises: TypeError, ValueError: bad data; MemoryError: the matrices do not fit.
    """
    require_rows("rows", rows)
    scale = float(validation.finite_scalar("prior_variance", prior_variance, above=0.0))
    noise = float(validation.finite_scalar("noise", noise, at_least=0.0))
    when = float(validation.one_time(time))
    targets = validation.targets("y", y, len(rows.values))
    if targets.size != rows.values.size:
        raise ValueError(f"y must have the shape of the outputs, {rows.values.shape}; got {targets.shape}.")
    residual = (targets.reshape(rows.values.shape) - rows.values).reshape(rows.size, -1)
    matrix, frame = _frame(rows)
    k = precomputed(scale * matrix)
    # A flow counts the values of its kernel where the loss counts n rows.
    clock = when * (len(matrix) / len(rows.values)) / scale if np.isfinite(when) else when
    targets_of_flow = residual if frame is None else threads.product(frame.T, residual)
    flow = stopped_flow(k, k.indices, targets_of_flow, time=clock, noise=noise)
    return LinearizedPosterior(rows, flow, scale, targets.shape[1:], frame)


def _frame(rows: TangentRows) -> tuple[np.ndarray, np.ndarray | None]:
    """Return K; or U^T K U and U, orthonormal, for a sketch F of fewer features than values: K = F F^T = U U^T K U U^T.

    The flow on U^T f(X) with targets U^T y is the same: F^T F and F^T y are, and so are the noises U^T e.
    """
    if not isinstance(rows, Sketch) or rows.features.shape[0] <= rows.features.shape[1]:
        return rows.matrix(), None
    values, vectors = linalg.eigenpairs(threads.product(rows.features.T, rows.features))
    kept = values > linalg.rounding(len(values), values[-1])
    frame = threads.product(rows.features, vectors[:, kept] / np.sqrt(values[kept]))
    return np.diag(values[kept]), frame
