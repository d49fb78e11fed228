"""
Which columns matter
====================

The learned scale of each column of a table, by marginal likelihood.
"""

import numpy as np

import widelimit as wl

rng = np.random.default_rng(0)
X = rng.standard_normal((120, 5))
y = np.sin(2 * X[:, 0]) + 0.5 * X[:, 3] + 0.1 * rng.standard_normal(120)
model = wl.NNGPRegressor(activation="erf").fit(X, y)
wl.ImportanceDisplay.from_estimator(model)
