"""Kernels inside GPyTorch, BoTorch, tinygp and GPJax against posteriors of this library: `make test-libraries`."""

import pathlib
import re
import warnings

import numpy as np
import pytest

import widelimit as wl

for library in ("gpytorch", "botorch", "tinygp", "gpjax"):
    pytest.importorskip(library)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their imports
    import botorch.acquisition
    import botorch.fit
    import botorch.models.transforms
    import botorch.optim
    import gpjax
    import gpytorch
    import tinygp
    import torch

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from widelimit.libraries.gpjax import gpjax_kernel  # noqa: E402
from widelimit.libraries.gpytorch import gpytorch_kernel  # noqa: E402
from widelimit.libraries.tinygp import tinygp_kernel  # noqa: E402

CLOSE = 1e-8
RNG = np.random.default_rng(27)
X, Z = RNG.standard_normal((16, 2)), RNG.standard_normal((6, 2))
Y = np.sin(X[:, 0]) + X[:, 1] ** 2 / 3
NOISE = 0.01
NET = wl.mlp(depth=3, weight_std=1.2, bias_std=0.3)
SCALES = np.array([1.0, 0.5])
KERNELS = {
    "nngp": wl.nngp(NET),
    "ntk": wl.ntk(NET),
    "scaled": wl.scale_inputs(wl.nngp(NET), SCALES),
    "tanh": wl.nngp(wl.mlp(depth=2, activation="tanh", bias_std=0.1)),
}


def tensor(array):
    return torch.tensor(np.asarray(array), dtype=torch.float64)


