"""Predicted learning curves, beside random training sets and sums that are known."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

import widelimit as wl
from widelimit.theory.equivalents import exponential_poles

K = wl.nngp(wl.mlp(activation="erf", depth=2, weight_std=2.0, bias_std=0.5))


def measured(k, X, y, n, *, noise=0.0, time=math.inf, draws=30, seed=0):
    """Mean and standard error of the test error, and mean training error, over random training sets."""
    rng = np.random.default_rng(seed)
    K, test, train = np.asarray(k.gram(X)), [], []
    for _ in range(draws):
        order = rng.permutation(len(X))
        a, b = order[:n], order[n:]
        values, vectors = np.linalg.eigh(K[np.ix_(a, a)] + noise * np.eye(n))
        kept = values > 1e-13 * values[-1]
        part = np.where(kept, -np.expm1(-2 * np.where(kept, time, 1) * values / n) / values, 0)
        alpha = vectors @ (part[:, None] * (vectors.T @ y[a]))
        test.append(np.mean(np.sum((K[np.ix_(b, a)] @ alpha - y[b]) ** 2, axis=1)))
        train.append(np.mean(np.sum((K[np.ix_(a, a)] @ alpha - y[a]) ** 2, axis=1)))
    return np.mean(test), np.std(test, ddof=1) / math.sqrt(draws), np.mean(train)


def agrees(predicted, found, error):
    return abs(predicted - found) <= max(0.05 * found, 3 * error)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    X = data.data[:360] / 16
    X -= X.mean(axis=0)
    return X, np.where(data.target[:360, None] == np.arange(10), 0.9, -0.1)


def test_the_exponential_is_a_sum_over_poles():
    z, w = exponential_poles()
    x = np.concatenate([[0.0], np.logspace(-6, 6, 200)])
    np.testing.assert_allclose(2 * np.real(np.sum(w * z / (x[:, None] + z), axis=1)), np.exp(-x), atol=4e-14)


@pytest.mark.parametrize(
    ("n", "noise", "time"),
    [(40, 0.0, math.inf), (200, 0.0, math.inf), (200, 0.3, math.inf), (100, 0.0, 30.0), (100, 0.1, 300.0)],
)
def test_curves_of_digits_are_those_of_random_training_sets(digits, n, noise, time):
    X, y = digits
    k = wl.ntk(wl.mlp(depth=2, bias_std=0.3))
    curve = wl.generalization(k, X, y, sizes=[n], noise=noise, time=time)
    found, error, train = measured(k, X, y, n, noise=noise, time=time)
    assert agrees(curve.test_error[0], found, error), (curve.test_error, found, error)
    if noise and time == math.inf:
        assert curve.train_error[0] == pytest.approx(train, rel=0.1)
    assert curve.test_error[0] == pytest.approx(curve.bias[0] + curve.variance[0])
    shuffled = wl.generalization(k, X, np.random.default_rng(1).permutation(y), sizes=[n], noise=noise, time=time)
    assert not agrees(shuffled.test_error[0], found, error)


def test_rows_that_are_all_alike_have_the_sums_of_modes():
    angles = 2 * np.pi * np.arange(64) / 64
    X, y = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.sin(3 * angles) + np.cos(angles) ** 3
    rows, modes = (wl.generalization(K, X, y, sizes=[5, 20, 50], noise=0.01, method=m) for m in ("rows", "modes"))
    for name in ("test_error", "train_error", "bias", "variance", "learnability"):
        np.testing.assert_allclose(getattr(rows, name), getattr(modes, name), rtol=1e-5)
    other = X * np.linspace(0.5, 2, 64)[:, None]
    rows, modes = (wl.generalization(K, other, y, sizes=[20], noise=0.01, method=m) for m in ("rows", "modes"))
    assert abs(rows.test_error / modes.test_error - 1) > 1e-3


def test_a_long_time_is_the_end_of_the_flow(digits):
    X, y = digits
    ends = [wl.generalization(K, X, y, sizes=[50, 100], noise=0.1, time=t, method="modes") for t in (1e9, math.inf)]
    np.testing.assert_allclose(ends[0].test_error, ends[1].test_error, rtol=1e-8)
    np.testing.assert_allclose(ends[0].modes, ends[1].modes, rtol=1e-7, atol=1e-12)
    start = wl.generalization(K, X, y, sizes=[50], time=0.0)
    assert start.test_error[0] == pytest.approx(np.mean(np.sum(y**2, axis=1)), rel=1e-9)
    assert start.learnability[0] == pytest.approx(0, abs=1e-9)


RELU = wl.ntk(wl.mlp(depth=3, bias_std=0.2))


@pytest.mark.parametrize(("noise", "n"), [(0.3, 60), (0.3, 200)])
def test_known_levels_on_the_circle(noise, n):
    spectrum = wl.rkhs.spectrum(RELU, on="circle", degree=200)
    powers = np.zeros(201)
    powers[[1, 4]] = 0.5, 0.125
    curve = wl.generalization(spectrum, powers=powers, sizes=[n], noise=noise, label_noise=0.04)
    rng, errors = np.random.default_rng(0), []
    angles = 2 * np.pi * np.arange(4096) / 4096
    profile = np.asarray(RELU.cross(np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([[1.0, 0]])))[:, 0]
    for _ in range(60):
        steps = rng.integers(4096, size=n + 100)
        a = angles[steps]
        target = np.sin(a) + 0.5 * np.cos(4 * a)
        y, matrix = target + 0.2 * rng.standard_normal(len(a)), profile[(steps[:, None] - steps) % 4096]
        fit = matrix[n:, :n] @ np.linalg.solve(matrix[:n, :n] + noise * np.eye(n), y[:n])
        errors.append(np.mean((fit - y[n:]) ** 2))
    found, error = np.mean(errors), np.std(errors) / math.sqrt(len(errors))
    print(n, curve.test_error, found, error)
    assert agrees(curve.test_error[0], found, error)
    wrong = wl.rkhs.Spectrum(spectrum.eigenvalues[::-1], spectrum.multiplicities, spectrum.unseen)
    assert not agrees(
        wl.generalization(wrong, powers=powers, sizes=[n], noise=noise, label_noise=0.04).test_error[0], found, error
    )


@pytest.mark.parametrize(("rank", "noise"), [(10, 0.0), (10, 0.5), (200, 0.0)])
def test_gaussian_features_follow_the_sums(rank, noise):
    """Gaussian features, as the theory takes them: least squares, ridge, and interpolation of noisy targets."""
    rng, n = np.random.default_rng(rank), 30
    values, powers = np.arange(1, rank + 1) ** -1.5, np.arange(1, rank + 1) ** -2.0
    curve = wl.generalization(wl.rkhs.Spectrum(values), powers=powers, sizes=[n], noise=noise, label_noise=0.1)
    weights, errors, train = np.sqrt(powers), [], []
    for _ in range(400):
        F = rng.standard_normal((n, rank))
        y = F @ weights + math.sqrt(0.1) * rng.standard_normal(n)
        root = F * np.sqrt(values)
        K = root @ root.T + noise * np.eye(n)
        fit = np.sqrt(values) * (root.T @ np.linalg.lstsq(K, y, rcond=1e-12)[0])
        errors.append(np.sum((fit - weights) ** 2) + 0.1)
        train.append(np.mean((F @ fit - y) ** 2))
    mean, error = np.mean(errors), np.std(errors) / 20
    assert agrees(curve.test_error[0], mean, error)
    assert curve.train_error[0] == pytest.approx(np.mean(train), rel=0.1, abs=1e-12)


@pytest.mark.parametrize("method", ["rows", "modes"])
@pytest.mark.parametrize("n", [24, 50])
def test_more_rows_than_the_kernel_has_rank_are_least_squares(method, n):
    """With the rank r of the kernel below n the training error is not 0, and nothing is read out of rounding."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4))
    y = (np.sin(X[:, 0]) + 0.1 * rng.standard_normal(60))[:, None]
    curve = wl.generalization(wl.linear(), X, y, sizes=[n, 4], method=method)
    assert curve.test_error[1] > 100  # interpolation with as many rows as unknowns
    found, error, train = measured(wl.linear(), X, y, n, draws=300)
    assert abs(curve.test_error[0] - found) < max(0.1 * found, 3 * error)  # of four modes, where the theory takes many
    assert curve.train_error[0] == pytest.approx(train, rel=0.05)
    if method == "modes":
        late = wl.generalization(wl.linear(), X, y, sizes=[n], time=1e100)
        assert late.test_error[0] == pytest.approx(curve.test_error[0], rel=1e-6)


