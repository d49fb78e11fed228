"""Rows may take different layers of a module, buffers may count, and factors go to disk: the kernel is the same."""

import contextlib
import re
import shutil
import tempfile
import threading
from collections import namedtuple
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.compute import plan

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import widelimit.torch  # noqa: E402
from widelimit.torch import gradients, products  # noqa: E402
from widelimit.torch.jacobian import RowJacobian  # noqa: E402
from widelimit.torch.kept import KeptFactors, keeping, kept_of  # noqa: E402

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


def test_products_of_matrices_with_gaps():
    rng = np.random.default_rng(0)
    wide = torch.tensor(rng.standard_normal((2, 12, 3, 40)), dtype=torch.float32)
    back, signals = wide.transpose(1, 2)[..., :7], torch.tensor(rng.standard_normal((2, 12, 30)).astype("f4"))[..., 5:]
    right = torch.einsum("ncso,nsi->ncoi", back.double(), signals.double()).flatten(2)
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


class Branches(nn.Module):
    """A row's first number chooses how the same weight is used."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.layer, self.head = kind, nn.Linear(4, 4), nn.Linear(4, 2)
        self.conv = nn.Conv1d(4, 4, 3)

    def one(self, x):
        if self.kind == "dilation":
            step = 1 + int(x[0, 0] > 0)
            h = nn.functional.conv1d(x.expand(4, 4)[None], self.conv.weight, padding="same", dilation=step)[0].tanh()[0]
        elif self.kind == "view":
            h = self.layer(x[0]) if x[0, 0] > 0 else x[0] @ self.layer.weight
        else:
            h = self.layer(x[0]) if x[0, 0] > 0 else x[0] @ self.layer.weight**2
        return self.head(h.tanh())

    def forward(self, X):
        return torch.stack([self.one(x[None]) for x in X])


@pytest.mark.parametrize("memory", [None, 3e-6], ids=["memory", "disk"])
@pytest.mark.parametrize("kind", ["view", "unknown", "dilation"])
def test_rows_that_use_the_same_weight_differently_meet(kind, memory):
    torch.manual_seed(0)
    module, X = Branches(kind).double(), np.random.default_rng(0).standard_normal((6, 4))
    assert 0 < (X[:, 0] > 0).sum() < 6
    kernel, right = widelimit.torch.empirical_ntk(module, output="trace", memory=memory), explicit(module, X)
    assert memory is None or kernel.explain(X).disk > 0
    positive, negative = np.flatnonzero(X[:, 0] > 0), np.flatnonzero(X[:, 0] <= 0)
    assert np.abs(kernel.gram(X) - right).max() <= 64 * EPS * right.max()
    found = kernel.cross(X[positive], X[negative])
    assert np.abs(found - right[np.ix_(positive, negative)]).max() <= 64 * EPS * right.max()
    assert np.abs(sum(kernel.parts(X).values()) - right).max() <= 64 * EPS * right.max()


class Lengths(nn.Module):
    """Tied token weights, and a layer for every token: rows of other lengths are other sums."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.step = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, tokens):
        h = self.norm(self.table(tokens)).tanh().mean(1)
        for _ in range(tokens.shape[1]):
            h = self.step(h).tanh()
        return h @ self.table.weight[:3].T


@pytest.mark.parametrize("lengths", [(1, 5), (5, 2)])
def test_rows_of_other_lengths(lengths):
    torch.manual_seed(0)
    module, rng = Lengths().double(), np.random.default_rng(0)
    X, Y = (rng.integers(0, 7, (3, length)) for length in lengths)
    parameters = list(module.parameters())
    options = {"retain_graph": True, "materialize_grads": True}
    J, L = (
        np.array([[torch.cat([g.flatten() for g in torch.autograd.grad(v, parameters, **options)]).numpy() for v in out]
                  for out in module(torch.as_tensor(part))]) for part in (X, Y)
    )  # fmt: skip
    right = np.einsum("nap,mbp->nmab", J, L)
    kernel = widelimit.torch.empirical_ntk(module)
    assert np.abs(kernel.cross(X, Y) - right).max() <= 64 * EPS * np.abs(right).max()
    assert np.abs(kernel.cross(Y, X) - right.transpose(1, 0, 3, 2)).max() <= 64 * EPS * np.abs(right).max()
    with pytest.raises(ValueError, match="outputs of one shape for every row"):
        widelimit.torch.empirical_ntk(module.table).cross(X, Y)


