"""The gradients of PyTorch modules: equal to those of the same function in JAX, and refused where they are none."""

import contextlib
import copy

import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl

torch = pytest.importorskip("torch")

from widelimit.torch import tangents  # noqa: E402
from widelimit.torch.bits import bits  # noqa: E402

EPS = np.finfo(np.float64).eps
RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 6))
LABELS = np.arange(30) % 4


def close(values, expected, factor=256):
    assert np.shape(values) == np.shape(expected)
    return np.abs(values - expected).max() <= factor * EPS * np.abs(expected).max()


def dense():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, 4)).double()


def apply(params, X):
    return jnp.tanh(X @ params[0].T + params[1]) @ params[2].T + params[3]


MODULE = dense()
PARAMS = [p.detach().numpy() for p in MODULE.parameters()]


@pytest.mark.parametrize(("of", "labels"), [(None, None), ("margin", LABELS), ("log_probability", LABELS)])
@pytest.mark.parametrize("output", ["full", "trace"])
def test_both_frameworks_have_one_kernel_and_one_sketch(of, labels, output):
    theirs, own = tangents(MODULE, of=of), wl.tangents(apply, PARAMS, of=of)
    rows, same = theirs.at(X, labels, output=output), own.at(X, labels, output=output)
    assert close(rows.values, same.values)
    assert close(rows.matrix(), same.matrix())
    v = RNG.standard_normal((rows.size, 2))
    assert close(rows.product(v), same.matrix() @ v)
    sketched = theirs.sketch(X, labels, output=output, size=64, seed=3)
    assert close(sketched.features, own.sketch(X, labels, output=output, size=64, seed=3).features)
    assert not close(sketched.features, own.sketch(X, labels, output=output, size=64, seed=4).features)


