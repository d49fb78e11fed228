"""The gradients of PyTorch modules: equal to those of the same function in JAX, and refused where they are none."""

import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl

torch = pytest.importorskip("torch")

from widelimit.torch import tangents  # noqa: E402

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
