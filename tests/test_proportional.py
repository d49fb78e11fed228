"""Posteriors of networks as wide as their data: beside drawn networks, a Meijer G function, and closed forms."""

import tracemalloc

import mpmath as mp
import numpy as np
import pytest

import widelimit as wl
from widelimit.activations.closed.linear import Identity
from widelimit.activations.piecewise.polynomial import PiecewisePolynomial
from widelimit.claims import proportional_width as claim
from widelimit.layers import Dense
from widelimit.theory import proportional
from widelimit.theory.proportional import is_identity
from widelimit.theory.scale_mixtures import Scales, contour, log_prior, posterior_scales

RNG = np.random.default_rng(5)
X, Z = RNG.standard_normal((6, 8)), RNG.standard_normal((3, 8))
Y = 2 * RNG.standard_normal(6)
LINEAR = wl.mlp(depth=3, activation="identity", weight_std=1.1)
K = np.asarray(wl.nngp(LINEAR).gram(X))


def posterior(net=LINEAR, y=Y, **given):
    return wl.proportional_posterior(net, X, y, **({"width": (5, 9), "noise": 0.2, "probes": Z} | given))


@pytest.mark.parametrize("widths", [(3,), (5, 8), (2, 2, 7)])
def test_the_scale_has_the_density_of_a_product_of_gamma_variables(widths):
    """Meijer's G function, in 15 digits: far in both tails too."""
    n = np.array(widths, float)
    at = Scales.at(n, np.linspace(-2.5, 3, 5))
    halves = [mp.mpf(k) / 2 for k in widths]
    constant = mp.fprod(map(mp.gamma, halves))
    exact = [float(mp.meijerg([[], []], [halves, []], mp.exp(s) * mp.fprod(halves)) / constant) for s in at.s.tolist()]
    np.testing.assert_allclose(np.exp(log_prior(n, at)) * contour(n, at), exact, rtol=1e-9)
    assert np.max(abs(contour(n, at) - 1)) > 0.01  # the factor matters


def test_a_linear_network_has_the_moments_of_drawn_ones(monkeypatch):
    widths = (7, 7)
    monkeypatch.setattr(claim, "problem", lambda: (X, Y, Z))
    found = claim.sampled(widths, lambda u: u, 60_000)
    law = posterior(width=widths, noise=claim.NOISE)
    assert law.exact
    assert claim.scores(found, law.mean, law.variance) < 4.5
    assert abs(np.exp(law.log_evidence) - found.evidence) < 4 * found.evidence_error
    assert claim.scores(found, *law.infinite) > 8
    one_layer = posterior(wl.mlp(depth=2, activation="identity", weight_std=1.1), width=7, noise=claim.NOISE)
    assert abs(np.exp(one_layer.log_evidence) - found.evidence) > 8 * found.evidence_error


def test_the_order_parameter_solves_the_equation_of_deep_linear_networks():
    """1 - q = (n/N) (1 - r/q^L), r = y^T K^{-1} y/n, without noise and with equal widths."""
    r = Y @ np.linalg.solve(K, Y) / 6
    law = posterior(width=9, noise=0.0)
    q = law.order_parameters
    np.testing.assert_allclose(1 - q, 6 / 9 * (1 - r / q**2), rtol=1e-7)
    cross = np.asarray(wl.nngp(LINEAR).cross(X, Z))
    left = np.asarray(wl.nngp(LINEAR).diag(Z)) - np.sum(cross * np.linalg.solve(K, cross), axis=0)
    np.testing.assert_allclose(law.limit.variance, np.prod(q) * left, rtol=1e-6)
    assert np.ptp(posterior().order_parameters) > 0.01  # unequal widths, unequal scales


def test_the_mean_of_relu_is_not_scaled():
    """A mean of half the size in F has .19 for .16 of infinite width."""
    data, relu = (X, Y, Z), wl.mlp(depth=2, activation="relu", weight_std=claim.WEIGHT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim, "problem", lambda: data)
        drawn = claim.sampled((8,), lambda u: np.maximum(u, 0), 40_000)
    law = posterior(relu, width=8, noise=claim.NOISE)
    gap, infinite = (np.sqrt(np.mean((mean - drawn.mean) ** 2)) for mean in (law.mean, law.infinite.mean))
    assert gap < 0.6 * infinite


def test_a_row_of_zeros_has_the_mean_of_phi_at_zero():
    found = posterior(wl.mlp(depth=2, activation="exp"), width=4, probes=np.stack([0 * X[0], 1e-9 * X[0]])).mean
    assert found[0] == pytest.approx(found[1], rel=1e-7)


