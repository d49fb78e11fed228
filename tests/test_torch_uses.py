"""Tangent kernels of PyTorch modules that use their parameters in unusual ways, against explicit Jacobians."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import widelimit.torch  # noqa: E402
from test_torch import oracle  # noqa: E402

nn = torch.nn


class Own(nn.Module):
    """A module of some parameters, whose forward pass is a function of it and its input."""

    def __init__(self, function, **shapes):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, dtype=torch.float64)))

    def forward(self, x):
        return self.function(self, x)


def force(self, x):
    x = x.requires_grad_()
    return torch.autograd.grad(torch.tanh(x @ self.w).sum(), x, create_graph=True)[0]


def assigned(self, x):
    out = x @ self.u
    out[:, 0] = self.w
    return out


def attended(self, x):
    y = x.reshape(len(x), 2, 2)
    return nn.functional.scaled_dot_product_attention(self.w.expand(len(x), -1, -1), y @ self.u, y @ self.u).flatten(1)


def masked(self, x):
    y = x.reshape(len(x), 2, 2) @ self.u
    return nn.functional.scaled_dot_product_attention(y, y, y, attn_mask=self.w).flatten(1)


def penalised(self, x):
    return nn.functional.linear(torch.tanh(nn.functional.linear(x, self.w)), self.u) * self.w.norm()


def tied(self, x):
    return nn.functional.linear(torch.tanh(nn.functional.linear(x, self.w)), self.w.t())


def overlapping(self, x):
    return nn.functional.linear(x, self.w) + nn.functional.linear(x[:, :2], self.w[:, 1:3])


def filtered(self, x):
    return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(self.w), n=4) @ self.u


W, U = {"w": (4, 2)}, {"u": (4, 2)}
UNUSUAL = {
    "derivatives in the forward pass": (force, W),
    "a parameter as the query": (attended, {"w": (2, 2), "u": (2, 2)}),
    "a parameter as the mask": (masked, {"w": (2, 2), "u": (2, 2)}),
    "known and unknown uses": (lambda m, x: torch.tanh(torch.tanh(x + m.w) + m.u) * m.w.sin(), {"w": (4,), "u": (4,)}),
    "a weight and its norm": (penalised, {"w": (3, 4), "u": (2, 3)}),
    "a weight and its transpose": (tied, {"w": (3, 4)}),
    "overlapping parts": (overlapping, {"w": (3, 4)}),
    "Fourier transforms": (filtered, {"w": (4,), **U}),
    "complex numbers": (lambda m, x: (x.to(torch.complex128) @ torch.complex(m.w, m.u)).abs() ** 2, W | U),
    "an assignment": (assigned, {"w": (1,), **U}),
    "windows of a parameter": (lambda m, x: nn.functional.linear(x, m.w.unfold(0, 4, 1)), {"w": (6,)}),
    "a bias for all outputs": (lambda m, x: nn.functional.linear(x, m.w, m.u), {"w": (3, 4), "u": (1,)}),
    "addmm with factors": (lambda m, x: torch.addmm(m.u, x, m.w, beta=2.0, alpha=3.0), {"w": (4, 3), "u": (3,)}),
    "names of arguments": (lambda m, x: torch.add(x, other=m.u) @ m.w, {"w": (4, 3), "u": (4,)}),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_uses_that_no_rule_knows_are_right(case):
    function, shapes = UNUSUAL[case]
    module = Own(function, **shapes)
    X, Y = np.random.default_rng(0).standard_normal((2, 3, 4))
    full, wanted = widelimit.torch.empirical_ntk(module).cross(X, Y), oracle(module, X, Y)
    assert np.abs(full - wanted).max() <= 1e-12 * np.abs(wanted).max()
    assert np.abs(1.01 * full - wanted).max() > 1e-12 * np.abs(wanted).max()


class Doubled(torch.autograd.Function):
    """2 x w, whose derivatives are its own."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return 2 * x * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return 2 * g * w, (2 * g * x).sum(0)