@pytest.mark.parametrize(
    ("spectrum", "n", "noise", "test", "train"),
    [
        ([1.0, 1e-20], 5, 0.0, 5 / 3 * 0.1, 3 / 5 * 0.1),
        ([1.0, 1e-9], 5, 1e-200, 5 / 3 * 0.1, 3 / 5 * 0.1),
        (np.ones(10), 12, 1e-300, 6 * 0.1, 0.1 / 6),
        (np.ones(10), 10, 0.0, math.inf, 0.0),
        (np.ones(10), 5, 0.0, 2 * (10 * 0.25 + 0.1), 0.0),
        ([1.0, 0.0], 3, 0.0, 1.5 * 1.1, 2 / 3 * 1.1),
    ],
)
def test_known_levels_of_any_size_have_their_closed_forms(spectrum, n, noise, test, train):
    """All L = 1 is least squares; m equal levels have L = n/m, and E = 1/(1 - n/m) (m (1 - n/m)^2 v^2 + s^2)."""
    found = wl.rkhs.Spectrum(spectrum)
    powers = np.ones(len(spectrum))
    curve = wl.generalization(found, powers=powers, sizes=[n], noise=noise, label_noise=0.1)
    assert curve.test_error[0] == pytest.approx(test, rel=1e-9)
    assert curve.train_error[0] == pytest.approx(train, rel=1e-9, abs=1e-15)


