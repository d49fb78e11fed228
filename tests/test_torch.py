"""The empirical NTK of PyTorch modules against autograd row by row and against this library's own on equal networks."""

import copy

import numpy as np
import pytest

import widelimit as wl

torch = pytest.importorskip("torch")

import widelimit.torch  # noqa: E402
from widelimit.torch import rowwise  # noqa: E402
from widelimit.torch.jacobian import RowJacobian  # noqa: E402

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


SMALL = {dense: 2.7, images: 8.0}  # KiB


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
    # The budget holds the factors of few rows: those of all are on disk.
    small = widelimit.torch.empirical_ntk(module, memory=SMALL[make] / 2**20)
    plan = small.explain(X)
    assert plan.rows < N
    assert plan.disk > 0
    assert kernels["full"].explain(X).disk == 0
    assert close(small.gram(X), own)
    assert close(small.cross(X, Y), full)
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
    with pytest.raises(ValueError, match=r"0\.weight of the module changed.*deepcopy"):
        k.gram(X)
    with torch.no_grad():
        module[0].weight.mul_(0.5)
    np.testing.assert_array_equal(k.gram(X), before)
    module[0].weight.data[0, 0] += 1.0  # unseen by torch's own counter of versions
    with pytest.raises(ValueError, match="changed"):
        k.diag(X)
    kept = widelimit.torch.empirical_ntk(copy.deepcopy(module))
    before = kept.gram(X)
    module[0].weight.data[0, 0] -= 1.0
    np.testing.assert_array_equal(kept.gram(X), before)
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
        door(torch.nn.Sequential(dense(), torch.nn.Flatten(0))).gram(X)
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
    for owner, name in ((rowwise, "compare_rows"), (RowJacobian, "factors")):
        whole = getattr(owner, name)
        counted = lambda *a, name=name, whole=whole: called.append(name) or whole(*a)  # noqa: E731
        monkeypatch.setattr(owner, name, counted)
    kernel.gram(X)
    assert called.count("compare_rows") == 1
    called.clear()
    kernel.gram(X)
    assert "compare_rows" not in called
    alone = called.count("factors")
    called.clear()
    kernel.cross(X, X.copy())
    assert called.count("factors") == 2
    assert alone == 1  # the matrix and its diagonal
    module.train()
    kernel.gram(X)
    assert "compare_rows" in called


class Recurrent(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.head = kind(4, 3, batch_first=True), torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.inner(x)[0][:, -1])


class Language(torch.nn.Module):
    """Tokens, positions, one block, and a head that is the table of tokens."""

    def __init__(self, *, tied=True):
        super().__init__()
        self.table, self.place = torch.nn.Embedding(11, 8, padding_idx=0), torch.nn.Embedding(6, 8)
        self.block = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True)
        self.head = torch.nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens, mask=None):
        x = self.table(tokens) + self.place(torch.arange(tokens.shape[1]))
        return {"logits": self.head(self.block(x, src_key_padding_mask=mask))[:, -1], "hidden": x}


class Vision(torch.nn.Module):
    """Parameters of its own: a token, positions, a gain, matrices on the right, attention between two lengths."""

    def __init__(self):
        super().__init__()
        shapes = {"first": (1, 1, 8), "places": (1, 6, 8), "gain": (8,), "matrix": (8, 3), "bias": (3,)}
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.randn(shape)))
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places
        x = self.gain * x
        x = x + self.attention(x, x[:, :3], x[:, :3])[0]
        return torch.addmm(self.bias, x[:, 0], self.matrix) + x[:, 1] @ self.matrix


def chain(*layers):
    return torch.nn.Sequential(*layers)