HIDDEN = {
    "own derivatives": (lambda m, x: Doubled.apply(x, m.w) @ m.u, {"w": (4,), "u": (4, 2)}),
    "overlapping strides, which vmap takes otherwise": (lambda m, x: x @ m.w.as_strided((4, 3), (1, 1)), {"w": (6,)}),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_uses_that_cannot_be_followed_are_refused(case):
    function, shapes = HIDDEN[case]
    module = Own(function, **shapes)
    with pytest.raises(ValueError, match="derivative by parameter w cannot be followed"):
        widelimit.torch.empirical_ntk(module).gram(np.eye(4))


@pytest.mark.parametrize(
    "noise",
    [lambda h: nn.functional.dropout(h, 0.5), lambda h: h * (1 + 0.1 * torch.randn_like(h))],
    ids=["drop", "add"],
)
def test_modules_with_chance_in_their_functions_are_refused(noise):
    module = Own(lambda m, x: noise(x @ m.w), w=(4, 5))
    with pytest.raises(ValueError, match="the module is random"):
        widelimit.torch.empirical_ntk(module).gram(np.eye(4))


CHANGES = {
    "signs": lambda w: w.neg_(),
    "order": lambda w: w.copy_(w.flip(0)),
    "data": lambda w: w.data.copy_(w.data[[2, 0, 1]]),
    "size": lambda w: w.mul_(2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_parameter_is_seen(change):
    module = Own(lambda m, x: x @ m.w.t(), w=(3, 4))
    kernel = widelimit.torch.empirical_ntk(module)
    kernel.gram(np.eye(4))
    with torch.no_grad():
        CHANGES[change](module.w)
    with pytest.raises(ValueError, match="changed after the kernel was made"):
        kernel.gram(np.eye(4))


def test_another_layer_is_seen():
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    kernel = widelimit.torch.empirical_ntk(module)
    module[1] = nn.ReLU()
    with pytest.raises(ValueError, match="a layer of the module changed"):
        kernel.gram(np.eye(4))


class Shifted(nn.Module):
    """A float32 layer times a difference that a float64 buffer holds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("s", torch.tensor(1 + 1e-12, dtype=torch.float64))

    def forward(self, x):
        return self.layer(x) * ((self.s - 1) * 1e12).float()


def test_a_buffer_keeps_its_digits():
    module, X = Shifted(), np.eye(4, dtype=np.float32)
    own = widelimit.torch.empirical_ntk(module.layer, output="trace").gram(X)
    np.testing.assert_allclose(widelimit.torch.empirical_ntk(module, output="trace").gram(X), own, rtol=1e-3)


class Recomputed(nn.Module):
    """A layer whose signals are computed again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False))


REFUSED = {
    "recomputed": (lambda: Recomputed(), "gradient_checkpointing_disable"),
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 3))), "pass the module that was scripted"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "0.weight of a lazy layer has no values yet: call module"),
    "complex": (lambda: nn.Linear(4, 2, dtype=torch.complex128), "is torch.complex128; .*real and imaginary parts"),
    "vmap": (
        lambda: Own(lambda m, x: torch.func.vmap(torch.func.grad(lambda z: torch.tanh(z @ m.w).sum()))(x), w=(4, 2)),
        "cannot be differentiated: .*without torch.func inside",
    ),
    "gradients": (
        lambda: Own(lambda m, x: torch.func.grad(lambda z: torch.tanh(z @ m.w).sum())(x), w=(4, 2)),
        "cannot be differentiated: .*without torch.func inside",
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:Lazy modules")
@pytest.mark.parametrize("case", REFUSED)
def test_modules_that_show_no_functions_or_values_are_refused_in_one_line(case):
    make, message = REFUSED[case]
    module = make()
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        widelimit.torch.empirical_ntk(module if case == "lazy" else module.double()).gram(np.eye(4))
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["CUDA error: an illegal access", "sizes (2x3 and 4x5)", "not enough memory"])
def test_errors_of_the_machine_or_the_module_pass_unchanged(fault):
    broken = []

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        @staticmethod
        def backward(_, g):
            if broken:
                raise RuntimeError(broken[0])
            return g

    kernel = widelimit.torch.empirical_ntk(Own(lambda m, x: Failing.apply(x @ m.w), w=(4, 2)))
    np.testing.assert_allclose(kernel.gram(np.eye(4)), np.eye(4)[..., None, None] * np.eye(2))
    broken.append(fault)
    with pytest.raises(RuntimeError) as caught:
        kernel.gram(np.eye(4))
    assert str(caught.value) == fault
    assert caught.value.__cause__ is not caught.value


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_gradients_and_outputs_without_an_axis_are_taken(sparse):
    torch.manual_seed(0)
    table, head = nn.Embedding(7, 3, sparse=sparse), nn.Linear(3, 1)

    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = table, head

        def forward(self, tokens):
            return self.head(torch.tanh(self.table(tokens).sum(1))).squeeze()  # (): no axis for one row

    module, tokens = Squeezed().double(), np.array([[0, 1], [2, 1], [5, 6]])
    rows = []
    for row in torch.tensor(tokens):
        found = torch.autograd.grad(module(row[None]), list(module.parameters()))
        rows.append(torch.cat([g.to_dense().flatten() for g in found]).numpy())
    wanted = np.array(rows) @ np.array(rows).T
    for values in (
        widelimit.torch.empirical_ntk(module, output="trace").gram(tokens),
        widelimit.torch.tangents(module).at(tokens).matrix(),
    ):
        assert np.abs(values - wanted).max() <= 1e-12 * wanted.max()
        assert np.abs(1.01 * values - wanted).max() > 1e-12 * wanted.max()
