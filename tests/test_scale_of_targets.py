"""What is linear in y is so for every y that a float holds: no norm on the way overflows, or underflows to 0."""

import numpy as np
import pytest

import widelimit as wl
from widelimit.compute.linalg import normalise
from widelimit.inference.early_stopping import stopped_flow

RNG = np.random.default_rng(5)
X, Z = RNG.standard_normal((30, 3)), RNG.standard_normal((4, 3))
Y = np.column_stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]])
NET = wl.mlp(depth=2, activation="relu", bias_std=0.2)
K, T = wl.nngp(NET), wl.ntk(NET)
POWERS = (-560, 530, 995)
"""Of 2: 1e-169, 4e159, 3e299."""


def solved(**how):
    return lambda y: wl.posterior(K, X, y, noise=0.1, **how).mean(Z)


LINEAR = {
    "cholesky": solved(solver="cholesky"),
    "cholesky, mixed": solved(solver="cholesky", precision="mixed"),
    "cg": solved(solver="cg"),
    "cg, mixed": solved(solver="cg", precision="mixed"),
    "duplicate rows": lambda y: wl.posterior(K, np.vstack([X, X]), np.vstack([y, y])).mean(Z),
    "leave_one_out": lambda y: wl.posterior(K, X, y, noise=0.1).leave_one_out().mean,
    "gradient_flow": lambda y: wl.gradient_flow(T, X, y).predict(Z, [0.0, 3.0, np.inf]),
    "coefficients": lambda y: wl.gradient_flow(T, X, y).coefficients(3.0),
    "krylov": lambda y: wl.gradient_flow(T, X, y, solver="krylov").predict(Z, [0.0, 3.0, np.inf]),
    "krylov, bound": lambda y: wl.gradient_flow(T, X, y, solver="krylov").bound(0.1),
    "gradient_descent": lambda y: wl.gradient_descent(T, X, y, learning_rate=0.1, steps=50).predict(Z),
    "trained_ensemble": lambda y: wl.trained_ensemble(NET, X, y).mean(Z, 3.0),
    "stopped_flow": lambda y: stopped_flow(K, X, y, time=3.0, noise=0.1).mean(Z),
    "ridge": lambda y: wl.rkhs.ridge(K, X, y, regularization=0.1)(Z),
    "norm": lambda y: np.array(wl.rkhs.ridge(K, X, y, regularization=0.1).norm()),
    "condition": lambda y: wl.GaussianProcess(K, outputs=(2,)).condition(X, y, noise=0.1).mean(Z),
    "NNGPRegressor": lambda y: wl.NNGPRegressor(noise=0.1, depth=2).fit(X, y).predict(Z),
}


@pytest.mark.parametrize("name", LINEAR)
def test_predictions_scale_with_the_targets(name):
    base = LINEAR[name](Y)
    for power in POWERS:
        np.testing.assert_allclose(np.ldexp(LINEAR[name](np.ldexp(Y, power)), -power), base, rtol=1e-11, atol=1e-13)
    # each column by itself: a small one beside a large one
    both = [-500, 600]
    if base.ndim and base.shape[-1] == 2:
        np.testing.assert_allclose(np.ldexp(LINEAR[name](np.ldexp(Y, both)), -np.array(both)), base, rtol=1e-6)


def test_the_law_sees_a_norm_without_scale():
    """The negative control: a solver that scales its residual by a plain norm."""

    def plain(y):
        size = np.sqrt(np.einsum("ij,ij->j", y, y))
        return np.where(size > 0, y, 0.0)

    assert not plain(np.ldexp(Y, -560)).any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_float32_targets_of_any_size(scale):
    data = [a.astype(np.float32) for a in (X, Y, Z)]
    base = wl.posterior(K, data[0], data[1], noise=0.1, solver="cg", precision="mixed").mean(data[2])
    tilted = wl.posterior(K, data[0], data[1] * np.float32(scale), noise=0.1, solver="cg", precision="mixed")
    np.testing.assert_allclose(tilted.mean(data[2]) / scale, base, rtol=1e-5)


@pytest.mark.parametrize("power", POWERS)
def test_what_is_measured_of_a_fit_does_not_depend_on_the_unit(power):
    y = np.ldexp(Y, power)
    assert wl.posterior(K, X, y, noise=0.1).residual < 1e-13
    modes = wl.gradient_flow(T, X, y).modes()
    np.testing.assert_allclose(modes.shares, wl.gradient_flow(T, X, Y).modes().shares, rtol=1e-9, atol=1e-15)


