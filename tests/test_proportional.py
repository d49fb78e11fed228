"""Posteriors of networks as wide as their data: beside drawn networks, a Meijer G function, and closed forms."""

import mpmath as mp
import numpy as np
import pytest

import widelimit as wl
from widelimit.claims import proportional_width as claim
from widelimit.layers import Dense
from widelimit.theory.scale_mixtures import Scales, contour, log_prior

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
    limit = K @ np.linalg.solve(K, Y)
    np.testing.assert_allclose(posterior(width=9, noise=0.0, probes=X).limit.mean, limit, rtol=1e-6)
    assert np.ptp(posterior().order_parameters) > 0.01  # unequal widths, unequal scales


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
        ({"noise": 0.0, "y": 0 * Y}, "noise must be > 0"),
        ({"y": X}, "one output"),
        ({"width": 10**9}, "at most"),
        ({"width": (3, 4, 5)}, "hidden layers"),
    ],
)
def test_what_has_no_such_posterior_is_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        posterior(**given)
