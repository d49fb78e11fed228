"""The text of a network is read back to the bit, executes nothing, and says what is wrong where."""

import pickle
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from cases import IMAGE_NETWORKS
from test_architectures import TREES
from widelimit.activations.names import BY_NAME
from widelimit.inference.coordinates import leaf_builder
from widelimit.layers import Concatenate, Dense, Dropout, Frozen, LayerNorm, Repeat, Residual, Scale, Serial, Sum
from widelimit.network_text import LONGEST, network_text
from widelimit.pytrees import leaf_names

EPS = np.finfo(np.float64).eps
W, B = 0.1 + 0.2, 1 / 3
ACTIVATIONS = [
    *(wl.elu(2.0, length=W), wl.LeakyRelu(np.float32(0.3)), wl.LeakyRelu(jnp.float32(0.3)), wl.ABRelu(0.1, W)),
    *(wl.Polynomial([0.0, 1.0, W]), wl.Erf(1.5, 2.0, 0.1), wl.PiecewisePolynomial((0.0,), ((0.0,), (0.0, B, 1.0)))),
    *(wl.RectifiedPower(3), wl.Hermite(4), wl.Monomial(3), wl.Sin(1.2, 0.4), wl.Snake(W), wl.Rbf(W), wl.Cos(2.0)),
    *(wl.Gaussian(W, 0.4), wl.Exp(W, 0.2), wl.activation(lambda u: jnp.maximum(u, -1.0), kinks=(-1.0,))),
]
NETWORKS = [
    *(wl.network(*layers) for layers, _ in TREES.values()),
    *(wl.network(*layers, inputs=wl.Image(*shape)) for shape, layers, _ in IMAGE_NETWORKS.values()),
    *(wl.mlp(depth=3, activation=name, weight_std=W, bias_std=B) for name in BY_NAME),
    *(wl.network(Dense(), phi, Dense()) for phi in ACTIVATIONS),
    *(wl.mlp(depth=3, parameterization=kind) for kind in ("standard", "mean_field", "mup")),
    wl.mlp(depth=3, parameterization="mup", base_width=64),
    *(wl.resmlp(blocks=3, branch_scale="depth", parameterization="standard"), wl.mlp(depth=3, weight_std=[1, 2, W])),
    *(wl.mlp(depth=1, weight_std=1e250), wl.mlp(depth=1, weight_std=1e-320)),
    wl.network(Dense(), Concatenate(["relu", Dense()], Dense(), shares=(np.float64(0.25), np.float32(0.75))), Dense()),
    wl.network(Dense(W, jnp.float32(B)), LayerNorm(), Dropout(np.float64(0.5)), Scale(2), Dense()),
    wl.network(Frozen(Serial(Dense(), "relu", Residual(Dense(2, 1)), Sum(Serial(), [Dense(W)]))), Dense()),
]


@pytest.mark.parametrize("net", NETWORKS, ids=[f"{i}" for i in range(len(NETWORKS))])
def test_a_network_is_its_text(net):
    text = network_text(net)
    again = wl.read_network(text)
    assert repr(again) == text == repr(net)
    (leaves, structure), (others, other) = jax.tree.flatten(net), jax.tree.flatten(again)
    assert structure == other
    assert [np.float64(a).tobytes() for a in leaves] == [np.float64(b).tobytes() for b in others]


def test_names_may_have_prefixes_and_lines():
    plain = wl.read_network("network(Dense(), Residual('relu', Dense(bias_std=.1)), Dense())")
    lines = [
        "",
        "  # mine",
        "wl.network(",
        "  widelimit.layers.Dense(),",
        " layers.Residual('relu', widelimit.layers.Dense(1, .1)),",
    ]
    text = "\n".join([*lines, "Dense())", ""])
    assert repr(wl.read_network(text)) == repr(plain)
    assert repr(wl.read_network('wl.mlp(depth=3, activation="erf")')) == repr(wl.mlp(depth=3, activation="erf"))
    assert wl.read_network("network(Dense(), wl.LeakyRelu(-0.5), Dense())").layers[1].activation.slope == -0.5