def test_squares_beyond_the_range_of_a_float_are_inf_or_an_error_and_never_nan():
    y = np.ldexp(Y, 995)
    post = wl.posterior(K, X, y, noise=0.1)
    assert post.log_marginal_likelihood() == -np.inf
    assert wl.GaussianProcess(K, outputs=(2,)).log_density(X, y) == -np.inf
    for solver in ("eigh", "krylov"):
        losses = wl.gradient_flow(T, X, y, solver=solver).loss([0.0, 1.0, np.inf])
        assert losses[0] == losses[1] == np.inf
        assert not np.isnan(losses).any()
    assert wl.rkhs.ridge(K, X, y, regularization=0.1).squared_norm() == np.inf
    for call in (post.log_marginal_likelihood_gradient, lambda: wl.fit_hyperparameters(K, X, y, noise=0.1)):
        with pytest.raises(ValueError, match="scale y"):
            call()
    with pytest.raises(ValueError, match="weights leave float64's range"):
        wl.posterior(1e-10 * K, X, 1e6 * y)


def test_scaled_is_exact():
    values, exponent = normalise(np.array([[3e-310, 0.0, 1e300], [1e-320, 0.0, -1.7e308]]))
    assert exponent.tolist() == [-1028, 0, 1024]
    assert (np.abs(values).max(axis=0) == np.array([3e-310 * 2.0**1000 * 2.0**28, 0.0, 1.7e308 / 2.0**1023 / 2])).all()


@pytest.mark.parametrize("size", [1e-170, 1.0, 1e300])
def test_the_ode_measures_slopes_of_any_size(size):
    """Its tolerances, and whether it is at rest, are relative to the slope at the start."""
    flow = wl.gradient_flow(T, X, size * Y, loss=wl.WeightedSquaredError(np.ones(30)))
    usual = wl.gradient_flow(T, X, Y, loss=wl.WeightedSquaredError(np.ones(30)))
    assert float(flow._problem()[0].first) / size == pytest.approx(float(usual._problem()[0].first), rel=1e-12)


DOORS = {
    **LINEAR,
    "gradient_flow, Huber": lambda y: wl.gradient_flow(T, X, y, loss=wl.Huber(1.0)).predict(Z, 3.0),
    "fit_hyperparameters": lambda y: wl.fit_hyperparameters(K, X, y, noise=0.1),
    "log_density": lambda y: wl.GaussianProcess(K, outputs=(2,)).log_density(X, y),
    "a search": lambda y: wl.NTKRegressor(depth=2, hyperparameters="leave_one_out").fit(X, y),
}
LARGEST = np.sign(Y) * np.finfo(np.float64).max


@pytest.mark.parametrize("name", DOORS)
def test_the_largest_floats_are_refused_at_the_door(name):
    """Their differences and sums overflow; the shortest message says so before anything is computed."""
    with pytest.raises(ValueError, match=r"^y reaches 1\.8e\+308.* Scale it down"):
        DOORS[name](LARGEST)


@pytest.mark.parametrize(
    "make", [wl.gradient_flow, lambda *a, **k: wl.gradient_descent(*a, learning_rate=0.1, steps=2, **k)]
)
def test_a_start_whose_distance_to_y_overflows_is_refused(make):
    far = np.finfo(np.float64).max / 31
    with pytest.raises(ValueError, match=r"^y - f_0\(X\) reaches"):
        make(T, X, np.full((30, 2), far), initial=lambda A: np.full((len(A), 2), -far))
    process = wl.GaussianProcess(K, mean=lambda A: np.full((len(A), 2), -far), outputs=(2,))
    for call in (process.condition, process.log_density):
        with pytest.raises(ValueError, match=r"^y - mean\(X\) reaches"):
            call(X, np.full((30, 2), far))


def test_the_largest_targets_that_are_taken_are_predicted_to_all_digits():
    for name in ("cholesky", "cg", "gradient_flow", "krylov", "gradient_descent", "stopped_flow", "NNGPRegressor"):
        base, found = LINEAR[name](Y), LINEAR[name](np.ldexp(Y, 1017))
        np.testing.assert_allclose(np.ldexp(found, -1017), base, rtol=1e-11, atol=1e-13)
    models = [wl.NTKRegressor(depth=2).fit(X, np.ldexp(Y, power)) for power in (0, 1017)]
    scores = [model.score(Z, np.ldexp(Y[:4], power)) for model, power in zip(models, (0, 1017), strict=True)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-9)
    with pytest.raises(ValueError, match="leaves the range of a float"):
        models[1].predict(1e9 * Z)
