"""Inference with inducing points against dense algebra on the approximate prior, and against the exact posterior."""

import itertools
import math
from typing import final

import numpy as np
import pytest

import widelimit as wl
from widelimit import memory
from widelimit.inference import row_sums, rows
from widelimit.inference.class_probabilities import expected_softmax
from widelimit.inference.dirichlet import dirichlet_labels, dirichlet_offset, dirichlet_posterior
from widelimit.inference.sparse_dirichlet import sparse_dirichlet

RNG = np.random.default_rng(0)
N = 150
X, Z = RNG.standard_normal((N, 3)), RNG.standard_normal((9, 3))
Y = np.column_stack([np.sin(2 * X[:, 0]) + X[:, 1], X[:, 2] ** 2]) + 0.2 * RNG.standard_normal((N, 2))
K = wl.nngp(wl.mlp(depth=2, activation="erf", weight_std=1.4, bias_std=0.3))
NOISE = 0.05 + 0.1 * RNG.uniform(size=N)


def sparse(points=40, x=X, y=Y, noise=NOISE, **options):
    return wl.posterior(K, x, y, noise=noise, solver="nystrom", inducing=points, **options)


def dense(post, approximation, noise=NOISE, y=Y):
    """Mean, covariance and evidence of the approximate prior, from (n, n) matrices."""
    inverse = np.linalg.inv(K.gram(post.inducing))
    cross, new = K.cross(X, post.inducing), K.cross(Z, post.inducing)
    q = cross @ inverse @ cross.T
    extra = K.diag(X) - np.diag(q) if approximation == "fitc" else 0.0
    whole = q + np.diag(np.broadcast_to(noise, N) + extra)
    between = new @ inverse @ cross.T
    mean = between @ np.linalg.solve(whole, y)
    covariance = K.gram(Z) - between @ np.linalg.solve(whole, between.T)
    evidence = -np.sum(y * np.linalg.solve(whole, y)) / 2
    evidence -= y.shape[1] * (np.linalg.slogdet(whole)[1] + N * math.log(2 * math.pi)) / 2
    return mean, covariance, evidence


def left_by(points):
    """The prior variance of the rows that the points leave."""
    return K.diag(X) - np.diag(K.cross(X, points) @ np.linalg.solve(K.gram(points), K.cross(points, X)))