REFUSED = {
    "Dense()": "a network is needed",
    "  # nothing": "line 1, column 1: .* one expression is needed",
    "network(Dense(weight_std=1.0, weight_std=2.0))": "line 1, column 9: a keyword is given twice",
    "network(Dense(learning_rate=3.0))": r"'learning_rate'; write Dense\(weight_std=1.0, bias_std=0.0\)",
    "network(Dense(trained=False))": "unexpected keyword argument 'trained'",
    "network(Dense(), Activate('relu', refined=False), Dense())": "unexpected keyword argument 'refined'",
    "network(Dense(), Repeat(3, 2), Dense())": r"block\[0\]: neither a layer of wl.layers nor an activation",
    "network(Dense(), Repeat('relu', 2), Dense())": "an activation needs Gaussian signals",
    "network(Dense(), Conv(3, windows=1), Dense())": "write Conv",
    "network(Dense(), Concatenate(Dense(), shares=1), Dense())": "shares must be a sequence",
    "network(Dense(), PiecewisePolynomial(), Dense())": r"'kinks'; write PiecewisePolynomial\(kinks, pieces",
    "network(Dense(), PiecewisePolynomial(1, 2), Dense())": "kinks is a list of numbers",
    "network(Dense(), PiecewisePolynomial([0.0], [1.0, 2.0]), Dense())": "kinks is a list of numbers",
    "mlp(3)": r"too many positional arguments; write mlp\(depth, activation='relu'",
    f"{'x' * 3000}()": "is no layer or activation; known: network",
    f"network(Dense({'x' * 3000}=1))": r"write Dense\(weight_std=1.0, bias_std=0.0\)",
    "": "one expression is needed",
    "network(Dense(), 'relu'": r"line 1, column 8: '\(' was never closed",
    "net = network(Dense())": "line 1, column 5",
    "import os": "one expression is needed",
    "__import__('os').system('touch planted')": "is no layer or activation",
    "eval('1')": "line 1, column 1: 'eval' is no layer or activation",
    "wl.layers.Dense.__init__()": "is no layer or activation",
    "network(Dense(),\n  os.x, Dense())": "line 2, column 3: 'os.x' is no value",
    "network(Dense(nan))": "line 1, column 15: 'nan' is no value",
    "network(Dense(1e999))": "line 1, column 15: a number is not finite",
    "network(Dense(-1e999))": "is not finite",
    "network(Dense(), 'relu', Dense(-1.0))": "line 1, column 26: weight_std must be > 0, got -1",
    "network(Dense(weight_std=True))": "weight_std must be a real number",
    "network(Dense(weight=1))": "unexpected keyword argument 'weight'",
    "network(Dense(), *['relu'], Dense())": "line 1, column 18",
    "network(**{})": r"write name=value",
    "network(Dense(), f'relu', Dense())": "is no value",
    "network(Dense(), b'relu', Dense())": "is no value",
    "network(Dense(), lambda u: u, Dense())": "Lambda is no value",
    "network(Dense(), [c for c in 'ab'], Dense())": "ListComp is no value",
    "network(Dense(), 'nope', Dense())": r"layers\[1\]: unknown activation 'nope'",
    "network(Dense(), Sum('relu', 'erf'), Dense())": "are not independent",
    "network(Dense(), Hermite(10**9), Dense())": "BinOp is no value",
    "network(Dense(), Hermite(1000000000), Dense())": "degree must be below",
    "network(Dense(), PiecewisePolynomial((0.0,), ((0.0,), (0.0, 1.0)), None, 'x', [1]), Dense())": "positional",
    "mlp(depth=1000000000)": "depth must be below 100001",
    f"mlp(depth=9{'9' * 5000})": "limit",
    f"mlp(depth=0x{'f' * 100000})": "beyond 2",
    "network(Dense(), Repeat(['relu', Dense()], times=1000000000), Dense())": "times must be below 100001",
    "network(Dense(), Repeat(['relu', Dense()], times=-1), Dense())": "times must be at least 1",
    "network(Dense(), Repeat(['relu', Dense()], times=1.5), Dense())": "times must be an integer",
    "network(Dense(), Repeat([], 3), Dense())": "needs at least one layer",
    "network(Dense(), Repeat([Repeat(['relu', Dense()], 100000)], 100000), Dense())": "smaller times",
    f"network(Dense(), {'Repeat([' * 30}'relu', Dense(){'], 2)' * 30}, Dense())": "inside each other",
    f"network(Dense(), {'Repeat([' * 19}'relu', Dense(){'], 2)' * 19}, Dense())": "smaller times",
    f"network(Dense(), {'Residual(' * 50}Dense(){')' * 50}, Dense())": "more than 40 calls",
    "(" * 300: "too many nested parentheses",
    "-" * 100000 + "1": "cannot be read",
    "a." * 100000 + "b": "cannot be read",
    "1+" * 100000 + "1": "cannot be read",
    "x" * (LONGEST + 1): "at most 1048576 characters",
    "\0": "null bytes",
    "\ud800": "cannot be read",
}


