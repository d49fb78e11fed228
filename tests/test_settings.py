"""The library under other settings of JAX than its defaults: the same values, and no false alarm."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

CALLS = """
import json, os, sys, tempfile
import jax
for name, value in json.loads(sys.argv[1]).items():
    jax.config.update(name, value)
import jax.numpy as jnp
import numpy as np
import widelimit as wl

rng = np.random.default_rng(0)
X, Z = rng.standard_normal((6, 3)), rng.standard_normal((3, 3))
X[1], X[2], X[3] = X[0], -X[0], 0
y = np.sin(X[:, 0])
net = wl.mlp(depth=2, bias_std=0.2)
single = jnp.asarray(X, jnp.float32)
k = wl.ntk(net)
params = net.init(0, input_dim=3, width=4, output_dim=1, dtype=np.float64)
own = lambda p, X: net.apply(p, X)
post = wl.posterior(k, X, y, noise=0.1)
flow = wl.gradient_flow(wl.rbf(), X[2:], y[2:])
small = dict(learning_rate=0.1, steps=3, kernel_points=2, progress=False)
trained = wl.train(own, params, X, y, **small)
smooth = wl.nngp(wl.mlp(depth=2, activation="erf", bias_std=0.2))
labels = (y > 0).astype(int)
search = wl.fit_hyperparameters(wl.rbf(1.0), X, y, noise=0.1, restarts=0, max_steps=2)
pair = wl.separable(wl.rbf(), np.array([[1.0, 0.3], [0.3, 1.0]]))
line = wl.LinearModel(lambda x: x)


def commands():
    import zarr
    from widelimit.cli.app import app

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        rows = [f"{a:.17g},{b:.17g},{c:.17g}" for (a, b, _), c in zip(X, y)]
        open("t.csv", "w").write("\\n".join(["a,b,c", *rows]))
        for line in ("fit t.csv --target c --model m.npz --depth 2", "predict m.npz t.csv --out p.csv"):
            app([*line.split(), "--quiet"], standalone_mode=False)
        app("kernel t.csv --drop c --out k.zarr --depth 2 --quiet".split(), standalone_mode=False)
        found = np.loadtxt("p.csv", skiprows=1)[None], zarr.open_array("k.zarr", mode="r")[:]
        os.chdir("/")
    return np.vstack(found)


classifier = wl.NTKClassifier(depth=2).fit(X, labels)
found = {
    "cross and sum": (k + 0.5 * wl.rbf()).cross(X, Z),
    "product": (smooth * wl.polynomial(degree=2)).diag(X),
    "dual": wl.Relu().dual(1.0, 0.3, 2.0),
    "function kernel": wl.kernel(lambda a, b: jnp.sum(a * b)).gram(X),
    "coupled outputs": wl.gradient_flow(pair, X[2:], np.c_[y, -y][2:]).predict(Z, 1.0),
    "conjugate gradients": wl.posterior(k, X, y, noise=0.1, solver="cg").predict(Z).variance,
    "slope": post.log_marginal_likelihood_gradient().noise,
    "krylov": wl.gradient_flow(k, X, y, solver="krylov").predict(Z, [0.5, np.inf]),
    "huber": wl.gradient_flow(wl.rbf(), X[2:], y[2:], loss="huber").predict(Z, 1.0),
    "descent": wl.gradient_descent(k, X, y, learning_rate=0.1, steps=5).predict(Z),
    "process": wl.GaussianProcess(k).condition(X[3:], y[3:], noise=0.1).kernel.gram(Z),
    "search": [*search.values.values()],
    "function": wl.rkhs.ridge(k, X, y, regularization=0.1)(Z),
    "eigenvalues": wl.rkhs.eigenvalues(wl.rbf(), X),
    "linear model": line.predict(line.minimum_norm(X, y), Z),
    "trained": trained.params[0]["weight"],
    "record": trained.history.kernel_drift,
    "empirical NNGP": wl.empirical_nngp(own, params, output="trace").cross(X, Z),
    "matvec": wl.empirical_ntk(own, params).matvec(X, y),
    "linearize": wl.linearize(own, params)(params, Z),
    "classifier": classifier.predict_proba(Z),
    "features": wl.NTKFeatures(4, depth=2).fit(X).transform(Z),
    "ensemble estimator": wl.NTKRegressor(depth=2, ensemble=True, time=2.0).fit(X, y).predict(Z, return_std=True)[1],
    "command line": commands(),
    "gram": k.gram(X),
    "float32": wl.nngp(net).cross(X.astype(np.float32), Z.astype(np.float32)),
    "gradient": jax.jit(jax.grad(lambda A: jnp.sum(k.gram(A))))(single),
    "tables": wl.nngp(wl.mlp(depth=2, activation="hard_tanh")).diag(X),
    "standard": wl.scale_inputs(0.5 * wl.rbf(2.0) + wl.linear() * wl.laplace(), np.ones(3)).gram(X),
    "posterior": np.stack([post.mean(Z), post.variance(Z)]),
    "flow": flow.predict(Z, 1.0),
    "ensemble": wl.trained_ensemble(net, X, y).variance(Z, 1.0),
    "empirical": wl.empirical_ntk(own, params, output="trace").gram(X),
    "finite": net.apply(net.init(0, input_dim=3, width=4), X.astype(np.float32)),
    "estimator": wl.NNGPRegressor(noise=0.1).fit(X, y).predict(Z),
}
print(json.dumps({name: [np.asarray(v).dtype.name, np.asarray(v, float).tolist()] for name, v in found.items()}))
"""

# The settings do not touch each other: two processes try all of them, and an error of JAX names its setting.
SETTINGS = {
    "strict, highest": {
        "jax_numpy_rank_promotion": "raise",
        "jax_debug_nans": True,
        "jax_default_matmul_precision": "highest",
    },
    "float64, bfloat16": {"jax_enable_x64": True, "jax_default_matmul_precision": "bfloat16"},
}


def results(settings):
    run = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(settings)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert run.returncode == 0, run.stderr[-600:]
    return read(run.stdout)


def read(printed):
    return {name: (dtype, np.array(values)) for name, (dtype, values) in json.loads(printed.splitlines()[-1]).items()}


@pytest.fixture(scope="module")
def usual():
    """Those of this process, which has the default settings, but for its warnings."""
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(printed),
        contextlib.chdir("."),
    ):
        patch.setattr(sys, "argv", ["-c", "{}"])
        exec(CALLS, {})
    return read(printed.getvalue())


def off(found, usual):
    """Name the values that do not agree."""
    return [name for name in usual if not agree({name: found[name]}, {name: usual[name]})]


def agree(found, usual):
    """Equal dtypes, and values to 64 eps of the largest: another setting may fuse, hence round, in another way."""
    for name, (dtype, values) in usual.items():
        bound = 64 * float(np.finfo(dtype).eps) * np.abs(values).max()
        if found[name][0] != dtype or not np.abs(found[name][1] - values).max() <= bound:
            return False
    return True


@pytest.mark.parametrize("name", SETTINGS)
def test_values_are_those_of_the_default_setting(name, usual):
    found = results(SETTINGS[name])
    assert off(found, usual) == []
    assert not agree({key: (dtype, values * 1.0001) for key, (dtype, values) in found.items()}, usual)
    assert not agree({key: ("float16", values) for key, (dtype, values) in found.items()}, usual)