@pytest.mark.parametrize("kink", [5.0, 1e9])
def test_an_activation_that_is_linear_only_near_zero_is_not_linear(kink):
    clipped = PiecewisePolynomial((-kink, kink), ((-kink,), (0, 1), (kink,)))
    assert is_identity(Identity())
    assert not is_identity(clipped)
    with pytest.raises(ValueError, match="degree 1"):
        posterior(wl.network(Dense(), clipped, Dense(), clipped, Dense()), width=4)


@pytest.mark.filterwarnings("error")
def test_thirteen_layers_have_the_order_parameter_of_the_equation():
    law = posterior(wl.mlp(depth=14, activation="identity"), width=20, noise=0.0)
    q, r = law.order_parameters, Y @ np.linalg.solve(X @ X.T / 8, Y) / 6
    np.testing.assert_allclose(1 - q, 6 / 20 * (1 - r / q**13), rtol=1e-7)


@pytest.mark.filterwarnings("error")
def test_large_targets_that_the_kernel_does_not_reach_add_a_constant():
    """12 rows of 5 columns: what is outside of the columns adds |y|^2/noise, and nothing to the posterior."""
    rng = np.random.default_rng(2)
    A, inside = rng.standard_normal((12, 5)), rng.standard_normal(12)
    off = np.linalg.svd(A)[0][:, -1]
    inside -= off * (off @ inside)
    net = wl.mlp(depth=2, activation="identity")
    one, two = (wl.proportional_posterior(net, A, inside + c * off, width=4, noise=0.1, probes=A) for c in (0, 1e5))
    np.testing.assert_allclose(one.mean, two.mean, atol=1e-8)
    assert two.log_evidence == pytest.approx(one.log_evidence - 1e10 / 0.2, rel=1e-12)
    small = wl.proportional_posterior(net, A, inside, width=4, noise=1e-20, probes=A)
    np.testing.assert_allclose(small.mean, A @ np.linalg.lstsq(A, inside)[0], atol=1e-8)
    with pytest.raises(ArithmeticError, match="targets y are too large, or the noise"):
        wl.proportional_posterior(net, A, 1e10 * inside, width=4, noise=0.1)


def test_no_targets_and_little_noise_have_a_scale_of_the_noise():
    scales = [posterior(y=0 * Y, width=2, noise=noise).order_parameters.prod() for noise in (1e-20, 1e-80)]
    assert scales[1] == pytest.approx(1e-60 * scales[0], rel=1e-6)


def test_the_memory_that_the_scales_take_is_required(monkeypatch):
    required, held, rows = [], [], RNG.standard_normal((500, 600))

    def traced(*given):
        tracemalloc.start()
        found = posterior_scales(*given)
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        return found

    monkeypatch.setattr(proportional, "posterior_scales", traced)
    monkeypatch.setattr(proportional.memory, "require", lambda size, *_, **__: required.append(size))
    wl.proportional_posterior(LINEAR, rows, rows[:, 0], width=9, noise=0.1, probes=rows[:3])
    assert held[0] < max(required)


def test_wide_networks_have_the_posterior_of_the_limit():
    bias = wl.network(Dense(1.2, bias_std=0.5), "relu", Dense(0.8, bias_std=0.4))
    law = posterior(bias, width=10**6)
    post = wl.posterior(wl.nngp(bias), X, Y, noise=0.2)
    np.testing.assert_allclose(law.infinite.mean, post.mean(Z), rtol=1e-8)
    np.testing.assert_allclose(law.infinite.variance, post.variance(Z), rtol=1e-7)
    np.testing.assert_allclose(law.mean, law.infinite.mean, atol=1e-4)
    assert law.log_evidence == pytest.approx(post.log_marginal_likelihood(), abs=1e-3)
    assert not law.exact
    assert np.max(abs(posterior(bias, width=4).mean - law.mean)) > 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"net": wl.mlp(depth=1)}, "no hidden layer"),
        ({"net": wl.mlp(depth=3, activation="erf")}, "degree 1"),
        ({"net": wl.mlp(depth=3, bias_std=0.1)}, "degree 1"),
        ({"net": wl.mlp(depth=2), "width": 4, "noise": 0.0}, "noise must be > 0"),
        ({"net": wl.mlp(depth=2), "width": 4, "noise": 1e-15}, "noise must be > 0 .* rounding"),
        ({"noise": 1e-300}, "noise must be 0"),
        ({"noise": 0.0, "y": 0 * Y}, "noise must be > 0"),
        ({"y": X}, "one output"),
        ({"width": 10**9}, "at most"),
        ({"width": (3, 4, 5)}, "hidden layers"),
    ],
)
def test_what_has_no_such_posterior_is_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        posterior(**given)
