"""Predicted costs: counts against formulas, times and prices against the rates of the machine."""

import dataclasses
import json

import numpy as np
import pytest

import widelimit as wl
from commands import invoke
from widelimit.inference import costs

K = wl.nngp(wl.mlp(depth=2, activation="erf"))
RATES = wl.Machine(cores=2, gflops=50.0, memory_gbytes=20.0, ram=2**34, workers=4, price=3.0)


@pytest.fixture(autouse=True)
def _short_calibration(monkeypatch):
    monkeypatch.setattr(costs, "EDGE", 128)


def test_counts():
    gram = wl.predict_cost("gram", K, 1000, 5, machine=RATES)
    cholesky = wl.predict_cost("cholesky", K, 1000, 5, machine=RATES)
    assert gram.entries == cholesky.entries == 5e5
    assert (gram.flops, cholesky.flops) == (0, pytest.approx(1e9 / 3))
    few, many = (wl.predict_cost("nystrom", K, n, 5, inducing=500, machine=RATES) for n in (100_000, 200_000))
    assert many.entries - few.entries == 1e5 * 500
    assert many.flops - few.flops == pytest.approx(2 * 1e5 * (500**2 + 500))
    assert many.ram == few.ram  # nothing grows with the rows
    one, two = (wl.predict_cost("cg", K, 9000, 5, iterations=i, machine=RATES) for i in (10, 20))
    assert two.flops - one.flops == pytest.approx(10 * (2 * 9000**2 + 4 * 9000 * one.m))
    stored = wl.predict_cost("cholesky", K, 10**6, 5, tile=4096, machine=RATES)
    assert stored.stored == pytest.approx(8e18 / 3 / 4096, rel=0.01)
    assert stored.fits
    assert not wl.predict_cost("cholesky", K, 10**6, 5, machine=RATES).fits


def test_seconds_and_money_follow_from_the_rates():
    cost = wl.predict_cost("cholesky", K, 20_000, 5, machine=RATES)
    assert cost.entry_flops > 1
    compute = (cost.entries * cost.entry_flops + cost.flops) / 50e9 + cost.moved / 20e9
    assert cost.core_seconds == pytest.approx(compute)
    assert cost.seconds == pytest.approx(compute / 8)
    assert cost.money == pytest.approx(cost.seconds / 3600 * 12)
    slow = dataclasses.replace(RATES, storage_gbytes=1e-3)
    waits = wl.predict_cost("cholesky", K, 20_000, 5, tile=1000, machine=slow)
    assert waits.seconds == pytest.approx(waits.stored / 1e6 / 4)
    assert wl.predict_cost("nystrom", K, 20_000, 5, machine=RATES).machine.workers == 1


def test_a_prediction_is_explained():
    text = wl.predict_cost("nystrom", K, 10**6, 20, inducing=30_000, machine=RATES).explain()
    for part in ("1,000,000 rows, 30,000 inducing points", "one worker, 2 cores", "too little", "price: "):
        assert part in text
    assert "price" not in wl.predict_cost("gram", K, 100, 5).explain()  # of this machine, which has none


def test_this_machine_is_measured():
    here = wl.Machine.here()
    assert 1 < here.gflops < 1000
    assert 0.1 < here.memory_gbytes < 10_000
    assert np.isfinite(here.ram)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="inducing=101 points are to be drawn from 100 rows"):
        wl.predict_cost("nystrom", K, 100, 5, inducing=101)
    with pytest.raises(ValueError, match="work must be one of gram, cholesky, cg, nystrom"):
        wl.predict_cost("eigh", K, 100, 5)
    with pytest.raises(ValueError, match="gflops"):
        wl.Machine(gflops=0.0, memory_gbytes=1.0)


