"""A training problem is a function, a loss and data, checked; one network or an ensemble of them."""

from dataclasses import field, replace
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.inference.losses import Loss, resolve
from widelimit.kernels.empirical.model import Apply, Model, model
from widelimit.pytrees import pytree
from widelimit.shapes import Float


@final
@pytree
class TrainingProblem:
    """C(theta) = (1/n) sum_i l(f(theta, x_i), y_i) from theta_0 = f.params; made by `training_problem`.

    `many`: the parameters have a leading axis (E,), and so have all results of the functions made by `for_each`.
    """

    f: Model
    loss: Loss
    X: Float[jax.Array, "n d"]
    y: Float[jax.Array, "n c"]
    many: bool = field(metadata={"static": True})
    single: bool = field(metadata={"static": True})
    """y came as (n,)."""
    numpy: bool = field(metadata={"static": True})
    """The parameters came as NumPy arrays."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype of parameters and data."""
        return np.dtype(self.X.dtype)

    @property
    def members(self) -> int:
        """Return E, or 1."""
        return int(jax.tree.leaves(self.f.params)[0].shape[0]) if self.many else 1

    def one(self) -> Model:
        """Return the function with the parameters of the first member."""
        return replace(self.f, params=jax.tree.map(lambda leaf: leaf[0], self.f.params)) if self.many else self.f

    def as_given(self, params: Any) -> Any:
        """Return parameters in the form in which they were given."""
        return self.f.whole(jax.tree.map(np.asarray, params) if self.numpy else params)

    def for_each(self, function: Any, shared: int = 0) -> Any:
        """Apply a function of one member's trees, and of `shared` more arguments, to all members at once."""
        if not self.many:
            return function
        return lambda *args: jax.vmap(function, in_axes=(0,) * (len(args) - shared) + (None,) * shared)(*args)

    def cost(self, params: Any, X: jax.Array, y: jax.Array, loss: Loss) -> jax.Array:
        """Compute C of one member on (b, d) points."""
        return jnp.mean(loss.examples(self.f(params, X), y))


def training_problem(
    apply: Apply, params: Any, X: Any, y: Any, loss: Any, *, many: bool, copies: int
) -> TrainingProblem:
    """Check everything that training needs; the parameters are not copied where `copies` of them do not fit.

    Raises: MemoryError: they do not; TypeError, ValueError: bad data, an unknown loss, labels outside of its domain,
    parameters that are not floats of X's dtype or not those of `apply`, an ensemble that is not stacked.
    """
    net = getattr(apply, "__self__", None)
    if isinstance(net, Network) and net.whole.masks:
        raise ValueError(
            "apply: training draws no masks, and the network has wl.layers.Dropout: it would train another one. Leave "
            "the layer out, or write a loop over net.apply(params, X, key=jax.random.key(step))."
        )
    rows = net.rows("X", X) if isinstance(net, Network) else X
    points = validation.concrete_points("X", rows)
    targets = validation.targets("y", y, len(points))
    kind = resolve(loss)
    kind.check(targets.reshape(len(points), -1))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params) if isinstance(leaf, (np.ndarray, jax.Array)))
    remedy = "use a smaller width, fewer networks, or float32"
    memory.require(float(copies * size), "training these parameters", remedy=remedy)
    f = model(apply, params)
    leaves = jax.tree.leaves(f.params)
    wrong = next((leaf.dtype for leaf in leaves if leaf.dtype != points.dtype), None)
    if wrong is not None:
        raise TypeError(f"X is {points.dtype} and the parameters are {wrong}; pass X.astype({str(wrong)!r}).")
    if many and len({np.shape(leaf)[:1] for leaf in leaves} | {()}) != 2:
        shapes = jax.tree.map(np.shape, f.params)
        raise ValueError(f"an ensemble's parameters have one leading axis (E,), as net.init_many gives; got {shapes}.")
    with arithmetic(points.dtype == np.float64):
        f = replace(f, params=jax.tree.map(jnp.array, f.params))  # copies: JAX may borrow NumPy's memory
        kind = jax.tree.map(lambda leaf: jnp.asarray(leaf, points.dtype), kind)
        labels = jnp.array(targets.reshape(len(points), -1), points.dtype)
        numpy = not validation.is_jax(*leaves)
        made = TrainingProblem(f, kind, jnp.array(points), labels, many, targets.ndim == 1, numpy)
        one = made.one()
        one.cost(points.shape[1], points.dtype)  # explains a function that fails
        # A lambda, as JAX prints the callable in its errors: a model would be printed with all its numbers.
        shape = jax.eval_shape(lambda p, X: one(p, X), one.params, made.X).shape
    if shape != labels.shape:
        raise ValueError(f"apply returns shape {shape} and y has shape {targets.shape}; they must agree.")
    return made