@pytest.mark.parametrize("text", REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_any_other_text_is_refused_with_its_place(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=REFUSED[text]) as caught:
        wl.read_network(text)
    assert len(str(caught.value)) < 400
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layers", "place"),
    [
        ([jnp.sin], r"layers\[1\]"),
        (["relu", Dense(), Residual(lambda u: u**2, Dense())], r"layers\[3\]"),
        ([Residual(wl.activation(jnp.tanh, rtol=1e-9), Dense())], r"layers\[1\]"),
    ],
)
def test_a_function_is_no_text(layers, place):
    with pytest.raises(TypeError, match=f"^{place}: .* cannot be written as text") as caught:
        network_text(wl.network(Dense(), *layers, Dense()))
    assert len(str(caught.value)) < 400


def test_leaves_are_named_by_their_place():
    dense = Dense(1.3, 0.1)
    net = wl.network(dense, Residual("relu", dense), Repeat(["relu", dense], 3), Sum([dense], Serial()), dense)
    places = ("first", "layers[1].branch[1]", "layers[2].block[1]", "layers[3].branches[0][0]", "layers[4]")
    names = [f"net.{place}.{number}" for place in places for number in ("weight_std", "bias_std")]
    assert list(leaf_builder(wl.nngp(net))[1]) == names
    assert leaf_names(net) == tuple(name.replace("first", "layers[0]").removeprefix("net.") for name in names)
    tied = leaf_builder(wl.nngp(wl.mlp(depth=4)))[1]
    assert list(tied) == [
        f"net.{place}.{number}" for place in ("first", "block[1]") for number in ("weight_std", "bias_std")
    ]


def nested(depth, block='"relu", Dense()'):
    for _ in range(depth):
        block = f"Repeat([{block}], 2)"
    return f"network(Dense(), {block}, Dense())"


def test_blocks_in_blocks_are_visited_once_and_refused_by_their_size():
    start = time.process_time()
    with pytest.raises(ValueError, match=r"keep .* numbers of every input"):
        wl.read_network(nested(19))
    net = wl.read_network(nested(16))
    assert (net.depth, net.numbers_per_input > 2**17) == (2**16 + 2, True)
    assert wl.read_network(repr(net)) == net == pickle.loads(pickle.dumps(net))
    assert hash(net.layers) == hash(wl.network(*net.layers).layers)
    for made in (Frozen(Serial(*net.layers)), Residual(*net.layers[1:-1])):
        assert wl.network(Dense(), made, Dense()).depth >= net.depth
    shared = Serial("relu", Dense())
    for _ in range(30):  # 2^30 layers, of 30 objects
        shared = Sum(shared, Scale(0.5))
        shared = Repeat([Residual(shared)], 2)
    with pytest.raises(ValueError, match=r"keep .* numbers of every input"):
        wl.network(Dense(), shared, Dense())
    assert time.process_time() - start < 2


def test_blocks_in_blocks_are_layers_in_a_row():
    X = np.random.default_rng(0).standard_normal((4, 3))
    net, rows = (
        wl.read_network(nested(4)),
        [wl.network(Dense(), Repeat(["relu", Dense()], n), Dense()) for n in (16, 15)],
    )
    for a, b, c in zip(*(wl.limits(k).gram(X) for k in (net, *rows)), strict=True):
        assert np.abs(a - b).max() <= 64 * EPS * np.abs(b).max() < np.abs(a - c).max()
    params = net.init(0, input_dim=3, width=4)
    alone = [jax.random.split(jax.random.key(0), 2**5 + 2)[i] for i in (2, 6)]  # the dense layers 1 and 3 of 18
    for i, key in zip((2, 6), alone, strict=True):
        weight = Dense().init(key, 4, 4, np.float32)["weight"]
        assert np.array_equal(params[i]["weight"], weight)
