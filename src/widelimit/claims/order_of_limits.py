"""Remark 2.7: widths may grow in any order; the narrowest layer sets the rate. Source: Matthews et al. 2018."""

import numpy as np
from matplotlib.figure import Figure
from scipy.spatial.distance import cdist

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_most, slope_check
from widelimit.claims.finite import output_covariances, outputs
from widelimit.claims.statistics import mean_and_error, power_law, root_mean_and_error

SEED = 2701
POINTS = np.random.default_rng(SEED).standard_normal((4, 3))
NET = wl.mlp(depth=3, activation="relu", weight_std=2**0.5, bias_std=0.3)
PATTERNS = {"n, n": (1, 1), "n, 8n": (1, 8), "8n, n": (8, 1)}
"""Widths of the first and second hidden layer in units of the narrowest."""
SLOPE = 0.1
LEVEL = 5.0

TABLE = {
    (1, 1): 2.59e-2, (1, 2): 9.37e-2, (1, 3): 1.27e-1,
    (5, 1): 1.48e-3, (5, 2): 9.22e-3, (5, 3): 2.18e-2,
    (10, 1): 3.44e-4, (10, 2): 2.33e-3, (10, 3): 6.52e-3,
    (20, 1): 8.77e-5, (20, 2): 5.76e-4, (20, 3): 1.71e-3,
    (50, 1): 1.25e-5, (50, 2): 9.61e-5, (50, 3): 2.80e-4,
    (100, 1): 3.07e-6, (100, 2): 3.03e-5, (100, 3): 6.07e-5,
}  # fmt: skip
"""{(width, hidden layers): MMD^2} of Matthews et al. 2018, arXiv 1804.11271: means of 100 repetitions."""
REPETITIONS = 100
NOISE, LENGTH_SCALE = 1e-3, 0.5
NARROWEST = {Effort.QUICK: np.array([16, 32, 64]), Effort.FULL: np.array([16, 32, 64, 128])}
"""Widths of the narrowest hidden layer."""


def covariance_errors(effort: Effort, pattern: tuple[int, int], *, second: int | None = None) -> np.ndarray:
    """Compute relative errors of the conditional covariance and their standard errors, (2, widths)."""
    limit = np.asarray(wl.nngp(NET).gram(POINTS))
    found = []
    for n in NARROWEST[effort].tolist():
        sizes = (pattern[0] * n, pattern[1] * n if second is None else second)
        K = output_covariances(NET, POINTS, widths=sizes, count=effort.pick(quick=1000, full=4000), seed=SEED + n)
        squares = np.sum((K - limit) ** 2, axis=(1, 2)) / np.sum(limit**2)
        found.append(root_mean_and_error(squares))
    return np.array(found).T


