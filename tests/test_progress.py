"""Progress: what a long solve tells, where it is shown, and that it stops when it is told to."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg

import widelimit as wl
from widelimit import progress
from widelimit.compute import iterative, linalg, operators, packed_cholesky
from widelimit.inference import conditioning, dirichlet, solvers
from widelimit.inference.solvers import SolverRequest, SolverSettings
from widelimit.inference.training_set import training_set

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3))
Y = np.sin(X[:, :1])
K = wl.nngp(wl.mlp(depth=2, weight_std=1.4, bias_std=0.3))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 60 columns, to be made stderr, where solves of 60 points count as long."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    progress._screen.cache_clear()
    for module in (conditioning, dirichlet):
        monkeypatch.setattr(module, "LONG", 50)
    yield Terminal()
    progress._screen.cache_clear()


def lines(screen):
    """What was seen, line by line, without colours and movements."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(packed_cholesky, "BLOCK_COLUMNS", 7)
    monkeypatch.setattr(packed_cholesky, "STRIP", 11)
    monkeypatch.setattr(linalg, "WHOLE", 20)
    monkeypatch.setattr(operators.blocks, "__kwdefaults__", operators.blocks.__kwdefaults__ | {"size": 16})


WAYS = {
    "full": (("cholesky", "full"), "double", ["kernel matrix", "factorisation"]),
    "packed": (("cholesky", "packed"), "double", ["kernel matrix", "factorisation"]),
    "mixed": (("cholesky", "packed"), "mixed", ["kernel matrix", "factorisation", "refinement"]),
    "cg": (("cg", "tiles"), "double", ["kernel matrix", "preconditioner", "conjugate gradients"]),
}


def told_of(way, monkeypatch, report):
    (solver, storage), precision, _ = WAYS[way]
    monkeypatch.setattr(solvers, "choose", lambda *_, **__: SolverSettings(solver, storage, "asked for"))
    data, noise = training_set(K, X, Y), np.asarray(0.1)
    return solvers.fit(SolverRequest(data, noise, solver, precision, report=report))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("way", WAYS)
def test_every_stage_of_a_solve_goes_from_nothing_to_all(way, monkeypatch):
    told = []
    told_of(way, monkeypatch, lambda *what: told.append(what))
    assert list(dict.fromkeys(what for what, _, _ in told)) == WAYS[way][2]
    for stage in WAYS[way][2]:
        known = [done / total for what, done, total in told if what == stage and total]
        assert known == sorted(known)
        assert all(0 <= share <= 1 for share in known)
        if stage == "preconditioner":  # it may end early, where the matrix has no more to give
            assert known
        else:
            # Conjugate gradients stop at half of the tolerance, or a little before as told: log(1e-10) to log(2e-10).
            assert known[-1] >= 0.96
    assert len([what for what, *_ in told if what == "kernel matrix"]) >= (1 if way == "full" else 10)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("way", WAYS)
def test_what_is_told_does_not_change_the_answer_and_an_interrupt_ends_it(way, monkeypatch):
    quiet, loud = (told_of(way, monkeypatch, report).weights for report in (progress.no_progress, lambda *_: None))
    np.testing.assert_array_equal(quiet, loud)
    for stage in WAYS[way][2]:
        seen = []

        def interrupt(what, *_, stage=stage, seen=seen):
            seen.append(what)
            if what == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            told_of(way, monkeypatch, interrupt)
        assert seen[-1] == stage


def test_the_share_of_the_flops_is_a_sum_over_columns():
    n, columns = 1000, np.arange(1000)
    work = np.cumsum(2 * columns * (n - columns))
    shares = np.array([packed_cholesky._share(k / n) for k in (100, 500, 900)])
    wanted = work[[99, 499, 899]] / work[-1]
    np.testing.assert_allclose(shares, wanted, atol=2 / n)  # a sum against its integral
    assert np.abs(1 - (1 - np.array([0.1, 0.5, 0.9])) ** 3 - wanted).max() > 0.1  # of columns that look to the right


