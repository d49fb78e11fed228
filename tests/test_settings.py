"""The library under other settings of JAX than its defaults: the same values, and no false alarm."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

CALLS = """
import json, sys
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
found = {
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

SETTINGS = {
    "rank promotion, NaN": {"jax_numpy_rank_promotion": "raise", "jax_debug_nans": True},  # each raises by itself
    "float64": {"jax_enable_x64": True},
    "bfloat16": {"jax_default_matmul_precision": "bfloat16"},
}


def results(settings):
    run = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(settings)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert run.returncode == 0, run.stderr[-600:]
    return {name: (dtype, np.array(values)) for name, (dtype, values) in json.loads(run.stdout).items()}


@pytest.fixture(scope="module")
def usual():
    return results({})


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
    assert agree(found, usual)
    assert not agree({key: (dtype, values * 1.0001) for key, (dtype, values) in found.items()}, usual)
    assert not agree({key: ("float16", values) for key, (dtype, values) in found.items()}, usual)