def test_each_level_counts_at_eigenvalues_far_below_rounding():
    """lambda = 10^-3i: 20 rows learn 20 levels, though the last is 1e-57 of the first."""
    found = wl.rkhs.Spectrum(10.0 ** -np.arange(0, 300, 3.0))
    curve = wl.generalization(found, powers=np.ones(100), sizes=[20])
    assert np.sum(curve.modes[0]) == pytest.approx(20, rel=1e-9)
    assert curve.modes[0, 15] > 0.999
    assert curve.modes[0, 25] < 0.001


def test_a_time_with_known_levels_is_the_flow_of_gaussian_features():
    rng, n, time = np.random.default_rng(0), 40, 25.0
    values, powers = np.arange(1, 101) ** -1.5, np.arange(1, 101) ** -2.0
    curve = wl.generalization(wl.rkhs.Spectrum(values), powers=powers, sizes=[n], time=time, label_noise=0.1)
    weights, errors = np.sqrt(powers), []
    for _ in range(200):
        F = rng.standard_normal((n, 100))
        y = F @ weights + math.sqrt(0.1) * rng.standard_normal(n)
        root = F * np.sqrt(values)
        lam, U = np.linalg.eigh(root @ root.T)
        fit = np.sqrt(values) * (root.T @ (U @ (-np.expm1(-2 * time * lam / n) / lam * (U.T @ y))))
        errors.append(np.sum((fit - weights) ** 2) + 0.1)
    assert agrees(curve.test_error[0], np.mean(errors), np.std(errors) / math.sqrt(200))
    assert not agrees(curve.test_error[0], np.mean(errors) * 1.1, np.std(errors) / math.sqrt(200))


def test_training_sets_that_are_drawn_are_those_of_the_posterior(digits):
    X, y = digits[0][:120], digits[1][:120]
    for noise, time in ((0.1, math.inf), (0.0, 20.0)):
        curve = wl.generalization(K, X, y, sizes=[30, 60], noise=noise, time=time, draws=3, key=5)
        order = np.random.default_rng((5, 1, 2)).permutation(120)
        seen, left = order[:60], order[60:]
        f = (
            wl.posterior(K, X[seen], y[seen], noise=noise).mean(X[left])
            if noise
            else wl.gradient_flow(K, X[seen], y[seen]).predict(X[left], time)
        )
        assert np.isfinite(curve.measured.standard_error).all()
        draws = wl.generalization(K, X, y, sizes=[30, 60], noise=noise, time=time, draws=2, key=5).measured.test_error
        assert 3 * curve.measured.test_error[1] - 2 * draws[1] == pytest.approx(
            np.mean(np.sum((f - y[left]) ** 2, axis=1)), rel=1e-8
        )


def test_units_of_kernel_and_targets_come_back(digits):
    X, y = digits[0][:120], digits[1][:120]
    for method, time in (("rows", math.inf), ("modes", 10.0)):
        one = wl.generalization(K, X, y, sizes=[40], noise=0.1, time=time, method=method)
        scaled = 1e-60 * K
        many = wl.generalization(scaled, X, 1e50 * y, sizes=[40], noise=1e-61, time=time / 1e-60, method=method)
        assert many.test_error[0] == pytest.approx(1e100 * one.test_error[0], rel=1e-9)
        assert many.learnability[0] == pytest.approx(one.learnability[0], rel=1e-9)
    drawn = [wl.generalization(K, X, c * y, sizes=[40], noise=0.1, draws=2, method="modes") for c in (1.0, 1e120)]
    ratio = drawn[1].measured.standard_error / drawn[0].measured.standard_error
    np.testing.assert_allclose(ratio, 1e240, rtol=1e-9)


