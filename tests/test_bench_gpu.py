"""The benchmark of accelerators runs with few rows, and lines that fail do not end its table."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.compute import devices

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import common
import gpu


def test_the_peer_is_the_same_kernel():
    X = gpu.data(30)[0]
    with jax.enable_x64():
        found = np.asarray(gpu.textbook(jnp.asarray(X)))
    np.testing.assert_allclose(found, wl.ntk(gpu.network()).gram(X), rtol=1e-6)  # arccos loses half of the digits


def test_the_peer_is_the_same_posterior():
    X, y, Z = gpu.data(30)
    with jax.enable_x64():
        mean, variance = gpu.plain_posterior(*map(jnp.asarray, (X, y, Z)))
    own = wl.posterior(wl.ntk(gpu.network()), X, y, noise=gpu.NOISE).predict(Z)
    np.testing.assert_allclose(mean, own.mean, atol=1e-4)
    np.testing.assert_allclose(variance, own.variance, atol=1e-4)


def test_a_table_of_few_rows(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path)

    def broken(*_):
        raise RuntimeError("no room")

    for name in ("posterior", "evidence", "large", "flow"):
        monkeypatch.setattr(gpu, name, broken if name == "flow" else lambda n, goal: {"seconds": goal / n})
    monkeypatch.setattr(gpu, "gram", lambda n, dtype, goal: gpu.ratio(1.0, 2.0 * n, goal))
    monkeypatch.setattr(gpu, "accuracy", lambda seconds, small: {"note": f"{seconds > 0} {small}"})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small"])
    gpu.main()
    table = capsys.readouterr().out
    for expected in ("Gram 512, float32", "RuntimeError: no room", "n = 937", "tests of digits", "ratio 1.5"):
        assert expected in table
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--minutes", "0"])
    gpu.main()
    assert capsys.readouterr().out.count("left out: no time left") >= 12


def test_without_an_accelerator_only_few_rows_run(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="no accelerator"):
        gpu.main()
    assert not devices.accelerated()