def discrepancy(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the unbiased MMD^2 of two samples of the same size with a Gaussian kernel."""
    m = len(a)
    kernels = [np.exp(-cdist(u, v, "sqeuclidean") / (2 * LENGTH_SCALE**2)) for u, v in ((a, a), (b, b), (a, b))]
    within_samples = sum(float(k.sum()) - m for k in kernels[:2]) / (m * (m - 1))
    return within_samples - 2 * float(kernels[2].mean())


def table_cell(effort: Effort, width: int, hidden: int) -> np.ndarray:
    """Compute MMD^2 between networks and their limit at ten random inputs, one value a repetition."""
    net = wl.mlp(depth=hidden + 1, activation=wl.ABRelu(0.0, 2**0.5), weight_std=0.8**0.5, bias_std=0.2**0.5)
    draws = effort.pick(quick=800, full=2000)
    rng = np.random.default_rng(SEED + 1000 * hidden + width)
    found = []
    for repetition in range(effort.pick(quick=12, full=40)):
        X = rng.standard_normal((10, 4))
        f = outputs(net, X, widths=(width,) * hidden, output_dim=1, count=draws, seed=SEED + repetition)[:, :, 0]
        f = f + np.sqrt(NOISE) * rng.standard_normal(f.shape)
        limit = np.asarray(wl.nngp(net).gram(X)) + NOISE * np.eye(10)
        found.append(discrepancy(f, rng.standard_normal((draws, 10)) @ np.linalg.cholesky(limit).T))
    return np.array(found)


def cells(effort: Effort) -> list[tuple[int, int]]:
    """Return the cells of the table that are reproduced."""
    return [(n, hidden) for n, hidden in TABLE if n <= effort.pick(quick=10, full=100)]


def table(effort: Effort, which: list[tuple[int, int]], *, wider: int) -> dict[str, np.ndarray]:
    """Compute means, errors, and deviations from the published values, for every cell; `wider`: a planted factor."""
    rows = []
    for n, hidden in which:
        values = table_cell(effort, wider * n, hidden)
        mean, error = mean_and_error(values)
        # The published means have an error as well: that of 100 repetitions with 2000 draws, at most as wide as ours.
        both = float(error) * np.sqrt(1 + len(values) / REPETITIONS)
        published = TABLE[n, hidden]
        rows.append((n, hidden, mean, error, published, (mean - published) / both))
    return {"table": np.array(rows)}


def measure(effort: Effort) -> Measurement:
    """Measure slopes for three patterns of widths, and the published table."""
    checks: list[Check] = []
    data: dict[str, np.ndarray] = {"n": NARROWEST[effort]}
    for name, pattern in PATTERNS.items():
        errors = covariance_errors(effort, pattern)
        line = power_law(NARROWEST[effort].astype(float), *errors)
        checks.append(slope_check(f"widths ({name}): slope", line, -0.5, SLOPE))
        data[name] = errors
    gain = float(np.mean(data["n, n"][0] / data["n, 8n"][0]))
    found = table(effort, cells(effort), wider=1)
    off = np.abs(found["table"][:, 5]).max()
    checks += [
        Check("error at (n, n) over that at (n, 8n)", gain, 1.0, 2.0, "one layer out of two still errs"),
        at_most("published table: largest deviation", off, LEVEL, "standard errors of both means"),
    ]
    return Measurement(tuple(checks), data | found)


def violate(effort: Effort) -> Measurement:
    """Use a second layer that stays narrow; and networks of twice the width against the table."""
    errors = covariance_errors(effort, (1, 1), second=16)
    line = power_law(NARROWEST[effort].astype(float), *errors)
    found = table(effort, [cell for cell in cells(effort) if cell[0] == 5], wider=2)
    checks = (
        slope_check("widths (n, 16): slope", line, -0.5, SLOPE),
        at_most("table, widths doubled", np.abs(found["table"][:, 5]).max(), LEVEL, "standard errors of both means"),
    )
    return Measurement(checks, {"errors": errors} | found)


def draw(data: Data, control: Data) -> Figure:
    """Draw errors by the narrowest width; MMD^2 beside the published values."""
    figure, (upper, lower) = plots.panels(2)
    n = data["n"]
    for name, marker in zip(PATTERNS, "osD", strict=True):
        plots.error_bars(upper, n, data[name], marker, label=f"({name})")
    upper.plot(n, data["n, n"][0, 0] * (n / n[0]) ** -0.5, color=plots.BAYES, label="$n^{-1/2}$")
    plots.error_bars(upper, n, control["errors"], "x", color=plots.DESCENT, label="control: (n, 16)")
    plots.finish_over_widths(upper, n, ylabel="relative error of the covariance", title="Any order of limits")
    upper.set_xlabel("narrowest width n")
    rows = data["table"]
    for hidden, color in zip((1, 2, 3), plots.palette(3), strict=True):
        part = rows[rows[:, 1] == hidden]
        lower.plot(part[:, 0], part[:, 4], color=color, label=f"published, {hidden} hidden")
        plots.error_bars(lower, part[:, 0], part[:, 2:4].T, color=color)
    lower.plot([], [], "o", color=plots.BAYES, label="points: measured here")
    lower.plot(control["table"][:, 0], control["table"][:, 2], "x", color=plots.DATA, label="control: width doubled")
    seen, title = np.unique(rows[:, 0]), "Matthews et al. 2018"
    plots.finish_over_widths(lower, seen, ylabel="squared MMD to the limit", title=title)
    return figure


CLAIM = Claim(
    title="Widths may grow in any order",
    statement="The limit is the same whether the hidden widths grow one after another or together; what matters is "
    "the narrowest layer, whose width sets the rate. How far networks of small width are from the limit was measured "
    "by Matthews et al. in maximum mean discrepancy (MMD).",
    source="Remark 2.7 of the paper; Matthews et al. 2018, arXiv 1804.11271.",
    prediction="A relative error of the conditional covariance falling as n^-1/2 in the narrowest width n, for widths "
    "(n, n), (n, 8n) and (8n, n); the published squared MMD, for 1 to 3 hidden layers.",
    tolerance="Slopes within 0.1, of which next orders in 1/n take a few hundredths; the table within 5 standard "
    "errors of the difference of both means.",
    control="A second layer that stays at width 16; networks of twice the table's width.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
