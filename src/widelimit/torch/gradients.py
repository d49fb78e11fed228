"""The gradients of a PyTorch module, for sketches, attribution, selection and drift of its kernel."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import jax
import numpy as np
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from widelimit import validation
from widelimit.shapes import Float
from widelimit.tangents.batches import Batch
from widelimit.tangents.gradients import Gradients, hashed, model_fails
from widelimit.tangents.models import Tangents, check_of


def tangents(module: torch.nn.Module, *, of: Any = None, memory: float | None = None) -> Tangents:
    """Take the tangents of a module at its trainable parameters, which are shared: after more training take new ones.

    Args:
        module: called as module(X), module(*X) for a tuple, module(**X) for a dictionary; in evaluation mode.
        of: as `widelimit.tangents`, functions of tensors; the outputs of a Hugging Face module by
            of=lambda outputs, X: outputs.logits.
        memory: GiB for gradients of rows; half of what is free unless given.

    Raises: TypeError, ValueError: not a module, no trainable parameters, or ones that are not finite floats; layers
    in training mode whose output depends on the batch or on chance.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"a torch.nn.Module is needed, got {type(module).__name__}.")
    budget = 0.0 if memory is None else validation.finite_scalar("memory", memory, above=0.0)
    nn = torch.nn.modules
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.batchnorm._BatchNorm, nn.dropout._DropoutNd)) and layer.training:
            raise ValueError(
                f"layer {name!r}, {type(layer).__name__}, is in training mode: its output for a row depends on the "
                f"other rows or on chance. Call module.eval() first."
            )
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("the module has no trainable parameters: there is nothing to differentiate.")
    for name, p in trained.items():
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"parameter {name} is {p.dtype}; float32 or float64 is needed: module.float().")
        if not torch.isfinite(p).all():
            raise ValueError(f"parameter {name} has entries that are NaN or infinite.")
    return Tangents(ModuleGradients(module, trained, check_of(of), budget))


@final
class ModuleGradients(Gradients):
    """The gradients are those of a PyTorch module, on its device."""

    def __init__(self, module: torch.nn.Module, trained: dict[str, torch.Tensor], of: Any, memory: float) -> None:
        self.module, self.trained, self.of, self.memory, self.passed = module, trained, of, memory, set()
        self.names, self.sizes = tuple(trained), tuple(p.numel() for p in trained.values())

    def fingerprint(self) -> str:
        others = [t.detach().cpu().numpy() for t in (*self.trained.values(), *self.module.buffers())]
        return hashed(type(self.module), self.of, self.names, others)

    def dtype(self, batch: Batch) -> np.dtype[Any]:
        wide = any(p.dtype == torch.float64 for p in self.trained.values())
        return batch.dtype(np.dtype(np.float64 if wide else np.float32))

    def _cast(self, batch: Batch) -> tuple[Any, Any, Any]:
        """Return trained and other tensors, and the rows, on the module's device in the dtype of the computation."""
        dtype = torch.float64 if self.dtype(batch) == np.float64 else torch.float32
        device = next(iter(self.trained.values())).device
        trained = {name: p.to(dtype) for name, p in self.trained.items()}
        named = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        others = {name: p.detach() for name, p in named.items() if name not in trained}
        others = {name: p.to(dtype) if p.is_floating_point() else p for name, p in others.items()}
        rows = jax.tree.map(
            lambda leaf: torch.tensor(leaf, device=device, dtype=dtype if leaf.dtype.kind == "f" else None), batch
        )
        return trained, others, rows

    def _values(self, trained: Any, others: Any, batch: Batch) -> torch.Tensor:
        X = batch.inputs
        args, named_args = (X if isinstance(X, tuple) else (), X) if isinstance(X, (tuple, dict)) else ((X,), {})
        named_args = named_args if isinstance(named_args, dict) else {}
        outputs = torch.func.functional_call(self.module, {**trained, **others}, args, named_args)
        n = len(batch.leaves[0])
        if isinstance(self.of, str):
            outputs = named(self.of, outputs, batch.labels)
        elif self.of is not None:
            outputs = self.of(outputs, X if batch.labels is None else batch.labels)
        if not isinstance(outputs, torch.Tensor) or outputs.ndim == 0 or len(outputs) != n:
            what = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise ValueError(
                f"a tensor with a row of outputs for each of {n} rows is needed, got {what}; pass of=lambda outputs, "
                f"X: ... that returns one."
            )
        return outputs.reshape(n, -1)

    def outputs(self, batch: Batch) -> Float[np.ndarray, "r c"]:
        self.dtype(batch)
        try:
            with torch.no_grad():
                return _numpy(self._values(*self._cast(batch)))
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise model_fails(batch, error) from error

    def classes(self, batch: Batch) -> int:
        plain = ModuleGradients(self.module, self.trained, None, self.memory)
        return plain.outputs(Batch(batch.inputs, None)).shape[1]

    def gradients(self, batch: Batch) -> list[Float[np.ndarray, "r c p"]]:
        trained, others, rows = self._cast(batch)

        def row(trained: Any, *leaves: Any) -> Any:
            one = rows.with_leaves([leaf[None] for leaf in leaves])
            return self._values(trained, others, one)[0]

        jacobian = torch.func.vmap(torch.func.jacrev(row), (None, *(0 for _ in rows.leaves)))
        with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
            found = jacobian(trained, *rows.leaves)
        return [_numpy(leaf.flatten(2)) for leaf in found.values()]

    def pull(self, batch: Batch, u: Float[np.ndarray, "r c"]) -> Float[np.ndarray, " P"]:
        trained, others, rows = self._cast(batch)
        trained = {name: p.detach().requires_grad_() for name, p in trained.items()}
        values = self._values(trained, others, rows)
        weights = torch.as_tensor(u, dtype=values.dtype, device=values.device)
        found = torch.autograd.grad(values, list(trained.values()), weights, allow_unused=True, materialize_grads=True)
        return np.concatenate([_numpy(g).ravel() for g in found])

    def push(self, batch: Batch, v: Float[np.ndarray, " P"]) -> Float[np.ndarray, "r c"]:
        trained, others, rows = self._cast(batch)
        parts = np.split(v, np.cumsum(self.sizes)[:-1])
        with _quiet(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():  # others: no forward derivatives
            for (name, p), part in zip(trained.items(), parts, strict=True):
                along = torch.as_tensor(part, dtype=p.dtype, device=p.device).reshape(p.shape)
                trained[name] = forward_ad.make_dual(p.detach().requires_grad_(), along)  # no fused layers
            moved = forward_ad.unpack_dual(self._values(trained, others, rows))
            return _numpy(torch.zeros_like(moved.primal) if moved.tangent is None else moved.tangent)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop a warning that PyTorch gives on its own code when forward derivatives are first used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        yield


def _numpy(values: torch.Tensor) -> np.ndarray:
    return np.asarray(values.detach().cpu().numpy())


def named(of: str, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p of the label under softmax, or log p/(1 - p)."""
    labels = labels.long()[:, None]
    chosen = outputs.gather(1, labels)[:, 0]
    if of == "log_probability":
        return chosen - outputs.logsumexp(1)
    own = torch.arange(outputs.shape[1], device=outputs.device) == labels
    return chosen - torch.where(own, -torch.inf, outputs).logsumexp(1)
