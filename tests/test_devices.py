"""Work runs where one place decides: on the host, or on devices that keep every matrix."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit.compute import devices


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
