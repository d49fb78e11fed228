"""Predictions are attributed to training rows: which of them raise or lower an output."""

from typing import Any, Literal

import numpy as np
from scipy.special import expit

from widelimit import validation
from widelimit.compute import threads
from widelimit.inference.left_out import left_out
from widelimit.inference.posterior import posterior
from widelimit.kernels.standard import precomputed
from widelimit.shapes import Float
from widelimit.tangents.rows import TangentRows

RIDGE = 1e-3
"""Noise unless given, of the mean of the kernel's diagonal."""


def attribution(
    train: TangentRows,
    test: TangentRows,
    y: Any = None,
    *,
    method: Literal["trak", "leave_one_out"] = "trak",
    noise: float | None = None,
    weights: Any = None,
) -> Float[np.ndarray, "m n"]:
    """Score how much each training row raises the outputs at the test rows, in the linearized model.

    "trak": K(z, X) (K(X, X) + noise)^{-1} diag(weights), TRAK of Park et al. 2023 (arXiv 2303.14186, equation 17) in
    its kernel form, for outputs of="margin"; on sketches TRAK itself with a ridge. Weights are dL/df at the training
    rows, 1 - p of the label for the margin. Average the scores of several networks for better ones.

    "leave_one_out": f(z) - f(z without row i), exactly, of the linearized model that is fitted to y: squared error
    and ridge, in closed form from one inverse.

    Args:
        train: training rows with one output each, `of` of the tangents; exact or a sketch.
        test: rows of the same model and kind whose outputs are attributed.
        y: (n,) targets, for "leave_one_out" only.
        method: "trak" or "leave_one_out".
        noise: ridge > 0, in the unit of the kernel; a thousandth of the mean of K(x, x) unless given.
        weights: (n,) for "trak"; needed where `of` is not "margin".

    Returns: (m, n): positive where the row raises the output. The sum over a group of rows predicts what its removal
        takes away.

    Raises: TypeError, ValueError: rows of two models or of several outputs, bad targets or weights.
    """
    validation.choice("method", method, ("trak", "leave_one_out"))
    for name, rows in (("train", train), ("test", test)):
        if not isinstance(rows, TangentRows):
            raise TypeError(f"{name} must be rows of tangents(...).at(X) or .sketch(X), got {validation.shown(rows)}.")
        if rows.size != len(rows.values):
            raise ValueError(f'{name} has {rows.values.shape[1]} outputs a row; take one number by of=, "margin" say.')
    if (y is None) != (method == "trak"):
        raise ValueError('y goes with method="leave_one_out", and with that only.')
    train.require_same(test)
    k, n = precomputed(train.matrix()), train.size
    ridge = RIDGE * float(np.diagonal(k.matrix).mean()) if noise is None else noise
    ridge = float(validation.finite_scalar("noise", ridge, above=0.0))
    cross = train.matrix(test).T
    if method == "trak":
        factors = _weights(train, weights)
        law = posterior(k, k.indices, np.zeros(n), noise=ridge, solver="cholesky")
        return np.asarray(law.factor.solve(cross.T).T * factors)
    residual = validation.targets("y", y, n).reshape(n, -1) - train.values
    left = left_out(posterior(k, k.indices, residual, noise=ridge, solver="cholesky"))
    return np.asarray(threads.product(cross, left.operator) * left.error[:, 0])


def _weights(train: TangentRows, weights: Any) -> np.ndarray:
    if weights is None:
        if train.model.of != "margin":
            raise ValueError('weights are needed, dL/df at each training row; they are known for of="margin" only.')
        return np.asarray(expit(-train.values[:, 0]))
    values = validation.targets("weights", weights, train.size)
    if values.ndim != 1:
        raise ValueError(f"weights must have shape ({train.size},), got {values.shape}.")
    return values
