"""Modules are checked here, before anything is computed: their layers' modes, and their parameters."""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import torch

from widelimit import validation
from widelimit.torch.devices import require_one_device

Names = str | Sequence[str] | Callable[[str], bool]


def trained_parameters(module: torch.nn.Module, chosen: Names | None) -> dict[str, torch.Tensor]:
    """Return the parameters to differentiate by. Raises: TypeError, ValueError: there are none, or bad ones."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError("the module has no trainable parameters: there is nothing to differentiate.")
    found = {name: p for name, p in named.items() if _matches(name, chosen)}
    if not found:
        some = ", ".join([*named][:4])
        raise ValueError(f"parameters={validation.shown(chosen)} names no trainable parameter; there are {some}, ...")
    require_one_device(module)
    for name, p in found.items():
        if torch.nn.parameter.is_lazy(p):
            raise ValueError(f"parameter {name} of a lazy layer has no values yet: call module(X) once before.")
        if p.dtype not in (torch.float32, torch.float64):
            remedy = "keep real and imaginary parts as two" if p.is_complex() else "module.float()"
            raise TypeError(f"parameter {name} is {p.dtype}; float32 or float64 is needed: {remedy}.")
        if p.is_inference():
            raise ValueError(
                f"parameter {name} was made in torch.inference_mode() and has no gradients; make it outside."
            )
        if not torch.isfinite(p).all():
            raise ValueError(f"parameter {name} has entries that are NaN or infinite.")
    return found


def _matches(name: str, chosen: Names | None) -> bool:
    if chosen is None:
        return True
    if callable(chosen):
        return bool(chosen(name))
    patterns = [chosen] if isinstance(chosen, str) else chosen
    if not isinstance(patterns, list | tuple | set | frozenset) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"parameters must be names, patterns or a function, got {validation.shown(chosen)}.")
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_mode(module: torch.nn.Module) -> None:
    """Refuse layers that mix rows, draw random numbers, change parameters, or are compiled by torch.jit."""
    nn: Any = torch.nn.modules
    for name, layer in module.named_modules():
        label = f"layer {name!r}, {type(layer).__name__}," if name else type(layer).__name__
        chance = isinstance(layer, nn.dropout._DropoutNd) or getattr(layer, "dropout", 0.0) not in (0, 0.0)
        if isinstance(layer, torch.jit.ScriptModule):
            raise ValueError(
                f"{label} is compiled by torch.jit, which shows no functions of torch: pass the module that was "
                f"scripted or traced."
            )
        random = chance and not isinstance(getattr(layer, "dropout", 0.0), torch.nn.Module)
        if layer.training and (isinstance(layer, nn.batchnorm._BatchNorm) or random):
            raise ValueError(
                f"{label} is in training mode: its output for a row depends on the other rows or on chance, and a row "
                f"has no df/dtheta of its own. Call module.eval() first."
            )
        if isinstance(layer, nn.batchnorm._BatchNorm) and layer.running_mean is None:
            raise ValueError(f"{label} keeps no running statistics: a row's output depends on the other rows.")
        if isinstance(layer, nn.sparse.Embedding | nn.sparse.EmbeddingBag) and layer.max_norm is not None:
            raise ValueError(f"{label} has max_norm, which changes its parameters at every call; set it to None.")
