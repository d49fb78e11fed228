"""A kernel of this library becomes a kernel of tinygp. It needs the extra: pip install "widelimit[tinygp]"."""

from typing import Any, final

import jax

from widelimit import extras, validation
from widelimit.kernels.base import Kernel

try:
    import tinygp
except ModuleNotFoundError as error:
    raise extras.explained(error, "widelimit.libraries.tinygp") from None


@final
class TinygpKernel(tinygp.kernels.Kernel):
    """A `widelimit.Kernel` becomes a `tinygp.kernels.Kernel`; made by `tinygp_kernel`.

    Its leaves are those of `kernel`, so jax.grad reaches them.
    """

    kernel: Kernel

    def evaluate(self, X1: Any, X2: Any) -> jax.Array:
        """Compute K(x, x') of two points of shape (d,): a scalar."""
        entry: jax.Array = self.kernel.cross(X1[None], X2[None])[0, 0]
        return entry

    def evaluate_diag(self, X: Any) -> jax.Array:
        """Compute K(x, x) of a point of shape (d,): a scalar."""
        entry: jax.Array = self.kernel.diag(X[None])[0]
        return entry

    def __call__(self, X1: Any, X2: Any = None) -> Any:
        """Compute K(X1, X2), (n, m), whole and not entry by entry; the diagonal (n,) if X2 is not given."""
        matrix: Any = self.kernel.diag(X1) if X2 is None else self.kernel.cross(X1, X2)
        return matrix


def tinygp_kernel(k: Kernel) -> TinygpKernel:
    """Make K(x, x') for tinygp.GaussianProcess.

    Sums and products with tinygp's own kernels work. Make it inside of the function that you differentiate, of a kernel
    with traced numbers (`wl.mlp(weight_std=jnp.exp(p))`, `wl.scale_inputs(k, scales)`): gradients reach them. Inputs
    are JAX arrays (n, d); their dtype is that of the result, so turn float64 on in JAX as tinygp asks for.

    Args:
        k: a kernel.

    Raises:
        TypeError: k is no kernel.
    """
    if not isinstance(k, Kernel):
        raise TypeError(f"a kernel is needed, e.g. wl.nngp(net) or wl.ntk(net); got {validation.shown(k)}.")
    return TinygpKernel(k)
