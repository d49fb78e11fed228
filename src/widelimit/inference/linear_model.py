"""Linear regression is a network of depth 1: the same descent seen on weights and on functions."""

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.arithmetic import arithmetic
from widelimit.compute import linalg, plan, threads
from widelimit.inference.training_set import check_finite
from widelimit.kernels.standard import FeatureMap, Linear, identity, linear
from widelimit.shapes import Float
from widelimit.validation import Array


class _RegressionData(NamedTuple):
    phi: np.ndarray
    y: np.ndarray
    single: bool

    def like_targets(self, values: np.ndarray) -> np.ndarray:
        return values[..., 0] if self.single else values


@final
@dataclass(frozen=True)
class LinearModel:
    """f(x) = w.phi(x), trained on C(w) = (1/n) sum |w.phi(x_i) - y_i|^2 (section 3.1 of the paper).

    Descent on the weights w and descent on the dual coefficients alpha, w = phi(X)^T alpha, are the same descent, step
    by step; from w = 0 both stay in im(phi(X)^T) and end at the minimum-norm solution.

    Args:
        feature_map: phi, maps (n, d) inputs to (n, p) features row by row; the identity unless given.

    Raises:
        TypeError: feature_map is not a function.
    """

    feature_map: FeatureMap = identity

    def __post_init__(self) -> None:
        linear(self.feature_map)

    def kernel(self) -> Linear:
        """K(x, x') = phi(x).phi(x'), the tangent kernel of this model, at every w."""
        return linear(self.feature_map)

    def features(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n p"]:
        """Compute phi(X) in float64. Raises: TypeError, ValueError: bad inputs, or phi(X) that is not finite (n, p)."""
        return self._features_of("X", X)

    def _features_of(self, name: str, X: Any) -> np.ndarray:
        points = np.asarray(validation.points(name, validation.concrete(name, X)), np.float64)
        with arithmetic(True):
            values = self.kernel().encode(jnp.asarray(points))
        return np.asarray(validation.as_finite_floats("the result of feature_map", np.asarray(values)))

    def predict(self, w: Float[Array, "p *c"], Z: Float[Array, "m d"]) -> Float[np.ndarray, "m *c"]:
        """Compute phi(Z) w: (p,), (m, d) -> (m,), or (p, c) -> (m, c). Raises: ValueError: shapes that do not agree."""
        weights = np.asarray(validation.as_finite_floats("w", w), np.float64)
        phi = self._features_of("Z", Z)
        if weights.ndim not in (1, 2) or len(weights) != phi.shape[1]:
            raise ValueError(f"w must have shape ({phi.shape[1]},) or ({phi.shape[1]}, c), got {weights.shape}.")
        with linalg.ignore_overflow():
            return check_finite(threads.product(phi, weights), Z)

    def primal_descent(
        self, X: Float[Array, "n d"], y: Float[Array, "n *c"], *, learning_rate: float, steps: int
    ) -> Float[np.ndarray, "steps+1 p *c"]:
        """w_{s+1} = w_s - eta (2/n) phi(X)^T (phi(X) w_s - y) from w_0 = 0: the update above (3.6).

        Args:
            X: (n, d) inputs.
            y: (n,) or (n, c) targets.
            learning_rate: eta > 0, in the unit of time of d theta/dt = -grad C; converges below
                `max_learning_rate(model.kernel(), X)`.
            steps: >= 0.

        Returns:
            All iterates, (steps + 1, p) or (steps + 1, p, c).

        Raises: TypeError, ValueError: bad data; a learning rate or number of steps out of range.
        """
        data, rate, steps = self._descent(X, y, learning_rate, steps)
        w = np.zeros((steps + 1, data.phi.shape[1], data.y.shape[1]))
        with threads.limit(threads.work(len(data.phi), data.phi.shape[1], data.y.shape[1])):
            for s in range(steps):
                w[s + 1] = w[s] - 2 * rate * data.phi.T @ (data.phi @ w[s] - data.y)
        return data.like_targets(w)

    def dual_descent(
        self, X: Float[Array, "n d"], y: Float[Array, "n *c"], *, learning_rate: float, steps: int
    ) -> Float[np.ndarray, "steps+1 n *c"]:
        """alpha_{i,s+1} = alpha_{i,s} - eta (2/n) (sum_j alpha_{j,s} K(x_i, x_j) - y_i) from alpha_0 = 0.

        Equations (3.6) and (3.7) of the paper, corrected; w_s = phi(X)^T alpha_s at every step. Arguments and errors as
        `primal_descent`.

        Returns:
            All iterates, (steps + 1, n) or (steps + 1, n, c).
        """
        data, rate, steps = self._descent(X, y, learning_rate, steps)
        plan.require(len(data.phi), len(data.phi), data.phi.dtype)
        matrix = threads.product(data.phi, data.phi.T)
        alpha = np.zeros((steps + 1, *data.y.shape))
        with threads.limit(threads.work(len(matrix), len(matrix), data.y.shape[1])):
            for s in range(steps):
                alpha[s + 1] = alpha[s] - 2 * rate * (matrix @ alpha[s] - data.y)
        return data.like_targets(alpha)

    def weights(self, X: Float[Array, "n d"], alpha: Float[Array, "n *c"]) -> Float[np.ndarray, "p *c"]:
        """w = phi(X)^T alpha, of the dual coefficients. Raises: ValueError: not one row a point."""
        phi, coefficients = self.features(X), np.asarray(validation.as_finite_floats("alpha", alpha), np.float64)
        if coefficients.ndim not in (1, 2) or len(coefficients) != len(phi):
            raise ValueError(f"alpha must have shape ({len(phi)},) or ({len(phi)}, c), got {coefficients.shape}.")
        return threads.product(phi.T, coefficients)

    def minimum_norm(self, X: Float[Array, "n d"], y: Float[Array, "n *c"]) -> Float[np.ndarray, "p *c"]:
        """w* = phi(X)^+ y: of all least-squares solutions the shortest, the only one in im(phi(X)^T).

        The limit of descent from w = 0 (Proposition 3.4 of the paper, corrected: in the span of the phi(x_i)). By
        singular values; those up to max(n, p) eps of the largest are null.

        Args:
            X: (n, d) inputs.
            y: (n,) or (n, c) targets.

        Returns:
            (p,) or (p, c).

        Raises: TypeError, ValueError: bad data.
        """
        data = self._data(X, y)
        cut = max(data.phi.shape) * linalg.EPS
        with threads.limit_decomposition(max(data.phi.shape)):
            return data.like_targets(np.linalg.lstsq(data.phi, data.y, rcond=cut)[0])

    def _data(self, X: Any, y: Any) -> _RegressionData:
        phi = self.features(X)
        targets = validation.targets("y", y, len(phi))
        return _RegressionData(phi, targets.reshape(len(phi), -1), targets.ndim == 1)

    def _descent(self, X: Any, y: Any, learning_rate: Any, steps: Any) -> tuple[_RegressionData, float, int]:
        """Return the data, eta/n, and the number of steps."""
        data = self._data(X, y)
        rate = float(validation.finite_scalar("learning_rate", learning_rate, above=0.0))
        count = validation.integer("steps", steps, at_least=0)
        size = max(data.phi.shape) * data.y.shape[1]
        memory.require(8.0 * (count + 1) * size, f"{count + 1} iterates of {size} numbers")
        return data, rate / len(data.y), count