def test_rows_without_a_parameter_in_common_have_a_kernel_of_zeros():
    module, X = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)]).double(), np.ones((3, 4))
    module.forward = lambda x: torch.stack([module[int(row[0] > 0)](row) for row in x])
    kernel = widelimit.torch.empirical_ntk(module, output="trace")
    np.testing.assert_array_equal(kernel.cross(X, -X), np.zeros((3, 3)))
    assert sorted(kernel.parts(X)) == sorted(kernel.parts(-X)) == ["0", "1"]
    assert kernel.gram(X).min() > 0


def test_files_of_factors_are_closed_and_gone(tmp_path, monkeypatch):
    module, X = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), np.ones((40, 4), np.float32)
    widelimit.torch.empirical_ntk(module).gram(X[:1])  # at its first use PyTorch makes a folder of its own
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = Path("/proc/self/fd")

    def interrupted(*_):
        assert list(tmp_path.iterdir())
        raise KeyboardInterrupt

    kernel = widelimit.torch.empirical_ntk(module, memory=1e-5)
    assert kernel.explain(X).disk > 0
    before = len(list(opened.iterdir())) if opened.exists() else 0
    kernel.gram(X)
    with pytest.raises(KeyboardInterrupt):
        widelimit.torch.empirical_ntk(module, memory=1e-5, progress=interrupted).gram(X)
    assert not list(tmp_path.iterdir())
    assert not opened.exists() or len(list(opened.iterdir())) <= before


def test_arrays_of_any_layout_and_a_layer_that_was_replaced():
    module, X = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double(), np.random.default_rng(0).standard_normal((5, 4))
    right = widelimit.torch.empirical_ntk(module).gram(X)
    for same in (X[::-1].copy()[::-1], X.astype(">f8"), np.asfortranarray(X)):
        np.testing.assert_array_equal(widelimit.torch.empirical_ntk(module).gram(same), right)
    module[1] = Mixing()
    with pytest.raises(ValueError, match="mixes rows"):
        widelimit.torch.empirical_ntk(module).gram(X)


class Mixing(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_turned_off(off):
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh()).double().eval()
    X = np.random.default_rng(0).standard_normal((5, 4))

    def results():
        kernel, rows = widelimit.torch.empirical_ntk(module), widelimit.torch.tangents(module).at(X[::-1])
        return kernel.gram(X), kernel.diag(X), rows.matrix(), rows.product(np.ones(15)), kernel.prepared(X).outputs

    right = results()
    assert np.abs(right[0]).max() > 0.1
    with off():
        found = results()
    for a, b in zip(found, right, strict=True):
        np.testing.assert_array_equal(a, b)
    with torch.inference_mode():
        made = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"weight was made in torch.inference_mode"):
        widelimit.torch.empirical_ntk(made)


def test_all_outputs_of_a_row_with_itself_are_symmetric_to_the_bit():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(4, 16, 5), nn.Tanh(), nn.Flatten(), nn.Linear(16 * 12, 7))
    X = np.random.default_rng(0).standard_normal((6, 4, 16)).astype(np.float32)
    kernel = widelimit.torch.empirical_ntk(module)
    gram = kernel.gram(X)
    np.testing.assert_array_equal(gram, gram.transpose(1, 0, 3, 2))
    np.testing.assert_array_equal(kernel.diag(X), gram[np.arange(6), np.arange(6)])


