"""Searches for hyper-parameters where the objective or its gradient is not a number."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.inference import hyperparameters

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3))
SETTINGS = {"noise": 0.1, "restarts": 0, "max_steps": 5}


def steep(x, z, *, scale):
    """A kernel with values everywhere and a derivative in its scale nowhere, as a table has beyond its end."""
    return jnp.exp(-scale * jnp.sum((x - z) ** 2)) + jnp.sqrt(scale - scale)


def test_a_start_without_a_gradient_is_refused_and_differences_serve_there():
    k = wl.kernel(functools.partial(steep, scale=0.5))
    with pytest.raises(ValueError, match=r'gradient is not finite there\. Pass gradient="differences"') as caught:
        wl.fit_hyperparameters(k, X, X[:, 0], **SETTINGS)
    assert len(str(caught.value)) < 400
    fit = wl.fit_hyperparameters(k, X, X[:, 0], gradient="differences", **SETTINGS)
    assert fit.score == pytest.approx(fit.posterior.log_marginal_likelihood(), abs=1e-9)
    assert fit.runs[0].steps > 0


@pytest.mark.parametrize("steps", [1, 50])
def test_what_stands_for_no_number_is_never_a_score(steps, monkeypatch):
    """A builder that fails wherever it is asked a second time: a search keeps what it had."""
    original, count = hyperparameters._Search.negative, 0

    def once(self, z):
        nonlocal count
        count += 1
        value, gradient = original(self, z)
        return (value, gradient) if count == 1 else (value, gradient * np.nan)

    monkeypatch.setattr(hyperparameters._Search, "negative", once)
    fit = wl.fit_hyperparameters(wl.rbf(1.0), X, X[:, 0], **{**SETTINGS, "max_steps": steps})
    assert fit.score == pytest.approx(fit.posterior.log_marginal_likelihood(), abs=1e-9)
    assert not fit.runs[0].converged
    assert fit.values["noise"] == pytest.approx(0.1)


def test_a_score_that_is_no_number_is_told(monkeypatch):
    monkeypatch.setattr(hyperparameters._Search, "negative", lambda self, z: (np.nan, z))
    with pytest.raises(ValueError, match="at any start: it is nan there"):
        wl.fit_hyperparameters(wl.rbf(1.0), X, X[:, 0], **SETTINGS)


@pytest.mark.parametrize("reach", [0.0, 6.0])
def test_an_error_of_the_users_function_away_from_the_start_is_reported(reach):
    """A search that cannot leave its start has not converged; one that only meets a wall far off has."""

    def build(scale):
        if isinstance(scale, float) and abs(np.log(scale)) > reach + 1e-9:
            raise ValueError("a bug of the user's own")
        return wl.rbf(scale)

    fit = wl.fit_hyperparameters(build, X, X[:, 0], start={"scale": 1.0}, **{**SETTINGS, "max_steps": 40})
    assert fit.runs[0].converged == (reach > 0)
    if not reach:
        assert "did not converge" in fit.message
        assert fit.message.endswith("a bug of the user's own.")
