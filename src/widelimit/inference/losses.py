"""A loss is l(f, y), with C(f) = (1/n) sum_i l(f(x_i), y_i), and d|_f, its derivative in function space."""

import abc
import math
from collections.abc import Callable
from dataclasses import field
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.validation import Array

Scalar = float | jax.Array

ROUNDING = 1e-9
"""The sums of rows of probabilities may differ from 1 by this: they may have been written with 10 digits."""


def _known(value: Any) -> Any:
    """Return a field that belongs to the class of losses, not to the user."""
    return field(default=value, init=False, metadata={"static": True})


class Loss(abc.ABC):
    """A loss is l(f, y) for outputs f and targets y of one example; C is its mean over the n training points.

    A loss is a pytree of its parameters. `convex` says whether l is convex in f; then kernel gradient descent never
    gets stuck. `curvature` bounds the second derivative of l in f from above (inf: there is no bound).
    """

    convex: bool
    curvature: float

    @abc.abstractmethod
    def examples(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, " n"]:
        """Compute l(f_i, y_i). Pure JAX."""

    @abc.abstractmethod
    def derivative(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, "n c"]:
        """Compute d|_f: dl/df at every example. Pure JAX."""

    def check(self, y: Float[np.ndarray, "n c"]) -> None:  # noqa: B027, most losses take any target
        """Raise ValueError if targets are outside of the loss's domain; any finite one is inside by default."""

    def value(self, f: Float[Array, "n *c"], y: Float[Array, "n *c"]) -> float:
        """C(f) = (1/n) sum_i l(f_i, y_i). Raises: as `gradient`."""
        outputs, targets = self._pair(f, y)
        with arithmetic(True):
            return float(jnp.mean(self.examples(jnp.asarray(outputs), jnp.asarray(targets))))

    def gradient(self, f: Float[Array, "n *c"], y: Float[Array, "n *c"]) -> Float[np.ndarray, "n *c"]:
        """Compute d|_f of the paper: dC = (1/n) sum_i d_i . df_i. For the squared error 2 (f - y). In float64.

        Args:
            f: (n,) or (n, c) outputs.
            y: targets, of the same shape.

        Raises: ValueError: shapes that differ; targets outside of the loss's domain; NaN.
        """
        outputs, targets = self._pair(f, y)
        with arithmetic(True):
            slope = np.asarray(self.derivative(jnp.asarray(outputs), jnp.asarray(targets)))
        return slope.reshape(np.shape(f))

    def _pair(self, f: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        outputs = np.asarray(validation.as_finite_floats("f", validation.concrete("f", f)), np.float64)
        targets = validation.targets("y", y, len(np.atleast_1d(outputs)))
        if outputs.shape != targets.shape:
            raise ValueError(f"f has shape {outputs.shape} and y has {targets.shape}; they must agree.")
        outputs, targets = outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1)
        self.check(targets)
        return outputs, targets


@final
@pytree
class SquaredError(Loss):
    """l = |f - y|^2, d|_f = 2 (f - y)."""

    convex: bool = _known(True)
    curvature: float = _known(2.0)

    def examples(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, " n"]:
        return jnp.sum((f - y) ** 2, axis=1)

    def derivative(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, "n c"]:
        return 2 * (f - y)


@final
@pytree
class WeightedSquaredError(Loss):
    """l_i = w_i |f_i - y_i|^2, d|_f = 2 w (f - y).

    Args:
        weights: w, (n,), one for each training point, >= 0 and not all 0.

    Raises:
        TypeError, ValueError: not finite weights >= 0 of shape (n,), or all 0.
    """

    weights: Float[Array, " n"]
    convex: bool = _known(True)
    curvature: float = _known(2.0)

    def __post_init__(self) -> None:
        weights = np.asarray(validation.as_finite_floats("weights", validation.concrete("weights", self.weights)))
        if weights.ndim != 1:
            raise ValueError(f"weights must have shape (n,), one for each training point; got shape {weights.shape}.")
        if (weights < 0).any() or not weights.any():
            raise ValueError(f"weights must be >= 0 and not all 0, the smallest is {weights.min(initial=0.0):g}.")
        object.__setattr__(self, "weights", validation.owned(weights, np.float64))
        object.__setattr__(self, "curvature", 2 * float(weights.max()))

    def examples(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, " n"]:
        return jnp.asarray(self.weights) * jnp.sum((f - y) ** 2, axis=1)

    def derivative(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, "n c"]:
        return 2 * jnp.asarray(self.weights)[:, None] * (f - y)

    def check(self, y: Float[np.ndarray, "n c"]) -> None:
        if len(y) != len(self.weights):
            raise ValueError(f"weights has {len(self.weights)} entries and y has {len(y)} rows; they must agree.")


@final
@pytree
class Huber(Loss):
    """l = sum over outputs of r^2 for |r| <= delta, delta (2 |r| - delta) beyond, r = f - y; d|_f = 2 clip(r, delta).

    The squared error near the target (so times compare with `SquaredError`), linear for outliers. Source: Huber 1964.

    Args:
        delta: residual from which on l is linear, > 0, in y's unit.
    """

    delta: Scalar = 1.0
    convex: bool = _known(True)
    curvature: float = _known(2.0)

    def __post_init__(self) -> None:
        validation.finite_scalar("delta", self.delta, above=0.0)

    def examples(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, " n"]:
        size = jnp.abs(f - y)
        near = jnp.minimum(size, self.delta)
        return jnp.sum(near * (2 * size - near), axis=1)

    def derivative(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, "n c"]:
        return 2 * jnp.clip(f - y, -self.delta, self.delta)