class Attention(torch.nn.Module):
    """A small transformer on token ids with a mask, called with a dictionary, its embedding tied to its head."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.embedding = torch.nn.Embedding(11, 8)
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = torch.nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens, mask):
        hidden = self.layer(self.embedding(tokens), src_key_padding_mask=mask)
        return {"logits": self.head(hidden[:, 0])}


def jacobian(values, module):
    parameters = [p for p in module.parameters() if p.requires_grad]
    rows = [
        torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for v in values.flatten()
    ]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).numpy()


def test_tokens_masks_tied_weights_and_images():
    torch.manual_seed(1)
    module = Attention().double().eval()
    data = {"tokens": RNG.integers(0, 11, (5, 7)), "mask": np.arange(7)[None] >= RNG.integers(3, 8, (5, 1))}
    rows = tangents(module, of=lambda outputs, X: outputs["logits"][:, :3]).at(data)
    J = jacobian(module(*(torch.tensor(v) for v in data.values()))["logits"][:, :3], module)
    assert close(rows.matrix(), J @ J.T)
    v = RNG.standard_normal(15)
    assert close(rows.product(v), J @ (J.T @ v))
    images = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3),
        torch.nn.BatchNorm2d(3),
        torch.nn.ReLU(inplace=True),
        torch.nn.Flatten(),
        torch.nn.Linear(27, 2),
    ).double()
    images[4].bias.requires_grad_(False)
    images.eval()
    points = RNG.standard_normal((4, 2, 5, 5))
    J = jacobian(images(torch.tensor(points)), images)
    found = tangents(images)
    assert close(found.at(points).matrix(), J @ J.T)
    assert close(found.sketch(points, size=1000).matrix(), J @ J.T)  # more dimensions than parameters


def test_training_moves_the_kernel_and_a_callback_sees_it():
    module, drift = dense(), wl.KernelDrift(X[:8])
    drift(tangents(module))
    before = tangents(module).at(X[:8])
    with torch.no_grad():
        module[2].weight *= 2
    drift(tangents(module))
    assert drift.change[0] == 0 < drift.change[1]
    assert drift.alignment[1] < 1
    del before


def test_bad_modules_are_refused_with_the_reason():
    frozen = dense().requires_grad_(False)
    half = dense().half()
    broken = dense()
    broken[0].weight.data[0, 0] = float("nan")
    training = torch.nn.Sequential(dense(), torch.nn.Dropout()).train()

    class Centred(torch.nn.Module):
        def forward(self, X):
            return MODULE(X - X.mean(0))

    class Root(torch.nn.Module):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, X):
            return (X[:, :1] * self.scale).abs().sqrt()

    centred = Centred()
    centred.inner = MODULE
    points = X.copy()
    points[9, 0] = 0
    for call, error, words in (
        (lambda: tangents(apply), TypeError, r"torch.nn.Module is needed"),
        (lambda: tangents(frozen), ValueError, "no trainable"),
        (lambda: tangents(half), TypeError, r"0.weight is torch.float16"),
        (lambda: tangents(broken), ValueError, r"0.weight has entries"),
        (lambda: tangents(training), ValueError, r"module.eval"),
        (lambda: tangents(centred).at(X), ValueError, "mixes rows"),
        (lambda: tangents(MODULE).at(X[:, :5]), ValueError, "fails for X"),
        (lambda: tangents(MODULE).at(X.astype(np.float32)), TypeError, "float32"),
        (lambda: tangents(MODULE, of=lambda outputs, X: outputs.sum()).at(X), ValueError, "row of outputs"),
        (lambda: tangents(Root()).at(points).matrix(), ValueError, "scale at row 9 of X"),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        assert len(str(caught.value)) < 400


def test_labels_are_classes():
    model = tangents(MODULE, of="margin")
    expected = model.at(X, LABELS).values
    for same in (LABELS.astype(float), LABELS.astype(np.uint8), torch.tensor(LABELS)):
        assert np.array_equal(model.at(X, same).values, expected)
    for bad, words in ((-1, "row 2 is -1"), (4, "row 2 is 4; a label is below 4"), (0.9, "row 2 is 0.9")):
        with pytest.raises(ValueError, match=words):
            model.at(X, np.where(np.arange(30) == 2, bad, LABELS))


def test_a_module_that_was_trained_since_is_refused_and_a_copy_is_not():
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 4)).double().eval()

    def sign():
        module[2].weight[:2] *= -1

    def order():
        module[2].bias.copy_(module[2].bias.flip(0))

    def statistics():
        module[1].running_mean += 0.5

    def layer():
        module[1] = torch.nn.Identity()

    for change in (sign, order, statistics, layer):
        model, kept = tangents(module), tangents(copy.deepcopy(module))
        rows, sketch, same = model.at(X), model.sketch(X, size=8), kept.at(X)
        values = same.matrix()
        with torch.no_grad():
            change()
        again = tangents(module)
        for call in (
            rows.matrix,
            rows.diag,
            lambda rows=rows: rows.product(np.ones(120)),
            lambda rows=rows: rows.matrix(again.at(X)),  # noqa: B023
            lambda model=model: model.at(X),
            lambda sketch=sketch: sketch.matrix(again.sketch(X, size=8)),  # noqa: B023
            lambda rows=rows: wl.linearized_posterior(rows, np.ones((30, 4)), noise=1.0),
        ):
            with pytest.raises(ValueError, match=r"copy\.deepcopy"):
                call()
        assert np.array_equal(same.matrix(), values)
        assert not close(again.at(X).values, rows.values)
    spectral = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(6, 3)).double()
    with pytest.raises(ValueError, match=r"module\.eval"):
        tangents(spectral).at(X)
    assert tangents(spectral.eval()).at(X).product(np.ones(90)).shape == (90,)
    frozen = dense()
    frozen[0].weight.requires_grad_(False)
    rows = tangents(frozen).at(X)
    frozen[0].weight.data.mul_(2)
    with pytest.raises(ValueError, match="has changed"):
        rows.matrix()


def test_the_hash_of_bits_sees_signs_and_order():
    found = {bits(torch.tensor([], dtype=torch.float64))}
    values = torch.tensor([[0.0, 1.0, 2.0, -3.0]], dtype=torch.float64)
    changes = [values, -values, values.flip(1), values * torch.tensor([1, -1, -1, 1]), values.roll(1), values + 1e-15]
    for kind in (torch.float64, torch.float32, torch.bfloat16):
        found |= {bits(v.to(kind)) for v in changes}
        assert bits(values.T.to(kind)) == bits(values.to(kind).clone())
    assert len(found) == 19
    long = torch.zeros(2**18 + 5)
    moved = [long.clone(), long.clone(), long.clone()]
    for part, place in zip(moved, (0, 2**18, 2**18 + 4), strict=True):
        part[place] = 1
    assert len({bits(part) for part in (long, *moved)}) == 4


class Last(torch.nn.Module):
    """The last output of a recurrent layer, which has no rule for many rows at once."""

    def __init__(self, kind):
        torch.nn.Module.__init__(self)
        self.inner, self.head = kind(6, 3, batch_first=True), torch.nn.Linear(3, 2)

    def forward(self, X):
        return self.head(self.inner(X)[0][:, -1])


class Bag(torch.nn.Module):
    """A bag of tokens, without forward derivatives."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.inner, self.head = torch.nn.EmbeddingBag(11, 3), torch.nn.Linear(3, 2)

    def forward(self, tokens):
        return self.head(torch.tanh(self.inner(tokens)))


