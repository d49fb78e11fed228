"""The linearized model is trained in closed form, with error bars."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from widelimit import validation
from widelimit.compute import threads
from widelimit.inference.early_stopping import StoppedFlow, law_variance, stopped_flow
from widelimit.inference.posterior import Prediction
from widelimit.kernels.standard import precomputed
from widelimit.tangents.rows import TangentRows, require_rows


@final
@dataclass(frozen=True)
class LinearizedPosterior:
    """The law of f_0 + J (theta - theta_0) after training; made by `linearized_posterior`."""

    rows: TangentRows
    flow: StoppedFlow
    prior_variance: float
    shape: tuple[int, ...]
    """Of a row of the targets."""

    def predict(self, rows: TangentRows) -> Prediction:
        """Compute mean and variance of f, without noise, at other rows of the same model and kind.

        Returns: mean, of the form of y; variance, (m, c) for output="full", (m,) for "trace", one for all outputs.

        Raises: TypeError, ValueError: rows of another model or kind.
        """
        require_rows("rows", rows)
        cross = self.prior_variance * self.rows.matrix(rows).T
        tangent = threads.product(cross, self.flow.modes)
        prior = self.prior_variance * rows.diag()
        moved = threads.product(cross, self.flow.coefficients).reshape(len(rows.values), -1)
        variance = law_variance(prior, tangent * self.flow.gain, tangent, self.flow.spread)
        if rows.output == "full":
            variance = variance.reshape(rows.values.shape)
        mean = (rows.values + moved).reshape(len(rows.values), *self.shape)
        return Prediction(mean, variance if self.shape or rows.output == "trace" else variance[:, 0])


def linearized_posterior(
    rows: TangentRows, y: Any, *, noise: float, time: float = np.inf, prior_variance: float = 1.0
) -> LinearizedPosterior:
    """Train f_0 + J (theta - theta_0) by gradient flow on C = (1/n) sum_i |f(x_i) - y_i|^2 + ridge, for any time.

    Before training theta - theta_0 ~ N(0, prior_variance). At t = inf this is the Bayesian posterior for targets with
    N(0, noise), a Laplace-like approximation around theta_0; at a time t the law of linearized models that start from
    the prior, each trained for t on labels with noise of its own (as `WideRegressor(time=...)`). By `stopped_flow` on
    the kernel of the rows, one eigendecomposition of N x N. Time is that of d theta/dt = -grad C.

    Args:
        rows: training rows of `Tangents.at`, exact, or of `Tangents.sketch`.
        y: (n, c) targets of the outputs of `rows`, or (n,) for one output.
        noise: variance of the targets, > 0 (or 0 where K is not singular), in the square of y's unit.
        time: in [0, inf].
        prior_variance: of each parameter around theta_0, > 0.

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
    k = precomputed(scale * rows.matrix())
    # A flow counts N values where the loss counts n rows.
    clock = when * (rows.size / len(rows.values)) / scale if np.isfinite(when) else when
    flow = stopped_flow(k, k.indices, residual, time=clock, noise=noise)
    return LinearizedPosterior(rows, flow, scale, targets.shape[1:])
