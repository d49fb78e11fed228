"""Masks, far inputs, counted rows, idle options, closed streams: the right value, or one line that says why not."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import widelimit as wl
from commands import invoke
from later import Later
from widelimit.cli.scores import rmse
from widelimit.compute import linalg
from widelimit.inference.training_set import check_finite

RNG = np.random.default_rng(0)
SEQUENCE, GRAPH = wl.Sequence(3, 2), wl.Graph(3, 2)
SIGNALS = RNG.standard_normal((4, 3, 2))
EDGES = np.ones((3, 3)) - np.eye(3)
NET = wl.network(wl.layers.Dense(), "relu", wl.layers.GlobalAveragePool(), wl.layers.Dense(), inputs=SEQUENCE)
X, Y = RNG.standard_normal((8, 3)), RNG.standard_normal(8)
PARAMS = wl.mlp(depth=1).init(0, input_dim=3, width=1, output_dim=1, dtype=np.float64)
ROWS = Later(lambda: wl.tangents(wl.mlp(depth=1).apply, PARAMS).at(X))

# --- sequences and graphs --------------------


class Sparse:
    """A sparse matrix that is not made dense before its shape is known."""

    shape = (10**6, 10**6)

    def toarray(self):
        raise AssertionError("the matrix was made dense")


Sparse.__module__ = "scipy.sparse._csr"
EMPIRICAL = wl.empirical_ntk(lambda p, X: X @ p, np.ones((3, 1)), output="trace")
LENGTHS = np.ma.array([3, 3, 3, 3], mask=[True, False, False, False])
MASK = np.ma.array(np.ones((4, 3), bool), mask=True)
REFUSED = {
    "masked lengths": (lambda: SEQUENCE.pack(SIGNALS, lengths=LENGTHS), "lengths is a masked array"),
    "masked mask": (lambda: SEQUENCE.pack(SIGNALS, mask=MASK), "mask is a masked array"),
    "sparse": (lambda: GRAPH.pack([(SIGNALS[0], Sparse())]), r"shape \(1000000, 1000000\)"),
    "ragged adjacency": (lambda: GRAPH.pack([(SIGNALS[0][:2], [[0, 1], [1]])]), r"X\[0\]: adjacency is not"),
    "scalar v": (lambda: EMPIRICAL.matvec(X, 1.0), "v must"),
    "time": (lambda: wl.NTKRegressor(time=10**400).fit(X, Y), "time"),
    "count": (lambda: wl.GaussianProcess(wl.rbf()).sample(X, 10**400), "count"),
    "no file": (lambda: wl.posterior(wl.rbf(), X, Y, noise=1.0, solver="cg", checkpoint="a\0b"), "checkpoint"),
    "no text": (lambda: wl.stored_gram(wl.rbf(), X, "\ud800"), "path"),
    "no text either": (lambda: wl.stored_gram(wl.rbf(), X, "\udd00"), "path"),
    "phase": (lambda: wl.phase("relu", weight_std=1e308), "weight_std"),
    "critical": (lambda: wl.critical("relu", q=1e308), "q"),
    "bytes": (lambda: wl.Polynomial(b"ab"), "coefficients"),
    "numpy": (lambda: wl.gaussian_expectation(np.tanh, np.tanh, 1.0, 0.5, 1.0), "jax.numpy"),
    "large variance": (lambda: wl.gaussian_expectation(jnp.tanh, jnp.tanh, 1e300, 0.5, 1.0), "q1"),
    "bounds": (lambda: wl.fit_hyperparameters(wl.rbf(), X, Y, noise=1.7e308), "noise"),
    "squares of targets": (lambda: wl.generalization(wl.rbf(), X, Y * 1e-170, sizes=[3], noise=0.1), "scale y up"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name):
    call, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words) as error:
        call()
    assert len(str(error.value)) <= 400
    assert "\n" not in str(error.value)


def test_masks_with_nothing_masked_are_none():
    packed = SEQUENCE.pack(SIGNALS, lengths=[3, 2, 1, 3])
    assert np.array_equal(packed, SEQUENCE.pack(SIGNALS, lengths=np.ma.array([3, 2, 1, 3], mask=False)))


def test_sequences_are_traced_as_they_are_given():
    assert jax.eval_shape(lambda a: wl.nngp(NET).cross(a, SIGNALS[2:]), jnp.asarray(SIGNALS[:2])).shape == (2, 2)
    slopes = jax.jacfwd(lambda a: SEQUENCE.rows("X", a))(jnp.asarray(SIGNALS))
    assert slopes.shape == (4, 9, *SIGNALS.shape)
    assert np.array_equal(slopes.reshape(4, 9, -1).sum((1, 2)), [6, 6, 6, 6])


@pytest.mark.parametrize("rows", [SIGNALS, [*SIGNALS], [(s, EDGES) for s in SIGNALS]])
def test_the_farthest_row_is_named_whatever_a_row_is(rows):
    far = [(row[0] * 1e300, row[1]) if isinstance(row, tuple) else row * 1e300 for row in rows]
    mixed = [*rows[:2], far[2], rows[3]]
    with pytest.raises(ValueError, match=r"row 2 of the new inputs, with an entry of size \d\.?\d*e\+"):
        check_finite(np.full(4, np.nan), np.array(mixed) if isinstance(rows, np.ndarray) else mixed)


def test_the_farthest_row_of_a_frame_is_named():
    post = wl.posterior(wl.nngp(wl.mlp(depth=2)), X, Y, noise=0.1)
    with pytest.raises(ValueError, match=r"row 0 of the new inputs, with an entry of size 1e\+300"):
        post.variance(pandas.DataFrame(np.full((2, X.shape[1]), 1e300), columns=[*"abc"][: X.shape[1]]))


def test_variances_below_the_normal_range_are_rounding():
    assert np.array_equal(linalg.non_negative(np.array([-4e-321, 3e-320, 1e-300]), np.zeros(3)), [0, 0, 1e-300])
    with pytest.raises(ArithmeticError, match="variance 0"):
        linalg.non_negative(np.array([-1e-300]), np.zeros(1))


# --- tangents --------------------


def test_a_model_that_counts_its_rows_mixes_them():
    counting = wl.tangents(lambda p, X: (X @ p) * len(X), np.ones((3, 1)))
    for call in (counting.at, lambda X: counting.sketch(X, size=3)):
        with pytest.raises(ValueError, match="mixes rows"):
            call(X)
    wl.tangents(lambda p, X: X @ p, np.ones((3, 1))).at(X)


def test_alignment_has_no_unit_and_products_have_that_of_the_vector():
    rows, v = ROWS, np.sin(np.arange(8.0))
    for power in (-560, 530, 995):
        assert rows.alignment(np.ldexp(Y, power)) == rows.alignment(Y)
        assert np.array_equal(rows.product(np.ldexp(v, power)), np.ldexp(rows.product(v), power))


def test_products_with_a_gradient_that_is_no_number_name_the_row():
    rows = wl.tangents(lambda p, X: jnp.sqrt(jnp.abs(X @ p)), np.ones((3, 1))).at(np.vstack([X[:3], 0 * X[:1]]))
    with pytest.raises(ValueError, match="at row 3 of X is NaN"):
        rows.product(np.ones(4))


def test_margins_far_below_0_have_scores():
    labels = np.arange(8) % 2
    model = wl.tangents(lambda p, X: X @ p, np.ones((3, 2)) * [[1.0, -1.0]], of="margin")
    far = wl.tangents(lambda p, X: X @ p, np.ones((3, 2)) * [[1e4, -1e4]], of="margin")
    assert far.at(X, labels).values.min() < -1500
    for each in (model, far):
        rows = each.at(X, labels)
        assert np.isfinite(wl.attribution(rows, rows, noise=1.0)).all()


# --- the command line --------------------


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{'pq'[i % 2]},{i % 7},{i % 5}.5" for i in range(30)]
    (tmp_path / "a.csv").write_text("\n".join(["k,x,y", *lines]))
    np.savez(tmp_path / "s.npz", X=RNG.standard_normal((6, 3, 2)), y=np.arange(6.0))
    (tmp_path / "net.txt").write_text(repr(NET))
    return tmp_path


FIT = ("fit", "a.csv", "--target", "y", "--model", "m.npz", "--estimator", "nngp")
ARRAYS = ("fit", "s.npz", "--network", "net.txt", "--model")
IDLE = {
    "inducing points of an exact fit": (*FIT, "--inducing", "10"),
    "two rankings of a column": (*FIT, "--ordered", "k=p,q", "--ordered", "k=q,p"),
    "the model over its data": (*ARRAYS, "s.npz"),
    "predictions over the table": ("predict", "s.npz", "a.csv", "--out", "a.csv"),
    "filling of sequences": (*ARRAYS, "m.npz", "--impute"),
    "no filling of sequences": (*ARRAYS, "m.npz", "--no-impute"),
    "filling of images": ("fit", "s.npz", "--model", "m.npz", "--no-impute"),
    "a port of a file": ("explore", "--export", "e.html", "--port", "1"),
    "a browser of a file": ("explore", "--export", "e.html", "--no-browser"),
    "a quick list": ("verify", "--list", "--quick"),
    "a report of a list": ("verify", "--list", "--out", "r.html"),
    "points of cholesky": ("cost", "--rows", "9", "--features", "3", "--solver", "cholesky", "--inducing", "5"),
    "iterations of nystrom": ("cost", "--rows", "9", "--features", "3", "--solver", "nystrom", "--iterations", "5"),
}
WORDS = {
    "two rankings of a column": "--ordered k",
    "the model over its data": "--model s.npz",
    "predictions over the table": "--out a.csv",
}


@pytest.mark.parametrize("name", IDLE)
def test_no_option_is_ignored_and_no_input_overwritten(table, name):
    before = {path.name: path.read_bytes() for path in table.iterdir()}
    done = invoke(*IDLE[name])
    assert (done.exit_code, done.stdout) == (2, ""), done
    idle = next((a for a in reversed(IDLE[name]) if a.startswith("--")), "").replace("--no-browser", "--browser")
    assert WORDS.get(name, idle) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert {path.name: path.read_bytes() for path in table.iterdir()} == before


def test_scores_have_the_unit_of_the_target():
    mean, truth = np.zeros(4), np.array([1.0, -2.0, 3.0, -4.0])
    for power in (0, -1060, 1000):
        assert rmse(mean, np.ldexp(truth, power)) == np.ldexp(rmse(mean, truth), power)


CLOSED = """
import os, sys
from widelimit.cli import _open_closed_streams
_open_closed_streams()
here = open(sys.argv[1], "w")
os.write(int(sys.argv[2]), b"stream") if sys.argv[2] == "2" else None
try:
    os.write(1, b"x")
except OSError:
    here.write("stdout fails")
here.close()
"""


CLOSING = {"2>&-": "", ">&- 2>&-": "stdout fails", "<&- >&- 2>&-": "stdout fails"}
"""Streams that the shell closes, and what is left in the file."""


@pytest.mark.parametrize(("closing", "left"), CLOSING.items())
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path, closing, left):
    path = tmp_path / "file"
    program = f'exec "$0" -c "$1" "$2" 2 {closing}'
    subprocess.run(["bash", "-c", program, sys.executable, CLOSED, path], check=False, env=dict(os.environ))
    assert path.read_text() == left
