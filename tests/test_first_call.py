"""The first call: a handful of compiled programs, whose shapes do not depend on the data, and few imports."""

import math
import subprocess
import sys
from dataclasses import dataclass, field

import jax
import jax.extend
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import monitoring
from scipy import special

import widelimit as wl
from widelimit import shapes, signals
from widelimit.activations.tabulated import fixed_lengths
from widelimit.activations.tabulated.chebyshev import chebyshev_coefficients, chebyshev_points
from widelimit.activations.tabulated.coincident import MILLS
from widelimit.compute import plan, tiles
from widelimit.pytrees import pytree

GRAM, FIT = 6, 10
"""Programs that a first kernel matrix, and a first inference, may compile."""
RNG = np.random.default_rng(5)
NET = wl.mlp(depth=3, bias_std=0.1)


class Compilations(list):
    """Names of the programs compiled since it was cleared, be they found on disk or not."""

    def heard(self, event, _, **facts):
        if "backend_compile" in event:
            self.append(facts.get("fun_name"))


COMPILED = Compilations()
monitoring.register_event_duration_secs_listener(COMPILED.heard)


def data(n=60, scale=1.0):
    X = scale * RNG.standard_normal((n, 5))
    return X, np.sin(2 * X[:, 0])


def halves(X, y):
    return X[: len(X) // 2], y[: len(X) // 2], X[len(X) // 2 :]


def posterior(X, y):
    X, y, Z = halves(X, y)
    return wl.posterior(wl.nngp(NET), X, y, noise=0.1).predict(Z)


def flow(X, y):
    X, y, Z = halves(X, y)
    return wl.gradient_flow(wl.ntk(NET), X, y).predict(Z, [1.0, np.inf])


def descent(X, y):
    X, y, Z = halves(X, y)
    return wl.gradient_descent(wl.ntk(NET), X, y, learning_rate=0.1, steps=20).predict(Z)


def ensemble(X, y):
    X, y, Z = halves(X, y)
    return wl.trained_ensemble(NET, X, y).variance(Z, 1.0)


def regressor(X, y):
    X, y, Z = halves(X, y)
    return wl.NNGPRegressor().fit(X, y).predict(Z)


def classifier(X, y):
    X, y, Z = halves(X, y)
    return wl.NTKClassifier().fit(X, y > 0).predict(Z)


def evidence(X, y):
    return wl.fit_hyperparameters(wl.nngp(NET), X, y, noise=0.1, restarts=0, max_steps=3)


MATRICES = {
    "nngp": lambda X, y: wl.nngp(NET).gram(X),
    "ntk": lambda X, y: wl.ntk(NET).gram(X),
    "cross": lambda X, y: wl.ntk(NET).cross(X, X[:7]),
    "diag": lambda X, y: wl.ntk(NET).diag(X),
    "gelu": lambda X, y: wl.ntk(wl.mlp(depth=2, activation="gelu")).gram(X),
    "a new function": lambda X, y: wl.ntk(wl.mlp(depth=2, activation=lambda u: u / (1 + u * u))).gram(X),
    "rbf": lambda X, y: wl.rbf(2.0).gram(X),
    "linear": lambda X, y: wl.linear().gram(X),
    "sum": lambda X, y: (wl.rbf(2.0) + 0.5 * wl.ntk(NET) * wl.linear()).gram(X),
    "lower": lambda X, y: wl.ntk(NET).gram(X.astype(np.float32)),
}
INFERENCES = {
    "posterior": posterior,
    "flow": flow,
    "descent": descent,
    "ensemble": ensemble,
    "regressor": regressor,
    "classifier": classifier,
    "evidence": evidence,
}
OWN = {"w": RNG.standard_normal((5, 4)), "b": RNG.standard_normal(4), "v": RNG.standard_normal((4, 2))}


def two_layers(params, X):
    return jnp.tanh(X @ params["w"] + params["b"]) @ params["v"]


DOORS = [(door, GRAM) for door in MATRICES.items()] + [(door, FIT) for door in INFERENCES.items()]
# Four programs, and small ones for the direction along which rows are compared.
DOORS.append((("own network", lambda X, y: wl.empirical_ntk(two_layers, OWN, output="trace").gram(X)), FIT + GRAM))


def counted(door, *arguments):
    COMPILED.clear()
    door(*arguments)
    return len(COMPILED)


@pytest.mark.parametrize(("door", "most"), [pytest.param(door, most, id=name) for (name, door), most in DOORS])
def test_few_programs_and_none_for_other_data(door, most):
    """A second call has other rows, other norms, and another number of rows in the same bucket."""
    jax.clear_caches()
    assert 1 <= counted(door, *data()) <= most, COMPILED
    assert counted(door, *data(n=58, scale=1.3)) == 0, COMPILED


def test_gram_cross_and_diag_share_their_programs():
    jax.clear_caches()
    k, X = wl.ntk(NET), data()[0]
    assert counted(k.gram, X) == 2
    assert counted(k.cross, X, X[:20]) == 0
    assert counted(k.diag, X) == 0


@pytest.mark.parametrize("name", ["hard_tanh", "gelu", "tanh"])
def test_duals_of_numpy_numbers_compile_nothing(name):
    jax.clear_caches()
    phi, q, c = wl.activation(name), np.array([0.7, 1.0]), np.array([0.3, -0.2])
    assert counted(phi.dual, q, c, q) == counted(phi.dual_derivative, q, c, q) == 0, COMPILED
    assert counted(phi.correlation_map, c) == 0, COMPILED
    if name == "gelu":
        assert counted(phi.dual, *map(jax.numpy.asarray, (q, c, q))) > 0


@pytest.fixture
def first_tables(monkeypatch):
    """No tables of other tests, whose lengths those of a kind share in a process."""
    for name in ("_patterns", "_used"):
        monkeypatch.setattr(fixed_lengths, name, {})


@pytest.mark.usefixtures("first_tables")
@pytest.mark.parametrize(
    ("activation", "depth", "quick"),
    [
        *(("tanh", 3, True), ("silu", 3, True), ("hard_tanh", 3, True), ("relu", 5, True)),
        *(("erf", 9, True), ("gelu", 9, True), ("mish", 3, True), ("relu", 6, False)),
    ],
)
def test_what_is_no_slower_compiles_in_half_of_the_time(activation, depth, quick):
    k = wl.ntk(wl.mlp(depth=depth, activation=activation)).prepared(data(200)[0])
    assert k.quick_in("float64") == quick
    several, one = (tiles._program(k, np.zeros((count, 128, 3))) for count in (2, 1))
    assert (several is one) == (not quick)
    assert k.quick_in(np.float32) == (quick and activation != "erf")


@pytest.mark.usefixtures("first_tables")
def test_long_tables_compile_with_all_optimisations(monkeypatch):
    monkeypatch.setattr("widelimit.activations.tabulated.numerical.QUICK_TERMS", 300)
    assert not wl.ntk(wl.mlp(depth=3, activation="mish")).prepared(data(200)[0]).quick_in("float64")


@pytest.mark.usefixtures("first_tables")
def test_the_encoding_of_a_small_block_is_compiled_without_optimisation():
    small, k = np.zeros((512, 6)), wl.ntk(NET)
    assert tiles._encoder(k, small) is tiles._encodes[True] is not tiles._encodes[False]
    images = wl.nngp(wl.convnet(inputs=wl.Image(4, 4, 1), depth=2))
    tanh = wl.ntk(wl.mlp(depth=2, activation="tanh")).prepared(data()[0])
    for other, X in ((k, np.zeros((1024, 784))), (wl.rbf(2.0), small), (images, small), (tanh, small)):
        assert tiles._encoder(other, X) is tiles._encodes[False]


def test_a_matrix_of_one_tile_is_that_tile(monkeypatch):
    made, symmetric = [], tiles._symmetric
    monkeypatch.setattr(tiles, "_symmetric", lambda *a: made.append(symmetric(*a)) or made[-1])
    K = wl.ntk(NET).gram(data()[0])
    assert np.shares_memory(K, made[0])
    assert K.flags.c_contiguous
    assert K.flags.writeable
    assert K.shape == (60, 60)


@pytree
@dataclass(frozen=True)
class Planted(wl.Kernel):
    """A linear kernel that is compiled for the largest of its inputs."""

    largest: float = field(default=0.0, metadata={"static": True})

    def prepared(self, *inputs):
        return Planted(max(float(np.abs(X).max()) for X in inputs))

    def encode(self, X):
        return X / self.largest

    def pairwise(self, x, y, *, same=False):
        return x @ y.T * self.largest**2

    def diagonal(self, x):
        return (x**2).sum(1) * self.largest**2


def test_a_program_that_depends_on_the_data_is_noticed(monkeypatch):
    jax.clear_caches()
    assert counted(Planted().gram, data()[0]) == 2
    assert counted(Planted().gram, data()[0]) == 2
    right = plan.tile_plan
    monkeypatch.setattr(
        "widelimit.compute.tiles.tile_plan", lambda n, *rest, **named: right(n, *rest, **named).__class__(
            n, rest[0], n, 1, 1, named["symmetric"]
        )
    )  # fmt: skip
    assert counted(wl.linear().gram, data(60)[0]) == 2
    assert counted(wl.linear().gram, data(58)[0]) == 2


HEAVY = ("scipy", "jaxtyping", "sklearn", "psutil", "diffrax", "equinox", "optax", "polars", "zarr", "matplotlib")


def test_what_a_first_gram_matrix_does_not_use_is_not_imported():
    code = f"import widelimit as wl, sys; wl.ntk(wl.mlp(depth=2)); print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    code = code.replace("; print", "; import scipy.special; print")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['scipy']"


def test_the_table_of_the_mills_ratio():
    x = chebyshev_points(48)
    values = special.erfcx(3 * (1 + x) / (1 - x) / math.sqrt(2)) / math.sqrt(2 / math.pi)
    kept = chebyshev_coefficients(values, 0)[:22]
    x = np.linspace(-1, 1, 201)  # powers of x have large coefficients: their own rounding differs, their sum does not
    right, found = np.polynomial.chebyshev.chebval(x, kept), np.polynomial.polynomial.polyval(x, MILLS)
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-12)
    assert np.abs(found * (1 + 1e-11) - right).max() > 1e-12


