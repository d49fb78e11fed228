"""Gradient flow with a ridge and weights is stopped at any time; its law over random starts is known."""

from dataclasses import dataclass
from typing import final

import numpy as np

from widelimit import memory, validation
from widelimit.compute import krylov, linalg, threads
from widelimit.inference.training_set import EIGENVECTORS, TrainingSet, check_finite, training_set
from widelimit.kernels.base import Kernel
from widelimit.shapes import Float


@final
@dataclass(frozen=True)
class StoppedFlow:
    """f_t = f_0 + T(., X) A_t (y + e - f_0(X)), f_0 ~ GP(0, S), e ~ N(0, E): made by `stopped_flow`."""

    data: TrainingSet
    prior: Kernel
    gain: np.ndarray
    """(1 - exp(-2 (lambda + noise) t/N))/(lambda + noise) of each mode."""
    modes: np.ndarray
    """U: A_t = U diag(gain) U^T."""
    spread: np.ndarray
    """U^T (S(X, X) + E) U."""
    remaining: np.ndarray
    """1 - lambda gain of each mode, up to a factor that all modes share where the noise is 0."""
    noise: float

    def __post_init__(self) -> None:
        validation.sealed(self)

    @property
    def coefficients(self) -> Float[np.ndarray, "n c"]:
        """Compute A_t y: the mean is T(., X) A_t y."""
        return threads.product(self.modes, self.gain[:, None] * threads.product(self.modes.T, self.data.y))

    @linalg.ignore_overflow()
    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m *c"]:
        """Compute T(Z, X) A_t y."""
        return np.asarray(self.data.outputs(self._mean(self.data.inputs(Z)), Z))

    @linalg.ignore_overflow()
    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """Compute the diagonal of `covariance`; a variance smaller than the rounding error of its terms is 0."""
        points = self.data.inputs(Z)
        return check_finite(law_variance(np.asarray(self.prior.diag(points)), *self._projections(points)), points)

    @linalg.ignore_overflow()
    def covariance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m m"]:
        """Compute S(Z, Z) - B S(X, Z) - (B S(X, Z))^T + B (S(X, X) + E) B^T, B = T(Z, X) A_t: (m, m).

        The result is symmetric to the bit.
        """
        points = self.data.inputs(Z)
        m, n = len(points), len(self.data.X)
        memory.require(8.0 * (5 * m * m + 4 * m * n), f"the covariance of {m} points")
        prior = np.asarray(self.prior.gram(points))
        return check_finite(law_covariance(prior, *self._projections(points)), points)

    @linalg.ignore_overflow()
    def sample(self, Z: Float[np.ndarray, "m d"], count: int, *, seed: int = 0) -> Float[np.ndarray, "count m *c"]:
        """Draw f_t(Z): (count, m), or (count, m, c) for y of shape (n, c)."""
        count, seed = validation.integer("count", count, at_least=1), validation.integer("seed", seed, at_least=0)
        points = self.data.inputs(Z)
        error = len(points) * linalg.rounding(len(self.data.X), float(4 * np.max(self.prior.diag(points))))
        error += sum(k.covariance_error(points) for k in (self.prior, self.data.kernel) if isinstance(k, Kernel))
        draws = linalg.gaussian_draws(self._mean(points), self.covariance(points), error, count, seed)
        return np.asarray(self.data.outputs(draws, Z))

    def _mean(self, points: np.ndarray) -> np.ndarray:
        return threads.product(self.data.cross(points), self.coefficients)

    def _projections(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute B U^{-T} = T(Z, X) U diag(gain), S(Z, X) U, and the first times `spread`."""
        start = tangent = threads.product(self.data.cross(points), self.modes)
        if self.prior is not self.data.kernel:
            start = threads.product(np.asarray(self.prior.cross(points, self.data.X)), self.modes)
        moved = tangent * self.gain
        return moved, start, threads.product(moved, self.spread)


def law_covariance(prior: np.ndarray, moved: np.ndarray, start: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Compute S - M N^T - (M N^T)^T + M C M^T from S (m, m), M = `moved`, N = `start`, M C = `spread` (m, n).

    Symmetric to the bit; a variance smaller than the rounding error of its terms is 0.
    """
    crossing = threads.product(moved, start.T)
    return combined_covariance(moved.shape[1], prior, crossing, threads.product(spread, moved.T))


def combined_covariance(n: int, prior: np.ndarray, crossing: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Compute S - M N^T - (M N^T)^T + M C M^T from S, M N^T and M C M^T (m, m), sums over n training points."""
    out = np.asarray(prior + ((square + square.T) / 2 - crossing - crossing.T))
    np.fill_diagonal(out, combined_variance(n, *(np.diagonal(a) for a in (prior, crossing, square))))
    return out


def law_variance(prior: np.ndarray, moved: np.ndarray, start: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Compute the diagonal of `law_covariance` from that of S, (m,)."""
    crossing = np.einsum("ij,ij->i", moved, start)
    square = np.einsum("ij,ij->i", spread, moved)
    return combined_variance(moved.shape[1], prior, crossing, square)


def combined_variance(n: int, prior: np.ndarray, crossing: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Compute the diagonal of `combined_covariance` from those of its parts, (m,)."""
    error = linalg.rounding(n, 1.0) * (prior + 2 * np.abs(crossing) + square)
    return linalg.non_negative(prior - 2 * crossing + square, error)


def stopped_flow(
    k: Kernel,
    X: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n *c"],
    *,
    time: float,
    noise: float = 0.0,
    weights: Float[np.ndarray, " n"] | None = None,
    prior: Kernel | None = None,
) -> StoppedFlow:
    """Compute the law of f_t under gradient flow on C = (1/N) (sum_i w_i |f(x_i) - y_i|^2 + noise |theta - theta_0|^2).

    N = sum_i w_i, time that of d theta/dt = -grad C. With W^{1/2} T W^{1/2} = V diag(lambda) V^T and U = W^{1/2} V:
    f_t = f_0 + T(., X) U diag(gain) U^T (y - f_0(X)), gain = (1 - exp(-2 (lambda + noise) t/N))/(lambda + noise). At
    t = inf: kernel ridge regression from f_0.

    Over random starts f_0 ~ GP(0, S) with S = prior this is the law of infinitely wide networks (Lee et al. 2019, arXiv
    1902.06720, section 2.3). Without a prior S = T, and every start trains on labels of its own, y + N(0, noise/w_i):
    then t = 0 is the prior GP(0, k) and t = inf the Bayesian posterior (sample-then-optimise: Matthews et al. 2017).

    Args:
        k: T, the kernel of the descent.
        X: (n, d) inputs.
        y: (n,) or (n, c) targets.
        time: training time in [0, inf], in the unit of d theta/dt = -grad C.
        noise: >= 0, in the square of y's unit.
        weights: (n,), > 0; 1 unless given. Weight 2 is the same row twice.
        prior: S, covariance of the random starts; k, and noisy labels, unless given.

    Raises: TypeError, ValueError: bad data; MemoryError: the kernel matrices or the eigenvectors do not fit.
    """
    data, t = training_set(k, X, y), float(validation.times(time))
    ridge = float(validation.finite_scalar("noise", noise, at_least=0.0))
    w = np.ones(len(data.X)) if weights is None else validation.noise(weights, len(data.X))
    root = np.sqrt(np.broadcast_to(w, len(data.X)))
    values, vectors = linalg.eigenpairs(data.gram(beside=2 + EIGENVECTORS) * root[:, None] * root, data.error)
    modes = root[:, None] * vectors
    if prior is None:
        spread = np.diag(np.maximum(values, 0.0) + ridge)
    else:
        spread = threads.product(threads.product(modes.T, data._replace(kernel=prior).gram()), modes)
        spread = (spread + spread.T) / 2
    rate = np.maximum(values, 0.0) + ridge
    null = (values <= linalg.rounding(len(values), values[-1])) & (ridge == 0)  # as in `GradientFlow.gain`
    fading = float(np.sqrt(linalg.EPS) * values[-1])
    speed = 2 * t / float(np.sum(root**2))
    gain = krylov.gain(rate, np.array([speed]), null, fading)[0]
    return StoppedFlow(
        data, k if prior is None else prior, gain, modes, spread, _remaining(rate, ridge, speed, null), ridge
    )


def _remaining(rate: np.ndarray, ridge: float, speed: float, null: np.ndarray) -> np.ndarray:
    """Compute 1 - lambda gain = (ridge + lambda exp(-rate speed))/rate, rate = lambda + ridge, without cancellation.

    Without a ridge it is exp(-rate speed), in units of its largest value; at speed = inf, where it is 0, in units of a
    vanishing ridge: 1/rate, and 0 in modes that no training reaches.
    """
    if ridge > 0:
        return np.asarray((ridge + (rate - ridge) * np.exp(-rate * speed)) / rate)
    if speed < np.inf:
        return np.asarray(np.exp(-(rate - rate.min()) * speed))
    return np.where(null, 0.0, 1 / np.where(null, 1.0, rate))