nn = torch.nn
LAYERS = {
    "conv1d": (
        lambda: chain(nn.Conv1d(2, 4, 3, padding="same", dilation=2), nn.GELU(), nn.Flatten(), nn.Linear(36, 2)),
        (2, 9),
    ),
    "conv2d": (
        lambda: chain(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, (3, 1), groups=2, padding="same"),
            nn.Flatten(),
            nn.Linear(64, 2),
        ),
        (2, 9, 9),
    ),
    "conv3d": (
        lambda: chain(nn.Conv3d(2, 4, 2, stride=(1, 2, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(96, 2)),
        (2, 4, 4, 5),
    ),
    "transposed": (
        lambda: chain(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(147, 2)),
        (2, 3, 3),
    ),
    "batch": (
        lambda: chain(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(36, 2)),
        (2, 5, 5),
    ),
    "norms": (
        lambda: chain(
            nn.LayerNorm([2, 5, 5]),
            nn.GroupNorm(1, 2),
            nn.InstanceNorm2d(2, affine=True),
            nn.Flatten(),
            nn.RMSNorm(50),
            nn.Linear(50, 2),
        ),
        (2, 5, 5),
    ),
    "encoder": (
        lambda: chain(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
            nn.Flatten(),
            nn.Linear(40, 2),
        ),
        (5, 8),
    ),
    "lstm": (lambda: Recurrent(nn.LSTM), (5, 4)),
    "gru": (lambda: Recurrent(nn.GRU), (5, 4)),
    "prelu": (lambda: chain(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 2)), (4,)),
    "weight_norm": (
        lambda: chain(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)),
        (4,),
    ),
    "bilinear": (lambda: Twice(nn.Bilinear(4, 4, 2)), (4,)),
    "vision": (Vision, (5, 8)),
    "compiled": (lambda: chain(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (4,)),
}


class Twice(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x, x)