def test_shapes_are_checked_in_the_tests():
    """They are no matter of what is imported: see conftest.py."""
    assert shapes.Float is jaxtyping.Float
    with pytest.raises(Exception, match="Type-check error"):
        signals.correlate_points(jnp.ones(3), jnp.ones((2, 3)), same=False)


def operations(jaxpr):
    """Count the operations of a jaxpr, those within loops and branches once."""
    parts = [part for equation in jaxpr.eqns for part in jax.tree.leaves(list(equation.params.values()), is_leaf=inner)]
    return len(jaxpr.eqns) + sum(operations(getattr(part, "jaxpr", part)) for part in parts if inner(part))


def inner(part):
    return isinstance(part, (jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr))


def operations_of_a_tile(name):
    X = np.random.default_rng(0).standard_normal((256, 6))
    kernel = wl.ntk(wl.mlp(depth=3, activation=name, bias_std=0.1)).prepared(X)
    with jax.enable_x64(True):
        patches = jax.eval_shape(lambda kernel, X: tiles._encode(kernel, X, 2)[0], kernel, X)
        pairs = np.zeros((4, 2), np.int32)
        traced = jax.make_jaxpr(tiles._tile, static_argnums=(4, 5))(kernel, patches, patches, pairs, 3, True)
    return operations(traced.jaxpr)


@pytest.mark.parametrize(("name", "most"), [("relu", 580), ("erf", 750), ("gelu", 650), ("tanh", 1800)])
def test_a_tile_is_traced_in_few_operations(name, most):
    """The first call takes as long as its operations are many, whatever else the machine does."""
    assert operations_of_a_tile(name) <= most


def test_plain_indices_fail_the_count(monkeypatch):
    jax.clear_caches()
    monkeypatch.setattr(tiles, "_patch_at", lambda patches, k: jax.tree.map(lambda leaf: leaf[k], patches))
    assert operations_of_a_tile("relu") > 580
    assert operations_of_a_tile("erf") > 750
    jax.clear_caches()
