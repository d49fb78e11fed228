"""Searches of the estimators that end early, for tests of what a fitted estimator is good for."""

from widelimit.inference import expectation_propagation, input_scales


def shorten_searches(patch):
    for name in ("RACE_STEPS", "STEPS"):  # what a search finds is tested in test_input_scales.py ...
        patch.setattr(input_scales, name, 1)
    for name in ("LEAST_SCALE", "LARGEST_SCALE"):  # ... and test_logistic.py
        patch.setattr(expectation_propagation, name, 1.0)
