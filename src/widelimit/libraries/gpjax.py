"""A kernel of this library becomes a kernel of GPJax. It needs the extra: pip install "widelimit[gpjax]"."""

from collections.abc import Sequence
from typing import Any, final

import equinox
import jax
import jax.numpy as jnp

from widelimit import extras
from widelimit.inference.coordinates import LeafBuilder
from widelimit.kernels.base import Kernel
from widelimit.libraries.parameters import learned

try:
    import gpjax
    from gpjax.kernels.computations import AbstractKernelComputation
    from gpjax.parameters import PositiveReal, val
    from paramax import NonTrainable
except ModuleNotFoundError as error:
    raise extras.explained(error, "widelimit.libraries.gpjax") from None


@final
class _Whole(AbstractKernelComputation):
    """GPJax computes kernel matrices by one call of the kernel instead of entry by entry."""

    def _cross_covariance(self, kernel: Any, x: Any, y: Any) -> jax.Array:
        matrix: jax.Array = kernel.current.cross(kernel.slice_input(x), kernel.slice_input(y))
        return matrix


@final
class GPJaxKernel(gpjax.kernels.AbstractKernel):
    """A `widelimit.Kernel` becomes a `gpjax.kernels.AbstractKernel`; made by `gpjax_kernel`.

    `values` has the numbers of the kernel by name: those to learn, which gpjax.fit changes, are
    `gpjax.parameters.PositiveReal`; the others stay.
    """

    values: dict[str, Any]
    builder: LeafBuilder = equinox.field(static=True)

    def __init__(self, values: dict[str, Any], builder: LeafBuilder, active_dims: Any = None) -> None:
        self.values, self.builder = values, builder
        gpjax.kernels.AbstractKernel.__init__(self, active_dims=active_dims, compute_engine=_Whole())

    @property
    def current(self) -> Kernel:
        """Return the `widelimit.Kernel` at the current values."""
        return self.builder(**{name: val(value) for name, value in self.values.items()})

    def __call__(self, x: Any, y: Any) -> jax.Array:
        """Compute K(x, x') of two points of shape (d,): a scalar."""
        entry: jax.Array = self.current.cross(self.slice_input(x)[None], self.slice_input(y)[None])[0, 0]
        return entry


def gpjax_kernel(k: Kernel, *, fixed: Sequence[str] = (), active_dims: list[int] | slice | None = None) -> GPJaxKernel:
    """Make K(x, x') for the Gaussian processes of GPJax, with hyper-parameters that gpjax.fit learns.

    Learned are the numbers and vectors of the kernel that are positive: weight_std and bias_std of the layers (a bias
    of 0 stays), and the scales of `wl.scale_inputs`. Sums and products with GPJax's own kernels work. Inputs are JAX
    arrays (n, d); turn float64 on in JAX as GPJax asks for.

    Args:
        k: a kernel.
        fixed: names of hyper-parameters that are not to be learned; `.values` of the result has all names.
        active_dims: the columns that the kernel reads, if not all.

    Raises:
        TypeError: k is no kernel; fixed is no sequence of names.
        ValueError: fixed has an unknown name.
    """
    builder, leaves, free = learned(k, fixed)
    values = {name: PositiveReal(jnp.asarray(value)) for name, value in free.items()}
    rest = {name: NonTrainable(jnp.asarray(leaf)) for name, leaf in leaves.items() if name not in free}
    return GPJaxKernel(values | rest, builder, active_dims)