@pytest.mark.parametrize("memory", [None, 60 / 2**20], ids=["in memory", "on disk"])
def test_a_stored_matrix_differentiates_every_row_once(memory, tmp_path, monkeypatch):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3))
    X = np.random.default_rng(0).standard_normal((40, 1, 6, 6))
    kernel = widelimit.torch.empirical_ntk(module.double(), output="trace", memory=memory)
    wanted, temporary = kernel.gram(X), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(plan, "LARGEST", 8)  # 5 blocks of rows, 15 tiles
    counted, folders, factors = [], [], RowJacobian.factors

    def counting(self, trial, rows):
        counted.append(len(rows))
        folders.append(len(list(temporary.iterdir())))
        return factors(self, trial, rows)

    monkeypatch.setattr(RowJacobian, "factors", counting)
    stored = wl.stored_gram(2.0 * kernel, X, tmp_path / "k.zarr", budget=2**20)
    assert stored.chunks == (8, 8)
    assert np.abs(stored[:] - 2 * wanted).max() <= 1e-12 * wanted.max()
    probed = 24  # the fingerprint's 8 rows in tiles of 4: two diagonals, two tiles of one block and one of two
    assert sum(counted) == probed + 40  # each row once
    assert (max(folders) > 1) == (memory is not None)
    assert not list(temporary.iterdir())
    counted.clear()
    with monkeypatch.context() as control:  # nothing is kept: two blocks of rows for each of 10 tiles, one for 5
        control.setattr(KeptFactors, "get", lambda self, key: None)
        wl.stored_gram(kernel, X, tmp_path / "control.zarr", budget=2**20)
    assert sum(counted) == probed + 8 * (2 * 10 + 5 + 5)
    assert not list(temporary.iterdir())


def test_factors_that_do_not_fit_in_memory_go_to_disk():
    kept, like = KeptFactors(), torch.zeros(1)
    for key in "abc":
        kept.add(key, kept.begin(1, like, 4.0, 10.0, disk=False, needed=(key,)), 4.0)
    assert [kept.get(key).store.path is None for key in "abc"] == [True, True, False]
    kept.clear()


def test_factors_that_a_call_still_reads_stay_on_disk(tmp_path, monkeypatch):
    free = namedtuple("Usage", "free")(100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept, like = KeptFactors(), torch.zeros(1)
    old = kept.begin(1, like, 60.0, 0.0, disk=True, needed=())
    kept.add("a", old, 60.0)
    new = kept.begin(1, like, 60.0, 0.0, disk=True, needed=("b",))
    assert kept.get("a") is None
    assert set(tmp_path.iterdir()) == {old.store.path, new.store.path}
    del old
    assert set(tmp_path.iterdir()) == {new.store.path}


def test_factors_are_kept_until_the_last_of_two_matrices_ends():
    owner, lock = nn.Linear(1, 1), threading.Lock()
    with contextlib.ExitStack() as later:
        with keeping(owner, lock):
            first = kept_of(owner)
            later.enter_context(keeping(owner, lock))
        assert kept_of(owner) is first is not None
    assert kept_of(owner) is None

    def keep():
        with keeping(owner, lock):
            pass

    other = threading.Thread(target=keep, daemon=True)
    with lock:  # tiles are computed now: another matrix begins after them
        other.start()
        other.join(0.2)
        assert other.is_alive()
    other.join(20)
    assert not other.is_alive()


def test_a_matrix_that_begins_during_a_call_changes_nothing_in_it(monkeypatch):
    kernel, X = widelimit.torch.empirical_ntk(nn.Linear(4, 2).double()), np.eye(4)
    right = kernel.diag(X), kernel.gram(X)
    assert np.abs(right[0]).max() > 1
    for found, call in zip(right, (kernel.diag, kernel.gram), strict=True):
        answers = [KeptFactors(), None]
        monkeypatch.setattr(widelimit.torch.module, "kept_of", lambda _, a=answers: a.pop() if len(a) > 1 else a[0])
        np.testing.assert_array_equal(call(X), found)
        assert len(answers) == 1


def test_a_progress_callback_may_use_the_kernel():
    found, X = [], np.eye(4)

    def progress(*_):
        if not found:
            found.append(None)
            found.extend((kernel.diag(X), sum(kernel.parts(X).values())))

    kernel = widelimit.torch.empirical_ntk(nn.Linear(4, 2).double(), progress=progress)
    call = threading.Thread(target=lambda: found.append(kernel.gram(X)), daemon=True)
    call.start()
    call.join(20)
    assert not call.is_alive()
    _, diagonal, whole, gram = found
    np.testing.assert_allclose(whole, gram, rtol=1e-12)
    np.testing.assert_array_equal(diagonal, gram[np.arange(4), np.arange(4)])
