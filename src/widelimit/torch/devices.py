"""The kernel of a module is computed on the device of its parameters, with all digits of their dtype."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from widelimit import memory

SHARE = 2
"""A call may use free memory of a device over this number, unless the caller gives a size."""


def free(device: torch.device) -> float:
    """Return the bytes that are free on a device, including those that PyTorch has reserved for its next tensors."""
    if device.type != "cuda":
        return memory.available()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept)


def require_one_device(module: torch.nn.Module) -> None:
    """Refuse parameters and buffers on several devices, or on the meta device. Raises: ValueError."""
    found: dict[str, str] = {}
    for name, t in (*module.named_parameters(), *module.named_buffers()):
        if t.ndim or isinstance(t, torch.nn.Parameter):  # a counter of calls may stay where it is
            found.setdefault(str(t.device), name)
    if len(found) > 1 or "meta" in found:
        listed = ", ".join(f"{name} on {device}" for device, name in found.items())
        first = next(device for device in (*found, "cpu") if device != "meta")
        raise ValueError(
            f"parameters and buffers must be on one device with values (not meta), on which the kernel is computed; "
            f"found {listed[:200]}: call module.to('{first}') first."
        )


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute products and convolutions of float32 without rounding operands to TF32 or bfloat16."""
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(**kept, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
