"""Training of finite networks: steps, flows, records, checkpoints, and what goes wrong."""

import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots

EPS = np.finfo(np.float64).eps
RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 3))
Y = np.sin(2 * X[:, 0]) + X[:, 1]
W = np.zeros(3)


def linear(w, A):
    """A linear model: its gradient is known, its kernel X X^T stands still."""
    return A @ w


def gradient(w):
    """Of C(w) = (1/n) |X w - y|^2."""
    return 2 / 6 * X.T @ (X @ w - Y)


# --- steps -----------------------------------------------------------


def descent(rate, steps, momentum=0.0):
    w = before = W
    for _ in range(steps):
        w, before = w - rate * gradient(w) + momentum * (w - before), w
    return w


def adam(rate, steps):
    """Kingma and Ba 2015, algorithm 1."""
    w, m, v = W, 0.0, 0.0
    for t in range(1, steps + 1):
        g = gradient(w)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optimizer": "gd", "learning_rate": 0.2}, descent(0.2, 12)),
        ({"optimizer": "momentum", "learning_rate": 0.1, "momentum": 0.6}, descent(0.1, 12, 0.6)),
        ({"optimizer": "adam", "learning_rate": 0.05}, adam(0.05, 12)),
        ({"optimizer": optax.sgd(0.1, momentum=0.6)}, descent(0.1, 12, 0.6)),
    ],
    ids=["gd", "momentum", "adam", "optax"],
)
def test_steps_are_those_of_the_formula(settings, expected):
    trained = wl.train(linear, W, X, Y, steps=12, record_every=5, **settings)
    # 12 steps of a contraction, each of a few roundings; Adam divides by the root of a mean, 1/1e-3 of it at first.
    np.testing.assert_allclose(trained.params, expected, rtol=1e-12)
    assert trained.finished
    np.testing.assert_array_equal(trained.history.steps, [0, 5, 10, 12])
    name = settings["optimizer"]
    np.testing.assert_allclose(trained.history.times, [0, 1, 2, 2.4] if name == "gd" else 4 * [np.nan], atol=4 * EPS)
    for w, loss in ((W, trained.history.loss[0]), (expected, trained.history.loss[-1])):
        assert loss == pytest.approx(np.mean((X @ w - Y) ** 2), rel=1e-12)
    assert np.abs(trained.params / descent(0.2, 11) - 1).max() > 1e-3  # a step less is another thing


def test_batches_go_through_every_example_once_an_epoch():
    """On one-hot inputs a step moves just the weights of its batch: w_i = 2 (learning_rate/b) v_i y_i, v its weight."""
    weights = np.arange(1.0, 7)
    loss, eye, start = wl.WeightedSquaredError(weights), np.eye(6), np.zeros(6)
    y = RNG.uniform(1, 2, 6)

    def moved(**settings):
        run = wl.train(
            linear, start, eye, y, loss=loss, optimizer="sgd", learning_rate=1e-3, kernel_points=0, **settings
        )
        return np.asarray(run.params)

    epoch = moved(batch_size=2, steps=3)
    np.testing.assert_allclose(epoch, 2 * 1e-3 / 2 * weights * y, rtol=1e-12)
    half = [moved(batch_size=2, steps=3 * e + 1, seed=s) - moved(batch_size=2, steps=3 * e, seed=s) for s, e in BATCHES]
    seen = {tuple(np.flatnonzero(np.abs(change) > 1e-9)) for change in half}
    assert {len(rows) for rows in seen} == {2}
    assert len(seen) > 1  # epochs and seeds have orders of their own
    np.testing.assert_array_equal(moved(batch_size=2, steps=3, seed=5), moved(batch_size=2, steps=3, seed=5))
    assert (moved(batch_size=4, steps=1) != 0).sum() == 4


BATCHES = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]


