"""A factorisation that leaves a large residual says so; one that does not, never."""

import warnings

import numpy as np
import pytest

import widelimit as wl
from widelimit.inference.training_set import TrainingSet
from widelimit.kernels.base import Kernel

LINE = np.linspace(0, 1, 150)[:, None]
ROUGH = np.random.default_rng(0).standard_normal(150)
SMOOTH = np.sin(3 * LINE[:, 0])
K = wl.rbf(3.0)


@pytest.mark.parametrize("noise", [1e-12, 1e-13])
@pytest.mark.parametrize("size", [1.0, 1e-200, 1e200])
def test_a_posterior_with_a_large_residual_warns(noise, size):
    with pytest.warns(UserWarning, match="the weights are inexact") as caught:
        post = wl.posterior(K, LINE, size * ROUGH, noise=noise)
    message = str(caught[0].message)
    assert post.residual > 1e-3
    assert f"{post.residual:.2g}" in message
    assert len(caught) == 1
    assert len(message) < 400
    advised = float(message.split("noise=")[1].split(",")[0])
    assert wl.posterior(K, LINE, size * ROUGH, noise=advised).residual < 1e-5  # and no warning, which is an error here


def test_other_doors_to_the_same_solve_warn():
    two = np.column_stack([SMOOTH, ROUGH])
    for call in (
        lambda: wl.posterior(K, LINE, two, noise=np.full(150, 1e-12)),
        lambda: wl.rkhs.ridge(K, LINE, ROUGH, regularization=1e-14),
        lambda: wl.GaussianProcess(K).condition(LINE, ROUGH, noise=1e-12),
    ):
        with pytest.warns(UserWarning, match="the weights are inexact"):
            call()


def test_ordinary_fits_do_not_warn_and_do_not_compute_the_kernel_again(monkeypatch):
    def forbidden(_):
        raise AssertionError("the kernel is computed again")

    monkeypatch.setattr(TrainingSet, "matrix", forbidden)
    net = wl.mlp(depth=2, bias_std=0.3)
    X = np.random.default_rng(1).standard_normal((150, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in (wl.ntk(net), wl.laplace(1.0)):
            wl.posterior(k, X, ROUGH)
        for noise in (1.0, 1e-3, 1e-6):
            wl.posterior(K, LINE, ROUGH, noise=noise)
        wl.posterior(K, LINE, SMOOTH, noise=1e-10)  # ill-conditioned, but the labels do not meet the small eigenvalues
        wl.posterior(K, LINE, 0 * ROUGH, noise=1e-13)
    with pytest.raises(AssertionError, match="computed again"):  # the negative control
        wl.posterior(K, LINE, ROUGH, noise=1e-12)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_a_fit_computes_the_diagonal_of_the_kernel_once(solver, monkeypatch):
    original, calls = Kernel.diag, []
    monkeypatch.setattr(Kernel, "diag", lambda self, X: calls.append(len(X)) or original(self, X))
    post = wl.posterior(K, LINE, SMOOTH, noise=0.1, solver=solver)
    assert calls == [150]
    if solver == "cholesky":
        assert post.fit.trace == pytest.approx(150 * 1.1)


def test_a_search_does_not_warn_of_what_it_tries():
    targets = SMOOTH + 0.1 * ROUGH
    with pytest.warns(UserWarning, match="the weights are inexact"):
        wl.posterior(K, LINE, targets, noise=1e-12)  # where the search starts
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        fit = wl.fit_hyperparameters(K, LINE, targets, noise=1e-12, fit_noise=False, restarts=0, max_steps=1,
                                     bounds={"length_scale": (0.001, 3.0)})  # fmt: skip
    assert fit.runs[0].steps == 1
    assert [str(each.message) for each in given] == []
