"""
A table with error bars in ten minutes
======================================

You have a table with a column of numbers to predict, and want to know how far off each prediction can be.
"""

# %%
# The table
# ---------
# Any table works: NumPy, pandas or polars, with text, dates and gaps. Here it is scikit-learn's diabetes data:
# 442 patients, ten columns, and a score of how far the disease had gone a year later.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import widelimit as wl

table = load_diabetes(as_frame=True, scaled=False)
X, Z, y, z = train_test_split(table.data, table.target, test_size=0.3, random_state=0)
X.head(3)

# %%
# The model
# ---------
# An infinitely wide network under Bayesian inference. Its scales and the noise are those of the largest marginal
# likelihood. Nothing is random: a second fit gives the same bits.

model = wl.NNGPRegressor(input_scales=None).fit(X, y)
print(f"R2 on new rows: {model.score(Z, z):.2f}")

# %%
# The error bars
# --------------
# ``include_noise=True`` asks for the standard deviation of a new observation; without it, it is that of the function.
# An interval of 1.96 standard deviations on each side should hold 95 % of the observations.

mean, std = model.predict(Z, return_std=True, include_noise=True)
order, rows = np.argsort(mean), np.arange(len(Z))
fig, ax = plt.subplots()
ax.errorbar(rows, mean[order], 1.96 * std[order], fmt="o", elinewidth=0.6, markersize=3, label="predicted, 95 %")
ax.plot(rows, z.to_numpy()[order], "x", color="C3", label="observed")
ax.set(xlabel="new rows, by prediction", ylabel="disease progression (score)")
ax.legend(loc="upper left", ncols=2)
inside = np.mean(np.abs(z - mean) < 1.96 * std)
print(f"inside the bars: {inside:.0%}")
assert inside > 0.9

# %%
# Are they right at other levels? Calibrated error bars follow the diagonal.

wl.CalibrationDisplay.from_estimator(model, Z, z)

# %%
# What the columns do
# -------------------
# The dependence on body mass index and blood pressure, averaged over the other columns, with its own standard deviation.

wl.DependenceDisplay.from_estimator(model, X, ["bmi", "bp"])

# %%
# Which network?
# --------------
# :py:obj:`~widelimit.WideRegressor` chooses kernel, depth and activation by the evidence, and learns one scale for each
# column: take it where columns matter unequally. It needs more time.
#
# Keep the model
# --------------
# ``wl.save(model, "model.npz")`` writes arrays and a header, no pickled objects. The same on the command line:
#
# .. code-block:: console
#
#    widelimit fit train.csv --target progression --model m.npz --report report.html
#    widelimit predict m.npz new.csv --std
#
# :doc:`/estimators` has all parameters and the reasons of their defaults, :doc:`/command_line` the other commands.
