"""Section 4.2: the norm of the interpolant separates structure from noise, as the test error does."""

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_least, at_most, within

SEED = 4201
FRACTIONS = np.array([0.0, 0.1, 0.25, 0.5, 1.0])
"""Share of the labels that are replaced by fair coins."""
LEVEL = 5.0


def problem(effort: Effort) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return digits below and from five on, on the unit sphere: inputs and labels +-1 for training and test."""
    X, digit = load_digits(return_X_y=True)
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    y = np.where(digit < 5, 1.0, -1.0)
    order = np.random.default_rng(SEED).permutation(len(X))
    n = effort.pick(quick=300, full=1000)
    train, test = order[:n], order[n:]
    return X[train], y[train], X[test], y[test]


def study(effort: Effort, fractions: np.ndarray) -> dict[str, np.ndarray]:
    """Compute squared norms and test errors, (fractions, draws), and the prediction of chance for coins."""
    X, y, Z, z = problem(effort)
    draws = effort.pick(quick=20, full=100)
    rng = np.random.default_rng(SEED + 1)
    coins = np.where(rng.random((len(fractions), draws, len(y))) < 0.5, 1.0, -1.0)
    noisy = rng.random((len(fractions), draws, len(y))) < fractions[:, None, None]
    labels = np.where(noisy, coins, y).reshape(-1, len(y)).T
    k = wl.ntk(wl.mlp(depth=3, weight_std=2**0.5, bias_std=0.3))
    f = wl.rkhs.interpolant(k, X, labels)
    norms = np.sum(labels * f.coefficients, axis=0).reshape(len(fractions), draws)
    errors = np.mean(np.sign(np.asarray(f(Z))) != z[:, None], axis=0).reshape(len(fractions), draws)
    inverse = np.linalg.inv(np.asarray(k.gram(X)))
    spread = 2 * np.sum((inverse - np.diag(np.diagonal(inverse))) ** 2)
    return {
        "fractions": fractions,
        "norms": norms,
        "errors": errors,
        "trace": np.array(np.trace(inverse)),
        "spread": np.array(np.sqrt(spread)),
        "tests": np.array(len(z)),
    }


def structure_checks(found: dict[str, np.ndarray], place: int) -> tuple[Check, ...]:
    """Check labels with structure."""
    ratio, error = found["norms"][place].mean() / found["trace"], found["errors"][place].mean()
    return (
        at_most("norm^2 of true labels over that of coins", ratio, 0.5, "true labels are smoother: less than half"),
        at_most("test error of true labels", error, 0.1, "they generalise; the majority is at 0.5"),
    )


def measure(effort: Effort) -> Measurement:
    """Measure norms and test errors as labels turn into coins."""
    found = study(effort, FRACTIONS)
    draws = found["norms"].shape[1]
    coins = (found["norms"][-1].mean() - found["trace"]) / (found["spread"] / np.sqrt(draws))
    error = float(found["errors"][-1].mean())
    # The error of one draw is a mean over strongly dependent test points; draws are independent.
    chance = float(found["errors"][-1].std(ddof=1) / np.sqrt(draws))
    steps = np.diff(found["norms"].mean(axis=1))
    harm = np.diff(found["errors"].mean(axis=1))
    checks = (
        *structure_checks(found, 0),
        at_most("coins: deviation of the mean norm^2 from tr K^-1", abs(float(coins)), LEVEL, "standard errors"),
        within("coins: test error", error, 0.5, LEVEL * chance, "chance"),
        at_least("smallest growth of norm^2 with noise", steps.min(), 0.0, "it grows throughout"),
        at_least("smallest growth of the test error", harm.min(), 0.0, "so does the error"),
    )
    return Measurement(checks, found)


def violate(effort: Effort) -> Measurement:
    """Use coins in the place of the true labels."""
    found = study(effort, np.array([1.0]))
    return Measurement(structure_checks(found, 0), found)


def draw(data: Data, control: Data) -> Figure:
    """Draw norm and error against the share of coins."""
    figure, (upper, lower) = plots.panels(2)
    for axes, name, theory, ylabel, title in (
        (upper, "norms", float(data["trace"]), "squared RKHS norm", "Norm of the interpolant"),
        (lower, "errors", 0.5, "test error", "Generalisation"),
    ):
        axes.axhline(theory, color=plots.BAYES, label="theory for coins")
        found = np.stack([data[name].mean(axis=1), data[name].std(axis=1, ddof=1)])
        plots.error_bars(axes, data["fractions"], found, label="measured, one sd")
        axes.plot([0.0], control[name].mean(), "x", color=plots.DESCENT, label="control: all coins")
        plots.finish(axes, xlabel="share of labels replaced by coins", ylabel=ylabel, title=title)
    return figure


CLAIM = Claim(
    title="The norm of the interpolant and the test error",
    statement="Gradient descent from f_0 = 0 ends at the interpolant of smallest norm, |f|^2 = y^T K^-1 y. Labels "
    "with structure have a small norm, and generalise; random labels have a large one, and do not. (The paper prints "
    "a^T Theta a as the norm: it is its square.)",
    source="Section 4.2 of the paper, corrected; Arora et al. 2019, arXiv 1901.08584, for the bound by y^T K^-1 y.",
    prediction="For fair coins E[y^T K^-1 y] = tr K^-1 exactly, and a test error of one half. For digits below five "
    "against the rest, less than half of that norm and a test error below 0.1; both grow as labels are replaced by "
    "coins.",
    tolerance="y^T K^-1 y of coins has the variance 2 sum_{i != j} (K^-1)_ij^2; 20 or 100 draws.",
    control="Coins in the place of the true labels.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