def written(module, X, of=lambda outputs: outputs):
    """(n, c, P) by one backward pass for every output of every row, and the sizes of the parameters by name."""
    rows = []
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    n = len(next(iter(X.values())) if isinstance(X, dict) else X)
    for i in range(n):
        row = (
            {k: torch.tensor(v[i : i + 1]) for k, v in X.items()} if isinstance(X, dict) else torch.tensor(X[i : i + 1])
        )
        values = of(module(**row) if isinstance(X, dict) else module(row)).reshape(-1)
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        found = [torch.autograd.grad(value, list(trained.values()), **options) for value in values]
        rows.append([torch.cat([g.flatten() for g in one]).numpy() for one in found])
    return np.array(rows), {name: p.numel() for name, p in trained.items()}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_gives_the_kernel_of_its_jacobian(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    module = make().double().eval()
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((4, *shape)), rng.standard_normal((3, *shape))
    (a, sizes), (b, _) = written(module, X), written(module, Y)
    full = np.einsum("nap,mbp->nmab", a, b)
    kernel = widelimit.torch.empirical_ntk(torch.compile(module, backend="eager") if name == "compiled" else module)
    found = kernel.cross(X, Y)
    assert close(found, full)
    # Controls: a weight turned round, a bias left out, both by the places of the parameters.
    cuts = np.cumsum([0, *sizes.values()])
    weight = max(range(len(sizes)), key=lambda k: cuts[k + 1] - cuts[k])
    turned = a.copy()
    turned[..., cuts[weight] : cuts[weight + 1]] = turned[..., cuts[weight] : cuts[weight + 1]][..., ::-1]
    assert not close(np.einsum("nap,mbp->nmab", turned, b), found)
    for k, parameter in enumerate(sizes):
        part = np.einsum("nap,mbp->nmab", a[..., cuts[k] : cuts[k + 1]], b[..., cuts[k] : cuts[k + 1]])
        assert close(found - part, full - part)
        unused = np.abs(part).max() <= 64 * EPS * np.abs(full).max()  # keys' bias in attention changes nothing
        assert unused or not close(found - part, full), parameter
    parts = kernel.parts(X, Y, by="parameter")
    assert set(parts) == set(sizes)
    assert close(sum(parts.values()), full)
    trace = widelimit.torch.empirical_ntk(module, output="trace").gram(X)
    assert close(trace, np.einsum("nap,map->nm", a, a) / a.shape[1])


def test_tokens_masks_tied_weights_and_dictionaries():
    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(0, 11, (4, 5))
    mask = np.zeros((4, 5), bool)
    mask[1, 3] = mask[2, :2] = True
    for tied in (True, False):
        module = Language(tied=tied).double().eval()
        for X in (tokens, {"tokens": tokens, "mask": mask}):
            a, _ = written(module, X, lambda outputs: outputs["logits"])
            full = np.einsum("nap,mbp->nmab", a, a)
            assert close(widelimit.torch.empirical_ntk(module).gram(X), full)
        plan = widelimit.torch.empirical_ntk(module).explain(tokens)
        assert {layer.how for layer in plan.layers}.isdisjoint({"autograd"})
    loose = Language(tied=False).double().eval()
    loose.load_state_dict(Language(tied=True).double().state_dict())
    apart = widelimit.torch.empirical_ntk(loose).gram(tokens)
    loose.head.weight = loose.table.weight  # the tie adds the products of both uses, once each way
    a, _ = written(loose, tokens, lambda outputs: outputs["logits"])
    assert not close(apart, np.einsum("nap,mbp->nmab", a, a))
    # A function of the outputs: the log-probability of the last token.
    of = lambda outputs, X: torch.log_softmax(outputs["logits"], 1).gather(1, X[:, -1:])[:, 0]  # noqa: E731
    found = widelimit.torch.empirical_ntk(loose, of=of, output="trace").gram(tokens)
    rows = [
        written(loose, tokens[i : i + 1], lambda o, i=i: torch.log_softmax(o["logits"], 1)[0, tokens[i, -1]])[0][0]
        for i in range(4)
    ]
    a = np.array(rows)
    assert close(found, np.einsum("nap,map->nm", a, a))


def test_axes_of_outputs_of_any_rank():
    torch.manual_seed(0)
    module = chain(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 12), nn.Unflatten(1, (2, 3, 2))).double()
    X, Y = np.random.default_rng(0).standard_normal((2, 3, 4))
    a, b = (written(module, Z)[0].reshape(3, 2, 3, 2, -1) for Z in (X, Y))
    door = widelimit.torch.empirical_ntk
    assert close(door(module).cross(X, Y), np.einsum("nap,mbp->nmab", a.reshape(3, 12, -1), b.reshape(3, 12, -1)))
    assert close(door(module, output="diagonal").cross(X, Y), np.einsum("nijkp,mijkp->nmijk", a, b).reshape(3, 3, 12))
    cases = [
        ({"trace_axes": (-1,)}, "nijkp,mabkp->nmiajb", 2),
        ({"trace_axes": (0,), "diagonal_axes": (2,)}, "nijkp,mibkp->nmjbk", 2),
        ({"trace_axes": (0, 1), "diagonal_axes": (-1,)}, "nijkp,mijkp->nmk", 6),
        ({"diagonal_axes": (1,)}, "nijkp,majbp->nmiajkb", 1),
        ({"trace_axes": (0, 1, 2)}, "nijkp,mijkp->nm", 12),
    ]
    for options, rule, divisor in cases:
        kernel = door(module, **options)
        assert close(kernel.cross(X, Y), np.einsum(rule, a, b) / divisor)
        assert not close(kernel.cross(X, Y), np.einsum(rule, b, a) / divisor)
        assert close(kernel.gram(X), np.einsum(rule, a, a) / divisor)
        own = np.einsum(rule, a, a) / divisor
        assert close(kernel.diag(X), own[np.arange(3), np.arange(3)])
    with pytest.raises(ValueError, match="trace_axes has 3"):
        door(module, trace_axes=(3,)).gram(X)
    with pytest.raises(ValueError, match="same thing"):
        door(module, output="trace", trace_axes=(1,))


def test_parameters_by_name_and_kernels_of_parts():
    torch.manual_seed(0)
    module = chain(chain(nn.Linear(4, 5), nn.Tanh()), chain(nn.Linear(5, 5), nn.Tanh()), nn.Linear(5, 2)).double()
    X = np.random.default_rng(0).standard_normal((N, 4))
    a, sizes = written(module, X)
    cuts = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1], strict=True))

    def part(*names):
        return sum(np.einsum("nap,mbp->nmab", *2 * [a[..., cuts[k] : cuts[k] + sizes[k]]]) for k in names)

    door = widelimit.torch.empirical_ntk
    assert close(door(module, parameters=["0.*", "2.bias"]).gram(X), part("0.0.weight", "0.0.bias", "2.bias"))
    assert close(
        door(module, parameters=lambda name: name.endswith("bias")).gram(X), part("0.0.bias", "1.0.bias", "2.bias")
    )
    found = door(module, output="trace").parts(X, by="block")
    assert list(found) == ["0", "1", "2"]
    assert close(found["1"], np.einsum("nmaa->nm", part("1.0.weight", "1.0.bias")) / 2)
    assert set(door(module).parts(X, by="layer")) == {"0.0", "1.0", "2"}
    with pytest.raises(ValueError, match="names no trainable parameter"):
        door(module, parameters="3.*")
    with pytest.raises(ValueError, match="by must be"):
        door(module).parts(X, by="row")