def test_an_ensemble_is_its_members():
    net = wl.mlp(depth=2, activation="erf", bias_std=0.2)
    many = net.init_many([0, 1, 2], input_dim=3, width=5, output_dim=2, dtype="float64")
    targets = np.column_stack([Y, -Y])
    settings = {"learning_rate": 0.3, "steps": 6, "record_every": 3, "probes": X[:2], "kernel_points": 4}
    together = wl.train(net.apply, many, X, targets, ensemble=True, **settings)
    assert together.history.loss.shape == (3, 3)
    assert together.history.outputs.shape == (3, 3, 2, 2)
    many = jax.tree.map(np.asarray, many)
    for e in range(3):
        one = wl.train(net.apply, jax.tree.map(lambda leaf: leaf[e], many), X, targets, **settings)  # noqa: B023
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(together.params), strict=True):
            np.testing.assert_allclose(b[e], a, atol=1e-13)
        for name in ("loss", "movement", "kernel_drift", "alignment", "outputs"):
            a, b = getattr(one.history, name), getattr(together.history, name)[:, e]
            np.testing.assert_allclose(b, a, atol=1e-12, err_msg=name)


# --- flows -----------------------------------------------------------


def test_the_flow_is_that_of_function_space():
    """f = X w moves by the kernel X X^T for ever: gradient_flow, its closed form and its ODE, is the oracle.

    Local errors are tolerance of the first step; the global error of some hundred steps is below a thousand of them.
    """
    Z = RNG.standard_normal((4, 3))
    k = wl.linear()
    for loss, y in (("squared_error", Y), ("logistic", np.sign(Y))):
        expected = wl.gradient_flow(k, X, y, loss=loss).predict(Z, [0.0, 1.5, 3.0])
        flow = wl.train(linear, W, X, y, loss=loss, flow_time=3.0, record_every=1.5, probes=Z, tolerance=1e-9)
        np.testing.assert_array_equal(flow.history.times, [0, 1.5, 3])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(flow.history.outputs, expected, atol=1e-6 * scale)
        assert flow.history.kernel_drift.max() < 16 * EPS
    rough = wl.train(linear, W, X, Y, flow_time=3.0, record_every=1.5, tolerance=1e-2)
    assert rough.history.steps[-1] < flow.history.steps[-1]


def test_a_flow_that_needs_too_many_steps_is_explained():
    with pytest.warns(UserWarning, match=re.escape("within max_steps = 5 steps of the solver")):
        stopped = wl.train(linear, W, X, Y, flow_time=1e4, record_every=5e3, max_steps=5)
    assert not stopped.finished
    np.testing.assert_array_equal(stopped.history.times, [0])
    np.testing.assert_array_equal(stopped.params, W)


# --- records -----------------------------------------------------------


def test_records_are_what_their_names_say():
    net = wl.mlp(depth=2, activation="erf", bias_std=0.2)
    params = net.init(0, input_dim=3, width=5, output_dim=2, dtype="float64")
    targets = np.column_stack([Y, 1 - Y])
    trained = wl.train(net.apply, params, X, targets, learning_rate=0.3, steps=6, record_every=3, probes=X[:2])
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(p)]) for p in (params, trained.params)]
    thetas = [wl.empirical_ntk(net.apply, p).gram(X) for p in (params, trained.params)]
    start, end = (np.transpose(theta, (0, 2, 1, 3)).reshape(12, 12) for theta in thetas)
    y = targets.ravel()
    history = trained.history
    assert history.movement[-1] == pytest.approx(np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[0]))
    assert history.kernel_drift[-1] == pytest.approx(np.linalg.norm(end - start) / np.linalg.norm(start), rel=1e-9)
    assert history.kernel_drift[-1] > 1e-3
    for theta, found in ((start, history.alignment[0]), (end, history.alignment[-1])):
        assert found == pytest.approx(y @ theta @ y / (np.linalg.norm(theta) * (y @ y)), rel=1e-9)
    np.testing.assert_allclose(history.outputs[-1], net.apply(trained.params, X[:2]), rtol=1e-12)
    assert history.loss[-1] == pytest.approx(wl.SquaredError().value(net.apply(trained.params, X), targets))
    bare = wl.train(net.apply, params, X, targets, learning_rate=0.3, steps=2, kernel_points=0).history
    assert np.isnan(bare.kernel_drift).all()
    assert bare.outputs.shape == (3, 0, 2)


