"""Particles of the mean-field law are units of a network, and many of them follow the limit."""

import jax
import numpy as np
import pytest

import widelimit as wl
from widelimit.theory.mean_field import Particles, particle_law

RNG = np.random.default_rng(0)
X, Z = RNG.standard_normal((4, 2)), RNG.standard_normal((3, 2))
Y = np.array([1.0, -0.5, 0.7, 0.2])
NET = wl.mlp(depth=2, activation="erf", weight_std=[1.5, 1.2], bias_std=[0.4, 0.3], parameterization="mean_field")


def test_particles_are_the_units_of_a_network():
    """N of them, for a time t, are a network of width N that `train` trains for N t."""
    n, t = 5, 0.8
    params = jax.tree.map(np.asarray, NET.init(3, input_dim=2, width=n, dtype="float64"))
    first, _, last = params
    into = np.concatenate([first["weight"], first["bias"][:, None]], axis=1)
    bias = 0.3 * last["bias"] / np.sqrt(n)
    law = particle_law(NET, X, Y)
    moved = law.move(Particles(last["weight"], into[None], bias), t)
    run = wl.train(NET.apply, params, X, Y, flow_time=n * t, tolerance=1e-9, probes=X, kernel_points=0, progress=False)
    (end, _, out), gap = run.params, np.abs(run.history.outputs[-1] - np.asarray(law.outputs(moved, law.rows)[0]))
    np.testing.assert_allclose(moved.into[0, :, :2], end["weight"], atol=1e-6)
    np.testing.assert_allclose(moved.into[0, :, 2], end["bias"], atol=1e-6)
    np.testing.assert_allclose(moved.out, out["weight"], atol=1e-6)
    np.testing.assert_allclose(moved.bias, 0.3 * np.asarray(out["bias"]) / np.sqrt(n), atol=1e-6)
    assert gap.max() < 1e-6
    late = law.move(Particles(last["weight"], into[None], bias), 1.02 * t)
    assert np.max(abs(late.into[0, :, :2] - end["weight"])) > 1e-3  # another clock is seen


def test_early_training_is_that_of_the_tangent_kernel_and_late_training_is_not():
    flow = wl.mean_field_flow(NET, X, 4 * Y, times=[3.0, 0.0, 0.02], probes=Z, particles=2001)
    np.testing.assert_allclose(flow.outputs[1], 0, atol=1e-14)
    assert flow.movement[1] == 0 < flow.movement[2] < flow.movement[0]
    np.testing.assert_allclose(flow.loss[1], 16 * np.mean(Y**2), rtol=1e-12)
    early = abs(flow.outputs - flow.lazy) / np.maximum(flow.error, 1e-300)
    assert np.max(early[2]) < 7  # 4 draws: Student's t with 3 degrees, 3 outputs
    assert np.max(abs(flow.outputs[0] - flow.lazy[0])) > 10 * flow.error[0].max()
    wrong = abs(flow.outputs[2] - 1.1 * flow.lazy[2]) / flow.error[2]
    assert np.max(wrong) > 7
    assert flow.units.shape == (4, 2002, 4)


def test_the_limit_does_not_depend_on_the_number_of_particles():
    few, many = (wl.mean_field_flow(NET, X, Y, times=2.0, particles=n, draws=16, seed=n) for n in (100, 1600))
    spread = np.hypot(few.error, many.error)
    assert np.max(abs(few.outputs - many.outputs) / spread) < 5
    ratio = few.error.mean() / many.error.mean()
    assert 2.5 < ratio < 6  # the root of 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wl.mean_field_flow(wl.mlp(depth=2), X, Y, times=1.0), "mean_field"),
        (lambda: wl.mean_field_flow(wl.mlp(depth=3, parameterization="mean_field"), X, Y, times=1.0), "Dense, activ"),
        (lambda: wl.mean_field_flow(NET, X, X, times=1.0), "one output"),
        (lambda: wl.mean_field_flow(NET, X, Y, times=np.inf), "finite"),
        (lambda: wl.mean_field_flow(NET, X, Y, times=1.0, particles=1), "particles"),
        (lambda: wl.mean_field_flow(NET, X, Y, times=1.0, particles=10**12), "fewer particles"),
        (lambda: wl.mean_field_flow(NET, X, 1e9 * Y, times=1e9, particles=2), "too many steps"),
    ],
)
def test_what_has_no_flow_is_refused(call, message, monkeypatch):
    monkeypatch.setattr("widelimit.theory.ode.MOST", 300)
    with pytest.raises((TypeError, ValueError, MemoryError, ArithmeticError), match=message):
        call()
