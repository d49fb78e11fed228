"""Claims hold, their controls fail, planted errors are found, the report says so."""

import dataclasses

import numpy as np
import pytest

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
