"""Signals move by as much at every width with maximal updates, by less or by more in other parameterisations."""

import numpy as np
import pytest

import widelimit as wl

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 3))
Y = np.sin(2 * X[:, 0]) + X[:, 1]


def check(parameterization, **changes):
    net = wl.mlp(depth=3, activation="erf", weight_std=1.4, parameterization=parameterization)
    return wl.coordinate_check(net, X, Y, widths=(32, 512), learning_rate=0.1, **changes)


@pytest.fixture(scope="module")
def maximal():
    return check("mup")


def test_maximal_updates_move_all_signals_by_as_much_at_every_width(maximal):
    assert maximal.holds(0.2)
    assert maximal.movement.min() > 0.02  # they do move
    assert maximal.movement.shape == (2, 3)
    assert np.all(maximal.error < 0.3 * maximal.movement)


@pytest.mark.slow
@pytest.mark.claims
def test_hidden_signals_stand_still_in_the_ntk_parameterisation():
    found = check("ntk")
    assert not found.holds(0.2)
    np.testing.assert_allclose(found.slopes[:2], -0.5, atol=0.25)  # f_0 of four networks is random
    assert abs(found.slopes[2]) < 0.2


@pytest.mark.slow
@pytest.mark.claims
def test_standard_networks_blow_up_with_a_learning_rate_of_order_one():
    found = check("standard", steps=6)
    assert not found.holds(0.2)
    assert np.max(found.slopes) > 0.4


def test_one_step_of_a_linear_network_is_known_exactly():
    """f = (w/n) a.h, h = u x of a unit: h moves by -rate dC/dh with n times the mean-field gradient."""
    net = wl.mlp(depth=2, activation="identity", parameterization="mup")
    x, y, rate, n = np.array([[1.0]]), np.array([2.0]), 0.3, 4
    found = wl.coordinate_check(net, x, y, widths=(n, 8), learning_rate=rate, steps=1, draws=2)
    squares = []
    params = net.init_many([0, 1], input_dim=1, width=n, dtype="float64")
    for seed in range(2):
        u, a = (np.sqrt(n) * np.ravel(p["weight"][seed]) for p in params if p)
        residual = 2 * (np.mean(u * a) - y[0])
        squares.append(
            [
                np.mean((rate * residual * a) ** 2),
                (np.mean((u - rate * residual * a) * (a - rate * residual * u)) - np.mean(u * a)) ** 2,
            ]
        )
    np.testing.assert_allclose(found.movement[0], np.sqrt(np.mean(squares, axis=0)), rtol=1e-10)


def test_the_plot_has_a_line_for_each_layer(maximal):
    axes = maximal.plot()
    assert len(axes.lines) == 3
    assert "slope" in axes.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"widths": [64]}, "two or more"),
        ({"widths": 64}, "two or more"),
        ({"steps": 0}, "steps"),
        ({"draws": 1}, "draws"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"net": wl.mlp(depth=1)}, "depth 2"),
    ],
)
def test_what_has_no_check_is_refused(given, message):
    settings = {"net": wl.mlp(depth=2, parameterization="mup"), "learning_rate": 0.1} | given
    with pytest.raises((TypeError, ValueError), match=message):
        wl.coordinate_check(settings.pop("net"), X, Y, **settings)
