"""A kernel of this library becomes a kernel of GPyTorch and BoTorch. It needs the extra widelimit[gpytorch]."""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import extras
from widelimit.arithmetic import arithmetic
from widelimit.kernels.base import Kernel
from widelimit.libraries.parameters import learned

try:
    import gpytorch
    import torch
    from torch.autograd.function import once_differentiable
except ModuleNotFoundError as error:
    raise extras.explained(error, "widelimit.libraries.gpytorch") from None

PATCH = 128
"""Rows are padded to a power of two, or to a multiple of this number if they are more, so that few programs compile."""


@partial(jax.jit, static_argnames="pairs")
def _entries(kernel: Kernel, x: jax.Array, z: jax.Array, *, pairs: bool) -> Any:
    """Compute K of batches x (b, n, d) and z (b, m, d), (b, n, m); with `pairs` K(x_i, z_i) only, (b, n)."""
    if pairs:
        return jax.vmap(jax.vmap(lambda one, two: kernel.cross(one[None], two[None])[0, 0]))(x, z)
    return jax.vmap(kernel.cross)(x, z)


@partial(jax.jit, static_argnames="pairs")
def _slopes(kernel: Kernel, x: jax.Array, z: jax.Array, weights: jax.Array, *, pairs: bool) -> Any:
    """Compute the derivatives of sum(weights * K) by the kernel's hyper-parameters, x and z."""
    return jax.vjp(partial(_entries, pairs=pairs), kernel, x, z)[1](weights)


@final
class _Covariance(torch.autograd.Function):
    """PyTorch differentiates K of two batches by the rows and by the hyper-parameters of the kernel."""

    @staticmethod
    def forward(ctx: Any, module: Any, pairs: bool, x: Any, z: Any, *values: Any) -> Any:
        """Compute the entries; one matrix by the tiles of the library, batches by one program."""
        ctx.module, ctx.pairs = module, pairs
        ctx.save_for_backward(x, z, *values)
        kernel, a, b = module.at(values), _array(x), _array(z)
        if len(a) == 1 and not pairs:
            found = kernel.cross(a[0], b[0])[None]
        else:
            with arithmetic(a.dtype == np.float64):
                found = _entries(_arrays(kernel, a.dtype), a, b, pairs=pairs)
        return _tensor(found, x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, weights: Any) -> Any:
        """Return the derivatives by rows and hyper-parameters; `module` and `pairs` have none."""
        x, z, *values = ctx.saved_tensors
        a, b, g = _array(x), _array(z), _array(weights)
        with arithmetic(a.dtype == np.float64):
            slope, dx, dz = _slopes(_arrays(ctx.module.at(values), a.dtype), a, b, g, pairs=ctx.pairs)
        named = dict(zip(ctx.module.builder.names, jax.tree.leaves(slope), strict=True))
        by_number = [named[name].reshape(value.shape) for name, value in zip(ctx.module.names, values, strict=True)]
        return None, None, *(_tensor(part, x) for part in (dx, dz, *by_number))


def _array(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array


def _tensor(found: Any, like: Any) -> Any:
    return torch.from_numpy(np.array(found)).to(like)


def _arrays(kernel: Kernel, dtype: Any) -> Kernel:
    made: Kernel = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), kernel)
    return made


def _filled(x: Any, axis: int) -> Any:
    """Pad with copies of the first row, or batch, to one of a few sizes."""
    count = x.shape[axis]
    full = 2 ** math.ceil(math.log2(count)) if count <= PATCH else math.ceil(count / PATCH) * PATCH
    return torch.cat([x, x.narrow(axis, 0, 1).expand(*x.shape[:axis], full - count, *x.shape[axis + 1 :])], axis)


