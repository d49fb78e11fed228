"""`tangents` takes the gradients of a PyTorch module, for sketches, attribution, selection and drift of its kernel."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, final

import jax
import numpy as np
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from widelimit import validation
from widelimit.messages import first_line
from widelimit.shapes import Float
from widelimit.tangents.batches import Batch
from widelimit.tangents.gradients import RANDOM, Gradients, hashed, model_fails
from widelimit.tangents.models import Tangents, check_of
from widelimit.torch.bits import bits
from widelimit.torch.checks import Names, check_mode, trained_parameters
from widelimit.torch.devices import full_precision

CUT = (
    "the outputs depend on no trainable parameter: detach(), torch.no_grad(), or torch.autograd.grad without "
    "create_graph=True cuts them off."
)


def tangents(
    module: torch.nn.Module, *, of: Any = None, parameters: Names | None = None, memory: float | None = None
) -> Tangents:
    """Take the tangents of a module at its trainable parameters of now.

    The parameters are shared with the module: after more training, tangents taken before are refused; take them of
    copy.deepcopy(module) to keep both. If a layer has no rule for gradients of many rows at once, or for forward
    derivatives, rows are taken one by one.

    Args:
        module: called as module(X), module(*X) for a tuple, module(**X) for a dictionary; in evaluation mode.
        of: the outputs to differentiate, as in `widelimit.tangents`, a function of tensors; for a Hugging Face module
            of=lambda outputs, X: outputs.logits.
        parameters: names, shell patterns such as "layers.0.*", or a function of the name; all trainable ones if None.
        memory: GiB for gradients of rows; half of what is free unless given.

    Raises: TypeError, ValueError: not a module, no trainable parameters, or ones that are not finite floats; layers
    in training mode whose output depends on the batch or on chance.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"a torch.nn.Module is needed, got {type(module).__name__}.")
    budget = 0.0 if memory is None else validation.finite_scalar("memory", memory, above=0.0)
    check_mode(module)
    trained = {name: p.detach() for name, p in trained_parameters(module, parameters).items()}
    return Tangents(ModuleGradients(module, trained, check_of(of), budget))