@pytest.mark.parametrize("approximation", ["dtc", "fitc"])
@pytest.mark.parametrize("noise", [NOISE, 0.1], ids=["of each row", "one"])
def test_it_is_regression_with_the_approximate_prior(approximation, noise, monkeypatch):
    monkeypatch.setattr(row_sums, "BLOCK", 1)  # all rows in one block otherwise
    post = sparse(noise=noise, approximation=approximation)
    mean, covariance, evidence = dense(post, approximation, noise)
    np.testing.assert_allclose(post.mean(Z), mean, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(post.covariance(Z), covariance, atol=1e-8)
    np.testing.assert_allclose(post.predict(Z).variance, np.diag(covariance), atol=1e-8)
    np.testing.assert_allclose(post.predict(Z).mean, mean, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(post.log_marginal_likelihood(), evidence, rtol=1e-9)
    other = dense(post, {"dtc": "fitc", "fitc": "dtc"}[approximation], noise)
    assert np.abs(other[0] - mean).max() > 1e-3  # the two are told from each other
    assert abs(other[2] - evidence) > 1


def test_with_all_rows_it_is_the_exact_posterior():
    exact, post = wl.posterior(K, X, Y, noise=NOISE), sparse(X)
    np.testing.assert_allclose(post.mean(Z), exact.mean(Z), atol=1e-9)
    np.testing.assert_allclose(post.variance(Z), exact.variance(Z), rtol=1e-8)
    np.testing.assert_allclose(post.evidence_bound(), exact.log_marginal_likelihood(), rtol=1e-9)
    assert np.abs(sparse(20).mean(Z) - exact.mean(Z)).max() > 1e-3


def test_the_bound_rises_to_the_exact_evidence_with_more_points():
    exact = wl.posterior(K, X, Y, noise=NOISE).log_marginal_likelihood()
    bounds = [sparse(X[:m]).evidence_bound() for m in (10, 30, 90, N)]
    assert all(a < b for a, b in itertools.pairwise(bounds))
    assert bounds[-1] <= exact + 1e-6
    assert sparse(X[:10]).log_marginal_likelihood() > bounds[0]


def test_blocks_of_rows_and_files_give_the_same(tmp_path, monkeypatch):
    whole = sparse(40, seed=3)
    file = np.memmap(tmp_path / "x", np.float64, "w+", shape=X.shape)
    file[:] = X
    monkeypatch.setattr(row_sums, "ROWS_AT_LEAST", 17)
    monkeypatch.setattr(row_sums, "BLOCK", 17)
    parts = sparse(40, np.memmap(tmp_path / "x", np.float64, "r", shape=X.shape), seed=3)
    np.testing.assert_array_equal(parts.inducing, whole.inducing)
    np.testing.assert_allclose(parts.mean(Z), whole.mean(Z), rtol=1e-9)
    assert (sparse(40, seed=4).inducing != whole.inducing).any()


@final
class Stored:
    """Rows that are read by slices only, as from a Zarr array; a reading from row `broken` on fails."""

    def __init__(self, values, broken=None):
        self.values, self.shape, self.broken, self.read = values, values.shape, broken, []

    def __getitem__(self, part):
        self.read.append(part.start)
        if self.broken is not None and part.stop > self.broken and len(self.read) > 5:  # not in the survey
            raise KeyboardInterrupt
        return self.values[part]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(row_sums, "ROWS_AT_LEAST", 17)
    monkeypatch.setattr(row_sums, "BLOCK", 17)
    monkeypatch.setattr(row_sums, "SECONDS", 0.0)
    monkeypatch.setattr(rows, "NUMBERS", 3 * 40)


@pytest.mark.usefixtures("small_blocks")
def test_inputs_and_targets_are_read_by_slices():
    stored = Stored(X), Stored(Y)
    parts, whole = sparse(40, *stored), sparse(40)
    np.testing.assert_array_equal(parts.inducing, whole.inducing)
    np.testing.assert_allclose(parts.mean(Z), whole.mean(Z), rtol=1e-9)
    np.testing.assert_allclose(parts.evidence_bound(), whole.evidence_bound(), rtol=1e-9)
    single = sparse(20, X, Stored(Y[:, 0].astype(np.float32)))
    assert single.mean(Z).shape == (9,)
    np.testing.assert_allclose(single.mean(Z), sparse(20, y=Y[:, 0]).mean(Z), atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
def test_a_row_on_disk_that_is_no_number_is_named():
    bad = X.copy()
    bad[101, 1] = np.nan
    with pytest.raises(ValueError, match="X has a number that is NaN or infinite in row 101"):
        sparse(20, Stored(bad))
    with pytest.raises(ValueError, match="y has a number that is NaN or infinite in row 7"):
        sparse(20, X, Stored(np.where(np.arange(N) == 7, np.inf, Y[:, 0])))
    with pytest.raises(ValueError, match="y has 149 rows and X has 150"):
        sparse(20, Stored(X), Stored(Y[1:]))
    short = Stored(X[:100])
    short.shape = X.shape
    with pytest.raises(ValueError, match="rows 80 to 120 of X came with shape"):
        sparse(20, short)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("approximation", ["dtc", "fitc"])
def test_a_pass_goes_on_where_it_was_interrupted(tmp_path, approximation, monkeypatch):
    file, options = tmp_path / "sums.npz", {"approximation": approximation, "seed": 5}
    whole = sparse(40, **options)
    with pytest.raises(KeyboardInterrupt):
        sparse(40, Stored(X, broken=130), checkpoint=file, **options)
    added = []
    add = row_sums._Totals.add
    monkeypatch.setattr(row_sums._Totals, "add", lambda *given: (added.append(given[3].start), add(*given))[1])
    again = sparse(40, checkpoint=file, **options)
    assert added == list(range(119, N, 17))  # rows 0 to 118 were in the file
    np.testing.assert_array_equal(again.mean(Z), whole.mean(Z))
    np.testing.assert_array_equal(again.covariance(Z), whole.covariance(Z))
    assert again.evidence.rest == whole.evidence.rest
    finished = sparse(40, checkpoint=file, **options)
    assert len(added) == 2  # nothing is left to add
    np.testing.assert_array_equal(finished.mean(Z), whole.mean(Z))


def test_a_checkpoint_of_another_problem_is_refused(tmp_path):
    file = tmp_path / "sums.npz"
    sparse(20, checkpoint=file)
    before = file.read_bytes()
    other = X.copy()
    other[-1, 0] += 1e-9
    others = {
        "X": {"x": other},
        "y": {"y": Y[:, :1]},
        "the noise": {"noise": 2 * NOISE},
        "the inducing points": {"points": 21},
        "the inducing points, approximation": {"points": X[:20], "approximation": "fitc"},
        "precision": {"precision": "mixed"},
    }
    for names, changed in others.items():
        with pytest.raises(ValueError, match=f"it differs in {names}. Remove it"):
            sparse(**{"points": 20, "checkpoint": file, **changed})
    with pytest.raises(ValueError, match="it differs in the kernel"):
        wl.posterior(1.001 * K, X, Y, noise=NOISE, solver="nystrom", inducing=20, checkpoint=file)
    assert file.read_bytes() == before
    file.write_bytes(before[:-30])
    with pytest.raises(ValueError, match="cannot be read"):
        sparse(20, checkpoint=file)


@pytest.mark.parametrize("approximation", ["dtc", "fitc"])
def test_float32_where_its_digits_suffice(approximation, monkeypatch):
    options = {"approximation": approximation}
    double, single = sparse(X[:40], **options), sparse(X[:40], precision="mixed", **options)
    assert "float32, summed in float64" in single.explain()
    assert "float64" in double.explain()
    deviation = np.sqrt(double.variance(Z))[:, None]
    off = np.abs(single.mean(Z) - double.mean(Z)) / deviation
    assert 0 < off.max() < 1e-3
    np.testing.assert_allclose(single.variance(Z), double.variance(Z), rtol=1e-3)
    np.testing.assert_allclose(single.log_marginal_likelihood(), double.log_marginal_likelihood(), rtol=1e-4)
    monkeypatch.setattr(row_sums, "LOST", 0.0)
    monkeypatch.setattr("widelimit.inference.inducing.LOST", 0.0)
    refused = sparse(X[:40], precision="mixed", **options)
    assert "float64, as float32 would add" in refused.explain()
    np.testing.assert_array_equal(refused.mean(Z), double.mean(Z))


def test_float32_without_digits_is_not_used():
    near = np.vstack([X[:20], X[:20] + 1e-4])  # K(L, L) is nearly singular
    post = sparse(near, precision="mixed", noise=1e-6)
    assert "float64, as float32 would add" in post.explain()
    np.testing.assert_array_equal(post.mean(Z), sparse(near, noise=1e-6).mean(Z))


@pytest.mark.parametrize("points", [40, X[:40]], ids=["drawn", "given"])
def test_float32_is_tried_on_rows_of_the_whole_table(points):
    late = np.arange(3 * N) >= 2 * N  # a table is sorted
    x, y = np.vstack([X, X, X]), np.vstack([Y, Y, Y])
    narrow = sparse(points, x, y, noise=np.where(late, 1e-9, 1.0), precision="mixed")
    assert "float64, as float32 would add" in narrow.explain()
    wide = sparse(points, x, y, noise=1.0, precision="mixed")
    assert "float32, summed in float64" in wide.explain()


@pytest.mark.usefixtures("small_blocks")
def test_blocks_of_another_size_go_on_where_the_file_ends(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        sparse(40, Stored(X, broken=130), checkpoint=tmp_path / "sums.npz")
    monkeypatch.setattr(row_sums, "ROWS_AT_LEAST", 50)
    again = sparse(40, checkpoint=tmp_path / "sums.npz")
    np.testing.assert_allclose(again.mean(Z), sparse(40).mean(Z), rtol=1e-9)


def test_points_are_drawn_far_from_each_other_and_never_twice():
    repeated = np.repeat(X[:30], 5, axis=0)
    post = sparse(60, repeated, Y)
    assert len(np.unique(post.inducing, axis=0)) == len(post.inducing) <= 30
    drawn, first = left_by(sparse(30).inducing), left_by(X[:30])
    assert drawn.mean() < 0.7 * first.mean()  # of the first 30 rows, which are as random as any


def test_targets_of_any_size():
    usual = sparse(30).mean(Z)
    for size in (1e-200, 1e150):
        np.testing.assert_allclose(sparse(30, y=Y * size).mean(Z) / size, usual, rtol=1e-9)


def test_evidence_that_rounding_has_eaten_is_refused():
    points = X[:10]
    y = K.cross(X[:40], points) @ np.ones(10)  # in the span of the points

    def post(noise):
        return wl.posterior(K, X[:40], y, noise=noise, solver="nystrom", inducing=points)

    with pytest.raises(ValueError, match="lost in rounding"):
        post(1e-16).log_marginal_likelihood()
    exact = np.ones(10) @ K.gram(points) @ np.ones(10)  # the limit of y^T C^{-1} y
    assert post(1e-8).evidence.squares == pytest.approx(exact, rel=1e-3)
    with pytest.raises(ValueError, match="the kernel is 0 at the rows"):
        wl.posterior(wl.linear(), np.zeros((50, 3)), np.ones(50), noise=0.1, solver="nystrom", inducing=5)


def test_draws_have_mean_and_covariance():
    post = sparse(30, y=Y[:, 0])
    draws = post.sample(Z, 4000, seed=1)
    assert draws.shape == (4000, 9)
    deviation = np.sqrt(post.variance(Z))
    assert np.abs(draws.mean(axis=0) - post.mean(Z)).max() < 5 * deviation.max() / math.sqrt(4000)
    np.testing.assert_allclose(draws.std(axis=0), deviation, rtol=0.1)
    assert "30 inducing points for 150 rows" in post.explain()
    left = np.mean(left_by(post.inducing) / NOISE)
    assert f"left by the inducing points: {left:.2g} of the noise" in post.explain()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0.0}, "needs a noise > 0 at every row"),
        ({"noise": np.where(np.arange(N) == 3, 0.0, 0.1)}, "needs a noise > 0"),
        ({"points": N + 1}, f"inducing={N + 1} points are to be drawn from the {N} rows"),
        ({"points": np.repeat(X[:5], 2, axis=0)}, "singular to rounding: points are equal"),
        ({"points": X[:5, :2]}, "features"),
        ({"points": 0}, "inducing"),
        ({"approximation": "vfe"}, "approximation"),
        ({"matrix": np.eye(N)}, "matrix: not of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sparse(**options)


def test_options_of_another_solver_are_refused():
    with pytest.raises(ValueError, match='inducing, seed: of solver="nystrom" only'):
        wl.posterior(K, X, Y, noise=0.1, inducing=10, seed=1)
    with pytest.raises(ValueError, match="has log_marginal_likelihood"):
        sparse(10, approximation="fitc").evidence_bound()


def test_more_points_than_memory_are_refused(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10_000)
    with pytest.raises(MemoryError, match="inducing points needs"):
        sparse(40)


def test_a_kernel_that_overflows_is_refused():
    steep = wl.nngp(wl.mlp(depth=2, weight_std=1.4))
    with pytest.raises(ValueError, match="range of a float"):
        wl.posterior(steep, X * 1e160, Y, noise=0.1, solver="nystrom", inducing=10)


# --- estimators

TRUTH = np.sin(2 * X[:, 0]) + X[:, 1]
FIXED = {"activation": "erf", "depth": 2, "input_scales": None}


def test_a_regressor_with_all_rows_as_points_is_the_exact_one(tmp_path):
    inputs, targets = X[:80], Y[:80]
    exact = wl.NNGPRegressor(noise=0.05, **FIXED).fit(inputs, targets, sample_weight=1 + np.arange(80) % 3)
    few = wl.NNGPRegressor(noise=0.05, solver="nystrom", inducing=500, **FIXED)
    few.fit(inputs, targets, sample_weight=1 + np.arange(80) % 3)
    for noisy in (False, True):
        pairs = [m.predict(Z, return_std=True, include_noise=noisy) for m in (exact, few)]
        np.testing.assert_allclose(*pairs, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(few.y_scale_, exact.y_scale_, rtol=1e-6)
    assert few.predict(Z, return_cov=True)[1].shape == (9, 9, 2)
    assert few.sample_y(Z, 3).shape == (9, 2, 3)
    few.save(tmp_path / "m.npz")
    again = wl.load(tmp_path / "m.npz")
    np.testing.assert_array_equal(again.predict(Z), few.predict(Z))
    np.testing.assert_array_equal(again.predict(Z, return_std=True)[1], few.predict(Z, return_std=True)[1])
    assert again.fitted_.law.evidence_bound() == pytest.approx(few.fitted_.law.evidence_bound())


def test_many_rows_are_fitted_through_inducing_points_with_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr("widelimit.estimators.preparation.MOST_ROWS", 100)
    few = wl.WideRegressor(kernel="nngp", activation="erf", depth=2, inducing=40)
    with pytest.warns(UserWarning, match="150 rows are fitted through 40 inducing points, which is not exact"):
        few.fit(X, Y[:, 0])
    assert few.X_train_.shape == (40, 3) == (*few.y_train_.shape[:1], 3)
    assert np.sqrt(np.mean((few.predict(X) - TRUTH) ** 2)) < 0.2
    few.save(tmp_path / "m.npz")
    np.testing.assert_array_equal(wl.load(tmp_path / "m.npz").predict(Z), few.predict(Z))
    with pytest.raises(ValueError, match="keeps no training rows"):
        few.predict_interval(Z, method="conformal")
    with pytest.raises(ValueError, match="at most 100 rows"):
        wl.WideRegressor(solver="cholesky").fit(X, Y[:, 0])


LABELS = (TRUTH > 0.5).astype(int) + (TRUTH > -0.5)


def dense_classes(inputs, labels, weights, points, at, post):
    """Mean and variance of each class's function by dense algebra of the approximate prior."""
    own = labels[:, None] == np.arange(3)
    shape, offset = dirichlet_labels(post.alpha_epsilon), dirichlet_offset(3, post.alpha_epsilon)
    targets = np.where(own, shape.own, shape.other) - offset
    noise = np.where(own, shape.noise_own, shape.noise_other) / weights[:, None]
    k = post.scale**2 * K
    inverse = np.linalg.inv(k.gram(points))
    cross, new = k.cross(inputs, points), k.cross(at, points)
    q, between = cross @ inverse @ cross.T, new @ inverse @ cross.T
    mean, variance = np.empty((2, len(at), 3))
    for j in range(3):
        solved = np.linalg.solve(q + np.diag(noise[:, j]), np.column_stack([targets[:, j], between.T]))
        mean[:, j] = offset + between @ solved[:, 0]
        variance[:, j] = k.diag(at) - np.einsum("ij,ji->i", between, solved[:, 1:])
    return mean, variance


def test_classes_are_regressions_on_transformed_labels():
    weights = 1.0 + np.arange(N) % 2
    how = {"classes": 3, "scale": 2.0, "weights": weights, "inducing": 40}
    post = sparse_dirichlet(K, X, LABELS, alphas=[0.05], **how)
    for found, right in zip(post.law(Z), dense_classes(X, LABELS, weights, post.inducing, Z, post), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-7, atol=1e-7)
    left = post.leave_one_out(X[3:5], LABELS[3:5], weights[3:5])
    for i in (3, 4):
        rest = np.arange(N) != i
        right = dense_classes(X[rest], LABELS[rest], weights[rest], post.inducing, X[i : i + 1], post)
        for found, one in zip(left, right, strict=True):
            np.testing.assert_allclose(found[i - 3], one[0], rtol=1e-7)
        assert np.abs(post.law(X[i : i + 1])[0] - right[0]).max() > 1e-3  # the row itself says something
    other = dense_classes(X, (LABELS + 1) % 3, weights, post.inducing, Z, post)
    assert np.abs(other[1] - post.law(Z)[1]).max() > 1e-3  # whose noise is whose is seen
    grid = {
        (a, s): sparse_dirichlet(K, X, LABELS, alphas=[a], **how | {"scale": s}) for a in (0.05, 0.5) for s in (2, 4)
    }
    score = {at: left_out_density(each, weights) for at, each in grid.items()}
    chosen = sparse_dirichlet(K, X, LABELS, alphas=[0.05, 0.5], factors=(1.0, 2.0), **how)
    assert (chosen.alpha_epsilon, chosen.scale) == max(score, key=score.get) != min(score, key=score.get)


def left_out_density(post, weights):
    p = expected_softmax(*post.leave_one_out(X, LABELS, weights))
    return weights @ np.log(p[np.arange(N), LABELS])


def test_classes_with_all_rows_as_points_are_the_exact_ones():
    how = {"classes": 3, "scale": 2.0, "weights": np.ones(60)}
    post = sparse_dirichlet(K, X[:60], LABELS[:60], alphas=[0.01], inducing=60, **how)
    exact = dirichlet_posterior(K, X[:60], LABELS[:60], alpha_epsilon=0.01, **how)
    mean, variance = post.law(Z)
    np.testing.assert_allclose(mean, exact.mean(Z), atol=1e-8)
    np.testing.assert_allclose(variance, exact.variance(Z), rtol=1e-7)


def test_classes_of_many_rows_are_fitted_through_inducing_points(monkeypatch, tmp_path):
    monkeypatch.setattr("widelimit.estimators.preparation.MOST_ROWS", 100)
    few = wl.WideClassifier(kernel="nngp", activation="erf", depth=2, inducing=40)
    with pytest.warns(UserWarning, match=r"150 rows are fitted through 40 .* likelihood=\"dirichlet\", in place"):
        few.fit(X, LABELS)
    assert few.score(X, LABELS) > 0.85
    assert few.fitted_.members[0].training.X.shape == (40, 3)
    few.save(tmp_path / "m.npz")
    again = wl.load(tmp_path / "m.npz")
    np.testing.assert_array_equal(again.predict_proba(Z), few.predict_proba(Z))
    np.testing.assert_array_equal(
        again.predict_latent(Z, return_std=True)[1], few.predict_latent(Z, return_std=True)[1]
    )
    monkeypatch.setattr("widelimit.estimators.fitted_sparse.FACTORS", (1.0,))
    exact = wl.NNGPClassifier(**FIXED).fit(X[:80], LABELS[:80])
    all_points = wl.NNGPClassifier(solver="nystrom", inducing=80, **FIXED).fit(X[:80], LABELS[:80])
    np.testing.assert_allclose(all_points.predict_proba(Z), exact.predict_proba(Z), atol=1e-7)
    with pytest.raises(ValueError, match='likelihood="dirichlet" or "least_squares"'):
        wl.NNGPClassifier(solver="nystrom", likelihood="logistic", **FIXED).fit(X, LABELS)


def test_classes_by_least_squares():
    few = wl.NNGPClassifier(solver="nystrom", likelihood="least_squares", noise=0.1, inducing=40, **FIXED)
    few.fit(X, TRUTH > 0)
    assert few.score(X, TRUTH > 0) > 0.9
    np.testing.assert_allclose(few.predict_proba(Z).sum(axis=1), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_model": "student_t"}, 'noise_model="constant"'),
        ({"time": 3.0}, "is for time=inf"),
        ({"inducing": 0}, "inducing"),
        ({"noise": 0.0}, "noise > 0"),
    ],
)
def test_estimators_refuse_what_does_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        wl.NNGPRegressor(**{"solver": "nystrom", **FIXED, **settings}).fit(X, Y)


def test_a_damaged_factor_in_a_file_is_refused(tmp_path):
    few = wl.NNGPRegressor(noise=0.05, solver="nystrom", inducing=5, **FIXED).fit(X, Y)
    few.fitted_.factor = few.fitted_.factor.copy()
    few.fitted_.factor[2, 2] = -1.0
    few.save(tmp_path / "m.npz")
    with pytest.raises(ValueError, match="a factor that is no factor"):
        wl.load(tmp_path / "m.npz")
