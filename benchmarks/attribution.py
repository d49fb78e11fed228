"""Scores of attribution predict what networks do that are trained again without the rows that they name.

python benchmarks/attribution.py [--subsets 100] [--tests 60]

A tanh network (64, 32, 10; its softmax cross-entropy with weight decay 1e-3, 1,000 steps of gradient descent with
momentum .9 and rate .5 on all rows, in float32) on 600 of scikit-learn's digits, and 400 test rows. All networks start
from the same weights, so that rows alone make the difference.

1. Linear datamodelling score: networks on random halves; Spearman correlation over halves of the margin at a test row
   with the sum of the scores of the half, the mean over test rows. Control: scores of another test row.
2. For each of the test rows the 5 % of the training rows that the scores name are removed: the change of the margin
   beside the sum of their scores. Control: as many random rows.

Writes results/attribution.json and docs/figures/attribution.svg.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from common import report
from sklearn.datasets import load_digits

import widelimit as wl

SMALL = False
N, M, WIDTH, DECAY, STEPS, RATE = 600, 400, 32, 1e-3, 1000, 0.5
SHARE = 0.05


def data():
    """Return training and test rows and labels, pixels in [-.3, .7]."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))[: N + M]
    X, y = (X[order] / 16 - 0.3).astype(np.float32), y[order]
    return X[:N], y[:N], X[N:], y[N:]


def start():
    """Draw the weights that every network starts from."""
    rng = np.random.default_rng(0)
    drawn = {"a": rng.standard_normal((64, WIDTH)) * 1.5 / 8, "b": np.zeros(WIDTH)}
    drawn |= {"c": rng.standard_normal((WIDTH, 10)) / WIDTH**0.5, "d": np.zeros(10)}
    return {name: values.astype(np.float32) for name, values in drawn.items()}


def apply(params, X):
    """Compute the outputs of the network."""
    return jnp.tanh(X @ params["a"] + params["b"]) @ params["c"] + params["d"]


def margin(params, X, y):
    """log p/(1 - p) of the labels."""
    outputs = apply(params, X)
    own = jnp.arange(10) == y[:, None]
    return outputs[jnp.arange(len(y)), y] - jax.nn.logsumexp(jnp.where(own, -jnp.inf, outputs), axis=1)


def trainer(X, y):
    """Return a function that trains on weighted rows."""

    def loss(params, weights):
        outputs = apply(params, X)
        each = jax.nn.logsumexp(outputs, axis=1) - outputs[jnp.arange(len(y)), y]
        return jnp.sum(weights * each) / N + DECAY / 2 * sum(jnp.sum(leaf**2) for leaf in params.values())

    def train(weights):
        def step(state, _):
            params, speed = state
            slope = jax.grad(loss)(params, weights)
            speed = jax.tree.map(lambda v, g: 0.9 * v - RATE * g, speed, slope)
            return (jax.tree.map(jnp.add, params, speed), speed), None

        zero = jax.tree.map(jnp.zeros_like, start())
        return jax.lax.scan(step, (start(), zero), None, length=STEPS)[0][0]

    return train


def correlation(a, b):
    """Return Spearman's."""
    return float(scipy.stats.spearmanr(a, b)[0])


def datamodelling(scores, halves, margins):
    """Return mean and standard error over test rows of the score, and the mean of the control."""
    predicted = halves @ scores.T
    own = [correlation(predicted[:, i], margins[:, i]) for i in range(len(scores))]
    other = [correlation(predicted[:, i - 1], margins[:, i]) for i in range(len(scores))]
    return float(np.mean(own)), float(np.std(own) / len(own) ** 0.5), float(np.mean(other))


def removals(scores, chosen):
    """Return weights of the rows where those chosen for each test row are removed, and what the scores predict."""
    kept = np.ones((len(chosen), N), np.float32)
    np.put_along_axis(kept, chosen, 0, axis=1)
    return kept, -np.take_along_axis(scores[: len(chosen)], chosen, axis=1).sum(axis=1)


def main():
    """Train all networks, and score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--tests", type=int, default=60)
    given = parser.parse_args()
    X, y, Z, z = data()
    train, rng = trainer(X, y), np.random.default_rng(1)
    many = jax.jit(lambda weights: jax.lax.map(lambda w: margin(train(w), Z, z), weights, batch_size=4))
    whole = {name: np.asarray(leaf) for name, leaf in jax.jit(train)(jnp.ones(N)).items()}
    before = np.asarray(margin(whole, Z, z))
    halves = np.stack([rng.permutation(N) < N // 2 for _ in range(given.subsets)]).astype(np.float32)
    margins = np.asarray(many(jnp.asarray(halves)))
    random = np.stack([rng.permutation(N)[: int(SHARE * N)] for _ in range(given.tests)])
    model = wl.tangents(apply, whole, of="margin")
    kinds = {"exact": [model.at(X, y), model.at(Z, z)]}
    kinds["sketch of 512"] = [model.sketch(X, y, size=512), model.sketch(Z, z, size=512)]
    every, rows, drawn, changes = np.arange(given.tests), [], [], {}
    for kind, method, noise in [
        ("exact", "influence", DECAY * N),
        ("sketch of 512", "influence", DECAY * N),
        ("exact", "influence", None),
        ("exact", "trak", None),
        ("sketch of 512", "trak", None),
        ("exact", "trak", 1e-3),
    ]:
        begin = time.perf_counter()
        scores = wl.attribution(*kinds[kind], method=method, noise=noise)
        took = time.perf_counter() - begin
        lds, error, control = datamodelling(scores, halves, margins)
        row = {"scores": method, "rows": kind, "noise": "mean" if noise is None else noise, "seconds": took}
        row |= {"datamodelling score": lds, "standard error": error, "of another row": control}
        named = np.argsort(-scores[: given.tests], axis=1)[:, : random.shape[1]]
        for name, chosen in (("named", named), ("random", random)):
            kept, predicted = removals(scores, chosen)
            if kept.tobytes() not in changes:
                changes[kept.tobytes()] = many(jnp.asarray(kept))
            change = np.asarray(changes[kept.tobytes()])[every, every] - before[every]
            row |= {f"{name}: change": float(change.mean()), f"{name}: predicted": float(predicted.mean())}
            row |= {f"{name}: correlation": correlation(predicted, change)}
            if not rows:
                drawn.append((name, predicted, change))
        rows.append(row)
    settings = {
        "training rows": N,
        "tests": given.tests,
        "subsets": given.subsets,
        "accuracy": float((before > 0).mean()),
    }
    report("attribution", rows, **settings)
    figure(drawn)


def figure(drawn):
    """Draw predicted and real changes of the margin."""
    from widelimit import plots

    page, (axes,) = plots.panels(1)
    for (name, predicted, change), color in zip(drawn, (plots.DESCENT, plots.BAYES), strict=True):
        axes.plot(predicted, change, "o", color=color, markersize=3, label=f"the 5 % that are {name}")
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color=plots.DATA, linewidth=0.8, label="as predicted")
    plots.finish(axes, xlabel="sum of the scores of the rows removed", ylabel="change of the margin, trained again")
    page.savefig(
        Path(__file__).parents[1] / "docs" / "figures" / "attribution.svg", bbox_inches="tight", metadata={"Date": None}
    )


if __name__ == "__main__":
    main()