# --- checkpoints -----------------------------------------------------


def small(path, steps, **changes):
    settings = {"optimizer": "adam", "learning_rate": 0.05, "batch_size": 4, "record_every": 5, "seed": 3} | changes
    return wl.train(linear, W, X, Y, steps=steps, probes=X, checkpoint=path, checkpoint_seconds=0, **settings)


def same(a, b):
    np.testing.assert_array_equal(a.params, b.params)
    for name in ("steps", "times", "loss", "movement", "kernel_drift", "alignment", "outputs"):
        np.testing.assert_array_equal(getattr(a.history, name), getattr(b.history, name), err_msg=name)


def test_resumed_training_has_the_same_bits(tmp_path):
    """Batches, Adam's memory and records go on in the middle of an epoch: 4 of 6 examples a step, 15 steps."""
    whole = small(None, 25)
    path = tmp_path / "run.safetensors"
    small(path, 15)
    same(small(path, 25), whole)
    written = path.stat().st_mtime_ns
    same(small(path, 25), whole)  # nothing left to do
    assert path.stat().st_mtime_ns == written
    assert np.abs(np.asarray(small(None, 24).params) - np.asarray(whole.params)).max() > 1e-4
    flow = {"flow_time": 4.0, "record_every": 1.0, "checkpoint_seconds": 0}
    wl.train(linear, W, X, Y, checkpoint=tmp_path / "flow", **flow | {"flow_time": 2.0})
    same(wl.train(linear, W, X, Y, checkpoint=tmp_path / "flow", **flow), wl.train(linear, W, X, Y, **flow))


KILLED = """
import sys, time, numpy as np, widelimit as wl
import widelimit.training.checkpoints as checkpoints
sys.path.insert(0, {folder!r})
import test_training as t
save, count = checkpoints.save, 0
def slow(*args):
    global count
    save(*args)
    count += 1
    print(count, flush=True)
    time.sleep(60 if count == 2 else 0)
checkpoints.save = slow
t.small({path!r}, 25)
"""