def test_the_plan_predicts_and_progress_is_reported():
    torch.manual_seed(0)
    module = chain(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    X = np.random.default_rng(0).standard_normal((N, 1, 5, 5)).astype(np.float32)
    seen = []
    kernel = widelimit.torch.empirical_ntk(module, output="trace", memory=2e-4, progress=lambda *a: seen.append(a))
    plan = kernel.explain(X)
    assert 0 < plan.seconds < 10
    assert {layer.name for layer in plan.layers} == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert "0.weight" in str(plan)
    kernel.gram(X)
    assert seen[-1] == ("kernel matrix", plan.steps, plan.steps)
    assert [e[1] for e in seen if e[0] == "kernel matrix"] == [*range(1, int(plan.steps) + 1)]
    assert [e for e in seen if e[0] == "gradients"][-1][1:] == (N, N)


class Bad(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner, self.function = nn.Linear(4, 2), function

    def forward(self, x):
        return self.function(self.inner(x))


def test_bad_modules_and_inputs_of_any_form():
    door, X = widelimit.torch.empirical_ntk, np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"int64.*of=lambda"):
        door(Bad(lambda x: x.argmax(1))).gram(X)
    with pytest.raises(TypeError, match="mixed precision"):
        door(Autocast()).gram(X)
    with pytest.raises(ValueError, match="same number of rows"):
        door(Twice(nn.Bilinear(4, 4, 2))).gram((X, X[:1]))
    with pytest.raises(ValueError, match="training mode"):
        door(nn.TransformerEncoderLayer(8, 2, 16))
    with pytest.raises(ValueError, match="max_norm"):
        door(nn.Embedding(4, 2, max_norm=1.0))
    with pytest.raises(ValueError, match=r"one device.*meta"):
        door(chain(nn.Linear(4, 2), nn.Linear(2, 2, device="meta")))
    with pytest.raises(ValueError, match=r"X is on meta \(32 bytes\), and the module on cpu"):
        door(nn.Linear(4, 2)).gram(torch.ones(2, 4, device="meta"))
    with pytest.raises(TypeError, match="float16"):
        door(nn.Linear(4, 2)).gram(torch.ones(2, 4).half())
    with pytest.raises(ValueError, match="NaN or infinite"):
        door(nn.Linear(4, 2)).gram(X * np.nan)
    deep = chain(nn.Linear(4, 2), Bad2(), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"row 0 of X is NaN or infinite, from 0\.bias back to the inputs"):
        door(deep).gram(X)


class Autocast(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x).float()


class Bad2(torch.nn.Module):
    def forward(self, x):
        return (x - x.detach()).norm(dim=1, keepdim=True).sqrt() + x


def test_images_and_tokens_go_through_inference_and_to_disk(tmp_path):
    torch.manual_seed(0)
    module = chain(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)).double()
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((N, 1, 5, 5)), rng.standard_normal((N, 2))
    full, trace = (widelimit.torch.empirical_ntk(module, output=name) for name in ("full", "trace"))
    assert np.abs(wl.gradient_flow(full, X, y).predict(X, np.inf) - y).max() < 1e-8
    assert np.abs(wl.posterior(trace, X, y).mean(X) - y).max() < 1e-8
    assert close((trace + 2.0 * trace).gram(X), 3 * trace.gram(X))
    stored = wl.stored_gram(trace, X, tmp_path / "k.zarr")
    assert close(stored[:], trace.gram(X))
    with torch.no_grad():
        module[0].weight.mul_(1.5)
    other = widelimit.torch.empirical_ntk(module, output="trace")
    with pytest.raises(ValueError, match=r"k\.zarr"):  # the matrix of other parameters
        wl.stored_gram(other, X, tmp_path / "k.zarr")
    tokens = rng.integers(0, 11, (4, 5))
    language = widelimit.torch.empirical_ntk(Language().double().eval(), output="trace")
    targets = np.arange(4.0)
    assert np.abs(wl.posterior(language, tokens, targets).mean(tokens) - targets).max() < 1e-8
