"""Tables of activations: what is compiled for them, and their parts against quadrature."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import gaussian
from widelimit.activations.names import BY_NAME
from widelimit.activations.piecewise.tabulation import tabulate_pieces
from widelimit.activations.tabulated import fixed_lengths, lookup, moments, polar, tables
from widelimit.architecture.network import Network
from widelimit.interpreter import interpreted
from widelimit.kernels import network
from widelimit.kernels.sphere import sphere
from widelimit.signals import correlation_from_gap, variance_of

X = np.random.default_rng(0).standard_normal((37, 5))
U = X / np.linalg.norm(X, axis=1, keepdims=True)
EPS = np.finfo(float).eps


def wave(u):
    return jnp.sin(u) + 0.1 * u**2


@contextlib.contextmanager
def compilations():
    """A list that every compilation is added to."""
    found: list[str] = []

    def listen(event: str, _: float, **about: str) -> None:
        if "backend_compile" in event:
            found.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("name", ["tanh", "elu", "hard_tanh", "wave"])
def test_other_norms_compile_nothing(name):
    k = wl.ntk(wl.mlp(depth=3, activation=wave if name == "wave" else name, bias_std=0.1))
    for data, factors in ((X, (1.3, 0.5, 1.7)), (U, (1.2, 0.8))):
        with compilations() as found:
            k.gram(data)
        assert len(found) <= 6
        assert found or data is U  # series on spheres share their programs
        with compilations() as found:
            for factor in factors:
                k.gram(factor * data[::-1])
        assert found == []


@pytest.mark.usefixtures("no_programs")
def test_shapes_that_follow_the_data_are_seen(monkeypatch):
    """The plant: tables as long as their range needs."""
    monkeypatch.setattr(fixed_lengths, "in_few_shapes", lambda table, key: table)
    k = wl.nngp(wl.mlp(depth=2, activation="softplus", bias_std=0.1))
    with compilations() as found:
        k.gram(X)
        first = len(found)
        k.gram(3 * X)
    assert len(found) > first


def test_tables_and_series_compile_nothing():
    net = wl.mlp(depth=3, activation="tanh", bias_std=0.1)
    with compilations() as found:
        tables.tabulate.__wrapped__(jnp.tanh, (), 0.3, 2.3, 1e-10, "tanh")
        tabulate_pieces(BY_NAME["hard_tanh"].closed, 1.0, 0.8, 1.0, 1e-10)
        sphere(net, 1.1, 5, np.float64, tangent=True, target=1e-12, few_shapes=True)
        net.prepared(0.4, 1.1, np.dtype(np.float64))
    assert found == []


@pytest.mark.parametrize("name", ["tanh", "softplus", "elu", "selu"])
def test_sums_in_polar_coordinates_are_those_of_panels(name):
    phi = BY_NAME[name]
    psi, s = np.array([1e-6, 0.3, math.pi / 2]), np.array([0.3, 2.7])
    derivative = tables.derivative_of(phi.phi)
    both = np.concatenate([psi, math.pi - psi])
    row = np.broadcast_to(s, (6, 2))
    with jax.enable_x64(True):
        odd, even = polar.sums_of_parts(interpreted(derivative), s, psi, kinked=bool(phi.kinks))
        wanted = gaussian.panels(phi.kinks, 4.0)
        expected = gaussian.pair_sums(derivative, derivative, row, row, np.cos(both), np.sin(both), grid=wanted)
    plus, minus = np.moveaxis(expected, 0, -1)[..., :3], np.moveaxis(expected, 0, -1)[..., 3:]
    assert np.abs(even - (plus + minus) / 2).max() <= 64 * EPS
    assert np.abs(odd - (plus - minus) / 2).max() <= 64 * EPS
    assert np.abs(1.001 * even - (plus + minus) / 2).max() > 64 * EPS


def test_functions_with_an_undeclared_kink_do_not_converge():
    with pytest.raises(polar.NoConvergenceError):
        polar.sums_of_parts(np.sign, np.array([1.0]), np.array([0.3]), kinked=False)


@pytest.mark.parametrize("name", ["tanh", "softplus", "elu", "hard_tanh"])
@pytest.mark.parametrize("ends", [(0.25, 2.8), (1.0, 1.1), (0.0, 8.0), (1e-30, 1e-29)])
def test_second_moments_of_a_table(name, ends):
    """The series against quadrature: to 64 eps of the value, at any size."""
    if name == "hard_tanh" and ends[1] > 2.8:
        pytest.skip("such signals have the closed form")
    phi = BY_NAME[name].tabulated(*ends, np.float64)
    if phi.table is None:
        pytest.skip("the closed form serves here")
    s = np.linspace(max(ends[0], 1e-3 * ends[1]), ends[1], 50)
    with jax.enable_x64(True):
        found = interpreted(lambda v: lookup.look_up(phi.table, variance_of(v))[0])(s)
        unit, order = np.maximum(s, moments.SMALLEST), phi.table.order
        expected = moments.second_moments(phi, phi.kinks, unit) * (s / unit) ** (2 * order)
    if ends[1] < 1e-20:
        assert (found.exponent < -60).all() == (order > 0)
        return
    ratio = np.ldexp(found.value, 2 * found.exponent) / expected
    assert np.abs(ratio - 1).max() <= 64 * EPS
    assert np.abs(1.001 * ratio - 1).max() > 64 * EPS


@pytest.mark.parametrize("name", ["tanh", "elu", "hard_tanh"])
def test_chunks_are_the_expansions(name):
    table = BY_NAME[name].tabulated(0.4, 1.0, np.float64).table
    few = fixed_lengths.in_few_shapes(table, ("test", name))
    s, near = np.linspace(0.41, 0.99, 9), np.linspace(0, 1, 9)

    def values(table, scale=1.0):
        def pairs(s, near):
            x, y = (lookup.look_up(table, variance_of(v))[1] for v in (s, s[::-1]))
            return lookup.pair_map(table, x, y, correlation_from_gap(near, near < 0.4))

        return [scale * v for v in interpreted(pairs)(s, near)]

    with jax.enable_x64(True):
        for found, expected, wrong in zip(values(few), values(table), values(few, 1.0001), strict=True):
            assert np.abs(found - expected).max() <= 64 * EPS
            assert np.abs(wrong - expected).max() > 64 * EPS


@pytest.mark.parametrize("name", ["tanh", "elu", "hard_tanh"])
def test_an_input_with_itself_is_a_pair(name):
    """The diagonal's own series against pairs of equal signals."""
    phi = BY_NAME[name].tabulated(0.4, 1.0, np.float64)

    def slopes(s):
        trace = phi.encode(variance_of(s))[1]
        correlation = correlation_from_gap(jnp.zeros_like(s), jnp.ones_like(s, bool))
        return phi.itself(trace, correlation)[1], phi.correlate(trace, trace, correlation)[1]

    with jax.enable_x64(True):
        own, pair = interpreted(slopes)(np.linspace(0.41, 0.99, 9))
    assert np.abs(own - pair).max() <= 1e-10
    assert np.abs(1.001 * own - pair).max() > 1e-10


