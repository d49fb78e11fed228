"""Run on four simulated devices, as `test_devices.py` starts it: prints one line for each check that held."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import widelimit as wl
from widelimit.compute import device_cholesky, device_rows, devices

rng = np.random.default_rng(0)
X, y, Z = rng.standard_normal((150, 5)), rng.standard_normal((150, 2)), rng.standard_normal((9, 5))
KERNEL, ALL = wl.rbf(2.0), jax.devices()


def whole(rows, buffer):
    """Put the block columns of a buffer side by side."""
    form, parts = rows.form, np.asarray(buffer)
    columns = [parts[g % form.devices][:, g // form.devices * form.edge :][:, : form.edge] for g in range(form.blocks)]
    return np.tril(np.hstack(columns))[: form.n, : form.n]


def factor(count):
    """Factorise on some of the devices, in tiles of 32 rows: L, and L^{-1} b."""
    location = devices.choose(ALL[:count] if count > 1 else None)
    rows = device_rows.DeviceRows(KERNEL, X, *tiles_of(location), location)
    matrix, _ = rows.matrix(np.full(len(X), 0.1))
    with location.running():
        lower = device_cholesky.factorise(rows.mesh, rows.form, matrix)
        assert matrix.is_deleted()
        solved = device_cholesky.solve(rows.mesh, rows.form, lower, rows.padded(y))
        return whole(rows, lower), np.asarray(solved)[: len(X)]


def tiles_of(location):
    form = device_cholesky.Layout(len(X), 32, 8, len(location.ids))
    return devices.to_device(np.resize(X, (form.rows, X.shape[1])), location), form


def check_bits():
    with devices.forced():
        (one, x), (two, _), (four, solved) = (factor(count) for count in (1, 2, 4))
    known = scipy.linalg.cholesky(KERNEL.gram(X) + 0.1 * np.eye(len(X)), lower=True)
    np.testing.assert_allclose(one, known, atol=1e-13)
    assert one.tobytes() == two.tobytes() == four.tobytes()
    np.testing.assert_allclose(solved, x, rtol=0, atol=len(X) * 2.2e-16 * np.abs(x).max() * np.linalg.cond(known))
    assert one.tobytes() != known.tobytes()  # another order of sums: the comparison sees single bits


def check_posterior():
    host = wl.posterior(KERNEL, X, y, noise=0.1)
    there = wl.posterior(KERNEL, X, y, noise=0.1, device=ALL)
    assert "cpu:0, cpu:1, cpu:2, cpu:3" in there.explain()
    for ours, theirs in zip(there.predict(Z), host.predict(Z), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    np.testing.assert_allclose(there.leave_one_out().mean, host.leave_one_out().mean, atol=1e-12)
    assert there.residual < 1e-13
    krylov = wl.posterior(KERNEL, X, y, noise=0.1, solver="cg", device=jax.sharding.Mesh(np.array(ALL), ("a",)))
    np.testing.assert_allclose(krylov.mean(Z), host.mean(Z), atol=1e-8)
    flow = wl.gradient_flow(KERNEL, X, y, device=ALL)  # eigenvectors of the first device
    np.testing.assert_allclose(flow.predict(Z, 3.0), wl.gradient_flow(KERNEL, X, y).predict(Z, 3.0), atol=1e-12)


def check_places():
    with devices.forced(), jax.enable_x64():
        first, third = (jax.device_put(X, ALL[i]) for i in (0, 2))
        there = wl.posterior(KERNEL, third, jax.device_put(y, ALL[2]), noise=0.1)
        assert there.data.location.name == "cpu:2"
        assert there.factor.lower.devices() == {ALL[2]}
        assert there.mean(jax.device_put(Z, ALL[2])).devices() == {ALL[2]}
        with pytest.raises(ValueError, match=r"different devices: X on .*0; y on .*2") as caught:
            wl.posterior(KERNEL, first, jax.device_put(y, ALL[2]), noise=0.1)
        assert len(str(caught.value)) < 400
        with pytest.raises(ValueError, match=r"Z lies on .*1 and the result is kept on cpu:2"):
            there.mean(jax.device_put(Z, ALL[1]))
        cut = jax.sharding.NamedSharding(
            jax.sharding.Mesh(np.array(ALL), ("rows",)), jax.sharding.PartitionSpec("rows")
        )
        shared = wl.posterior(KERNEL, jax.device_put(X[:148], cut), y[:148], noise=0.1)
        assert shared.data.location.ids == (0, 1, 2, 3)
        assert jnp.asarray(shared.mean(Z)).shape == (9, 2)


for check in (check_bits, check_posterior, check_places):
    check()
    print(check.__name__)