class Slope(torch.nn.Module):
    """The derivative by the inputs, by `torch.autograd.grad` inside."""

    def __init__(self, enabled, graph):
        torch.nn.Module.__init__(self)
        self.inner, self.enabled, self.graph = torch.nn.Linear(6, 3), enabled, graph

    def forward(self, X):
        with torch.enable_grad() if self.enabled else contextlib.nullcontext():
            X = X.detach().requires_grad_(self.enabled)
            return torch.autograd.grad(torch.tanh(self.inner(X)).sum(), X, create_graph=self.graph)[0]


SERIES, TOKENS = RNG.standard_normal((5, 4, 6)), RNG.integers(0, 11, (5, 4))


@pytest.mark.parametrize(
    ("make", "points"),
    [
        *((lambda kind=kind: Last(kind), SERIES) for kind in (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN)),
        (Bag, TOKENS),
        (lambda: torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 3)), X[:5]),
        (lambda: Slope(True, True), X[:5]),
    ],
)
def test_layers_without_rules_are_taken_row_by_row(make, points):
    torch.manual_seed(2)
    module = make().double()
    J = jacobian(module(torch.tensor(points)), module)
    model = tangents(module)
    rows = model.at(points)
    assert close(rows.matrix(), J @ J.T)
    v = RNG.standard_normal((len(J), 2))
    assert close(rows.product(v), J @ (J.T @ v))
    assert close(model.sketch(points, size=1000).matrix(), J @ J.T)


def test_derivatives_inside_that_cannot_be_followed_are_refused():
    for enabled, graph, words in ((False, True, r"torch\.func\.grad"), (True, False, "no trainable parameter")):
        with pytest.raises(ValueError, match=words):
            tangents(Slope(enabled, graph).double()).at(X)


class Random(torch.nn.Module):
    def __init__(self, change):
        torch.nn.Module.__init__(self)
        self.inner, self.change = dense(), change

    def forward(self, X):
        return self.change(self.inner(X))


def test_random_functions_are_refused():
    def scaled(values):  # the outputs are 0 whatever is drawn, their gradients are not
        return (values - values.detach()) * torch.rand(1)

    for change in (
        torch.nn.functional.dropout,
        lambda values: torch.nn.functional.dropout(values, 0.05),
        lambda values: values + 1e-6 * torch.randn(values.shape),
        scaled,
    ):
        for use in (lambda model: model.at(X), lambda model: model.sketch(X)):
            with pytest.raises(ValueError, match="the model is random"):
                use(tangents(Random(change)))
    rare = tangents(Random(lambda values: values + (torch.rand(1) < 1e-9)))
    with pytest.raises(ValueError, match="draws random numbers"):
        rare.at(X).matrix()


def test_products_leave_the_row_of_padding_out_as_gradients_do():
    torch.manual_seed(0)
    table, head = torch.nn.Embedding(7, 4, padding_idx=0), torch.nn.Linear(4, 7, bias=False)
    head.weight = table.weight
    module = torch.nn.Sequential(
        table, torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Unflatten(1, (3, 4)), head
    ).double()
    ids = np.array([[0, 1, 2], [3, 0, 0], [5, 6, 1]])
    rows = tangents(module, of=lambda outputs, X: outputs.logsumexp((1, 2))).at(ids)
    right = rows.matrix() @ np.ones(3)
    assert np.abs(rows.product(np.ones(3)) - right).max() <= 64 * np.finfo(float).eps * np.abs(right).max()
