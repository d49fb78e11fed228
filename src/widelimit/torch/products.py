"""Matrices are multiplied by the faster of the two libraries that PyTorch has for a CPU."""

from collections.abc import Callable

import torch

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _onednn() -> Product | None:
    """Return oneDNN's product of float32 matrices: MKL, which `mm` calls, leaves half of some processors unused."""
    try:
        linear = torch.ops.mkldnn._linear_pointwise
        one = torch.ones(1, 1)
        if not torch.backends.mkldnn.is_available() or float(linear(one, one, None, "none", [], "")) != 1:
            return None
    except (AttributeError, RuntimeError, TypeError):  # another release of PyTorch: it is not public
        return None

    def fast(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = linear(a, b, None, "none", [], "")
        return found

    return fast


_FAST = _onednn()


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute a b^T of matrices (n, k), (m, k)."""
    if _FAST is None or a.dtype != torch.float32 or a.device.type != "cpu" or 0 in (*a.shape, *b.shape):
        return a @ b.T
    return _FAST(_dense(a), _dense(b))


def _dense(t: torch.Tensor) -> torch.Tensor:
    """Return a matrix without gaps in memory: oneDNN takes a thousand times as long for others."""
    return t if t.is_contiguous() or t.T.is_contiguous() else t.contiguous()


def outer_sums(back: torch.Tensor, signals: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Compute sum_s back[n, c, s] (x) signals[n, s], (n, c, O I), of (n, c, S, O) and (n, S, I)."""
    n, c, s, o = back.shape
    i = signals.shape[2]
    found = back.new_empty(n, c, o * i) if out is None else out
    torch.bmm(back.transpose(1, 2).reshape(n, s, c * o).transpose(1, 2), signals, out=found.view(n, c * o, i))
    return found
