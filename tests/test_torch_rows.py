"""Rows may take different layers of a module, buffers may count, and factors go to disk: the kernel is the same."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import widelimit.torch  # noqa: E402
from widelimit.torch import gradients, products  # noqa: E402

EPS = np.finfo(np.float64).eps


class Experts(nn.Module):
    """One of two layers by the sign of the inputs; then a layer at the positive inputs alone."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        self.each = nn.Linear(1, 3)

    def forward(self, x):
        h = torch.stack([self.experts[int(row.sum() > 0)](row) for row in x])
        return h + torch.stack([self.each(row[row > 0][:, None]).tanh().sum(0) for row in x])


def explicit(module, X):
    """(n, m) mean over outputs of the kernel of Jacobians by automatic differentiation, row by row."""
    rows = []
    for x in torch.as_tensor(X):
        found = []
        for value in module(x[None])[0]:
            g = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, materialize_grads=True,
                                    allow_unused=True)  # fmt: skip
            found.append(torch.cat([leaf.flatten() for leaf in g]))
        rows.append(torch.stack(found).numpy())
    J = np.array(rows)
    return np.einsum("nap,map->nm", J, J) / J.shape[1]


@pytest.mark.parametrize("memory", [None, 3e-6], ids=["memory", "disk"])
def test_rows_that_take_different_layers(memory):
    torch.manual_seed(0)
    module = Experts().double().eval()
    X = np.random.default_rng(0).standard_normal((7, 4))
    assert len({int(row.sum() > 0) for row in X}) == 2
    assert len({int((row > 0).sum()) for row in X}) > 1
    kernel, right = widelimit.torch.empirical_ntk(module, output="trace", memory=memory), explicit(module, X)
    assert np.abs(kernel.gram(X) - right).max() <= 64 * EPS * right.max()
    assert np.abs(kernel.cross(X[:3], X) - right[:3]).max() <= 64 * EPS * right.max()
    np.testing.assert_array_equal(kernel.diag(X), np.diag(kernel.gram(X)))
    module.experts[0] = module.experts[1]  # the same layer for all rows is another kernel
    assert np.abs(explicit(module, X) - right).max() > 1e-3 * right.max()


class Counted(nn.Module):
    def __init__(self, *, scaled):
        super().__init__()
        self.layer, self.scaled = nn.Linear(4, 2), scaled
        self.register_buffer("calls", torch.tensor(1))

    def forward(self, x):
        h = self.layer(x)
        return h * self.calls if self.scaled else h


def test_a_buffer_that_counts_is_no_change_and_one_in_the_outputs_is():
    X = np.eye(4, dtype=np.float32)
    for scaled in (False, True):
        module = Counted(scaled=scaled).eval()
        kernel = widelimit.torch.empirical_ntk(module, output="trace")
        first = kernel.gram(X)
        module.calls += 1
        if scaled:
            with pytest.raises(ValueError, match="calls of the module changed"):
                kernel.gram(X)
        else:
            np.testing.assert_array_equal(kernel.gram(X), first)


def test_the_parameters_are_hashed_once_a_call(monkeypatch):
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    rows = widelimit.torch.tangents(module).at(np.random.default_rng(0).standard_normal((200, 4)))
    seen = []
    monkeypatch.setattr(gradients, "bits", lambda t, own=gradients.bits: seen.append(1) or own(t))
    rows.diag()  # 4 blocks of rows
    assert len(seen) == 4  # parameters


def test_products_of_matrices_with_gaps(monkeypatch):
    rng = np.random.default_rng(0)
    wide = torch.tensor(rng.standard_normal((2, 12, 3, 40)), dtype=torch.float32)
    back, signals = wide.transpose(1, 2)[..., :7], torch.tensor(rng.standard_normal((2, 12, 30)).astype("f4"))[..., 5:]
    right = torch.einsum("ncso,nsi->ncoi", back.double(), signals.double()).flatten(2)
    for longest in (products.VERY_LONG, 1):
        monkeypatch.setattr(products, "VERY_LONG", longest)
        found = products.outer_sums(back, signals)
        assert float((found - right).abs().max()) <= 64 * np.finfo(np.float32).eps * float(right.abs().max())
    assert float((products.outer_sums(back, signals.flip(1)) - right).abs().max()) > 1


def test_the_page_of_modules_runs(capsys):
    text = (Path(__file__).parents[1] / "docs" / "empirical.md").read_text()
    blocks = re.findall(r"^```py\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert any("widelimit.torch" in block for block in blocks)
    exec("\n".join(["import numpy as np", *blocks]), {})
    assert "positions" in capsys.readouterr().out


def test_tangents_of_some_parameters():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    X = np.random.default_rng(0).standard_normal((5, 4))
    head = widelimit.torch.tangents(module, parameters=["2.*"]).at(X, output="trace").matrix()
    kernel = widelimit.torch.empirical_ntk(module, output="trace", parameters=["2.*"]).gram(X)
    assert np.abs(head - kernel).max() <= 64 * EPS * kernel.max()
    assert np.abs(widelimit.torch.tangents(module).at(X, output="trace").matrix() - kernel).max() > 0.01
    params = {"a": module[0].weight.detach().numpy().T, "b": module[2].weight.detach().numpy().T}
    here = wl.tangents(lambda p, X: jnp.tanh(X @ p["a"]) @ p["b"], params, parameters=["b"])
    assert here.gradients.parameters == 12