def test_numbers_of_any_size_are_predicted_or_refused(monkeypatch):
    monkeypatch.setattr(costs, "PROBE", 2**14)  # of a million features 16 rows
    many = wl.predict_cost("cholesky", wl.rbf(), 10**14, 10**6, outputs=10**14, machine=RATES)
    assert np.isfinite([many.seconds, many.money, many.ram]).all()
    for name in ("n", "d", "inducing", "outputs", "iterations", "tile"):
        with pytest.raises(ValueError, match=f"{name} must be below 1000000000000000"):
            wl.predict_cost("cholesky", wl.rbf(), **{"n": 10, "d": 2, "machine": RATES, name: 10**400})
    with pytest.raises(ValueError, match="cores must be below"):
        wl.Machine(gflops=1.0, memory_gbytes=1.0, cores=10**400)
    with pytest.raises(MemoryError, match="the time of an entry for 100000000000 features"):
        wl.predict_cost("gram", wl.rbf(), 10, 10**11, machine=RATES)


NODE = ["--cores", 8, "--gflops", 40, "--memory-gbytes", 8, "--storage-gbytes", 1, "--ram", 64, "--workers", 4]


@pytest.fixture
def measured(monkeypatch):
    """Rates of this machine and kernel that do not have to be measured."""
    monkeypatch.setattr(costs, "_seconds_of_an_entry", lambda *_: 2e-8)
    monkeypatch.setattr(wl.Machine, "here", classmethod(lambda _: RATES))


@pytest.mark.usefixtures("measured")
def test_the_command_says_what_the_function_predicts():
    exact = ["--rows", 100_000, "--features", 20, "--kind", "nngp", "--disk", 100]
    size = [*exact, "--inducing", 2000]
    found = invoke("cost", *size, *NODE, "--price", 3, "--json")
    assert (found.exit_code, found.stderr) == (0, "")
    rows = json.loads(found.stdout)["costs"]
    machine = wl.Machine(
        cores=8, gflops=40.0, memory_gbytes=8.0, storage_gbytes=1.0, ram=64 * 2**30, workers=4, price=3.0
    )
    k = wl.nngp(wl.mlp(depth=3))
    expected = [
        (work, wl.predict_cost(work, k, 100_000, 20, inducing=2000, tile=tile, machine=each))
        for tile, works, each in (
            (None, costs.WORKS, dataclasses.replace(machine, workers=1)),
            (1024, costs.WORKS[:3], machine),
        )
        for work in works
    ]
    assert [row["work"] for row in rows] == [work for work, _ in expected]
    for row, (_, cost) in zip(rows, expected, strict=True):
        for name in ("ram", "disk", "flops", "entries", "stored", "seconds", "money"):
            assert row[name] == getattr(cost, name), name
    # A full matrix of 75 GiB is too much for 64, and matrix and factor together for the disk.
    assert [row["feasible"] for row in rows] == [False, False, True, True, True, False, True]
    table = invoke("cost", *size, *NODE, "--price", 3)
    assert (table.exit_code, len(table.stdout.splitlines())) == (0, 9)
    assert "nystrom   2,000 points" in table.stdout
    one = invoke("cost", *exact, *NODE, "--solver", "cholesky").stdout
    assert [line for line in one.splitlines() if line.startswith("feasible")] == ["feasible: no"] * 2
    assert "price" not in one


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", 0], "'--rows': Input should be greater than or equal to 1"),
        (["--rows", 100, "--solver", "nystrom"], "--inducing 1000: points are drawn from the 100 rows"),
        (["--rows", 100, "--gflops", "nan"], "gflops must be finite"),
        (["--rows", 100, "--ram", 0], "ram must be"),
        (["--rows", 100, "--disk", -1], "--disk must be"),
        (["--rows", 10**15], "n must be below"),
        (["--rows", 100, "--network", "none.txt"], "--network none.txt: cannot be read"),
    ],
)
def test_mistakes_of_the_command_are_one_line(options, message):
    found = invoke("cost", "--features", 3, *options)
    assert (found.exit_code, found.stdout, found.stderr.count("\n")) == (2, "", 1)
    assert message in found.stderr
