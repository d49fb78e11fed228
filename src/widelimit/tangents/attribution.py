"""Predictions are attributed to training rows: a score says how much each row raises or lowers an output."""

from typing import Any, Literal

import numpy as np
from scipy.special import expit

from widelimit import validation
from widelimit.compute import threads
from widelimit.inference.conditioning import posterior
from widelimit.inference.left_out import left_out
from widelimit.kernels.standard import precomputed
from widelimit.shapes import Float
from widelimit.tangents.rows import TangentRows, require_rows
from widelimit.tangents.sketch import Sketch

Method = Literal["trak", "influence", "leave_one_out"]
METHODS = ("trak", "influence", "leave_one_out")


FURTHEST_MARGIN = 700.0
"""p is 0 or 1 beyond it, to the last digit; exp(-margin/2) and its inverse are in float64's range before."""


def attribution(
    train: TangentRows,
    test: TangentRows,
    y: Any = None,
    *,
    method: Method = "influence",
    noise: float | None = None,
    weights: Any = None,
) -> Float[np.ndarray, "m n"]:
    """Score how much each training row raises the outputs at the test rows, in the linearized model.

    "influence": a Newton step of the linearized logistic regression without the row, K(z, X) R^{1/2} (R^{1/2} K(X, X)
    R^{1/2} + noise)^{-1} diag(R^{-1/2} (1 - p)), R = p (1 - p) for the probability p of the label (Koh and Liang 2017,
    arXiv 1703.04730, with the Gauss-Newton matrix, in kernel form), for of="margin". A score is in the margin's unit.

    "trak": K(z, X) (K(X, X) + noise)^{-1} diag(weights), TRAK of Park et al. 2023 (arXiv 2303.14186, section 3) in
    its kernel form; on sketches TRAK itself, with a ridge. Without R it ranks rows; its scores have no unit. Weights
    are dL/df at the training rows, 1 - p for the margin.

    "leave_one_out": f(z) - f(z without row i), exactly, of the linearized model that is fitted to y: squared error
    and ridge, in closed form from one inverse.

    Args:
        train: training rows with one output each, `of` of the tangents; exact or a sketch.
        test: rows of the same model and kind whose outputs are attributed.
        y: (n,) targets, for "leave_one_out" only.
        method: one of the above. Scores of several trained networks, averaged, are better ones.
        noise: ridge > 0 in the sum of the losses, (noise/2) |theta - theta_0|^2, n times a weight decay in their mean;
            unless given the mean of the diagonal of what it is added to.
        weights: (n,) for "trak"; needed where `of` is not "margin".

    Returns: (m, n): positive where the row raises the output. The sum over a group of rows predicts what its removal
        takes away.

    Raises: TypeError, ValueError: rows of two models or of several outputs, bad targets or weights.
    """
    _check(train, test, y, method)
    scale, factors = _scales(train, method, weights)
    if isinstance(train, Sketch) and isinstance(test, Sketch) and method != "leave_one_out":
        few = train.features * scale[:, None]
        if few.shape[1] < len(few):
            return np.asarray(_by_features(few, test.features, noise) * factors)
    matrix = train.matrix() * scale[:, None] * scale
    ridge = float(np.diagonal(matrix).mean()) if noise is None else noise
    ridge = float(validation.finite_scalar("noise", ridge, above=0.0))
    k, cross = precomputed(matrix), train.matrix(test).T * scale
    if method != "leave_one_out":
        law = posterior(k, k.indices, np.zeros(train.size), noise=ridge, solver="cholesky")
        return np.asarray(law.factor.solve(cross.T).T * factors)
    residual = validation.targets("y", y, train.size).reshape(train.size, -1) - train.values
    left = left_out(posterior(k, k.indices, residual, noise=ridge, solver="cholesky"))
    return np.asarray(threads.product(cross, left.operator) * left.error[:, 0])


def _by_features(features: np.ndarray, others: np.ndarray, noise: Any) -> np.ndarray:
    """Compute F_z (F^T F + noise)^{-1} F^T = F_z F^T (F F^T + noise)^{-1}, with a matrix of the features' size."""
    ridge = float(np.square(features).sum()) / len(features) if noise is None else noise
    ridge = float(validation.finite_scalar("noise", ridge, above=0.0))
    k = precomputed(threads.product(features.T, features))
    law = posterior(k, k.indices, np.zeros(len(k.matrix)), noise=ridge, solver="cholesky")
    return threads.product(law.factor.solve(np.array(others.T)).T, features.T)


def _check(train: Any, test: Any, y: Any, method: Any) -> None:
    validation.choice("method", method, METHODS)
    for name, rows in (("train", train), ("test", test)):
        require_rows(name, rows)
        if rows.size != len(rows.values):
            raise ValueError(
                f'{name} has {rows.values.shape[1]} outputs for a row, not one; set of=, such as of="margin".'
            )
    if (y is None) != (method != "leave_one_out"):
        raise ValueError('y goes with method="leave_one_out", and with that only.')
    train.require_same(test)


def _scales(train: TangentRows, method: Method, weights: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return R^{1/2}, (n,), and the factors of the scores, R^{-1/2} (1 - p) = exp(-margin/2), (n,)."""
    margin, one = np.asarray(train.values[:, 0], np.float64), np.ones(train.size)
    margin = np.clip(margin, -FURTHEST_MARGIN, FURTHEST_MARGIN)
    if weights is not None:
        if method != "trak":
            raise ValueError('weights go with method="trak", and with that only.')
        values = validation.targets("weights", weights, train.size)
        if values.ndim != 1:
            raise ValueError(f"weights must have shape ({train.size},), got {values.shape}.")
        return one, values
    if method == "leave_one_out":
        return one, one
    if train.model.of != "margin":
        hint = ' or pass weights to method="trak": dL/df at each training row' if method == "trak" else ""
        raise ValueError(f'method="{method}" is for the tangents of="margin"; take those,{hint}.')
    return (one, expit(-margin)) if method == "trak" else (0.5 / np.cosh(margin / 2), np.exp(-margin / 2))
