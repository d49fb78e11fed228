"""A model beside its linearisation: wide networks are lazy, narrow ones with large targets are not."""

import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3)).astype(np.float32)
Y = np.sin(X[:, 0]).astype(np.float32)
NET = wl.mlp(depth=2, activation="tanh", bias_std=0.1)


@pytest.fixture(scope="module")
def reports():
    wide = wl.lazy_report(NET.apply, NET.init(0, input_dim=3, width=2048), X, Y, steps=100)
    narrow = wl.lazy_report(NET.apply, NET.init(0, input_dim=3, width=8), X, 30 * Y, steps=100)
    return wide, narrow


def test_a_wide_network_is_lazy_and_a_narrow_one_is_not(reports):
    wide, narrow = reports
    assert wide.lazy
    assert wide.scale == 1
    assert wide.verdict.startswith("Lazy")
    assert not narrow.lazy
    assert narrow.scale > 1
    assert narrow.scaled_error <= narrow.tolerance
    assert narrow.verdict.startswith("Not lazy")
    assert np.max(narrow.error) > 10 * np.max(wide.error)
    assert narrow.kernel_drift[-1] > 10 * wide.kernel_drift[-1]
    assert wide.error[0] == wide.kernel_drift[0] == 0


def test_a_linear_model_is_its_linearisation():
    report = wl.lazy_report(lambda w, X: X @ w, jnp.ones(3, jnp.float32), X, Y, steps=50)
    assert np.max(report.error) < 1e-4
    np.testing.assert_allclose(report.loss, report.linearized_loss, rtol=1e-4)


def test_f_of_a_square_leaves_it_as_known_in_closed_form():
    """f = w^2 x at x = y = 1: w -> w - 4 eta w (w^2 - 1), linearised v -> v - 4 eta w_0 (w_0^2 + 2 w_0 v - 1)."""
    w = v = 0.0
    eta, start, steps, one = 0.01, 0.5, 60, np.ones((1, 1), np.float32)
    w, errors = start, [0.0]
    for _ in range(steps):
        w, v = w - 4 * eta * w * (w**2 - 1), v - 4 * eta * start * (start**2 + 2 * start * v - 1)
        errors.append(abs(w**2 - start**2 - 2 * start * v) / abs(2 * start * v))
    report = wl.lazy_report(
        lambda p, X: p**2 * X[:, 0], jnp.float32(start), one, one[:, 0], learning_rate=eta, steps=steps, tolerance=0.99
    )
    np.testing.assert_allclose(report.error, errors[::1][: len(report.error)], rtol=2e-3, atol=1e-5)


def test_the_page_says_it_in_one_line(reports, tmp_path):
    reports[1].save(tmp_path / "lazy.html")
    text = (tmp_path / "lazy.html").read_text()
    assert "Not lazy" in text
    assert "data:image/png" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wl.lazy_report(lambda w, X: 0 * X @ w, jnp.ones(3), X, Y, learning_rate=0.1), "do not change"),
        (lambda: wl.lazy_report(lambda w, X: X @ w, jnp.ones(3), X, X @ jnp.ones(3), learning_rate=0.1), "y equals"),
        (lambda: wl.lazy_report(NET.apply, NET.init(0, input_dim=3, width=8), X, Y, steps=0), "steps"),
        (lambda: wl.lazy_report(NET.apply, NET.init(0, input_dim=3, width=8), X, Y, tolerance=2.0), "tolerance"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