@final
class GPyTorchKernel(gpytorch.kernels.Kernel):
    """A `widelimit.Kernel` becomes a `gpytorch.kernels.Kernel`; made by `gpytorch_kernel`.

    Each hyper-parameter is a parameter raw_NAME with the constraint Positive(), so that optimisers and priors of
    GPyTorch and BoTorch find it.
    """

    is_stationary = False

    def __init__(self, k: Kernel, fixed: Sequence[str] = (), active_dims: Sequence[int] | None = None) -> None:
        gpytorch.kernels.Kernel.__init__(self, active_dims=active_dims)
        self.builder, self.leaves, free = learned(k, fixed)
        self.names = tuple(free)
        self.raw = {name: f"raw_{re.sub(r'[^0-9A-Za-z]+', '_', name).strip('_')}" for name in free}
        for name, value in free.items():
            start = torch.tensor(np.atleast_1d(value))
            self.register_parameter(self.raw[name], torch.nn.Parameter(torch.empty_like(start)))
            self.register_constraint(self.raw[name], gpytorch.constraints.Positive())
            self.initialize(
                **{self.raw[name]: self.constraint_for_parameter_name(self.raw[name]).inverse_transform(start)}
            )

    @property
    def values(self) -> dict[str, Any]:
        """Return the hyper-parameters by name, as tensors that depend on the raw parameters."""
        raw = {name: getattr(self, self.raw[name]) for name in self.names}
        return {name: self.constraint_for_parameter_name(self.raw[name]).transform(raw[name]) for name in self.names}

    @property
    def current(self) -> Kernel:
        """Return the `widelimit.Kernel` at the current values."""
        return self.at(tuple(self.values.values()))

    def at(self, values: Sequence[Any]) -> Kernel:
        """Return the kernel at values in the order of `names`, tensors of shape (1,) or (d,)."""
        given = {name: _array(value).astype(np.float64) for name, value in zip(self.names, values, strict=True)}
        shaped = {name: v if np.ndim(self.leaves[name]) else float(v[0]) for name, v in given.items()}
        return self.builder(**(self.leaves | shaped))

    def forward(self, x1: Any, x2: Any, diag: bool = False, last_dim_is_batch: bool = False, **_: Any) -> Any:
        """Compute K of rows (..., n, d) and (..., m, d): (..., n, m); with `diag` of row i with row i only, (..., n).

        Raises: NotImplementedError: last_dim_is_batch.
        """
        if last_dim_is_batch:
            raise NotImplementedError("last_dim_is_batch: a kernel of a network reads all columns at once.")
        shape = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        sides = [x.expand(*shape, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (x1, x2)]
        values = [value.to(x1) for value in self.values.values()]
        full = _Covariance.apply(self, diag, *(_filled(_filled(x, 0), 1) for x in sides), *values)
        rows = (math.prod(shape), *(x.shape[1] for x in sides))[: full.ndim]
        return full[tuple(map(slice, rows))].reshape(*shape, *rows[1:])


def gpytorch_kernel(
    k: Kernel, *, fixed: Sequence[str] = (), active_dims: Sequence[int] | None = None
) -> GPyTorchKernel:
    """Make K(x, x') for the Gaussian processes of GPyTorch and BoTorch, with hyper-parameters that these learn.

    Learned are the numbers and vectors of the kernel that are positive: weight_std and bias_std of the layers (a bias
    of 0 stays), and the scales of `wl.scale_inputs`, one for each column. Derivatives are those of JAX, exact, of first
    order. Sums and products with GPyTorch's own kernels (ScaleKernel) work, and batches of inputs; a batch of
    hyper-parameters does not. The dtype of the inputs is that of the result; take torch.float64 for Cholesky. JAX
    computes on its default device, and the result lies where the inputs do.

    Args:
        k: a kernel.
        fixed: names of hyper-parameters that are not to be learned; `.values` of the result has the names.
        active_dims: the columns that the kernel reads, if not all.

    Raises:
        TypeError: k is no kernel; fixed is no sequence of names.
        ValueError: fixed has an unknown name.
    """
    return GPyTorchKernel(k, fixed, active_dims)