@final
class ModuleGradients(Gradients):
    """The gradients are those of a PyTorch module, on its device."""

    def __init__(self, module: torch.nn.Module, trained: dict[str, torch.Tensor], of: Any, memory: float) -> None:
        self.module, self.trained, self.of, self.memory, self.passed = module, trained, of, memory, set()
        self.names, self.sizes = tuple(trained), tuple(p.numel() for p in trained.values())
        # The forward derivative of an embedding moves the padding's row too, whose gradient is 0.
        padded = any(getattr(layer, "padding_idx", None) is not None for layer in module.modules())
        self.vectorised, self.forward = True, not padded
        self.state = state_of(module, trained)

    def require_unchanged(self) -> None:
        """Refuse a module that was trained since. Raises: ValueError."""
        if state_of(self.module, self.trained) != self.state:
            raise ValueError(
                "the module has changed since tangents(module), in its parameters, stored statistics or layers. Take "
                "new tangents after training, or take them of copy.deepcopy(module) to keep both. If a call alone "
                "changes the module, call module.eval() first."
            )

    def fingerprint(self) -> str:
        self.require_unchanged()
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
            lambda leaf: torch.from_numpy(np.array(leaf, order="C")).to(
                device, dtype if leaf.dtype.kind == "f" else None
            ),
            batch,
        )
        return trained, others, rows

    def _values(self, trained: Any, others: Any, batch: Batch) -> torch.Tensor:
        """Compute the outputs at these parameters, (r, c). Raises: TypeError, ValueError: other outputs."""
        X = batch.inputs
        args, named_args = (X if isinstance(X, tuple) else (), X) if isinstance(X, (tuple, dict)) else ((X,), {})
        named_args = named_args if isinstance(named_args, dict) else {}
        outputs = torch.func.functional_call(self.module, {**trained, **others}, args, named_args)
        n = len(batch.leaves[0])
        if isinstance(self.of, str):
            outputs = named(self.of, outputs, batch.labels)
        elif self.of is not None:
            outputs = self.of(outputs, X if batch.labels is None else batch.labels)
        if isinstance(outputs, torch.Tensor) and outputs.ndim == 0 and n == 1:  # squeezed
            outputs = outputs[None]
        if not isinstance(outputs, torch.Tensor) or outputs.ndim == 0 or len(outputs) != n:
            what = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise ValueError(
                f"a tensor with a row of outputs for each of {n} rows is needed, got {what}; pass of=lambda outputs, "
                f"X: ... that returns one."
            )
        if outputs.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"the module computes in {outputs.dtype} (mixed precision, autocast): its gradients have too few "
                f"digits. Turn autocast off inside of the module, and keep its parameters in float32."
            )
        return outputs.reshape(n, -1)

    def outputs(self, batch: Batch) -> Float[np.ndarray, "r c"]:
        self.dtype(batch)
        try:
            with torch.no_grad(), full_precision():
                return _numpy(self._values(*self._cast(batch)))
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            if _inner(error):
                raise ValueError(f"the module cannot be differentiated: {_inner(error)}") from error
            raise model_fails(batch, error) from error

    def classes(self, batch: Batch) -> int:
        plain = ModuleGradients(self.module, self.trained, None, self.memory)
        return int(plain.outputs(Batch(batch.inputs, None)).shape[1])

    def gradients(self, batch: Batch) -> list[Float[np.ndarray, "r c p"]]:
        if self.vectorised:
            try:
                return self._at_once(batch)
            except RuntimeError as error:  # a layer that vmap cannot run
                _require_memory(error)
                if "random operation" in str(error):
                    raise ValueError(f"the module draws random numbers. {RANDOM}") from error
                self.vectorised = False
        return self._one_by_one(batch)

    def _at_once(self, batch: Batch) -> list[np.ndarray]:
        def row(trained: Any, *leaves: Any) -> Any:
            one = rows.with_leaves([leaf[None] for leaf in leaves])
            return self._values(trained, others, one)[0]

        with self._rules():
            trained, others, rows = self._cast(batch)
            jacobian = torch.func.vmap(torch.func.jacrev(row), (None, *(0 for _ in rows.leaves)))
            found = jacobian(trained, *rows.leaves)
        return [_numpy(leaf.flatten(2)) for leaf in found.values()]

    def _one_by_one(self, batch: Batch) -> list[np.ndarray]:
        found = []
        for i in range(batch.rows):
            with self._backward(batch.take(slice(i, i + 1))) as (values, slopes):
                found.append([slopes(weights[None]) for weights in torch.eye(values.shape[1]).to(values)])
        places = range(len(self.names))
        return [np.stack([np.stack([_numpy(g[k]).ravel() for g in row]) for row in found]) for k in places]

    @contextmanager
    def _backward(self, batch: Batch) -> Iterator[tuple[torch.Tensor, Callable[[torch.Tensor], Any]]]:
        """Yield f at the rows, and the function u -> J^T u. Raises: ValueError: a layer fails."""
        try:
            with self._rules():
                trained, others, rows = self._cast(batch)
                trained = {name: p.detach().requires_grad_() for name, p in trained.items()}
                values, leaves = self._values(trained, others, rows), list(trained.values())
                if not values.requires_grad:
                    raise ValueError(CUT)
                known = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
                yield values, lambda u: torch.autograd.grad(values, leaves, u, **known)
        except RuntimeError as error:
            _require_memory(error)
            why = _inner(error) or f"{type(error).__name__}: {first_line(error)}"
            raise ValueError(f"the module cannot be differentiated at these rows: {why}") from error

    def pull(self, batch: Batch, u: Float[np.ndarray, "r c"]) -> Float[np.ndarray, " P"]:
        with self._backward(batch) as (values, slopes):
            found = slopes(torch.as_tensor(u, dtype=values.dtype, device=values.device))
        return np.concatenate([_numpy(g).ravel() for g in found])

    def push(self, batch: Batch, v: Float[np.ndarray, " P"]) -> Float[np.ndarray, "r c"]:
        if self.forward:
            try:
                return self._pushed(batch, v)
            except RuntimeError as error:  # a layer without forward derivatives
                _require_memory(error)
                self.forward = False
        return self.push_by_rows(batch, v)

    def _pushed(self, batch: Batch, v: np.ndarray) -> np.ndarray:
        parts = np.split(v, np.cumsum(self.sizes)[:-1])
        with self._rules(), forward_ad.dual_level():
            trained, others, rows = self._cast(batch)
            for (name, p), part in zip(trained.items(), parts, strict=True):
                along = torch.as_tensor(part, dtype=p.dtype, device=p.device).reshape(p.shape)
                trained[name] = forward_ad.make_dual(p.detach().requires_grad_(), along)  # no fused layers
            moved = forward_ad.unpack_dual(self._values(trained, others, rows))
            return _numpy(torch.zeros_like(moved.primal) if moved.tangent is None else moved.tangent)

    @contextmanager
    def _rules(self) -> Iterator[None]:
        """Use implementations of layers that have derivatives of all kinds, with gradients turned on."""
        recurrent = any(isinstance(layer, torch.nn.RNNBase) for layer in self.module.modules())
        cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
        grad = torch.inference_mode(mode=False), torch.enable_grad()
        with _quiet(), full_precision(), sdpa_kernel(SDPBackend.MATH), cudnn, grad[0], grad[1]:
            yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop warnings of PyTorch on its own code: at the first forward derivatives, and for slow rules of vmap."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        yield