def test_gradients_of_tabulated_networks():
    """Under jit, without preparation: weight_std, bias_std and inputs against differences of the kernels of NumPy."""
    data, weights = X[:4, :3].copy(), np.arange(16.0).reshape(4, 4) - 7

    def total(parameters, points):
        net = wl.mlp(depth=2, activation="tanh", weight_std=parameters[0], bias_std=parameters[1])
        return (weights * wl.ntk(net).gram(points)).sum()

    start, step = np.array([1.3, 0.2]), 1e-4
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
        own = gradient(jnp.asarray(start), jnp.asarray(data))
        far = gradient(jnp.asarray(start), jnp.asarray(1e3 * data))
    for i in range(2):
        at = [start + sign * step * np.eye(2)[i] for sign in (1, -1)]
        assert float(own[0][i]) == pytest.approx((total(at[0], data) - total(at[1], data)) / (2 * step), rel=1e-6)
    change = step * np.eye(12)[4].reshape(4, 3)
    expected = (total(start, data + change) - total(start, data - change)) / (2 * step)
    assert float(own[1][1, 1]) == pytest.approx(expected, rel=1e-6)
    assert 1.001 * float(own[1][1, 1]) != pytest.approx(expected, rel=1e-6)
    assert np.isnan(far[0]).all()


@pytest.mark.parametrize("data", [X, U], ids=["norms", "sphere"])
def test_networks_with_arrays_are_prepared_once(data, monkeypatch):
    """Values decide, not objects: the same numbers in other arrays are known, another number is not."""
    made = []
    for name in ("prepared", "in_few_shapes"):
        whole = getattr(Network, name)
        monkeypatch.setattr(Network, name, lambda *a, whole=whole: made.append(0) or whole(*a))
    monkeypatch.setattr(network, "sphere", lambda *a, **k: made.append(0) or sphere(*a, **k))

    def gram(weight_std):
        return wl.ntk(wl.mlp(depth=2, activation="tanh", weight_std=jnp.asarray(weight_std))).gram(data)

    gram(1.51)
    assert len(made) > 0
    made.clear()
    gram(1.51)
    assert made == []
    gram(1.53)
    assert len(made) > 0


def test_series_of_other_numbers_are_not_traced_again(monkeypatch):
    def gram(weight_std):
        return wl.ntk(wl.mlp(depth=3, activation="relu", weight_std=weight_std, bias_std=0.2)).gram(U)

    gram(1.23)
    made = []
    whole = jax.make_jaxpr
    monkeypatch.setattr(jax, "make_jaxpr", lambda *a, **k: made.append(0) or whole(*a, **k))
    first = gram(1.31)
    assert made == []
    assert np.abs(first / gram(1.23) - 1).min() > 0.01
    wl.ntk(wl.mlp(depth=3, activation="erf")).gram(U)  # the control: another activation
    assert len(made) > 0
