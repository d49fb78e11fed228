"""Bad input gives an error of the right type that says what, which value, and what to pass."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import polars
import pytest
import scipy.sparse

import widelimit as wl
from later import Later

X = np.random.default_rng(0).standard_normal((6, 3))
Y = X[:, 0]
NET = wl.mlp(depth=2, bias_std=0.1)
K = wl.ntk(NET)


def with_nan():
    bad = X.copy()
    bad[4, 1] = np.nan
    bad[5, 0] = np.inf
    return bad


BAD_POINTS = {
    "nan": (with_nan(), ValueError, "2 entries that are NaN or infinite, the first at [4, 1] (nan); drop or impute"),
    "jax nan": (jnp.asarray(with_nan()), ValueError, "the first at [4, 1]"),
    "one dimension": (X[0], ValueError, "must have shape (n, d), got (3,): pass X[:, None]"),
    "three dimensions": (X[None], ValueError, "got shape (1, 6, 3)"),
    "scalar": (1.0, ValueError, "got shape ()"),
    "no rows": (X[:0], ValueError, "is empty: shape (0, 3)"),
    "no columns": (X[:, :0], ValueError, "is empty: shape (6, 0)"),
    "complex": (X + 0j, TypeError, "has dtype complex128; float32 or float64 is needed: pass the real and imaginary"),
    "object": (X.astype(object), TypeError, "has dtype object"),
    "text": (X.astype(str), TypeError, "convert the text to numbers"),
    "half": (X.astype(np.float16), TypeError, "has dtype float16; float32 or float64 is needed"),
    "long double": (X.astype(np.longdouble), TypeError, "float32 or float64 is needed"),
    "large integers": (np.full((2, 2), 2**53 + 1), TypeError, "integers that float64 cannot represent"),
    "jax integers": (jnp.ones((2, 2), int), TypeError, "has dtype int32"),
    "ragged": ([[1.0, 2.0], [3.0]], ValueError, "is not a rectangular array"),
    "masked": (np.ma.masked_invalid(with_nan()), TypeError, "is a masked array; fill or drop the masked entries first"),
    "masked rows": (list(np.ma.masked_invalid(with_nan())), TypeError, "is a masked array; fill or drop"),
    "largest integer": (np.full((2, 2), 2**63 - 1), TypeError, "integers that float64 cannot represent"),
    "large unsigned integers": (np.full((2, 2), 2**64 - 1, np.uint64), TypeError, "integers that float64 cannot"),
    "large integers beside floats": ([[2**53 + 1, 0.5]], TypeError, "integers that float64 cannot represent"),
    "large integers in a table": (
        pandas.DataFrame({"a": [2**53 + 1], "b": [0.5]}),
        TypeError,
        "integers that float64 cannot represent",
    ),
    "time spans": (np.ones((2, 2), "timedelta64[s]"), TypeError, "convert the time spans to numbers"),
    "sparse": (scipy.sparse.csr_matrix(X), TypeError, "pass X.toarray()"),
    "dates": (np.array([["2020-01-01"]], "datetime64[D]"), TypeError, "has dtype datetime64[D]"),
    "nothing": (None, TypeError, "must be a real number or an array of them, got None"),
}


@pytest.mark.parametrize("name", BAD_POINTS)
def test_points_are_checked_everywhere(name):
    value, kind, words = BAD_POINTS[name]
    match = re.escape(words)
    calls = [
        lambda: K.gram(value),
        lambda: K.diag(value),
        lambda: K.cross(value, X),
        lambda: wl.posterior(K, value, Y),
        lambda: wl.gradient_flow(K, value, Y),
        lambda: wl.trained_ensemble(NET, value, Y),
    ]
    for call in calls:
        with pytest.raises(kind, match=match):
            call()
    renamed = re.escape(words.replace("X[", "Z[").replace("X.", "Z."))
    for call in (wl.posterior(K, X, Y).mean, wl.posterior(K, X, Y).variance, wl.posterior(K, X, Y).covariance):
        with pytest.raises(kind, match=renamed):
            call(value)
    with pytest.raises(kind, match=renamed):
        wl.gradient_flow(K, X, Y).predict(value, 1.0)
    with pytest.raises(kind, match=renamed):
        wl.trained_ensemble(NET, X, Y).variance(value, 1.0)


def test_a_mask_with_nothing_masked_is_no_mask():
    plain = np.ma.array(X, mask=False)
    np.testing.assert_array_equal(K.gram(plain), K.gram(X))
    assert type(K.gram(plain)) is np.ndarray
    model = wl.NNGPRegressor(noise=0.1).fit(plain, np.ma.array(Y), sample_weight=np.ma.ones(6))
    np.testing.assert_array_equal(model.predict(plain), wl.NNGPRegressor(noise=0.1).fit(X, Y).predict(X))


def masked(array):
    """The array with its second entry masked, and a plain number below the mask."""
    out = np.ma.array(array, mask=False)
    out.flat[1] = 7
    out[np.unravel_index(1, out.shape)] = np.ma.masked
    return out


PARAMS = NET.init(0, input_dim=3, width=4, dtype=np.float64)
MODEL = Later(lambda: wl.NNGPRegressor(noise=0.1, depth=2).fit(X, Y))
CLASSES = Later(lambda: wl.NTKClassifier(depth=2).fit(X, Y > 0))
DOORS = {
    "gram": (K.gram, X),
    "diag": (K.diag, X),
    "cross": (lambda a: K.cross(X, a), X),
    "rbf": (wl.rbf().gram, X),
    "precomputed": (wl.precomputed, np.eye(3)),
    "separable": (lambda a: wl.separable(K, a), np.eye(2)),
    "scale_inputs": (lambda a: wl.scale_inputs(K, a), np.ones(3)),
    "posterior X": (lambda a: wl.posterior(K, a, Y), X),
    "posterior y": (lambda a: wl.posterior(K, X, a), Y),
    "posterior noise": (lambda a: wl.posterior(K, X, Y, noise=a), np.ones(6)),
    "posterior mean": (lambda a: wl.posterior(K, X, Y).mean(a), X),
    "flow X": (lambda a: wl.gradient_flow(K, a, Y), X),
    "flow y": (lambda a: wl.gradient_flow(K, X, a), Y),
    "flow t": (lambda a: wl.gradient_flow(K, X, Y).predict(X, a), np.ones(3)),
    "descent y": (lambda a: wl.gradient_descent(K, X, a, learning_rate=0.1, steps=1), Y),
    "ensemble X": (lambda a: wl.trained_ensemble(NET, a, Y), X),
    "ensemble Z": (lambda a: wl.trained_ensemble(NET, X, Y).mean(a, 1.0), X),
    "process X": (wl.GaussianProcess(K).rank, X),
    "process y": (lambda a: wl.GaussianProcess(K).log_density(X, a), Y),
    "rkhs X": (lambda a: wl.rkhs.effective_dimension(K, a, regularization=0.1), X),
    "interpolant y": (lambda a: wl.rkhs.interpolant(K, X, a), Y),
    "network": (lambda a: NET.apply(PARAMS, a), X),
    "empirical ntk": (lambda a: wl.empirical_ntk(NET.apply, PARAMS).gram(a), X),
    "empirical nngp": (lambda a: wl.empirical_nngp(NET.apply, PARAMS).gram(a), X),
    "train X": (lambda a: wl.train(NET.apply, PARAMS, a, Y, learning_rate=0.1, steps=1), X),
    "train y": (lambda a: wl.train(NET.apply, PARAMS, X, a, learning_rate=0.1, steps=1), Y),
    "weighted loss": (wl.WeightedSquaredError, np.ones(6)),
    "regressor X": (lambda a: wl.NNGPRegressor().fit(a, Y), X),
    "regressor y": (lambda a: wl.NTKRegressor().fit(X, a), Y),
    "regressor weights": (lambda a: wl.NNGPRegressor().fit(X, Y, sample_weight=a), np.ones(6)),
    "regressor Z": (MODEL.predict, X),
    "regressor draws": (MODEL.sample_y, X),
    "regressor score X": (lambda a: MODEL.score(a, Y), X),
    "regressor score y": (lambda a: MODEL.score(X, a), Y),
    "regressor score weights": (lambda a: MODEL.score(X, Y, a), np.ones(6)),
    "classifier X": (lambda a: wl.NTKClassifier().fit(a, Y > 0), X),
    "classifier weights": (lambda a: wl.NNGPClassifier().fit(X, Y > 0, a), np.ones(6)),
    "classifier Z": (CLASSES.predict_proba, X),
    "classifier score weights": (lambda a: CLASSES.score(X, Y > 0, a), np.ones(6)),
    "features X": (wl.NTKFeatures(2).fit, X),
    "features Z": (Later(lambda: wl.NTKFeatures(2).fit(X)).transform, X),
    "scikit-learn kernel": (wl.sklearn_kernel(K), X),
}
NOT_NUMBERS = {
    "mask": masked,
    "complex": lambda a: a + 1j,
    "date": lambda a: np.arange(a.size).reshape(a.shape).astype("datetime64[D]"),
    "time span": lambda a: np.arange(a.size).reshape(a.shape).astype("timedelta64[s]"),
    "integers": lambda a: np.full(a.shape, 2**64 - 1, np.uint64),
    "text": lambda a: a.astype(str),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_real_number_is_refused_at_every_door(door):
    """Masked entries are missing values; dates, text, complex and large numbers are not what a cast makes of them."""
    call, good = DOORS[door]
    for words, change in NOT_NUMBERS.items():
        with pytest.raises((TypeError, ValueError), match=words) as caught:
            call(change(good))
        assert len(str(caught.value)) <= 400, words


def test_labels_and_objects_that_are_no_numbers():
    labels = np.ma.array(["a", "b"] * 3, mask=[0, 1, 0, 0, 0, 0])
    for bad, words in (
        (labels, "mask"),
        (np.arange(6).astype("datetime64[D]"), "dates"),
        (np.array([pandas.Timestamp("2020-01-01")] * 3 + [1] * 3, dtype=object), "dates"),
        (np.arange(6) + 1j, "complex"),
    ):
        for call in (lambda a: wl.NNGPClassifier().fit(X, a), lambda a: CLASSES.score(X, a)):
            with pytest.raises((TypeError, ValueError), match=words):
                call(bad)
    table = X.astype(object)
    np.testing.assert_array_equal(MODEL.predict(table), MODEL.predict(X))
    for entry, words in (
        ("1.5", r"X\[1, 2\] is the text '1.5'"),
        (1j, "complex|Complex"),
        (2**53 + 1, "integer that float64 cannot"),
        (np.datetime64("2020-01-01"), "dates"),
        (None, r"X\[1, 2\] is missing \(None"),
        (pandas.NA, r"X\[1, 2\] is missing"),
        (X, r"an array of shape \(6, 3\)"),
    ):
        table[1, 2] = entry
        for call in (MODEL.predict, lambda a: wl.NNGPRegressor().fit(a, Y)):
            with pytest.raises((TypeError, ValueError), match=words):
                call(table)
    for frame in (pandas.DataFrame, polars.DataFrame):
        mixed = frame({"a": [2**53 + 1] * 6, "b": [0.5] * 6, "c": [1] * 6})
        with raises(TypeError, "integers that float64 cannot represent"):
            MODEL.predict(mixed)


def test_integers_booleans_and_lists_that_survive_exactly_are_taken():
    grid = np.array([[0, 1], [2, 3]])
    np.testing.assert_array_equal(K.gram(grid), K.gram(grid.astype(float)))
    np.testing.assert_array_equal(K.gram(grid.tolist()), K.gram(grid.astype(float)))
    np.testing.assert_array_equal(K.gram(grid > 1), K.gram((grid > 1).astype(float)))


def raises(kind, words):
    return pytest.raises(kind, match=re.escape(words))


def test_features_and_lengths_must_agree():
    with raises(ValueError, "X has 3 features and Y has 2; they must agree"):
        K.cross(X, X[:, :2])
    with raises(ValueError, "Z has 2 features and X has 3; they must agree"):
        wl.posterior(K, X, Y).mean(X[:, :2])
    with raises(ValueError, "y has 5 rows and X has 6"):
        wl.posterior(K, X, Y[:5])


def test_targets():
    for bad, kind, words in [
        (np.full(6, np.nan), ValueError, "y has 6 entries that are NaN or infinite"),
        (np.zeros((6, 0)), ValueError, "y must have shape (n,) or (n, c) with c >= 1, got shape (6, 0)"),
        (np.zeros((6, 1, 1)), ValueError, "got shape (6, 1, 1)"),
        (Y + 1j, TypeError, "y has dtype complex128"),
        (list("abcdef"), TypeError, "convert the text to numbers"),
        (1.0, ValueError, "got shape ()"),
    ]:
        for call in (wl.posterior, wl.gradient_flow):
            with raises(kind, words):
                call(K, X, bad)


def test_noise():
    for bad, kind, words in [
        (-0.1, ValueError, "noise is a variance and must be >= 0, got -0.1"),
        (np.nan, ValueError, "noise must be finite, got nan"),
        (np.inf, ValueError, "noise must be finite, got inf"),
        (True, TypeError, "noise must be a real number or an array of them, got True"),
        (np.ones(5), ValueError, "noise must be a number or of shape (6,)"),
        (np.r_[1, 1, 1, 1, 1, -1.0], ValueError, "got -1.0"),
        ("small", TypeError, "convert the text"),
        (1j, TypeError, "got 1j"),
        (None, TypeError, "got None"),
    ]:
        with raises(kind, words):
            wl.posterior(K, X, Y, noise=bad)


def test_times():
    flow, ens = wl.gradient_flow(K, X, Y), wl.trained_ensemble(NET, X, Y)
    for bad, kind, words in [
        (-1.0, ValueError, "times must be in [0, inf], got -1.0"),
        ([1.0, -2.0], ValueError, "got -2.0"),
        (np.nan, ValueError, "got nan"),
        ([[1.0]], ValueError, "got shape (1, 1)"),
        ([], ValueError, "got shape (0,)"),
        ("late", TypeError, "convert the text"),
        (None, TypeError, "got None"),
        (True, TypeError, "t must be a real number or an array of them, got True"),
    ]:
        for call in (lambda t: flow.predict(X, t), flow.loss, lambda t: ens.mean(X, t), lambda t: ens.covariance(X, t)):
            with raises(kind, words):
                call(bad)


def test_architecture():
    for arguments, kind, words in [
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"depth": -3}, ValueError, "depth must be at least 1, got -3"),
        ({"depth": 2.0}, TypeError, "depth must be an integer, got 2.0"),
        ({"depth": True}, TypeError, "depth must be an integer, got True"),
        ({"depth": "2"}, TypeError, "depth must be an integer, got '2'"),
        ({"depth": 2, "activation": "rleu"}, ValueError, "unknown activation 'rleu'; known: abs, celu, cos"),
        ({"depth": 2, "activation": None}, TypeError, "activation must be a name"),
        ({"depth": 2, "activation": wl.Relu}, TypeError, "activation must be a name"),
        ({"depth": 2, "weight_std": 0.0}, ValueError, "weight_std must be > 0, got 0"),
        ({"depth": 2, "weight_std": -1}, ValueError, "weight_std must be > 0, got -1"),
        ({"depth": 2, "weight_std": np.inf}, ValueError, "weight_std must be finite"),
        ({"depth": 2, "weight_std": "1"}, TypeError, "weight_std must be a real number"),
        ({"depth": 2, "weight_std": 1j}, TypeError, "weight_std must be a real number"),
        ({"depth": 2, "weight_std": jnp.ones(2)}, ValueError, "weight_std must be a scalar, got shape (2,)"),
        ({"depth": 2, "bias_std": -0.1}, ValueError, "bias_std must be >= 0, got -0.1"),
        ({"depth": 2, "bias_std": np.nan}, ValueError, "bias_std must be finite"),
    ]:
        with raises(kind, words):
            wl.mlp(**arguments)
    for slope, kind, words in [
        (np.nan, ValueError, "slope must be finite, got nan"),
        (1e200, ValueError, "slope must be <= 1e+06, got 1e+200"),
        (-1e200, ValueError, "slope must be >= -1e+06"),
        ("a", TypeError, "slope must be a real number, got 'a'"),
        (1j, TypeError, "slope must be a real number"),
        (np.ones(3), TypeError, "slope must be a real number"),
    ]:
        with raises(kind, words):
            wl.LeakyRelu(slope)
    for make in (wl.nngp, wl.ntk):
        with raises(TypeError, "a network is needed, e.g. wl.mlp(depth=3); got str"):
            make("relu")


def test_finite_networks():
    net = wl.mlp(depth=3)
    for arguments, kind, words in [
        ({"input_dim": 0}, ValueError, "every size must be at least 1, got 0"),
        ({"input_dim": 2, "width": 0}, ValueError, "every size must be at least 1"),
        ({"input_dim": 2, "width": [3]}, ValueError, "a network of depth 3 has 2 hidden layers; got 1 widths"),
        ({"input_dim": 2, "width": 2.5}, TypeError, "every size must be an integer, got 2.5"),
        ({"input_dim": 2.0}, TypeError, "every size must be an integer"),
        ({"input_dim": 2, "output_dim": -1}, ValueError, "every size must be at least 1, got -1"),
    ]:
        with raises(kind, words):
            net.init(0, **arguments)
    with raises(TypeError, "seed must be an integer, got 0.5"):
        net.init(0.5, input_dim=2)
    with raises(ValueError, "X has shape (6, 3); the parameters were made for (n, 2)"):
        net.apply(net.init(0, input_dim=2, width=4), X.astype(np.float32))
    with raises(TypeError, "X is float64 and the parameters are float32; pass X.astype('float32')"):
        net.apply(net.init(0, input_dim=3, width=4), X)
    with raises(ValueError, "seed must be below 9223372036854775808"):
        net.init(2**70, input_dim=2)


def test_inference_needs_kernels_losses_and_functions_of_the_right_kind():
    with raises(TypeError, "a kernel is needed, e.g. wl.nngp(net) or wl.ntk(net); got Network"):
        wl.posterior(NET, X, Y)
    with raises(TypeError, "a network is needed"):
        wl.trained_ensemble(K, X, Y)
    with raises(ValueError, "unknown loss 'hubr'; known: squared_error, huber"):
        wl.gradient_flow(K, X, Y, loss="hubr")
    with raises(TypeError, "initial must be a function"):
        wl.gradient_flow(K, X, Y, initial=0.0)
    with raises(ValueError, "initial must map (6, 3) inputs to shape (6,), as y has; it returned shape (6, 2)"):
        wl.gradient_flow(K, X, Y, initial=lambda A: A[:, :2])
    with raises(TypeError, "the result of initial has dtype complex128"):
        wl.gradient_flow(K, X, Y, initial=lambda A: A[:, 0] + 1j)
    with raises(ValueError, "initial returned NaN"):
        wl.gradient_flow(K, X, Y, initial=lambda A: A[:, 0] * np.nan)
    with raises(TypeError, "count must be an integer, got 2.5"):
        wl.posterior(K, X, Y).sample(X, 2.5)
    with raises(ValueError, "count must be at least 1"):
        wl.posterior(K, X, Y).sample(X, 0)


def test_traced_arrays_are_refused_where_inference_needs_values():
    with raises(TypeError, "X is being traced by jax"):
        jax.grad(lambda A: wl.gradient_descent(K, A, Y, learning_rate=0.1, steps=3).predict(X).sum())(jnp.asarray(X))
    with raises(TypeError, "Z is being traced by jax"):
        jax.jit(lambda A: wl.posterior(K, X, Y).sample(A, 2))(jnp.asarray(X))


def test_kernels_out_of_range_are_refused_with_the_mend():
    bias_free = wl.ntk(wl.mlp(depth=2))
    for call in (wl.posterior, wl.gradient_flow):
        with raises(ValueError, "K(x, x) is inf at row"):
            call(bias_free, X * 1e170, Y)
        with raises(ValueError, "K(x, x) underflows to 0 at every row of X; scale X up"):
            call(bias_free, X * 1e-170, Y)
