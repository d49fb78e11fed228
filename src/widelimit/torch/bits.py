"""The bits of a tensor are hashed, to detect that it changed."""

import torch

PIECE = 1 << 18
"""Entries hashed at once."""
ODD = 0x9E3779B97F4A7C15 - 2**64
"""2^64 over the golden ratio, an odd number, as a signed one."""


def bits(values: torch.Tensor) -> int:
    """Hash the bits of a tensor, each with its place (after SplitMix64), on its device."""
    sizes = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    values = values.detach()
    values = torch.view_as_real(values) if values.is_complex() else values
    flat = values.reshape(-1).view(sizes[values.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    places = torch.arange(min(PIECE, len(flat)), device=values.device) * ODD
    for i in range(0, len(flat), PIECE):
        mixed = flat[i : i + PIECE].to(torch.int64) + places[: len(flat) - i]
        mixed.bitwise_xor_(mixed >> 30).mul_(ODD)
        total = total * ODD + mixed.bitwise_xor_(mixed >> 27).sum()
    return int(total)
