"""Work runs where one place decides: on the host, or on devices that keep every matrix."""

import contextlib
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

import widelimit as wl
from widelimit import memory
from widelimit.compute import device_cholesky, device_rows, devices


def test_work_runs_on_the_host_unless_a_device_is_there():
    here = devices.choose()
    assert (here.host, here.name) == (True, "cpu:0")
    assert all(words in here.describe() for words in ("default of JAX", "LAPACK", "free"))
    assert not devices.accelerated()
    with devices.forced():
        there = devices.choose(X=jnp.ones(3))
        assert devices.accelerated()
    assert (there.host, "where the given arrays lie" in there.describe()) == (False, True)
    assert (devices.choose("cpu").host, devices.choose(jax.devices()[0], X=np.ones(3)).host) == (True, True)
    assert pickle.loads(pickle.dumps(there)) == there


@pytest.mark.parametrize(
    ("device", "error", "words"),
    [
        ("tpu", ValueError, "this process has cpu:0"),
        ("cpu:7", ValueError, "'cpu:7' is not here"),
        (3, TypeError, "a jax.Device"),
        ([], TypeError, "a jax.Device"),
        ("same twice", ValueError, "different devices"),
    ],
)
def test_a_device_that_is_none_is_refused(device, error, words):
    given = jax.devices() * 2 if device == "same twice" else device
    with pytest.raises(error, match=words) as caught:
        devices.choose(given)
    assert len(str(caught.value)) < 400


def test_a_location_of_another_machine_is_refused():
    with pytest.raises(ValueError, match=r"gpu:3 is not a device of this process"):
        devices.Location("gpu", (3,), False, "").devices  # noqa: B018, the property raises


def test_memory_of_a_device_is_refused_with_figures():
    with devices.forced():
        there = devices.choose()
    with pytest.raises(MemoryError, match=r"a matrix needs 912261.1 GiB on cpu:0, .* are free; use fewer points"):
        there.require(2.0**50 * 0.87, "a matrix")


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes", MemoryError, "cpu:0 ran out of memory, .* are free"),
        ("INTERNAL: CUDA_ERROR_ECC_UNCORRECTABLE", RuntimeError, "cpu:0 failed: INTERNAL.*If the device was lost"),
    ],
)
def test_a_device_that_fails_is_named(message, error, words):
    with devices.forced():
        there = devices.choose()
    with pytest.raises(error, match=words) as caught, there.running():
        raise jax.errors.JaxRuntimeError(message)
    assert len(str(caught.value)) < 400


rng = np.random.default_rng(0)
X, y, Z = rng.standard_normal((70, 5)), rng.standard_normal((70, 2)), rng.standard_normal((9, 5))
KERNEL = wl.ntk(wl.mlp(depth=2))


@contextlib.contextmanager
def crossing():
    """Count the bytes that cross, while all other transfers to a device are refused; yields the list of them."""
    counted = []

    def there(values, location):
        counted.extend(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(values))
        with jax.transfer_guard("allow"):
            return to_device(values, location)

    def back(values, location):
        counted.append(values.nbytes)
        with jax.transfer_guard("allow"):
            return to_host(values, location)

    to_device, to_host = devices.to_device, devices.to_host
    with pytest.MonkeyPatch.context() as patch, jax.transfer_guard("disallow"), devices.forced():
        patch.setattr(devices, "to_device", there)
        patch.setattr(devices, "to_host", back)
        yield counted


