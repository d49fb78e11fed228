"""Kernels of PyTorch modules run on the module's device, with all digits; no GPU is needed to see it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.overrides import TorchFunctionMode  # noqa: E402

import widelimit.torch  # noqa: E402

nn = torch.nn
RNG = np.random.default_rng(0)
MADE_FROM_NOTHING = {"zeros", "ones", "empty", "full", "eye", "arange", "rand", "randn", "tril_indices"}


class Homeless(TorchFunctionMode):
    """Functions that make a tensor from nothing, and name no device: it would be made on the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, kinds, args=(), kwargs=None):
        del kinds
        if getattr(func, "__name__", "") in MADE_FROM_NOTHING and (kwargs or {}).get("device") is None:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def module():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2)]
    return nn.Sequential(*layers).eval()


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.attention = nn.Embedding(7, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(self.attention(x, x, x)[0].mean(1))


CASES = {
    "images": (module, RNG.standard_normal((5, 2, 4, 4)).astype(np.float32)),
    "words": (Words, RNG.integers(0, 7, (5, 3))),
}


def everything(made, X):
    for options in ({}, {"output": "trace"}, {"output": "diagonal"}):
        k = widelimit.torch.empirical_ntk(made, **options)
        yield k.gram(X), k.cross(X[:2], X), k.diag(X)
    rows = widelimit.torch.tangents(made).at(X)
    yield rows.matrix(), rows.diag(), rows.times(np.ones((rows.size, 1)))


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_made_on_the_device_of_the_module(case):
    make, X = CASES[case]
    made = make()
    with Homeless() as seen:
        assert all(isinstance(part, np.ndarray) for parts in everything(made, X) for part in parts)
    assert not seen.found, seen.found


def test_a_tensor_that_is_made_on_the_host_is_found():
    k = widelimit.torch.empirical_ntk(module(), of=lambda outputs, X: outputs * torch.ones(2))
    with Homeless() as seen:
        k.gram(CASES["images"][1])
    assert "ones" in seen.found


class Precision(nn.Module):
    """Notes what the caller allows at every call."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = nn.Linear(4, 2), set()

    def forward(self, x):
        self.seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return self.inner(x)


def test_products_keep_all_digits_and_the_callers_choice_stays():
    made, X = Precision(), np.ones((3, 4), np.float32)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        k = widelimit.torch.empirical_ntk(made)
        assert len(k.gram(X)) == len(k.diag(X)) == len(widelimit.torch.tangents(made).at(X).diag()) // 2
        assert made.seen == {("highest", False)}
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 == before[1]
        made(torch.ones(1, 4))
        assert len(made.seen) == 2
    finally:
        torch.set_float32_matmul_precision(before[0])


def test_parameters_and_buffers_on_several_devices_are_refused_by_name():
    made = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    made[1].running_var = made[1].running_var.to("meta")
    for door in (widelimit.torch.empirical_ntk, widelimit.torch.tangents):
        with pytest.raises(ValueError, match=r"0\.weight on cpu, 1\.running_var on meta.*module\.to\('cpu'\)"):
            door(made)
