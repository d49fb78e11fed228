"""Finitely many features have inner products that approximate a kernel."""

from dataclasses import dataclass
from typing import final

import numpy as np

from widelimit import validation
from widelimit.compute import linalg, plan, threads
from widelimit.inference.training_set import check_finite, row_blocks
from widelimit.kernels.base import Kernel
from widelimit.shapes import Float


@final
@dataclass(frozen=True)
class Nystrom:
    """phi(x) = B^T K(L, x) with B B^T = K(L, L)^+: made by `nystrom`."""

    kernel: Kernel
    landmarks: Float[np.ndarray, "k d"]
    basis: Float[np.ndarray, "k k"]

    def __post_init__(self) -> None:
        validation.sealed(self)

    @linalg.ignore_overflow()
    def __call__(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Compute phi(x), one row of features for each row of X."""
        plan.require(len(X), self.basis.shape[1], np.float64)
        out = np.empty((len(X), self.basis.shape[1]))
        for part in row_blocks(len(X)):
            out[part] = threads.product(np.asarray(self.kernel.cross(X[part], self.landmarks)), self.basis)
        return check_finite(out, X)


def nystrom(k: Kernel, landmarks: Float[np.ndarray, "k d"]) -> Nystrom:
    """phi(x) . phi(x') = K(x, L) K(L, L)^+ K(L, x') is exact between landmarks, below K elsewhere.

    The rest K - phi . phi' is positive semi-definite. Landmarks that depend on others in the kernel's space
    (duplicates) leave features that are 0. Source: Williams and Seeger 2001.
    """
    plan.require_matrices(len(landmarks), 4, "the features of these landmarks")
    values, vectors = linalg.eigenpairs(np.asarray(k.gram(landmarks)))
    kept = values > linalg.rounding(len(values), values[-1])
    basis = vectors * np.where(kept, 1 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
    return Nystrom(k, validation.owned(landmarks), np.ascontiguousarray(basis[:, ::-1]))