def test_the_spectrum_on_a_hypercube_is_that_of_all_its_corners():
    d = 7
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * d)).reshape(d, -1).T * 3 / math.sqrt(d)
    found = wl.rkhs.spectrum(RELU, on="hypercube", dimension=d, radius=3.0)
    whole = np.linalg.eigvalsh(np.asarray(RELU.gram(corners)))[::-1] / 2**d
    listed = np.sort(np.repeat(found.eigenvalues, found.multiplicities.astype(int)))[::-1]
    np.testing.assert_allclose(listed, whole, rtol=1e-9, atol=1e-13)
    assert found.unseen == 0
    assert wl.rkhs.spectrum(RELU, on="hypercube", dimension=d, degree=2).unseen > 0
    wide = wl.rkhs.spectrum(RELU, on="hypercube", dimension=50)  # levels below rounding, of many functions
    assert wide.trace == pytest.approx(RELU.diag(np.full((1, 50), 1 / math.sqrt(50)))[0], rel=1e-12)
    from_rows = wl.rkhs.spectrum(RELU, corners)
    np.testing.assert_allclose(from_rows.eigenvalues, whole, rtol=1e-9, atol=1e-13)


def test_the_spectrum_on_the_circle_is_that_of_even_points():
    angles = 2 * np.pi * np.arange(4096) / 4096
    whole = np.fft.rfft(
        np.asarray(RELU.cross(np.stack([np.cos(angles), np.sin(angles)], 1), np.array([[1.0, 0]])))[:, 0]
    )
    found = wl.rkhs.spectrum(RELU, on="circle", degree=8)
    np.testing.assert_allclose(found.eigenvalues, whole.real[:9] / 4096, rtol=2e-5)
    assert found.multiplicities.tolist() == [1.0] + [2.0] * 8
    assert found.trace == pytest.approx(RELU.diag(np.array([[1.0, 0]]))[0])


X3 = np.random.default_rng(0).standard_normal((20, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wl.generalization(K, X3, X3[:, 0], sizes=[20]), "below the number of rows"),
        (lambda: wl.generalization(K, X3, X3[:, 0], sizes=[0]), ">= 1"),
        (lambda: wl.generalization(K, X3, X3[:, 0], sizes=[2.5]), "integers"),
        (lambda: wl.generalization(K, X3, X3[:, 0], sizes=[]), "integers"),
        (lambda: wl.generalization(K, X3, X3[:, 0], sizes=[5], draws=1), "draws"),
        (lambda: wl.generalization(K, X3, X3[:, 0], sizes=[5], method="rows", time=1.0), "method"),
        (lambda: wl.generalization(K, X3, X3[:, 0], sizes=[5], label_noise=0.1), "Spectrum"),
        (lambda: wl.generalization(wl.rkhs.Spectrum([1.0, 0.5]), X3, X3[:, 0], sizes=[5]), "powers"),
        (lambda: wl.generalization(wl.rkhs.Spectrum([0.0, 0.0]), powers=[1.0, 1.0], sizes=[5]), "is 0"),
        (lambda: wl.generalization(wl.rkhs.Spectrum([1.0, 0.5]), powers=[1.0], sizes=[5]), "shape"),
        (lambda: wl.generalization(wl.linear(), 0 * X3, X3[:, 0], sizes=[5]), "0"),
        (lambda: wl.generalization(K, X3, 1e200 * X3[:, 0], sizes=[5]), "scale y down"),
        (lambda: wl.generalization(K, X3, X3[:, 0], sizes=[5], noise=1e300), "nothing is learned"),
        (lambda: wl.generalization(wl.rkhs.Spectrum([1.0]), powers=[1.0], sizes=[5], method="rows"), "leave them out"),
        (lambda: wl.generalization(wl.rkhs.Spectrum([1.0]), powers=[-1.0], sizes=[5]), ">= 0, got -1"),
        (lambda: wl.rkhs.Spectrum([1e300], [1e300]), "float64's range"),
        (lambda: wl.rkhs.Spectrum([1.0, -0.5]), ">= 0"),
        (lambda: wl.rkhs.spectrum(K), "one of the two"),
        (lambda: wl.rkhs.spectrum(K, on="circle", dimension=3), "dimension=2"),
        (lambda: wl.rkhs.spectrum(wl.rbf(length_scale=[1.0, 2.0, 1.0]), on="hypercube", dimension=3), "angle"),
    ],
)
def test_what_cannot_be_predicted_is_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
