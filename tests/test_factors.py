"""Inner products of Jacobians from signals, against the Jacobians written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from widelimit.kernels.empirical import factors
from widelimit.kernels.empirical.outputs import PAIRS, SELF

N, M, C = 3, 4, 2
EPS = np.finfo(np.float64).eps
RNG = np.random.default_rng(0)
KINDS = ["affine", "wide", "lookup", "explicit"]


def make(kind, n, s):
    i, o = (40, 30) if kind == "wide" else (3, 2)  # its inner products are cheaper from the signals
    back = RNG.standard_normal((n, C, s, o))
    if kind in ("affine", "wide"):
        return factors.Affine(RNG.standard_normal((n, s, i)), back)
    if kind == "lookup":
        return factors.Lookup(RNG.integers(0, 5, (n, s)), back, 50)
    return factors.Explicit(RNG.standard_normal((n, C, 7)))


def written_out(factor):
    """(n, c, P) by a loop over positions."""
    if isinstance(factor, factors.Explicit):
        return factor.jacobian
    n, c, s, o = factor.backward.shape
    found = np.zeros((n, c, o, factor.signals.shape[2] if isinstance(factor, factors.Affine) else factor.rows))
    for k in range(s):
        back = factor.backward[:, :, k]
        if isinstance(factor, factors.Affine):
            found += back[..., None] * factor.signals[:, None, None, k]
        else:
            for row in range(n):
                found[row, :, :, factor.tokens[row, k]] += back[row]
    order = (0, 1, 3, 2) if isinstance(factor, factors.Lookup) else (0, 1, 2, 3)
    return found.transpose(order).reshape(n, c, -1)


def close(values, expected):
    values = np.asarray(values)
    return values.shape == expected.shape and np.abs(values - expected).max() <= 64 * EPS * np.abs(expected).max()


@pytest.mark.parametrize("scratch", [2**26, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_those_of_the_jacobians(kind, scratch, monkeypatch):
    monkeypatch.setattr(factors, "SCRATCH", scratch)
    x, y = make(kind, N, 2), make(kind, M, 3)  # a use may have other positions at other rows
    a, b = written_out(x), written_out(y)
    assert close(factors.jacobian(x, np), a)
    for output in PAIRS:
        expected = np.einsum(PAIRS[output], a, b)
        assert close(factors.contract(x, y, output, np), expected)
        assert not close(1.01 * factors.contract(x, y, output, np), expected)
        own = np.einsum(SELF[output], a, a)
        assert close(factors.contract(x, x, output, np, itself=True), own)
        if kind == "wide":  # a transposed weight, a lost position
            for signals, back in ((y.signals[:, ::-1], y.backward), (y.signals[:, :2], y.backward[:, :, :2])):
                assert not close(factors.contract(x, factors.Affine(signals, back), output, np), expected)


def test_both_orders_are_taken_and_other_libraries_give_the_same():
    orders = {factors.Use(s, 40, 30).order(N, M, C, output)[0] for s in (1, 6, 400) for output in PAIRS}
    assert orders == {"signals", "mixed", "jacobian"}
    x, y = make("wide", N, 2), make("wide", M, 2)
    single = [factors.Affine(jnp.asarray(f.signals, np.float32), jnp.asarray(f.backward, np.float32)) for f in (x, y)]
    found, expected = np.asarray(factors.contract(*single, "full", jnp)), factors.contract(x, y, "full", np)
    assert np.abs(found - expected).max() <= 64 * np.finfo(np.float32).eps * np.abs(expected).max()


def test_a_table_that_is_a_weight_too():
    def table(n):
        return factors.Lookup(RNG.integers(0, 5, (n, 2)), RNG.standard_normal((n, C, 2, 3)), 5)

    def head(n):
        return factors.Affine(RNG.standard_normal((n, 4, 3)), RNG.standard_normal((n, C, 4, 5)))

    for x, y, own in ((table(N), head(M), head(N)), (head(N), table(M), table(N))):
        for output in PAIRS:
            expected = np.einsum(PAIRS[output], written_out(x), written_out(y))
            assert close(factors.contract(x, y, output, np), expected)
            assert not close(factors.contract(x, y, output, np)[:, ::-1], expected)
            expected = np.einsum(SELF[output], written_out(x), written_out(own))
            assert close(factors.contract(x, own, output, np, itself=True), expected)