def test_killed_training_goes_on_to_the_same_bits(tmp_path):
    """kill -9 after the second of five checkpoints."""
    path = tmp_path / "run.safetensors"
    code = KILLED.format(folder=str(pathlib.Path(__file__).parent), path=str(path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "1\n"
        assert process.stdout.readline() == "2\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert safetensors.numpy.load(path.read_bytes())["history/steps"].tolist() == [0, 5, 10]
    same(small(path, 25), small(None, 25))


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    small(path, 15)
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        small(path, 25)
    monkeypatch.undo()
    assert path.read_bytes() == before
    same(small(path, 25), small(None, 25))


def test_damaged_foreign_and_other_checkpoints_are_refused_and_left_alone(tmp_path):
    path = tmp_path / "run.safetensors"
    small(path, 15)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-3] ^= 1
    header = int.from_bytes(good[:8], "little")
    newer = good[:8] + good[8 : 8 + header].replace(b'"version":"1"', b'"version":"2"') + good[8 + header :]
    foreign = safetensors.numpy.save({"state/0": np.zeros(3)})
    for contents, words in [
        (good[: len(good) // 2], "is no checkpoint that can be read"),
        (b"", "is no checkpoint that can be read"),
        (b"PK\x03\x04 something else", "is no checkpoint that can be read"),
        (bytes(flipped), "is damaged: its contents do not match their checksum"),
        (foreign, "holds tensors, but is no checkpoint of training"),
        (newer, "has version 2, and this library reads version 1"),
    ]:
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=re.escape(words) + ".*It was left as it is"):
            small(path, 25)
        assert path.read_bytes() == contents
    path.write_bytes(good)

    def other(w, A):
        return 2 * (A @ w) + 1

    other.__qualname__ = "linear"
    for run, words in [
        (lambda: small(path, 25, learning_rate=0.04), "another run: learning_rate was -0.05 and is -0.04"),
        (
            lambda: small(path, 25, optimizer=optax.adam(0.05), learning_rate=None),
            "optimizer was adam and is optax, first update",
        ),
        (lambda: small(path, 25, seed=4), "seed was 3 and is 4"),
        (lambda: small(path, 25, record_every=4), "pass the record_every of that run"),
        (lambda: small(path, 5), "an end that is not before them"),
        (lambda: wl.train(linear, W, X, 2 * Y, steps=3, learning_rate=0.1, checkpoint=path), "another run: y was"),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            run()
    settings = {"optimizer": "adam", "learning_rate": 0.05, "batch_size": 4, "record_every": 5, "seed": 3, "probes": X}
    with pytest.raises(ValueError, match="apply or the loss is another"):
        wl.train(other, W, X, Y, steps=25, checkpoint=path, **settings)
    assert path.read_bytes() == good


# --- what goes wrong -------------------------------------------------


def told(**settings):
    """A run and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = wl.train(linear, W, X, Y, **settings)
    return run, [str(w.message) for w in caught]


def test_a_learning_rate_above_the_bound_warns_and_a_loss_that_overflows_stops():
    bound = wl.max_learning_rate(wl.linear(), X)
    wild = {"learning_rate": 1e6 * bound}
    stopped, (rate, end) = told(steps=100, record_every=50, **wild)
    named = float(re.search(r"is above the bound (\S+) =", rate).group(1))
    assert named == pytest.approx(bound, rel=0.01)  # three digits are printed
    assert end == stopped.message
    assert "the last good ones, are returned" in end
    assert not stopped.finished
    good = int(stopped.history.steps[-1])
    assert 0 < good < 50
    assert np.isfinite(stopped.params).all()
    assert np.isfinite(stopped.history.loss).all()
    np.testing.assert_array_equal(stopped.params, told(steps=good, **wild)[0].params)
    assert not told(steps=good + 1, **wild)[0].finished  # it was the last good step
    for momentum in (0.0, 0.5):
        heavy = wl.max_learning_rate(wl.linear(), X, momentum=momentum)
        for factor, heard in ((0.99, 0), (1.02, 1)):
            settings = {"optimizer": "momentum", "momentum": momentum, "learning_rate": factor * heavy}
            assert len(told(steps=1, **settings)[1]) == heard


def test_a_diverging_member_of_an_ensemble_is_named():
    starts = np.stack([W, np.full(3, 1e150)])
    with pytest.warns(UserWarning, match=r"the loss of members \[1\] became (inf|nan)"):
        stopped = wl.train(
            linear, starts, 1e-8 * X, Y, ensemble=True, optimizer=optax.scale(-1e18), steps=8, kernel_points=0
        )
    assert np.isfinite(stopped.history.loss).all()
    assert not stopped.finished


def test_bad_input_is_refused():
    net = wl.mlp(depth=2)
    params = net.init(0, input_dim=3, width=4)
    data, ok = X.astype(np.float32), {"learning_rate": 0.1, "steps": 1}

    def call(apply=net.apply, params=params, X=data, y=Y, **settings):
        return wl.train(apply, params, X, y, **(settings or ok))

    other = wl.mlp(depth=3).init(0, input_dim=3, width=4)
    for run, kind, words in [
        (lambda: call(X=X), TypeError, "X is float64 and the parameters are float32; pass X.astype('float32')"),
        (lambda: call(params=other), ValueError, "these are not parameters of this network of depth 2"),
        (lambda: call(params={"w": np.arange(3)}), TypeError, "has dtype int64; parameters are float32 or float64"),
        (lambda: call(apply=lambda _, A: A @ A.T), ValueError, "apply returns shape (6, 6)"),
        (lambda: call(apply=lambda _, A: jnp.sum(A)), ValueError, "must map"),
        (lambda: call(y=np.c_[Y, Y]), ValueError, "apply returns shape (6, 1) and y has shape (6, 2)"),
        (lambda: call(y=Y[:4]), ValueError, "y has 4 rows and X has 6"),
        (lambda: call(y=Y + np.nan), ValueError, "NaN or infinite"),
        (lambda: call(loss="logistic", **ok), ValueError, "labels of the logistic loss are -1 and 1"),
        (lambda: call(ensemble=True, **ok), ValueError, "leading axis (E,)"),
        (lambda: call(learning_rate=0.1), ValueError, "give steps, how many to take, or flow_time"),
        (lambda: call(steps=1), ValueError, "optimizer='gd' needs a learning_rate"),
        (lambda: call(steps=1, flow_time=1.0), ValueError, "steps or flow_time, not both"),
        (lambda: call(steps=-1, learning_rate=0.1), ValueError, "steps must be at least 0, got -1"),
        (lambda: call(learning_rate=-0.1, steps=1), ValueError, "learning_rate must be > 0"),
        (lambda: call(flow_time=-1.0), ValueError, "flow_time must be >= 0"),
        (lambda: call(flow_time=1.0, tolerance=1e-9), ValueError, "tolerance must be >= 1.9"),
        (lambda: call(optimizer="lbfgs", **ok), ValueError, "gd, sgd, momentum, adam or an optax transformation"),
        (lambda: call(optimizer=optax.sgd(0.1), **ok), ValueError, "has its learning rate in it"),
        (lambda: call(optimizer="sgd", **ok), ValueError, "'sgd' needs a batch_size"),
        (lambda: call(batch_size=2, **ok), ValueError, "for batches pass optimizer='sgd'"),
        (lambda: call(optimizer="sgd", batch_size=7, **ok), ValueError, "batch_size must be below 7"),
        (lambda: call(optimizer="momentum", momentum=1.0, **ok), ValueError, "momentum must be in [0, 1)"),
        (lambda: call(probes=X, **ok), TypeError, "probes is float64 and X is float32"),
        (lambda: call(probes=data[:, :2], **ok), ValueError, "probes has 2 features and X has 3"),
        (lambda: call(record_every=0, **ok), ValueError, "record_every must be at least 1"),
        (lambda: call(checkpoint="no/such/folder/run", **ok), ValueError, "in a folder that exists"),
        (lambda: call(checkpoint=3, **ok), TypeError, "checkpoint must be a path"),
    ]:
        with pytest.raises(kind, match=re.escape(words)):
            run()
    huge = jax.tree.map(lambda leaf: np.full(leaf.shape, 1e30, np.float32), params)
    with pytest.raises(ValueError, match="the loss at the initial parameters is NaN or infinite"):
        call(params=huge, X=1e8 * data)


# --- what is seen ----------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_only(monkeypatch, capsys):
    wl.train(linear, W, X, Y, learning_rate=0.1, steps=3)
    assert capsys.readouterr() == ("", "")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    wl.train(linear, W, X, Y, learning_rate=0.1, steps=3, progress=False)
    assert screen.getvalue() == ""
    wl.train(linear, W, X, Y, learning_rate=0.1, steps=3)
    assert "training" in screen.getvalue()
    assert "3/3 steps" in screen.getvalue()


def test_the_history_can_be_drawn():
    trained = wl.train(linear, np.ones((2, 3)), X, Y, ensemble=True, learning_rate=0.1, steps=4)
    figure = plots.training(trained.history)
    assert isinstance(figure, Figure)
    loss, drift = figure.axes
    assert len(loss.lines) == 3  # two members and their mean
    np.testing.assert_allclose(loss.lines[-1].get_ydata(), trained.history.loss.mean(axis=1))
    np.testing.assert_allclose(loss.lines[0].get_xdata(), trained.history.times)
    assert loss.get_xlabel() == "time t = learning rate x steps"
    assert "loss" in loss.get_ylabel()
    assert "relative" in drift.get_ylabel()
    one = wl.train(linear, W + 1, X, Y, optimizer="adam", learning_rate=0.1, steps=4, kernel_points=0)
    (loss, drift) = plots.training(one.history).axes
    assert loss.get_xlabel() == "steps"
    assert len(drift.lines) == 1  # parameters; no kernel was recorded
