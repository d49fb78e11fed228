"""The empirical NTK of PyTorch modules against autograd row by row and against this library's own on equal networks."""

import numpy as np
import pytest

import widelimit as wl

torch = pytest.importorskip("torch")

import widelimit.torch  # noqa: E402

EPS = np.finfo(np.float64).eps
N = 6


def close(values, wanted):
    assert values.shape == wanted.shape
    return np.abs(values - wanted).max() <= 64 * EPS * np.abs(wanted).max()


def dense():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)]
    return torch.nn.Sequential(*layers).double()


def images():
    torch.manual_seed(1)
    layers = [torch.nn.Unflatten(1, (1, 5, 5)), torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(27, 2)).double()


def jacobian(module, X):
    """(n, c, P) by one backward pass for every number of the output."""
    rows = []
    for x in torch.tensor(X):
        outputs = module(x[None])[0]
        parameters = [p for p in module.parameters() if p.requires_grad]
        found = [torch.autograd.grad(value, parameters, retain_graph=True) for value in outputs]
        rows.append([torch.cat([g.flatten() for g in one]).numpy() for one in found])
    return np.array(rows)


def oracle(module, X, Y):
    return np.einsum("nap,mbp->nmab", jacobian(module, X), jacobian(module, Y))


@pytest.mark.parametrize(("make", "features"), [(dense, 4), (images, 25)])
def test_every_output_is_the_explicit_contraction(make, features):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((N, features)), rng.standard_normal((4, features))
    module = make().eval()
    full, own = oracle(module, X, Y), oracle(module, X, X)
    kernels = {name: widelimit.torch.empirical_ntk(module, output=name) for name in ("full", "trace", "diagonal")}
    assert close(kernels["full"].cross(X, Y), full)
    assert not close(1.01 * kernels["full"].cross(X, Y), full)
    assert not close(kernels["full"].cross(X, Y).transpose(0, 1, 3, 2), full)
    assert close(kernels["full"].gram(X), own)
    assert close(kernels["full"].diag(X), np.einsum("nnab->nab", own))
    assert close(kernels["trace"].cross(X, Y), np.einsum("nmaa->nm", full) / full.shape[2])
    assert close(kernels["trace"].gram(X), np.einsum("nmaa->nm", own) / full.shape[2])
    np.testing.assert_array_equal(kernels["trace"].diag(X), np.diag(kernels["trace"].gram(X)))
    assert close(kernels["diagonal"].cross(X, Y), np.einsum("nmaa->nma", full))
    assert close(kernels["diagonal"].diag(X), np.einsum("nnaa->na", own))
    gram = kernels["diagonal"].gram(X)
    np.testing.assert_array_equal(gram, gram.transpose(1, 0, 2))
    # Blocks of two rows: the budget holds few Jacobians.
    size = 8 * full.shape[2] * sum(p.numel() for p in module.parameters())
    small = widelimit.torch.empirical_ntk(module, memory=2.5 * widelimit.torch.COPIES * size / 2**30)
    assert small.jacobian.rows(X) == 2
    assert close(small.gram(X), own)
    assert close(small.diag(X), np.einsum("nnab->nab", own))


def test_it_equals_the_kernel_of_the_same_network_here():
    net = wl.mlp(depth=3, activation="tanh", weight_std=1.3, bias_std=0.5, parameterization="standard")
    params = net.init(0, input_dim=4, width=[8, 6], output_dim=3, dtype=np.float64)
    module = dense()
    with torch.no_grad():
        for layer, values in zip(module[::2], params[::2], strict=True):
            layer.weight.copy_(torch.tensor(np.asarray(values["weight"])))
            layer.bias.copy_(torch.tensor(np.asarray(values["bias"])))
    X = np.random.default_rng(1).standard_normal((N, 4))
    assert close(widelimit.torch.empirical_ntk(module).gram(X), wl.empirical_ntk(net.apply, params).gram(X))


def test_it_is_a_kernel_like_others():
    module = dense()
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((N, 4)), rng.standard_normal((N, 3))
    full, trace = (widelimit.torch.empirical_ntk(module, output=name) for name in ("full", "trace"))
    assert np.abs(wl.gradient_flow(full, X, y).predict(X, np.inf) - y).max() < 1e-8
    assert wl.max_learning_rate(full, X) > 0
    both = trace + 0.5 * wl.linear()
    assert close(both.gram(X), trace.gram(X) + 0.5 * X @ X.T)
    assert wl.posterior(both, X, y, noise=0.1).mean(X[:2]).shape == (2, 3)


def test_the_parameters_are_those_of_the_call_and_only_trainable_ones():
    module = dense()
    X = np.random.default_rng(3).standard_normal((N, 4))
    k = widelimit.torch.empirical_ntk(module)
    before = k.gram(X)
    with torch.no_grad():
        module[0].weight.mul_(2.0)
    np.testing.assert_array_equal(k.gram(X), before)
    module[0].requires_grad_(False)
    assert close(widelimit.torch.empirical_ntk(module).gram(X), oracle(module, X, X))