@pytest.mark.parametrize(
    "settings",
    [{}, {"precision": "mixed"}, {"solver": "cg", "precision": "mixed"}],
    ids=lambda settings: "-".join(settings.values()) or "cholesky",
)
def test_a_posterior_on_a_device_is_that_of_the_host(settings):
    host = wl.posterior(KERNEL, X, y, noise=0.1, **settings)
    with devices.forced():
        there = wl.posterior(KERNEL, X, y, noise=0.1, **settings)
    assert "matrices stay on the device" in there.explain()
    assert there.residual < 1e-10
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(there)).variance(Z), there.variance(Z))
    tolerance = 1e-13 if not settings else 1e-9
    for name in ("mean", "variance", "covariance"):
        np.testing.assert_allclose(getattr(there, name)(Z), getattr(host, name)(Z), atol=tolerance)
    if not settings:
        for ours, theirs in zip(there.leave_one_out(), host.leave_one_out(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)
        assert there.log_marginal_likelihood() == pytest.approx(host.log_marginal_likelihood(), rel=1e-13)
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(there.mean(Z), 1.01 * host.mean(Z), atol=tolerance)


def test_only_vectors_cross():
    n = len(X)
    with crossing() as counted:
        there = wl.posterior(KERNEL, X, y, noise=0.1)
        fit = max(counted)
        counted.clear()
        there.predict(Z)
        predict = max(counted)
        counted.clear()
        there.leave_one_out()
        there.log_marginal_likelihood()
    assert max(counted) < fit < 8 * n * n / 4
    assert predict <= 8 * 128 * 2  # the weights, filled up to whole tiles; never K(Z, X)
    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"), jax.transfer_guard("disallow"):
        wl.posterior(KERNEL, X, y, noise=0.1)  # as it was: tiles move back and forth


def test_flows_on_a_device_are_those_of_the_host():
    times = np.array([0.0, 0.5, 30.0, np.inf])
    host, law = wl.gradient_flow(KERNEL, X, y), wl.trained_ensemble(wl.mlp(depth=2), X, y)
    with crossing() as counted:
        flow, there = wl.gradient_flow(KERNEL, X, y), wl.trained_ensemble(wl.mlp(depth=2), X, y)
        krylov = wl.gradient_flow(KERNEL, X, y, solver="krylov")
        values = [flow.predict(Z, times), krylov.predict(Z, times), flow.loss(times), flow.coefficients(3.0)]
        values += [there.mean(Z, times), there.variance(Z, times), there.covariance(Z, times)]
    assert max(counted) < 8 * len(X) ** 2 / 2
    theirs = [host.predict(Z, times)] * 2 + [host.loss(times), host.coefficients(3.0), law.mean(Z, times)]
    theirs += [law.variance(Z, times), law.covariance(Z, times)]
    for ours, known in zip(values, theirs, strict=True):
        np.testing.assert_allclose(ours, known, atol=1e-11)
    np.testing.assert_allclose(flow.modes().vectors ** 2, host.modes().vectors ** 2, atol=1e-10)


def test_the_slope_of_the_likelihood_stays_on_the_device():
    kernel = 2.0 * wl.rbf(1.5)  # compiles in a tenth of a network's time
    host = wl.posterior(kernel, X, y, noise=0.1).log_marginal_likelihood_gradient()
    with crossing() as counted:
        there = wl.posterior(kernel, X, y, noise=0.1).log_marginal_likelihood_gradient()
    assert max(counted) < 8 * len(X) ** 2 / 4
    for ours, theirs in zip(jax.tree.leaves(there), jax.tree.leaves(host), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


def test_a_search_on_a_device_finds_what_the_host_finds():
    settings = {"noise": 0.1, "restarts": 0, "max_steps": 3}
    net = wl.rbf(1.5)
    host = wl.fit_hyperparameters(net, X[:30], y[:30], **settings)
    with crossing() as counted, jax.transfer_guard("allow"):
        there = wl.fit_hyperparameters(net, X[:30], y[:30], **settings)
    assert max(counted) < 8 * 30**2
    assert there.score == pytest.approx(host.score, rel=1e-9)
    assert there.posterior.data.rows is not None
    with devices.forced():
        assert wl.fit_hyperparameters(net, X[:30], y[:30], **settings, device="cpu").posterior.data.rows is None
    with pytest.raises(ValueError, match="leave-one-out and differences run on the host"), devices.forced():
        wl.fit_hyperparameters(net, X, y, noise=0.1, objective="leave_one_out", device=jax.devices()[0])


def test_several_devices_give_the_bits_of_one():
    script = Path(__file__).with_name("several_devices.py")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.split() == ["check_bits", "check_posterior", "check_places"]


def test_a_factor_beyond_the_memory_of_the_device_is_kept_on_the_host(monkeypatch):
    monkeypatch.setattr(device_cholesky, "LARGEST", 32)
    kernel, noise = wl.rbf(2.0), 0.1
    host = wl.posterior(kernel, X, y, noise=noise)
    monkeypatch.setattr(devices.Location, "free", lambda self: 100e3)
    with devices.forced():
        there = wl.posterior(kernel, X, y, noise=noise)
        assert "storage host" in there.explain()
        assert "and does not fit: its factor" in there.explain()
        for ours, theirs in zip(there.predict(Z), host.predict(Z), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)
        np.testing.assert_allclose(there.leave_one_out().variance, host.leave_one_out().variance, atol=1e-12)
        assert there.log_marginal_likelihood() == pytest.approx(host.log_marginal_likelihood(), rel=1e-12)
        assert there.residual < 1e-13
        with pytest.raises(ValueError, match=r"singular to rounding.* at row 70 of 73 \(it equals row 0\)"):
            wl.posterior(kernel, np.vstack([X, X[:3]]), np.vstack([y, y[:3]]))
        assert wl.posterior(kernel, X, y, noise=noise, solver="cg").fit.choice.storage == "recomputed"


def test_float32_that_the_condition_number_forbids_is_said(monkeypatch):
    monkeypatch.setattr(device_cholesky, "LARGEST", 32)
    monkeypatch.setattr(devices.Location, "free", lambda self: 110e3)  # room for float32 only
    settings = {"noise": 1e-12, "precision": "mixed", "solver": "cholesky"}
    with devices.forced():
        there = wl.posterior(wl.rbf(9.0), X, y, **settings)
        assert "the float32 factor broke; factorised in float64 instead" in there.explain()
        rough = wl.posterior(wl.rbf(9.0), X, y, **settings | {"noise": 1e-5, "tolerance": 1e-14})
        assert "float32 factor, stopped" in rough.explain()
        assert "residual" in rough.fit.message
        monkeypatch.setattr(memory, "available", lambda: 40e3)
        with pytest.raises(MemoryError, match=r"too ill-conditioned for float32, and .* needs") as caught:
            wl.posterior(wl.rbf(9.0), X, y, **settings)
    assert len(str(caught.value)) < 400


def test_a_factorisation_takes_one_matrix_and_a_few_panels():
    with devices.forced():
        mesh = devices.choose().sharding.mesh
    form = device_cholesky.Layout(1000, 64, 16, 1)
    with jax.enable_x64():
        matrix = jax.ShapeDtypeStruct(form.shape, jnp.float64)
        needed = device_cholesky.factorise.lower(mesh, form, matrix).compile().memory_analysis()
        plain = jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((1024, 1024), jnp.float64)).compile()
    whole, panel = 8 * 1024**2, 8 * 1024 * 64
    assert needed.alias_size_in_bytes == whole  # in its place
    assert needed.temp_size_in_bytes < device_rows.PANELS * panel
    assert plain.memory_analysis().temp_size_in_bytes + whole > whole + device_rows.PANELS * panel  # what is avoided


def test_programs_are_as_many_for_any_number_of_rows(monkeypatch):
    monkeypatch.setattr(device_cholesky, "LARGEST", 32)
    kernel = wl.rbf(3.0)

    seen = []
    monitoring.register_event_duration_secs_listener(lambda event, *_, **__: seen.append(event))

    def programs(n):
        rows, before = np.random.default_rng(n).standard_normal((n, 3)), len(seen)
        with devices.forced():
            wl.posterior(kernel, rows, rows[:, 0], noise=0.1).predict(rows[:5])
        return sum("backend_compile" in event for event in seen[before:])

    programs(40)
    assert 0 < programs(210) == programs(300) < 15  # tiles of sizes that no other test has
