"""Kernels that are 0, bad labels, functions without forward derivatives: right, or refused with the reason."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 4))
PARAMS = {"a": RNG.standard_normal((4, 5)), "b": RNG.standard_normal((5, 3))}


def apply(params, X):
    return jnp.tanh(X @ params["a"]) @ params["b"]


def test_a_kernel_that_is_0_everywhere_has_no_change_and_no_alignment():
    zero = wl.tangents(lambda params, X: 0 * apply(params, X), PARAMS)
    drift = wl.KernelDrift(X)(zero)(zero)(wl.tangents(apply, PARAMS))
    assert (drift.change, drift.alignment) == ([0, 0, np.inf], [1, 1, 0])
    drift = wl.KernelDrift(X)(wl.tangents(apply, PARAMS))(zero)
    assert drift.change == [0, 1]
    assert drift.alignment[1] == 0
    with pytest.raises(ValueError, match="0 everywhere"):
        zero.at(X).alignment(np.ones((12, 3)))
    many = np.concatenate([X] * 40)
    with pytest.raises(ValueError, match="0 everywhere"):
        zero.at(many).alignment(np.ones((480, 3)))


def test_known_rows_are_any_sequence_of_integers():
    rows = wl.tangents(apply, PARAMS).at(X, output="trace")
    expected = wl.select(rows, 3, noise=0.1, known=[0, 1])
    for known in (range(2), np.arange(2), jnp.arange(2), (0, 1)):
        assert np.array_equal(wl.select(rows, 3, noise=0.1, known=known).rows, expected.rows)
    for known in ("01", 3, {0, 1}, [0.5], [[0, 1]], {0: 1}):
        with pytest.raises(TypeError, match="known"):
            wl.select(rows, 3, known=known)


BAD = (
    ([0] * 5 + [-1] * 7, ValueError, r"label at row 5 is -1; a label is an integer >= 0"),
    ([0, 3] * 6, ValueError, r"label at row 1 is 3; a label is below 3"),
    ([0, 0.9] * 6, ValueError, r"label at row 1 is 0.9"),
    ([[0]] * 12, ValueError, r"shape \(12,\)"),
    ({"y": np.zeros(12, int)}, TypeError, "one array"),
)
"""Labels of 12 rows and 3 classes, and what is said of them."""


@pytest.mark.parametrize("of", ["margin", "log_probability"])
def test_labels_are_classes(of):
    model, labels = wl.tangents(apply, PARAMS, of=of), np.arange(12) % 3
    expected = model.at(X, labels).values
    for same in (labels.astype(float), labels.astype(np.uint8), list(labels)):
        assert np.array_equal(model.at(X, same).values, expected)
    for bad, error, words in BAD:
        for call in (model.at, model.sketch):
            with pytest.raises(error, match=words):
                call(X, bad)


@jax.custom_vjp
def square(x):
    return x**2


square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))


def test_functions_with_a_derivative_of_their_own_have_products():
    own = wl.tangents(lambda params, X: square(apply(params, X)), PARAMS, memory=1e-5)
    plain = wl.tangents(lambda params, X: apply(params, X) ** 2, PARAMS)
    v = RNG.standard_normal((36, 2))
    assert own.at(X).rows < 12
    for output in ("full", "trace"):
        rows, same = own.at(X, output=output), plain.at(X, output=output)
        np.testing.assert_allclose(rows.matrix(), same.matrix(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(rows.product(v[: rows.size]), same.product(v[: rows.size]), rtol=1e-10, atol=1e-10)