def test_dtypes():
    module = dense().float()
    X = np.random.default_rng(4).standard_normal((N, 4))
    single = widelimit.torch.empirical_ntk(module).gram(X.astype(np.float32))
    double = widelimit.torch.empirical_ntk(module).gram(X)
    assert single.dtype == np.float32
    assert double.dtype == np.float64
    assert np.abs(single - double).max() <= 64 * np.finfo(np.float32).eps * np.abs(double).max()
    with pytest.raises(TypeError, match="astype"):
        widelimit.torch.empirical_ntk(dense()).gram(X.astype(np.float32))


def test_bad_input():
    door = widelimit.torch.empirical_ntk
    X = np.ones((2, 4))
    with pytest.raises(ValueError, match=r"BatchNorm2d.*module\.eval\(\)"):
        door(images())
    with pytest.raises(ValueError, match=r"Dropout.*module\.eval\(\)"):
        door(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout()))
    with pytest.raises(ValueError, match="running statistics"):
        door(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2, track_running_stats=False)).eval())
    with pytest.raises(TypeError, match="Module"):
        door(lambda x: x)
    with pytest.raises(ValueError, match="trainable"):
        door(torch.nn.Flatten())
    with pytest.raises(ValueError, match="output must be"):
        door(dense(), output="mean")
    with pytest.raises(TypeError, match="bfloat16"):
        door(dense().bfloat16())
    with pytest.raises(ValueError, match=r"shape \(1, 5\)"):
        door(dense()).gram(np.ones((2, 5)))
    with pytest.raises(ValueError, match="one row to"):
        door(torch.nn.Sequential(dense(), torch.nn.Unflatten(1, (3, 1)))).gram(X)
    with pytest.raises(MemoryError, match="one row"):
        door(dense(), memory=1e-7).gram(X)
    with pytest.raises(ValueError, match="prepared"):
        _ = door(dense()).outputs
    broken = dense()
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        door(broken)


class Centred(torch.nn.Module):
    def __init__(self, inner, over):
        super().__init__()
        self.inner, self.over = inner, over

    def forward(self, X):
        h = self.inner(X)
        return self.over(h)


def attended(h):
    return torch.softmax(h @ h.T, dim=1) @ h


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("over", [lambda h: h - h.mean(0), attended, lambda h: h / h.abs().max()])
def test_modules_that_mix_rows_are_refused(over, dtype):
    X = np.random.default_rng(0).standard_normal((N, 4)).astype(dtype)
    module = Centred(dense().to(torch.float64 if dtype == np.float64 else torch.float32), over).eval()
    for output, points in (("trace", X), ("full", X[:1]), ("diagonal", np.repeat(X[:1], 3, axis=0))):
        kernel = widelimit.torch.empirical_ntk(module, output=output)
        for call in (kernel.gram, kernel.diag, lambda Z, kernel=kernel: kernel.cross(Z, X)):
            with pytest.raises(ValueError, match="the module mixes rows") as caught:
                call(points)
            assert len(str(caught.value)) < 400
    widelimit.torch.empirical_ntk(Centred(dense().to(getattr(torch, np.dtype(dtype).name)), torch.tanh)).gram(X)


def test_the_row_of_a_jacobian_that_is_nan_is_named():
    module = Centred(torch.nn.Linear(4, 1, bias=False).double(), lambda h: h.abs().sqrt())
    X = np.random.default_rng(0).standard_normal((N, 4))
    kernel = widelimit.torch.empirical_ntk(module, output="trace")
    assert np.isfinite(kernel.diag(X)).all()
    X[3] = 0.0
    with pytest.raises(ValueError, match="row 3 of X is NaN"):
        kernel.diag(X)
    with pytest.raises(ValueError, match="row 3 of Y is NaN"):
        kernel.cross(X[:2], X)


def test_what_passed_is_not_tried_again_and_a_patch_with_itself_is_one_jacobian(monkeypatch):
    module, X = dense().eval(), np.random.default_rng(0).standard_normal((N, 4))
    kernel, called = widelimit.torch.empirical_ntk(module, output="trace"), []
    for name in ("_compare_rows", "of"):
        whole = getattr(widelimit.torch.ModuleJacobian, name)
        counted = lambda *a, name=name, whole=whole: called.append(name) or whole(*a)  # noqa: E731
        monkeypatch.setattr(widelimit.torch.ModuleJacobian, name, counted)
    kernel.gram(X)
    assert called.count("_compare_rows") == 1
    called.clear()
    kernel.gram(X)
    assert "_compare_rows" not in called
    alone = called.count("of")
    called.clear()
    kernel.cross(X, X.copy())
    assert called.count("of") > alone
    module.train()
    kernel.gram(X)
    assert "_compare_rows" in called
