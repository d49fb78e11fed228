"""A user's own model through its gradients: sketches, products, the linearized posterior, attribution, selection."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import widelimit as wl
from widelimit.tangents.projection import Projection
from widelimit.tangents.rows import EXACT, ExactRows, TangentRows
from widelimit.tangents.sketch import Sketch

EPS = np.finfo(np.float64).eps
RNG = np.random.default_rng(0)
X, Z = RNG.standard_normal((40, 4)), RNG.standard_normal((7, 4))
LABELS = np.arange(40) % 3
Y = RNG.standard_normal((40, 3))
PARAMS = {
    "a": RNG.standard_normal((4, 12)) / 2,
    "b": RNG.standard_normal(12) / 9,
    "c": RNG.standard_normal((12, 3)) / 3,
}


def apply(params, X):
    return jnp.tanh(X @ params["a"] + params["b"]) @ params["c"]


def jacobian(points, labels=None, params=PARAMS):
    """(n, c, P) by hand, from the formula of this network; with labels that of the margin, (n, 1, P)."""
    hidden = np.tanh(points @ params["a"] + params["b"])
    slope = (1 - hidden**2)[:, :, None] * params["c"]  # (n, h, c)
    first = np.einsum("nd,nhc->ncdh", points, slope).reshape(len(points), 3, -1)
    last = np.einsum("nh,ca->ncha", hidden, np.eye(3)).reshape(len(points), 3, -1)
    whole = np.concatenate([first, slope.transpose(0, 2, 1), last], axis=2)
    if labels is None:
        return whole
    outputs = hidden @ params["c"]
    others = np.where(np.arange(3) == labels[:, None], -np.inf, outputs)
    weights = np.eye(3)[labels] - scipy.special.softmax(others, axis=1)
    return np.einsum("nc,ncp->np", weights, whole)[:, None]


def gram(left, right):
    flat = [part.reshape(-1, part.shape[2]) for part in (left, right)]
    return flat[0] @ flat[1].T


def close(values, expected, factor=64):
    assert np.shape(values) == np.shape(expected)
    return np.abs(values - expected).max() <= factor * EPS * np.abs(expected).max()


MODEL = wl.tangents(apply, PARAMS)
MARGIN = wl.tangents(apply, PARAMS, of="margin")
ROWS = MODEL.at(X)
FIRST = wl.tangents(apply, PARAMS, of=lambda outputs, X: outputs[:, 0]).at(X)
K = gram(jacobian(X), jacobian(X))


def test_the_kernel_and_its_products_are_those_of_the_jacobian():
    assert close(ROWS.matrix(), K)
    assert close(ROWS.matrix(MODEL.at(Z)), gram(jacobian(X), jacobian(Z)))
    assert close(ROWS.diag(), np.diagonal(K))
    v = RNG.standard_normal((120, 2))
    assert close(ROWS.product(v), K @ v)
    assert close(ROWS.product(v[:, 0]), K @ v[:, 0])
    margin = MARGIN.at(X, LABELS)
    assert close(margin.matrix(), gram(jacobian(X, LABELS), jacobian(X, LABELS)))
    trace = np.einsum("nap,map->nm", jacobian(X), jacobian(X)) / 3
    rows = MODEL.at(X, output="trace")
    assert close(rows.matrix(), trace)
    assert close(rows.product(v[:40]), trace @ v[:40])
    doubled = {**PARAMS, "c": PARAMS["c"] * 1.01}
    assert not close(ROWS.matrix(), gram(jacobian(X, params=doubled), jacobian(X, params=doubled)))


def test_a_budget_for_few_rows_changes_no_value():
    one = 4 * 8 * 3 * MODEL.gradients.parameters
    few = wl.tangents(apply, PARAMS, memory=2.5 * one / 2**30)
    assert few.at(X).rows == 2
    assert close(few.at(X).matrix(), K)
    assert close(few.sketch(X, size=16).features, MODEL.sketch(X, size=16).features)
    with pytest.raises(MemoryError, match="gradients of one row"):
        wl.tangents(apply, PARAMS, memory=0.5 * one / 2**30).at(X)


def test_inputs_and_functions_of_outputs_have_any_form():
    def pair(params, rows):
        return apply(params, rows["x"].reshape(len(rows["x"]), 4)) * rows["scale"][:, None]

    tokens = np.arange(40) % 2
    data = {"x": X.reshape(40, 2, 2), "scale": np.where(tokens, 2, 1)}
    assert close(
        wl.tangents(pair, PARAMS).at(data).matrix()[::3, ::3],
        (K * np.repeat(data["scale"], 3)[:, None])[::3, ::3] * data["scale"],
    )
    module = eqx.nn.MLP(4, 2, 6, 1, key=jax.random.key(0))
    rows = wl.tangents(lambda m, X: jax.vmap(m)(X), module).at(X[:5].astype(np.float32))
    expected = wl.empirical_ntk(lambda m, X: jax.vmap(m)(X), module).gram(X[:5].astype(np.float32))
    np.testing.assert_allclose(rows.matrix(), expected.transpose(0, 2, 1, 3).reshape(10, 10), rtol=1e-4)
    np.testing.assert_allclose(rows.product(np.ones(10)), rows.matrix().sum(1), rtol=1e-4)
    first = wl.tangents(apply, PARAMS, of=lambda outputs, X: outputs[:, 0] * X[:, 0])
    assert close(first.at(X).matrix(), K[::3, ::3] * np.outer(X[:, 0], X[:, 0]))
    log = wl.tangents(apply, PARAMS, of="log_probability").at(X, LABELS)
    p = scipy.special.expit(MARGIN.at(X, LABELS).values[:, 0])
    assert close(log.values[:, 0], np.log(p), 256)
    assert close(log.matrix(), MARGIN.at(X, LABELS).matrix() * np.outer(1 - p, 1 - p), 256)  # dlog p = (1 - p) dm


def test_float32_stays_and_float64_is_not_cut():
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), PARAMS)
    found = wl.tangents(apply, single).at(X.astype(np.float32))
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.matrix(), K, atol=1e-5 * K.max())
    with pytest.raises(TypeError, match="float32"):
        MODEL.at(X.astype(np.float32))


# Sketches


def estimates(u, v, size, seeds, plant=lambda signs: signs):
    class Planted(Projection):
        __slots__ = ()

        def signs(self, start, end):
            return plant(Projection.signs(self, start, end))

    found = []
    for seed in range(seeds):
        made, out = Planted(size, seed), np.zeros((2, size))
        made.add(out, np.stack([u, v])[:, :110], 0)
        made.add(out, np.stack([u, v])[:, 110:], 110)
        found.append(out[0] @ out[1])
    return np.array(found)


def scores(found, mean, variance):
    """z of the mean, and of the variance, of a sample."""
    n = len(found)
    squares = (found - mean) ** 2
    return (found.mean() - mean) / (variance / n) ** 0.5, (squares.mean() - variance) / (squares.std() / n**0.5)


@pytest.mark.parametrize("size", [7, 64])
def test_a_sketch_has_the_stated_mean_and_variance(size):
    u, v = np.abs(np.random.default_rng(1).standard_normal((2, 300)))
    exact = Projection(size, 0).variance(u, v)
    assert exact < (u @ u * (v @ v) + (u @ v) ** 2) / size
    assert np.abs(scores(estimates(u, v, size, 1500), u @ v, exact)).max() < 4
    biased = estimates(u, v, size, 300, lambda signs: np.where(np.arange(len(signs)) % 3, signs, 1))
    assert np.abs(scores(biased, u @ v, exact)).max() > 5
    none = estimates(u, v, size, 300, lambda signs: np.ones_like(signs))
    assert np.abs(scores(none, u @ v, exact)).max() > 5


def test_signs_and_shifts_are_the_same_from_any_start():
    made = Projection(100, 3)
    whole = made.signs(0, 3000)
    assert set(whole) == {-1, 1}
    assert abs(int(whole.sum())) < 250
    assert (made.signs(777, 2100) == whole[777:2100]).all()
    assert (made.shifts(5, 30) == made.shifts(0, 40)[5:30]).all()
    assert (Projection(100, 4).signs(0, 3000) != whole).mean() > 0.4


def test_a_sketch_estimates_the_kernel_within_its_bound():
    wide = wl.mlp(depth=2, activation="tanh")
    model = wl.tangents(wide.apply, wide.init(0, input_dim=4, width=300, output_dim=1, dtype=np.float64))
    exact, found = model.at(X).matrix(), model.sketch(X, size=256)
    off = np.abs(found.matrix() - exact)
    ratio = np.sqrt(np.mean((off / found.error()) ** 2))
    assert 0.2 < ratio < 1.5
    assert (off <= found.error(confidence=0.9)).mean() > 0.9
    assert close(found.squares, np.diagonal(exact))
    many = [np.square(model.sketch(X[:6], size=256, seed=s).matrix() - exact[:6, :6]) for s in range(40)]
    stated = np.square(found.error()[:6, :6])
    assert (np.mean(many, axis=0) < 1.6 * stated).all()
    assert np.mean(many) > 0.3 * stated.mean()
    assert off.max() > 0.01 * exact.max()
    assert MODEL.sketch(X, size=10**4).projection.size > MODEL.gradients.parameters


def test_a_sketch_of_more_dimensions_than_parameters_is_exact():
    assert close(MODEL.sketch(X, size=500).matrix(), K)
    assert close(MODEL.sketch(X, size=500, output="trace").matrix(), MODEL.at(X, output="trace").matrix())


def test_a_stored_sketch_goes_on_after_a_kill_and_mends_damage(tmp_path, monkeypatch):
    X = np.random.default_rng(5).standard_normal((150, 4))
    whole, done = MODEL.sketch(X, size=20), []

    class Killed(Exception):
        pass

    def kill(rows, total):
        done.append((rows, total))
        if rows > 64:
            raise Killed

    with pytest.raises(Killed):
        MODEL.sketch(X, size=20, path=tmp_path / "s.zarr", progress=kill)
    assert done == [(64, 150), (128, 150)]
    computed = []
    own = type(MODEL.gradients).gradients
    monkeypatch.setattr(type(MODEL.gradients), "gradients", lambda g, b: (computed.append(b.rows), own(g, b))[1])
    again = MODEL.sketch(X, size=20, path=tmp_path / "s.zarr")
    assert sum(computed) == 22 + 1  # the last chunk, and a row that compares the function
    assert close(again.features, whole.features)
    assert close(again.squares, whole.squares)
    assert close(again.values, whole.values)
    chunk = next(p for p in (tmp_path / "s.zarr").rglob("*") if p.is_file() and p.name == "0" and "/1/" in str(p))
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    computed.clear()
    assert close(MODEL.sketch(X, size=20, path=tmp_path / "s.zarr", output="trace").values, whole.values)
    assert sum(computed) == 64 + 1


def test_a_store_of_anything_else_is_refused_and_left(tmp_path):
    path = tmp_path / "s.zarr"
    MODEL.sketch(X, size=20, path=path)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    other = {**PARAMS, "b": PARAMS["b"] + 1}
    renamed = eval("lambda p, X: apply(p, X)", {"apply": apply})
    twin = eval("lambda p, X: 2 * apply(p, X)", {"apply": apply})
    wl.tangents(renamed, PARAMS).sketch(X, size=20, path=tmp_path / "lambda.zarr")
    for call, words in (
        (lambda: wl.tangents(apply, other).sketch(X, size=20, path=path), "another model"),
        (lambda: MODEL.sketch(X + 1, size=20, path=path), "other data"),
        (lambda: MODEL.sketch(X, size=21, path=path), "another size"),
        (lambda: MODEL.sketch(X, size=20, seed=1, path=path), "another seed"),
        (lambda: wl.tangents(twin, PARAMS).sketch(X, size=20, path=tmp_path / "lambda.zarr"), "same name"),
        (lambda: MODEL.sketch(X, size=20, path=tmp_path), "not a sketch"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert len(str(caught.value)) < 400
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
    import zarr

    whole = zarr.Array.__setitem__

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(OSError, match=r"No space left.*Call again"):
        MODEL.sketch(X, size=20, path=tmp_path / "s.zarr")
    monkeypatch.setattr(zarr.Array, "__setitem__", whole)
    assert close(MODEL.sketch(X, size=20, path=tmp_path / "s.zarr").values, ROWS.values)


# Without the matrix


def test_eigenpairs_alignment_and_effective_dimension(monkeypatch):
    values, vectors = ROWS.eigenpairs(4)
    exact = np.linalg.eigvalsh(K)[::-1]
    np.testing.assert_allclose(values, exact[:4], rtol=1e-10)
    np.testing.assert_allclose(K @ vectors, vectors * values, atol=1e-9 * exact[0])
    y = Y.ravel()
    aligned = y @ K @ y / (np.linalg.norm(K) * (y @ y))
    dimension = np.sum(exact / (exact + 0.3))
    assert ROWS.alignment(Y) == pytest.approx((aligned, 0.0))
    assert ROWS.effective_dimension(0.3) == pytest.approx((dimension, 0.0))
    assert MODEL.sketch(X, size=500).effective_dimension(0.3) == pytest.approx((dimension, 0.0))
    assert MODEL.at(X, output="trace").alignment(Y)[0] > 0
    monkeypatch.setattr(ExactRows, "spectrum", lambda rows: None)
    for found, value in ((ROWS.alignment(Y), aligned), (ROWS.effective_dimension(0.3), dimension)):
        assert 0 < found.error < 0.2 * value
        assert abs(found.value - value) < 4 * found.error
    assert EXACT >= 120


# What it is for


def test_the_linearized_posterior_is_that_of_the_kernel():
    law = wl.linearized_posterior(ROWS, Y, noise=0.2, prior_variance=2.0)
    found = law.predict(MODEL.at(Z))
    cross, start = 2 * gram(jacobian(Z), jacobian(X)), ROWS.values.ravel()
    solved = np.linalg.solve(2 * K + 0.2 * np.eye(120), np.c_[Y.ravel() - start, cross.T])
    mean = MODEL.at(Z).values.ravel() + cross @ solved[:, 0]
    variance = 2 * np.diagonal(gram(jacobian(Z), jacobian(Z))) - np.einsum("ij,ji->i", cross, solved[:, 1:])
    np.testing.assert_allclose(found.mean.ravel(), mean, rtol=1e-9)
    np.testing.assert_allclose(found.variance.ravel(), variance, rtol=1e-8)
    sketched = wl.linearized_posterior(MODEL.sketch(X, size=500), Y, noise=0.2, prior_variance=2.0)
    np.testing.assert_allclose(sketched.predict(MODEL.sketch(Z, size=500)).mean, found.mean, rtol=1e-8)


def test_a_sketch_of_few_features_needs_no_matrix_of_rows(monkeypatch):
    """The same as by the matrix of all rows, for a law at a time and for scores."""
    sketches = [MODEL.sketch(points, size=30) for points in (X, Z)]
    margins = [MARGIN.sketch(points, LABELS[: len(points)], size=30) for points in (X, Z)]
    monkeypatch.setattr(Sketch, "matrix", None)
    found = [wl.linearized_posterior(sketches[0], Y, noise=0.2, time=t).predict(sketches[1]) for t in (3.0, np.inf)]
    scores = [wl.attribution(*margins, method=method) for method in ("trak", "influence")]
    monkeypatch.undo()

    def matrix(rows, other=None):
        return rows.features @ (rows if other is None else other).features.T

    class Plain(TangentRows):  # the same kernel, of which only the matrix is known
        def __init__(self, sketch):
            self.sketch, self.model, self.signature = sketch, sketch.model, sketch.signature
            self.values, self.output = sketch.values, sketch.output

        def matrix(self, other=None):
            found = matrix(self.sketch, None if other is None else other.sketch)
            return (found + found.T) / 2 if other is None else found

        def diag(self):
            return self.sketch.diag()

        def times(self, v):
            return self.sketch.times(v)

        def spectrum(self):
            return None

    plain, other = Plain(sketches[0]), Plain(sketches[1])
    for t, law in zip((3.0, np.inf), found, strict=True):
        expected = wl.linearized_posterior(plain, Y, noise=0.2, time=t).predict(other)
        np.testing.assert_allclose(law.mean, expected.mean, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(law.variance, expected.variance, rtol=1e-7, atol=1e-10)
    for method, own in zip(("trak", "influence"), scores, strict=True):
        expected = wl.attribution(*map(Plain, margins), method=method)
        np.testing.assert_allclose(own, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())


def test_the_linearized_model_is_trained_for_a_time():
    f, flow = wl.linearize(apply, PARAMS), jax.tree.map(np.zeros_like, PARAMS)
    steps, rate = 400, 0.002

    def loss(params):
        return jnp.mean(jnp.sum((f(params, X) - Y) ** 2, axis=1))

    from jax import enable_x64

    with enable_x64(True):
        step = jax.jit(jax.grad(loss))
        flow = PARAMS
        for _ in range(steps):
            flow = jax.tree.map(lambda p, g: p - rate * g, flow, step(flow))
        trained, start = np.asarray(f(flow, Z)), np.asarray(f(PARAMS, Z))
    found = wl.linearized_posterior(ROWS, Y, noise=0.0, time=steps * rate).predict(MODEL.at(Z)).mean
    moved = np.abs(trained - start).max()
    assert np.abs(found - trained).max() < 0.01 * moved
    late = wl.linearized_posterior(ROWS, Y, noise=0.0, time=3 * steps * rate).predict(MODEL.at(Z)).mean
    assert np.abs(late - trained).max() > 0.1 * moved  # a clock by outputs


def test_leaving_a_row_out_is_the_fit_without_it():
    y = Y[:, 0]
    rows, test = MARGIN.at(X, LABELS), MARGIN.at(Z, LABELS[:7])
    found = wl.attribution(rows, test, y, method="leave_one_out", noise=0.5)
    kept = np.arange(40) != 7
    fits = [
        wl.linearized_posterior(MARGIN.at(X[i], LABELS[i]), y[i], noise=0.5).predict(test).mean
        for i in (slice(None), kept)
    ]
    np.testing.assert_allclose(found[:, 7], fits[0] - fits[1], rtol=1e-9, atol=1e-12)
    assert not np.allclose(found[:, 8], fits[0] - fits[1], rtol=0.1)


def test_trak_scores_are_those_of_the_formula():
    rows, test = MARGIN.at(X, LABELS), MARGIN.at(Z, LABELS[:7])
    J, T = jacobian(X, LABELS)[:, 0], jacobian(Z, LABELS[:7])[:, 0]
    features = T @ np.linalg.solve(J.T @ J + 0.1 * np.eye(J.shape[1]), J.T)  # in weights, where K is in rows
    expected = features * (1 - scipy.special.expit(rows.values[:, 0]))
    trak = {"noise": 0.1, "method": "trak"}
    np.testing.assert_allclose(wl.attribution(rows, test, **trak), expected, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(wl.attribution(rows, test, **trak, weights=np.ones(40)), features, rtol=1e-6)
    sketches = MARGIN.sketch(X, LABELS, size=500), MARGIN.sketch(Z, LABELS[:7], size=500)
    np.testing.assert_allclose(wl.attribution(*sketches, **trak), expected, atol=1e-9 * np.abs(expected).max())


def test_influence_is_the_newton_step_without_a_row():
    """On a logistic regression of two classes, whose margin is linear, the step is that of its own loss."""
    rng = np.random.default_rng(3)
    X, Z = rng.standard_normal((40, 5)), rng.standard_normal((4, 5))
    signs = np.where(X[:, 0] + 0.5 * rng.standard_normal(40) > 0, 1, -1)
    w, ridge = np.zeros(5), 0.7
    for _ in range(30):
        p = scipy.special.expit(signs * (X @ w))
        slope, curvature = X.T @ (signs * (1 - p)) - ridge * w, (X.T * (p * (1 - p))) @ X + ridge * np.eye(5)
        w = w + np.linalg.solve(curvature, slope)
    step = np.linalg.solve(curvature, (X * (signs * (1 - p))[:, None]).T)  # what each row adds to w
    model = wl.tangents(lambda w, X: jnp.stack([X @ w / 2, -X @ w / 2], axis=1), w, of="margin")
    rows, test = model.at(X, (signs < 0).astype(int)), model.at(Z, np.zeros(4, int))
    found = wl.attribution(rows, test, noise=ridge)
    np.testing.assert_allclose(found, Z @ step, rtol=1e-8, atol=1e-12)
    assert not np.allclose(wl.attribution(rows, test, noise=ridge, method="trak"), Z @ step, rtol=0.1)


def test_selection_is_greedy_in_the_conditional_variance():
    rows = MARGIN.at(X, LABELS)
    kernel = gram(jacobian(X, LABELS), jacobian(X, LABELS))

    def left(chosen, noise):
        cross = kernel[:, chosen]
        solved = np.linalg.solve(kernel[np.ix_(chosen, chosen)] + noise * np.eye(len(chosen)), cross.T)
        return np.diagonal(kernel) - np.einsum("ij,ji->i", cross, solved)

    for noise, known in ((0.0, []), (0.3, [4, 9])):
        found = wl.select(rows, 6, noise=noise, known=known)
        chosen = list(known)
        for pick, variance in zip(found.rows, found.variance, strict=True):
            rest = left(chosen, noise) if chosen else np.diagonal(kernel)
            assert pick == max(set(range(40)) - set(chosen), key=lambda i: rest[i])
            assert variance == pytest.approx(rest[pick])
            chosen.append(int(pick))
        np.testing.assert_allclose(found.left, left(chosen, noise), atol=1e-9)
    copies = MARGIN.at(np.repeat(X[:3], 2, axis=0), np.repeat(LABELS[:3], 2))
    assert sorted(wl.select(copies, 6).rows // 2) == [0, 1, 2]  # a copy adds nothing


def test_drift_follows_a_training_loop():
    drift = wl.KernelDrift(X[:6])
    for step, factor in ((0, 1.0), (5, 1.0), (10, 2.0)):
        drift(wl.tangents(apply, {**PARAMS, "c": factor * PARAMS["c"]}), step)
    first, last = (jacobian(X[:6], params={**PARAMS, "c": factor * PARAMS["c"]}) for factor in (1.0, 2.0))
    first, last = gram(first, first), gram(last, last)
    assert drift.steps == [0, 5, 10]
    assert drift.change[:2] == [0, 0]
    assert drift.change[2] == pytest.approx(np.linalg.norm(last - first) / np.linalg.norm(first))
    assert drift.alignment[2] == pytest.approx(np.sum(first * last) / np.linalg.norm(first) / np.linalg.norm(last))
    import matplotlib.pyplot as plt

    assert len(drift.plot().ax_.get_lines()) == 2
    plt.close(drift.figure_)
    with pytest.raises(ValueError, match="another model"):
        drift(wl.tangents(lambda p, X: apply(p, X)[:, 0], PARAMS))


# Bad input


SHAPED = wl.tangents(lambda params, X: apply(params, X.reshape(len(X), 4)), PARAMS)


def mixing(params, X):
    return apply(params, X - X.mean(axis=0))


def nan_at_zero(params, X):
    return jnp.sqrt(jnp.abs(X[:, :1] * params["a"][0, 0])) + X @ params["a"]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: MODEL.at(X[:, :3]), ValueError, "fails for X"),
        (lambda: MODEL.at(X[0]), ValueError, "fails for X"),
        (lambda: MODEL.at({"x": X, "y": X[:3]}), ValueError, "number of rows"),
        (lambda: MODEL.at(()), ValueError, "X holds no arrays"),
        (lambda: MODEL.at(X[:0]), ValueError, "number of rows"),
        (lambda: MODEL.at(X * np.nan), ValueError, "X"),
        (lambda: MODEL.at("rows"), TypeError, "X must be an array"),
        (lambda: MODEL.at(X, output="sum"), ValueError, "output"),
        (lambda: MODEL.sketch(X, size=0), ValueError, "size"),
        (lambda: MODEL.sketch(X, seed=-1), ValueError, "seed"),
        (lambda: MARGIN.at(X), ValueError, "labels"),
        (lambda: MARGIN.at(X, LABELS[:5]), ValueError, "labels"),
        (lambda: wl.tangents(apply, PARAMS, of="hinge"), ValueError, "of must be"),
        (lambda: wl.tangents(apply, PARAMS, of=lambda outputs, X: outputs.sum()).at(X), ValueError, "row of outputs"),
        (lambda: wl.tangents(mixing, PARAMS).at(X), ValueError, "mixes rows"),
        (lambda: wl.tangents(mixing, PARAMS).sketch(X), ValueError, "mixes rows"),
        (lambda: wl.tangents(mixing, PARAMS).at(X[:1]), ValueError, "mixes rows"),
        (lambda: MARGIN.at(X, np.where(np.arange(40) == 8, 3, 0)), ValueError, "row 8 is 3; a label is below 3"),
        (lambda: MARGIN.at(X, LABELS + 0.5), ValueError, "row 0 is 0.5"),
        (lambda: ROWS.matrix(wl.tangents(apply, {**PARAMS, "b": PARAMS["b"] + 1}).at(X)), ValueError, "two models"),
        (lambda: ROWS.matrix(MODEL.at(X, output="trace")), ValueError, "output"),
        (lambda: SHAPED.at(X).matrix(SHAPED.at(X.reshape(40, 2, 2))), ValueError, "differ in form"),
        (lambda: ROWS.matrix(MODEL.sketch(X, size=8)), TypeError, "same kind"),
        (lambda: MODEL.sketch(X, size=8).matrix(MODEL.sketch(X, size=9)), ValueError, "differ in form"),
        (lambda: ROWS.product(np.ones(7)), ValueError, "v must have shape"),
        (lambda: ROWS.alignment(Y[:, :2]), ValueError, "y must have the shape"),
        (lambda: ROWS.alignment(0 * Y), ValueError, "y is 0"),
        (lambda: wl.attribution(ROWS, ROWS), ValueError, "train has 3 outputs"),
        (lambda: wl.attribution(X, ROWS), TypeError, "train must be rows"),
        (lambda: wl.attribution(FIRST, FIRST), ValueError, 'of="margin"'),
        (lambda: wl.attribution(FIRST, FIRST, Y[:, 0]), ValueError, "y goes with"),
        (lambda: wl.attribution(FIRST, FIRST, weights=np.ones(40)), ValueError, "weights go with"),
        (lambda: wl.attribution(FIRST, FIRST, method="trak", weights=np.ones(3)), ValueError, "weights"),
        (lambda: wl.select(ROWS, 3), ValueError, 'output="trace"'),
        (lambda: wl.select(MARGIN.at(X, LABELS), 39, known=[0, 1]), ValueError, "count"),
        (lambda: wl.select(MARGIN.at(X, LABELS), 3, known=[0, 0]), ValueError, "twice"),
        (lambda: wl.linearized_posterior(ROWS, Y[:, 0], noise=1.0), ValueError, "y must have the shape"),
        (lambda: wl.KernelDrift(X).plot(), ValueError, "nothing was recorded"),
        (lambda: wl.KernelDrift(X)(apply), TypeError, "tangents"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        call()
    assert len(str(caught.value)) < 400


def test_a_gradient_that_is_nan_is_named():
    points = X.copy()
    points[23, 0] = 0.0
    with pytest.raises(ValueError, match=r"gradient with respect to \['a'\] at row 23 of X"):
        wl.tangents(nan_at_zero, {"a": PARAMS["a"]}).at(points).matrix()
    with pytest.raises(ValueError, match="at row 23 of X"):
        wl.tangents(nan_at_zero, {"a": PARAMS["a"]}).sketch(points, size=8)
