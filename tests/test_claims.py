"""Claims hold, their controls fail, planted errors are found, the report says so."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from commands import invoke
from widelimit.claims import NAMES
from widelimit.claims.base import Check, Claim, Effort, load, power_law
from widelimit.claims.run import FAILED, HELD, TOOTHLESS, Outcome, run


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_is_complete_holds_and_its_control_fails(name):
    claim = load(name)
    for field in dataclasses.fields(Claim):
        assert getattr(claim, field.name), field.name
    outcome = run(name, Effort.QUICK)
    assert outcome.verdict == HELD, (outcome.error, outcome.checks, outcome.controls)
    assert outcome.checks
    assert outcome.controls
    assert all(check.why for check in (*outcome.checks, *outcome.controls))
    assert all(np.asarray(array).dtype.kind in "biuf" for array in outcome.data.values())
    figure = claim.draw(outcome.data, outcome.control_data)
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_ylabel() or not axes.axison


def outcome(checks, controls):
    return Outcome("gram_matrices", "quick", checks, controls, {}, {}, 1.0, "")


def test_a_verdict_needs_checks_that_hold_and_controls_that_fail():
    good, bad, lost = (Check("x", v, 0.0, 1.0, "because") for v in (0.5, 2.0, float("nan")))
    assert outcome((good,), (bad,)).verdict == HELD
    assert outcome((good, bad), (bad,)).verdict == FAILED
    assert outcome((lost,), (bad,)).verdict == FAILED
    assert outcome((), (bad,)).verdict == FAILED
    assert outcome((good,), (bad, good)).verdict == TOOTHLESS
    assert outcome((good,), ()).verdict == TOOTHLESS


def test_a_power_law_is_found_with_its_error():
    """400 draws of noise, seed 0: the slope's deviations have unit variance within 4 standard errors, 0.07 each."""
    x = np.array([32.0, 64.0, 128.0, 256.0, 512.0])
    rng = np.random.default_rng(0)
    errors = 0.05 * 3 * x**-0.5
    fits = [power_law(x, 3 * x**-0.5 + errors * rng.standard_normal(5), errors) for _ in range(400)]
    slopes = np.array([fit.slope for fit in fits])
    assert abs(slopes.mean() + 0.5) < 0.01
    assert power_law(x, 3 * x**-0.5, errors).intercept == pytest.approx(np.log(3))
    assert 0.6 < slopes.std() / np.mean([fit.error for fit in fits]) < 1.1


def scaled_kernel(monkeypatch):
    """Both kernels of a network times 1.01."""
    from widelimit.kernels.network import NNGP, NTK

    for cls in (NNGP, NTK):
        for name in ("gram", "cross", "diag"):
            true = getattr(cls, name)
            monkeypatch.setattr(cls, name, lambda self, *args, true=true: 1.01 * np.asarray(true(self, *args)))


def stale_covariance(monkeypatch):
    """Theta^{l+1} = Theta^l Sdot^{l+1} + Sigma^l, in the place of Sigma^{l+1}."""
    from widelimit.architecture.layers import Dense, PairState

    true = Dense.pair

    def pair(self, x, y, state):
        after = true(self, x, y, state)
        return PairState(after.gaps, after.tangent - after.gaps.rho + state.gaps.rho)

    monkeypatch.setattr(Dense, "pair", pair)


def slow_clock(monkeypatch):
    """The closed form of the flow at half the time."""
    from widelimit.inference.gradient_flow import GradientFlow

    for name in ("predict", "loss"):
        true = getattr(GradientFlow, name)

        def at_half(self, *args, true=true):
            return true(self, *args[:-1], np.asarray(args[-1], float) / 2)

        monkeypatch.setattr(GradientFlow, name, at_half)


def printed_density(monkeypatch):
    """(2 pi det S)^(d/2)."""
    import widelimit as wl

    true = wl.GaussianProcess.log_density

    def log_density(self, X, y):
        gram = np.asarray(self.kernel.gram(X))
        rank = self.rank(X)
        values = np.linalg.eigvalsh(gram)[-rank:]
        return true(self, X, y) - (rank - 1) / 2 * np.sum(np.log(values))

    monkeypatch.setattr(wl.GaussianProcess, "log_density", log_density)