class ExactGP(gpytorch.models.ExactGP):
    """The model of GPyTorch's first tutorial: constant mean, scaled kernel."""

    def __init__(self, X, y, likelihood, kernel):
        gpytorch.models.ExactGP.__init__(self, X, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(kernel)

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def gpytorch_model(kernel, X, y, noise):
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = noise
    return ExactGP(tensor(X), tensor(y), likelihood, kernel).double(), likelihood


def gpytorch_predictions(model, Z):
    """Mean and variance by Cholesky, as GPyTorch computes at this size."""
    model.eval()
    with torch.no_grad():
        latent = model(tensor(Z))
    return latent.mean.numpy(), latent.variance.numpy()


def own_predictions(model, likelihood, kernel, X, y, Z, *, off=1.0):
    """The same by this library, at the mean, scale and noise that the model has; `off` is an error to plant."""
    k = model.covar_module.outputscale.item() * kernel.current
    level = model.mean_module.constant.item()
    prediction = wl.posterior(k, X, np.asarray(y) - level, noise=off * likelihood.noise.item()).predict(Z)
    return level + prediction.mean, prediction.variance


@pytest.mark.parametrize("name", KERNELS)
def test_gpytorch_has_the_posterior(name):
    kernel = gpytorch_kernel(KERNELS[name])
    model, likelihood = gpytorch_model(kernel, X, Y, NOISE)
    found = gpytorch_predictions(model, Z)
    np.testing.assert_allclose(found, own_predictions(model, likelihood, kernel, X, Y, Z), rtol=0, atol=CLOSE)
    other = np.array(own_predictions(model, likelihood, kernel, X, Y, Z, off=1.01))
    assert np.abs(np.array(found) - other).max() > 1e3 * CLOSE


def test_the_first_example_of_gpytorch():
    x = np.linspace(0, 1, 100)[:, None]
    y = np.sin(2 * np.pi * x[:, 0]) + 0.2 * np.random.default_rng(1).standard_normal(100)
    kernel = gpytorch_kernel(wl.nngp(wl.mlp(depth=3, activation="erf", weight_std=2.0, bias_std=1.0)))
    model, likelihood = gpytorch_model(kernel, x, y, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = -evidence(model(tensor(x)), tensor(y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert 0.02 < likelihood.noise.item() < 0.08  # 0.04 in truth
    Z = np.linspace(0, 1, 51)[:, None]
    found = np.array(gpytorch_predictions(model, Z))
    np.testing.assert_allclose(found, own_predictions(model, likelihood, kernel, x, y, Z), rtol=0, atol=CLOSE)
    assert np.abs(found[0] - np.sin(2 * np.pi * Z[:, 0])).max() < 0.25
    assert kernel.values["net.first.weight_std"] != 2.0


@pytest.mark.parametrize("name", KERNELS)
def test_derivatives_in_pytorch_are_differences(name):
    kernel = gpytorch_kernel(KERNELS[name])
    rows, columns = (tensor(a).requires_grad_() for a in (X[:3], Z[:2]))
    raw = tuple(kernel.parameters())
    assert torch.autograd.gradcheck(lambda x, z, *_: kernel(x, z).to_dense(), (rows, columns, *raw))
    assert torch.autograd.gradcheck(lambda x, *_: kernel(x, diag=True), (rows, *raw))
    batch = tensor(RNG.standard_normal((2, 2, 2))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, z, *_: kernel(x, z).to_dense(), (batch, columns, *raw))


def test_entries_in_gpytorch():
    k = KERNELS["scaled"]
    kernel = gpytorch_kernel(k)
    batch = RNG.standard_normal((3, 1, 4, 2))
    found = kernel(tensor(batch), tensor(np.stack([Z, -Z]))).to_dense().detach().numpy()
    assert found.shape == (3, 2, 4, 6)
    np.testing.assert_allclose(found[2, 1], k.cross(batch[2, 0], -Z), rtol=1e-13)
    np.testing.assert_allclose(kernel(tensor(X), diag=True).detach(), k.diag(X), rtol=1e-13)
    single = kernel(tensor(X).float(), tensor(Z).float()).to_dense()
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.detach(), k.cross(X, Z), rtol=1e-5)
    columns = gpytorch_kernel(wl.rbf(1.0), active_dims=[1])(tensor(X), tensor(Z)).to_dense().detach()
    np.testing.assert_allclose(columns, wl.rbf(1.0).cross(X[:, 1:], Z[:, 1:]), rtol=1e-13)


def test_parameters_in_gpytorch():
    kernel = gpytorch_kernel(KERNELS["scaled"], fixed=["kernel.net.block[1].weight_std"])
    assert [name for name, _ in kernel.named_parameters()] == [
        "raw_scales", "raw_kernel_net_layers_0_weight_std", "raw_kernel_net_layers_0_bias_std",
        "raw_kernel_net_block_1_bias_std",
    ]  # fmt: skip
    np.testing.assert_allclose(kernel.values["scales"].detach(), SCALES, rtol=1e-15)
    assert "net.first.bias_std" not in gpytorch_kernel(wl.nngp(wl.mlp(depth=2))).values  # 0 stays
    again = gpytorch_kernel(wl.scale_inputs(wl.nngp(wl.mlp(depth=3, bias_std=1.0)), np.ones(2)), fixed=kernel.names[:0])
    with pytest.raises(RuntimeError):  # another parameter is learned there
        kernel.load_state_dict(again.state_dict())


@pytest.mark.parametrize("make", [gpytorch_kernel, gpjax_kernel])
def test_what_is_no_kernel_is_refused(make):
    with pytest.raises(TypeError, match="a kernel is needed"):
        make(NET)
    with pytest.raises(ValueError, match=r"fixed names \['depth'\]; the hyper-parameters are \['net.first.weight_std'"):
        make(wl.nngp(NET), fixed=["depth"])
    with pytest.raises(TypeError, match="fixed must be a sequence of names"):
        make(wl.nngp(NET), fixed="depth")
    with pytest.raises(TypeError, match="a kernel is needed"):
        tinygp_kernel(NET)


def branin(x):
    """Branin's function on the unit square, with its sign changed: its maximum is -0.397887."""
    u, v = 15 * x[..., 0] - 5, 15 * x[..., 1]
    return -((v - 5.1 / (4 * np.pi**2) * u**2 + 5 / np.pi * u - 6) ** 2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(u) + 10)


def test_bayesian_optimisation_by_botorch():
    torch.manual_seed(0)
    x = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(8, dtype=torch.float64)
    y = tensor(branin(x.numpy()))[:, None]
    first = float(y.max())
    for _ in range(4):
        kernel = gpytorch_kernel(wl.scale_inputs(wl.nngp(wl.mlp(depth=2, activation="erf", bias_std=1.0)), np.ones(2)))
        model = botorch.models.SingleTaskGP(
            x, y, covar_module=gpytorch.kernels.ScaleKernel(kernel),
            outcome_transform=botorch.models.transforms.Standardize(1),
        )  # fmt: skip
        evidence = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        botorch.fit.fit_gpytorch_mll(evidence, optimizer_kwargs={"options": {"maxiter": 50}})
        gain = botorch.acquisition.LogExpectedImprovement(model, best_f=y.max())
        bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        new, _ = botorch.optim.optimize_acqf(gain, bounds, q=1, num_restarts=2, raw_samples=32)
        x, y = torch.cat([x, new]), torch.cat([y, tensor(branin(new.numpy()))[:, None]])
    assert float(y.max()) > first + 1.0

    Z = np.random.default_rng(3).random((5, 2))
    rows, values = model.train_inputs[0].numpy(), model.train_targets.numpy()  # standardised
    found = model.posterior(tensor(Z))
    k = model.covar_module.outputscale.item() * kernel.current
    level, noise = model.mean_module.constant.item(), model.likelihood.noise.item()
    own = wl.posterior(k, rows, values - level, noise=noise).predict(Z)
    mean, size = float(y[:-1].mean()), float(y[:-1].std())
    np.testing.assert_allclose(found.mean.detach()[:, 0], mean + size * (level + own.mean), rtol=CLOSE)
    np.testing.assert_allclose(found.variance.detach()[:, 0], size**2 * own.variance, rtol=CLOSE)


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", KERNELS)
def test_tinygp_has_the_posterior(name):
    k = KERNELS[name]
    process = tinygp.GaussianProcess(tinygp_kernel(k), jnp.asarray(X), diag=NOISE)
    evidence, found = process.condition(jnp.asarray(Y), jnp.asarray(Z))
    own = wl.posterior(k, X, Y, noise=NOISE)
    np.testing.assert_allclose(found.mean, own.mean(Z), rtol=0, atol=CLOSE)
    jitter = np.sqrt(np.finfo(float).eps)  # tinygp adds it to the variances of predictions
    np.testing.assert_allclose(found.variance, own.variance(Z) + jitter, rtol=0, atol=CLOSE / 10)
    np.testing.assert_allclose(evidence, own.log_marginal_likelihood(), rtol=CLOSE)
    other = wl.posterior(k, X, Y, noise=1.01 * NOISE)
    assert np.abs(np.asarray(found.mean) - other.mean(Z)).max() > 1e3 * CLOSE


@pytest.mark.usefixtures("wide")
def test_gradients_and_sums_in_tinygp():
    def loss(p):
        net = wl.mlp(depth=2, weight_std=jnp.exp(p["weight"]), bias_std=jnp.exp(p["bias"]))
        kernel = tinygp_kernel(wl.scale_inputs(wl.nngp(net), jnp.exp(p["scales"])))
        both = jnp.exp(p["factor"]) * kernel + tinygp.kernels.ExpSquared(0.5)  # tinygp's sum, entry by entry
        return -tinygp.GaussianProcess(both, jnp.asarray(X), diag=NOISE).log_probability(jnp.asarray(Y))

    at = {"weight": 0.2, "bias": -1.0, "scales": jnp.array([0.1, -0.4]), "factor": 0.3}
    value, slope = jax.jit(jax.value_and_grad(loss))(at)
    net = wl.mlp(depth=2, weight_std=np.exp(0.2), bias_std=np.exp(-1.0))
    own = np.exp(0.3) * wl.scale_inputs(wl.nngp(net), np.exp([0.1, -0.4])) + wl.rbf(0.5)
    expected = -wl.posterior(own, X, Y, noise=NOISE).log_marginal_likelihood()
    np.testing.assert_allclose(value, expected, rtol=CLOSE)
    step = 1e-5
    for name in ("weight", "bias", "factor"):
        up, down = (loss(at | {name: at[name] + d}) for d in (step, -step))
        np.testing.assert_allclose(slope[name], (up - down) / (2 * step), rtol=1e-5)
    assert np.isfinite(slope["scales"]).all()


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", KERNELS)
def test_gpjax_has_the_posterior(name):
    k, jitter = KERNELS[name], 1e-6
    prior = gpjax.gps.Prior(mean_function=gpjax.mean_functions.Zero(), kernel=gpjax_kernel(k), jitter=jitter)
    data = gpjax.Dataset(X=jnp.asarray(X), y=jnp.asarray(Y)[:, None])
    found = (prior * gpjax.likelihoods.Gaussian(obs_stddev=NOISE**0.5)).predict(jnp.asarray(Z), train_data=data)
    own = wl.posterior(k, X, Y, noise=NOISE + jitter)
    np.testing.assert_allclose(found.mean, own.mean(Z), rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found.variance, own.variance(Z) + jitter, rtol=0, atol=CLOSE)
    assert np.abs(np.asarray(found.mean) - wl.posterior(k, X, Y, noise=NOISE).mean(Z)).max() > 10 * CLOSE


@pytest.mark.usefixtures("wide")
def test_gpjax_learns_what_is_not_fixed():
    kernel = gpjax_kernel(KERNELS["scaled"], fixed=["kernel.net.block[1].bias_std"])
    prior = gpjax.gps.Prior(
        mean_function=gpjax.mean_functions.Zero(), kernel=kernel + gpjax.kernels.White(variance=0.1)
    )
    model = prior * gpjax.likelihoods.Gaussian(obs_stddev=0.1)
    data = gpjax.Dataset(X=jnp.asarray(X), y=jnp.asarray(Y)[:, None])

    def objective(model, data):
        return -gpjax.objectives.conjugate_mll(model, data)

    before = objective(model, data)
    fitted, _ = gpjax.fit_scipy(model=model, objective=objective, train_data=data, max_iters=20, verbose=False)
    assert objective(fitted, data) < before - 1.0
    learned = {name: gpjax.parameters.val(value) for name, value in fitted.prior.kernel.kernels[0].values.items()}
    assert learned["kernel.net.block[1].bias_std"] == 0.3
    assert not np.allclose(learned["scales"], SCALES)


def test_the_page_runs():
    page = pathlib.Path(__file__).parents[1] / "docs" / "libraries.md"
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, str(page), "exec"), namespace)
    assert np.isfinite(namespace["gradient"]["weight"])
    assert namespace["costly"](namespace["x"]).max() > namespace["costly"](namespace["x"][:8]).max()