@final
@pytree
class Logistic(Loss):
    """l = sum over outputs of log(1 + exp(-y f)), y = -1 or 1; d|_f = -y/(1 + exp(y f)). f is the log-odds of y = 1."""

    convex: bool = _known(True)
    curvature: float = _known(0.25)

    def examples(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, " n"]:
        return jnp.sum(jax.nn.softplus(-y * f), axis=1)

    def derivative(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, "n c"]:
        return -y * jax.nn.sigmoid(-y * f)

    def check(self, y: Float[np.ndarray, "n c"]) -> None:
        wrong = y[np.abs(y) != 1]
        if wrong.size:
            raise ValueError(f"labels of the logistic loss are -1 and 1, got {wrong[0]:g}; pass 2 * y - 1 for 0 and 1.")


@final
@pytree
class SoftmaxCrossEntropy(Loss):
    """l = log sum_k exp(f_k) - sum_k y_k f_k, y a row of probabilities; d|_f = softmax(f) - y. f are logits, c >= 2.

    The cross-entropy of y and softmax(f), -sum_k y_k log softmax(f)_k.
    """

    convex: bool = _known(True)
    curvature: float = _known(0.5)

    def examples(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, " n"]:
        return -jnp.sum(y * jax.nn.log_softmax(f, axis=1), axis=1)

    def derivative(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, "n c"]:
        return jax.nn.softmax(f, axis=1) * jnp.sum(y, axis=1, keepdims=True) - y

    def check(self, y: Float[np.ndarray, "n c"]) -> None:
        if y.shape[1] < 2:
            raise ValueError(
                "the softmax cross-entropy needs (n, c) one-hot rows or probabilities with c >= 2; for class numbers "
                "pass np.eye(c)[y], for two classes loss=wl.Logistic() and labels -1 and 1."
            )
        sums = y.sum(axis=1)
        if (y < 0).any() or (np.abs(sums - 1) > ROUNDING).any():
            row = int(np.argmax(np.maximum(np.abs(sums - 1), -y.min(axis=1))))
            raise ValueError(
                f"rows of y must be probabilities (>= 0, sum 1), row {row} is {y[row].tolist()}; for class numbers "
                f"pass np.eye(c)[y]."
            )


@final
@pytree
class Poisson(Loss):
    """l = sum over outputs of exp(f) - y f, y a count; d|_f = exp(f) - y. f is the logarithm of the rate.

    The negative log-likelihood without log(y!). exp(f) has no bounded slope: no learning rate is safe for every f.
    """

    convex: bool = _known(True)
    curvature: float = _known(math.inf)

    def examples(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, " n"]:
        return jnp.sum(jnp.exp(f) - y * f, axis=1)

    def derivative(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, "n c"]:
        return jnp.exp(f) - y

    def check(self, y: Float[np.ndarray, "n c"]) -> None:
        wrong = y[(y < 0) | (y != np.floor(y))]
        if wrong.size:
            raise ValueError(f"targets of the Poisson loss are counts 0, 1, 2, ..., got {wrong[0]:g}.")


@final
@pytree
class CustomLoss(Loss):
    """l = function(f, y) of one example's outputs (c,) and targets (c,), a scalar; d|_f by automatic differentiation.

    Args:
        function: written with jax.numpy.
        convex: whether it is convex in f; leave it False if you do not know.
        curvature: an upper bound of its second derivative in f, for learning rates; inf if there is none.

    Raises:
        TypeError, ValueError: not a function; a curvature that is not > 0.
    """

    function: Callable[[jax.Array, jax.Array], jax.Array] = field(metadata={"static": True})
    convex: bool = field(default=False, metadata={"static": True})
    curvature: float = field(default=math.inf, metadata={"static": True})

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"function: a loss is a function l(f, y) of one example, got {validation.shown(self.function)}."
            )
        validation.flag("convex", self.convex)
        if not (isinstance(self.curvature, float) and self.curvature == math.inf):
            validation.finite_scalar("curvature", self.curvature, above=0.0)

    def _one(self, f: jax.Array, y: jax.Array) -> jax.Array:
        value = jnp.asarray(self.function(f, y))
        if value.size != 1:
            raise ValueError(f"a loss must return one number for each example, it returned shape {value.shape}.")
        return value.reshape(())

    def examples(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, " n"]:
        return jnp.asarray(jax.vmap(self._one)(f, y))

    def derivative(self, f: Float[jax.Array, "n c"], y: Float[jax.Array, "n c"]) -> Float[jax.Array, "n c"]:
        return jnp.asarray(jax.vmap(jax.grad(self._one))(f, y))


NAMED: dict[str, Callable[[], Loss]] = {
    "squared_error": SquaredError,
    "huber": Huber,
    "logistic": Logistic,
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "poisson": Poisson,
}
"""Losses without obligatory parameters, by name."""


def resolve(loss: Any) -> Loss:
    """Make a `Loss` from a name, a `Loss`, or a function l(f, y) of one example. Raises: TypeError, ValueError."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in NAMED:
            raise ValueError(
                f"unknown loss {validation.shown(loss)[:70]}; known: {', '.join(NAMED)}; or a wl.Loss, or a function "
                "l(f, y)."
            )
        return NAMED[loss]()
    if callable(loss) and not isinstance(loss, type):
        return CustomLoss(loss)
    raise TypeError(
        f"loss must be a name, a wl.Loss or a function l(f, y) of one example, got {validation.shown(loss)}."
    )