def printed_dual(monkeypatch):
    """(3.6): every coefficient by the sum of all residuals."""
    import widelimit as wl

    true = wl.LinearModel.dual_descent

    def dual_descent(self, X, y, **options):
        alphas = true(self, X, y, **options)
        return np.broadcast_to(alphas.mean(axis=1, keepdims=True), alphas.shape)

    monkeypatch.setattr(wl.LinearModel, "dual_descent", dual_descent)


def forgotten_bias(monkeypatch):
    """An empirical tangent kernel without the biases' part, about a tenth of it."""
    from widelimit.kernels.empirical.kernels import EmpiricalKernel, EmpiricalMatrixKernel

    for cls in (EmpiricalKernel, EmpiricalMatrixKernel):
        for name in ("gram", "cross"):
            true = getattr(cls, name)
            monkeypatch.setattr(cls, name, lambda self, *args, true=true: true(self, *args) - 0.09)


def doubled_noise(monkeypatch):
    import widelimit as wl

    true = wl.posterior
    monkeypatch.setattr(wl, "posterior", lambda k, X, y, *, noise=0.0: true(k, X, y, noise=2 * noise))


def shortened_norm(monkeypatch):
    """<f, g> = a^T b, without the Gram matrix."""
    import widelimit as wl

    def inner(f, g):
        common = min(len(f.coefficients), len(g.coefficients))
        return float(f.coefficients[:common] @ g.coefficients[:common])

    monkeypatch.setattr(wl.rkhs.Function, "inner", inner)


PLANTS = [
    (scaled_kernel, "tangent_kernel_limit"),
    (scaled_kernel, "linear_regression"),
    (stale_covariance, "tangent_kernel_limit"),
    (slow_clock, "descent_of_the_cost"),
    (slow_clock, "trained_networks"),
    (printed_density, "gaussian_vectors"),
    (printed_dual, "primal_is_dual"),
    (forgotten_bias, "function_space_velocity"),
    (doubled_noise, "bayesian_inference"),
    (shortened_norm, "reproducing_kernels"),
]


@pytest.mark.parametrize(("plant", "name"), PLANTS, ids=[f"{p.__name__}-{n}" for p, n in PLANTS])
def test_a_planted_error_makes_the_right_claim_fail(monkeypatch, plant, name):
    plant(monkeypatch)
    jax.clear_caches()
    try:
        found = load(name).measure(Effort.QUICK)
    finally:
        jax.clear_caches()
    assert not all(check.holds for check in found.checks)


CHEAP = ["--quick", "--only", "primal_is_dual", "--only", "minimum_norm_weights"]


def test_verify_writes_one_page_with_all_in_it_and_resumes(tmp_path):
    out, kept = tmp_path / "report.html", tmp_path / "kept"
    command = ["verify", *CHEAP, "--out", str(out), "--keep", str(kept)]
    first = invoke(*command)
    assert first.exit_code == 0, first.stderr
    assert first.stdout.splitlines()[-1] == f"Report: {out}"
    page = out.read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)  # nothing is loaded from elsewhere
    assert "2 of 2 claims hold" in page
    assert "def violate(" in page
    document = json.loads(out.with_suffix(".json").read_text())
    assert document["holds"]
    assert [claim["name"] for claim in document["claims"]] == ["minimum_norm_weights", "primal_is_dual"]
    assert document["claims"][0]["seed"] == load("minimum_norm_weights").seed
    files = sorted(kept.iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    again = invoke(*command, "--json")
    assert json.loads(again.stdout)["claims"] == document["claims"]  # seconds included: nothing was run again
    assert [file.stat().st_mtime_ns for file in files] == stamps
    files[0].write_bytes(files[0].read_bytes()[:-20])
    assert invoke(*command).exit_code == 0
    assert files[0].stat().st_mtime_ns > stamps[0]  # a damaged one is measured again


def test_verify_fails_where_a_claim_does(tmp_path, monkeypatch):
    printed_dual(monkeypatch)
    run = invoke("verify", "--quick", "--only", "primal_is_dual", "--out", str(tmp_path / "r.html"))
    assert run.exit_code == 1
    assert run.stdout.startswith("fails")
    assert "wanted 0 to" in run.stdout
    wrong = invoke("verify", "--only", "primal", "--out", str(tmp_path / "r.html"))
    assert wrong.exit_code == 2
    assert "there is no claim 'primal'; the claims are gaussian_vectors," in wrong.stderr