def _require_memory(error: RuntimeError) -> None:
    """Raise the error again if it says that memory is full: no other way of computing would help."""
    if isinstance(error, torch.cuda.OutOfMemoryError) or "not enough memory" in str(error):
        raise error


def _inner(error: Exception) -> str:
    """Say what to do about a module that differentiates inside; "" for other errors."""
    if "does not require grad" not in str(error):
        return ""
    return (
        f"{first_line(error)}. It seems to call torch.autograd.grad itself: use torch.func.grad there, or with "
        f"torch.enable_grad() and create_graph=True."
    )


def state_of(module: torch.nn.Module, trained: dict[str, torch.Tensor]) -> tuple[Any, ...]:
    """Return the layers, and a hash of the parameters and of stored statistics: all that training changes."""
    nn = torch.nn.modules
    layers, kept = [], dict(module.named_parameters()) | trained
    for name, layer in module.named_modules():
        modal = isinstance(layer, (nn.batchnorm._BatchNorm, nn.dropout._DropoutNd))
        layers.append((name, type(layer), modal and layer.training))
    stored = module.state_dict(keep_vars=True)  # not what a layer makes again when it is needed
    kept |= {name: value for name, value in module.named_buffers() if value.is_floating_point() and name in stored}
    hashes = [bits(value) for value in kept.values()]
    return tuple(layers), tuple(kept), tuple(tuple(value.shape) for value in kept.values()), tuple(hashes)


def _numpy(values: torch.Tensor) -> np.ndarray:
    return np.asarray(values.detach().to_dense().cpu().numpy())


def named(of: str, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute log p of the label under softmax, or log p/(1 - p), (n,)."""
    labels = labels.long()[:, None]
    chosen = outputs.gather(1, labels)[:, 0]
    if of == "log_probability":
        return chosen - outputs.logsumexp(1)
    own = torch.arange(outputs.shape[1], device=outputs.device) == labels
    return chosen - torch.where(own, -torch.inf, outputs).logsumexp(1)
