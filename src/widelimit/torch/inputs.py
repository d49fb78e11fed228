"""Inputs and outputs of a module are arrays, or tuples and dictionaries of arrays, whose first axis is the rows."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch.utils import _pytree

from widelimit.validation import shown


def leaves(tree: Any) -> list[Any]:
    """Return the arrays and other values of nested tuples, lists and dictionaries."""
    return list(_pytree.tree_leaves(tree))


def map_tree(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor."""
    return _pytree.tree_map_only(torch.Tensor, function, tree)


def rebuilt(tree: Any, values: list[Any]) -> Any:
    """Return a tree with other leaves."""
    return _pytree.tree_unflatten(values, _pytree.tree_structure(tree))


def is_float(leaf: Any) -> bool:
    """Return True for a tensor of floats."""
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def laid_out(t: torch.Tensor) -> torch.Tensor:
    """Return images with their channels last in memory, for which convolutions run faster."""
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 and t.is_floating_point() else t


def length(rows: Any) -> int:
    """Return n, the number of rows."""
    return int(next(t for t in leaves(rows) if isinstance(t, torch.Tensor)).shape[0])


def forms(rows: Any) -> tuple[Any, ...]:
    """Return the shape and dtype of one row of every array."""
    return tuple((t.shape[1:], t.dtype) for t in leaves(rows) if isinstance(t, torch.Tensor))


def modes(module: torch.nn.Module) -> tuple[Any, ...]:
    """Return the class and mode of every layer: what was found out about a module holds until one changes."""
    return tuple((type(part), part.training) for part in module.modules())


def take(rows: Any, part: Any) -> Any:
    """Return some of the rows."""
    return map_tree(lambda t: t[part], rows)


def lifted(row: Any) -> Any:
    """Return one row as rows, with a leading axis of 1."""
    return map_tree(lambda t: t[None], row)


def call(module: Any, rows: Any) -> Any:
    """Call a module with rows: module(X), module(*X) for a tuple, module(**X) for a dictionary."""
    if isinstance(rows, dict):
        return module(**rows)
    return module(*rows) if isinstance(rows, tuple | list) else module(rows)


def describe(rows: Any) -> str:
    """Return the shapes of inputs as text, for errors."""
    shapes = [tuple(t.shape) if isinstance(t, torch.Tensor) else shown(t) for t in leaves(rows)]
    return f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {', '.join(map(str, shapes))}"


def one_tensor(values: Any) -> torch.Tensor:
    """Return outputs as one tensor: a Hugging Face model's logits; several tensors are joined to (n, sum of sizes).

    Raises: TypeError: there are none.
    """
    if isinstance(values, torch.Tensor):
        return values
    if isinstance(values, dict) and isinstance(values.get("logits"), torch.Tensor):
        return values["logits"]
    found = [t for t in leaves(dict(values) if isinstance(values, dict) else values) if isinstance(t, torch.Tensor)]
    found = [t for t in found if t.is_floating_point()] or found
    if not found:
        raise TypeError(f"the module returned {type(values).__name__} without tensors; pass of=lambda outputs, X: ...")
    if len(found) == 1:
        return found[0]
    return torch.cat([t.reshape(len(t), -1) if t.ndim else t.reshape(1, 1) for t in found], dim=1)


def tensors(name: str, X: Any, device: torch.device) -> Any:
    """Return inputs as tensors on a device; values that are not arrays are passed on.

    Raises: TypeError, ValueError: no arrays, arrays without rows or of different lengths, of a dtype that is not
        supported, not finite, or on another device.
    """
    found = _pytree.tree_map(lambda leaf: _tensor(name, leaf, device), X)
    sizes = {int(t.shape[0]) for t in leaves(found) if isinstance(t, torch.Tensor)}
    if not sizes:
        raise TypeError(f"{name} must be an array, or a tuple or dictionary of arrays; got {shown(X)}.")
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(f"all arrays of {name} must have the same number of rows, at least 1; got {sorted(sizes)}.")
    return found


def _tensor(name: str, leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, torch.Tensor):
        if leaf.device != device:
            size = leaf.numel() * leaf.element_size()
            raise ValueError(
                f"{name} is on {leaf.device} ({size} bytes), and the module on {device}: pass {name}.to('{device}'), "
                f"or a NumPy array."
            )
        found = leaf.detach()
    elif isinstance(leaf, np.ndarray | np.generic | jax.Array):
        array = np.asarray(leaf)
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            raise TypeError(f"{name} has dtype {array.dtype}; floats, integers or booleans are needed.")
        own = array.dtype.newbyteorder("=")  # torch knows neither other orders of bytes nor rows that run backwards
        found = torch.from_numpy(np.array(array, own, order="C")).to(device)
    else:
        return leaf
    if found.ndim == 0:
        raise ValueError(f"{name} has an array without rows, of shape ().")
    if found.is_floating_point():
        if found.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} is {found.dtype}; float32 or float64 is needed.")
        if not torch.isfinite(found).all():
            raise ValueError(f"{name} has entries that are NaN or infinite.")
    return found