@pytest.mark.usefixtures("small_blocks")
def test_a_square_factor_in_blocks_is_lapacks():
    G = RNG.standard_normal((60, 80))
    A = G @ G.T
    b = RNG.standard_normal((60, 2))
    factor = linalg.factorise(A.copy())
    assert isinstance(factor, linalg.Cholesky)
    lower = scipy.linalg.cholesky(A, lower=True)
    # Both are backward stable: n eps |A| of rounding, times the condition number (below 1e4) in L.
    np.testing.assert_allclose(np.tril(factor.lower), lower, atol=60 * linalg.EPS * np.abs(A).max() * 10)
    np.testing.assert_allclose(A @ factor.solve(b), b, atol=1e-10)
    assert factor.log_determinant() == pytest.approx(np.linalg.slogdet(A)[1], rel=1e-12)
    H = RNG.standard_normal((60, 12))
    singular = H @ H.T
    factor = linalg.factorise(singular.copy())
    assert (type(factor), factor.rank) == (linalg.Eigen, 12)
    back = factor.vectors * factor.values @ factor.vectors.T
    np.testing.assert_allclose(back, singular, atol=1e-12 * np.abs(singular).max())


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_a_posterior_shows_its_stages_on_a_terminal_only(solver, screen, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen)
    wl.posterior(K, X, Y, noise=0.1, solver=solver, progress=False)
    wl.posterior(K, X[:40], Y[:40], noise=0.1, solver=solver)
    assert screen.getvalue() == ""
    wl.posterior(K, X, Y, noise=0.1, solver=solver)
    seen = lines(screen)
    for stage in ("kernel matrix", "factorisation" if solver == "cholesky" else "conjugate gradients"):
        assert any(stage in line for line in seen), seen
    assert max(map(len, seen)) <= 60
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    wl.posterior(K, X, Y, noise=0.1, solver=solver)
    assert sys.stderr.getvalue() == ""


def test_what_is_printed_meanwhile_stays_out_of_the_bar(screen, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.progress_bar(True) as report:
        report("work", 1, 2)
        print("a result")
    assert sys.stdout.getvalue() == "a result\n"
    assert "a result" not in screen.getvalue()


def test_a_bar_within_another_is_a_line_under_it(screen, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.progress_bar(True, unit="fits") as outer:
        outer("a model with a name that is far too long for a line", 1, 12)
        wl.posterior(K, X, Y, noise=0.1, solver="cg")
        outer("the next model", 2, 12)
    seen = lines(screen)
    assert any("1/12 fits" in line for line in seen)
    assert any("conjugate gradients" in line for line in seen)
    assert max(map(len, seen)) <= 60


def test_estimators_show_progress_when_verbose(screen, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen)
    for model in (wl.NNGPRegressor(noise=0.1), wl.NNGPClassifier()):
        model.fit(X, Y[:, 0] > 0)
        assert screen.getvalue() == ""
        model.set_params(verbose=True).fit(X, Y[:, 0] > 0)
        assert any("factorisation" in line for line in lines(screen))
        screen.truncate(0)
        screen.seek(0)


def test_no_bar_is_loaded_where_none_is_shown():
    code = (
        "import sys, numpy as np, widelimit as wl; from widelimit.inference import conditioning as c; c.LONG = 5; "
        "X = np.eye(9); wl.posterior(wl.linear(), X, X, noise=0.1); print('rich' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("False\n", "")


def test_a_residual_that_rises_takes_nothing_back():
    told = []
    exact = operators.Shifted(operators.StoredOperator(np.eye(3)), np.zeros(3))
    system = iterative.System(exact, exact, linalg.EPS, lambda v: v, 1e-10, 10)
    tell = system._observer(np.ones(3), "stage", lambda _, done, __: told.append(done))
    for norm in (1.0, 1e-5, 1e-2, 1e-12):
        tell(np.array([norm, norm / 2, 0.0]))
    np.testing.assert_allclose(told, [0, 0.5, 0.5, 1])
