"""All claims hold with quick settings, their controls fail, and an error in the library makes each of them fail."""

import dataclasses
import functools
import sys

import jax
import numpy as np
import pytest

from test_claims import printed_dual
from widelimit.claims import NAMES
from widelimit.claims.base import Claim, Effort, load
from widelimit.claims.run import HELD, run


def scaled_kernel(monkeypatch):
    """Both kernels of a network times 1.01."""
    from widelimit.kernels.network import NNGP, NTK

    for cls in (NNGP, NTK):
        for name in ("gram", "cross", "diag"):
            true = getattr(cls, name)
            monkeypatch.setattr(cls, name, lambda self, *args, true=true: 1.01 * np.asarray(true(self, *args)))


def stale_covariance(monkeypatch):
    """Theta^{l+1} = Theta^l Sdot^{l+1} + Sigma^l, in the place of Sigma^{l+1}."""
    from widelimit.architecture.layers import Dense
    from widelimit.architecture.state import PairState

    true = Dense.pair

    def pair(self, x, y, state):
        after = true(self, x, y, state)
        return PairState(after.correlation, after.tangent - after.correlation.rho + state.correlation.rho)

    monkeypatch.setattr(Dense, "pair", pair)


def slow_clock(monkeypatch):
    """The closed form of the flow at half the time."""
    from widelimit.inference.gradient_flow import GradientFlow

    for name in ("predict", "loss"):
        true = getattr(GradientFlow, name)

        def at_half(self, *args, true=true):
            return true(self, *args[:-1], np.asarray(args[-1], float) / 2)

        monkeypatch.setattr(GradientFlow, name, at_half)


def printed_density(monkeypatch):
    """(2 pi det S)^(d/2)."""
    import widelimit as wl

    true = wl.GaussianProcess.log_density

    def log_density(self, X, y):
        gram = np.asarray(self.kernel.gram(X))
        rank = self.rank(X)
        values = np.linalg.eigvalsh(gram)[-rank:]
        return true(self, X, y) - (rank - 1) / 2 * np.sum(np.log(values))

    monkeypatch.setattr(wl.GaussianProcess, "log_density", log_density)


def forgotten_bias(monkeypatch):
    """An empirical tangent kernel without the biases' part, about a tenth of it."""
    from widelimit.kernels.empirical.kernels import EmpiricalKernel, EmpiricalMatrixKernel

    for cls in (EmpiricalKernel, EmpiricalMatrixKernel):
        for name in ("gram", "cross"):
            true = getattr(cls, name)
            monkeypatch.setattr(cls, name, lambda self, *args, true=true: true(self, *args) - 0.09)


def doubled_noise(monkeypatch):
    import widelimit as wl

    true = wl.posterior
    monkeypatch.setattr(wl, "posterior", lambda k, X, y, *, noise=0.0: true(k, X, y, noise=2 * noise))


def shortened_norm(monkeypatch):
    """<f, g> = a^T b, without the Gram matrix."""
    import widelimit as wl

    def inner(f, g):
        common = min(len(f.coefficients), len(g.coefficients))
        return float(f.coefficients[:common] @ g.coefficients[:common])

    monkeypatch.setattr(wl.rkhs.Function, "inner", inner)


def xavier(monkeypatch):
    """Weights divided by the root of (inputs + outputs)/2."""
    from widelimit.architecture.layers import Dense

    def apply(self, params, signals):
        both = (signals.shape[1] + params["weight"].shape[0]) / 2
        return self.weight_std / both**0.5 * (signals @ params["weight"].T) + self.bias_std * params["bias"]

    monkeypatch.setattr(Dense, "apply", apply)


def shared_bias(monkeypatch):
    """One bias for all units of a layer."""
    from widelimit.architecture.layers import Dense

    true = Dense.apply
    monkeypatch.setattr(
        Dense, "apply", lambda self, params, signals: true(self, params | {"bias": params["bias"][:1]}, signals)
    )


def lost_bias(monkeypatch):
    """Sigma <- weight_std^2 E[a a'] in the limit."""
    from widelimit.architecture.layers import Dense

    true = Dense.encode
    monkeypatch.setattr(
        Dense, "encode", lambda self, signal: true(dataclasses.replace(self, bias_std=0 * self.bias_std), signal)
    )


def small_diagonal(monkeypatch):
    """K(x, x) from another formula than K(x, x'), off by 1 %."""
    from widelimit.kernels.network import NNGP, NTK

    for cls in (NNGP, NTK):
        true = cls.gram
        monkeypatch.setattr(
            cls, "gram", lambda self, X, true=true: np.asarray(true(self, X)) * (1 - 0.01 * np.eye(len(X)))
        )


def basic_solution(monkeypatch):
    """A solution with as many weights as points, the others 0."""
    import widelimit as wl

    def minimum_norm(self, X, y):
        phi = self.features(X)
        return np.r_[np.linalg.solve(phi[:, : len(X)], y), np.zeros(phi.shape[1] - len(X))]

    monkeypatch.setattr(wl.LinearModel, "minimum_norm", minimum_norm)


def hidden_jitter(monkeypatch):
    """A hundredth of the mean of the kernel's diagonal, added to it."""
    import widelimit as wl

    def interpolant(k, X, y):
        return wl.rkhs.ridge(k, X, y, regularization=0.01 * np.mean(k.diag(X)) / len(X))

    monkeypatch.setattr(wl.rkhs, "interpolant", interpolant)


def half_the_rate(monkeypatch):
    """Training on half of the cost, C/2."""
    import widelimit as wl

    true = wl.train
    monkeypatch.setattr(
        wl, "train", lambda *args, learning_rate, **rest: true(*args, learning_rate=learning_rate / 2, **rest)
    )


def squared_drift(monkeypatch):
    """|Theta_t - Theta_0|^2/|Theta_0|^2: a lost root."""
    from widelimit.training import history

    true = history._norm
    monkeypatch.setattr(history, "_norm", lambda theta: true(theta) ** 2)


def lost_root(monkeypatch):
    """Branches of residual networks divided by the number of blocks, not by its root."""
    import widelimit as wl
    from widelimit.layers import Scale

    def resmlp(true=wl.resmlp, **given):
        def square(part):
            return Scale(part.factor**2) if isinstance(part, Scale) else part

        return jax.tree.map(square, true(**given), is_leaf=lambda part: isinstance(part, Scale))

    monkeypatch.setattr(wl, "resmlp", resmlp)


def large_flattened(monkeypatch):
    """The variance of all sites side by side, 1 % too large."""
    from widelimit.architecture.pooling import Flatten
    from widelimit.signals import multiply

    true = Flatten.encode

    def encode(self, signal):
        after, memo = true(self, signal)
        return multiply(after, 1.01**0.5), memo

    monkeypatch.setattr(Flatten, "encode", encode)


def unsquared_values(monkeypatch):
    """Covariances times the deviations of values and scores, not their squares."""
    from widelimit.architecture.attention import Attention
    from widelimit.pytrees import changed

    true = Attention._dense.fget
    dense = property(lambda self: changed(true(self), weight_std=true(self).weight_std ** 0.5))
    monkeypatch.setattr(Attention, "_dense", dense)


def averaged_by_columns(monkeypatch):
    """A D^-1 in the place of D^-1 A: each node is shared out among its neighbours."""
    from widelimit.architecture.aggregation import Aggregate
    from widelimit.architecture.mixing import mix

    monkeypatch.setattr(Aggregate, "encode", lambda self, signal: mix(signal, self.matrix(signal.structure).mT.T))


def lost_variance(monkeypatch):
    """The error of the mean prediction instead of the mean error of predictions."""
    from widelimit.theory import generalization

    true = generalization.of_rows
    monkeypatch.setattr(generalization, "of_rows", lambda *given: (found := true(*given))._replace(test=found.bias))


def slow_third(monkeypatch):
    """O4 of the tangent hierarchy is half as large."""
    from widelimit.theory import finite_width_training

    true = finite_width_training.tensors
    monkeypatch.setattr(
        finite_width_training,
        "tensors",
        lambda *given, **more: (found := true(*given, **more))._replace(fourth=found.fourth / 2),
    )


def slow_features(monkeypatch):
    """Incoming weights of particles move at half their speed."""
    from widelimit.theory.mean_field import ParticleLaw

    true = ParticleLaw.speed
    monkeypatch.setattr(
        ParticleLaw, "speed", lambda self, now: (found := true(self, now))._replace(into=found.into / 2)
    )


def half_the_pull(monkeypatch):
    """Data pull half as much at the scale of the kernel."""
    from widelimit.theory import proportional

    true = proportional.saddle_point
    monkeypatch.setattr(proportional, "saddle_point", lambda n, pull, cost: true(n, lambda Q: pull(Q) / 2, cost))


PLANTS = [
    (half_the_pull, "proportional_width"),
    (slow_features, "mean_field_limit"),
    (slow_third, "training_at_finite_width"),
    (unsquared_values, "transformer_limit"),
    (averaged_by_columns, "graph_limit"),
    (lost_variance, "learning_curves"),
    (large_flattened, "pooling_averages_shifts"),
    (xavier, "networks_are_gaussian"),
    (shared_bias, "outputs_are_independent"),
    (xavier, "order_of_limits"),
    (basic_solution, "minimum_norm_weights"),
    (small_diagonal, "gram_matrices"),
    (squared_drift, "tangent_kernel_constancy"),
    (lost_bias, "definite_on_the_sphere"),
    (slow_clock, "minimum_norm_functions"),
    (hidden_jitter, "norm_and_generalisation"),
    (half_the_rate, "where_theory_stops"),
    (half_the_rate, "jacot_figures"),
    (lost_root, "residual_depth"),
    (stale_covariance, "residual_depth"),
    (scaled_kernel, "tangent_kernel_limit"),
    (scaled_kernel, "linear_regression"),
    (stale_covariance, "tangent_kernel_limit"),
    (slow_clock, "descent_of_the_cost"),
    (slow_clock, "trained_networks"),
    (printed_density, "gaussian_vectors"),
    (printed_dual, "primal_is_dual"),
    (forgotten_bias, "function_space_velocity"),
    (doubled_noise, "bayesian_inference"),
    (shortened_norm, "reproducing_kernels"),
]


FEW = ("gaussian_vectors", "primal_is_dual")
"""Those that `make test` runs; `make test-claims` runs all others."""


SLOW = ("transformer_limit", "graph_limit", "training_at_finite_width", "mean_field_limit", "proportional_width")
"""Those of over a minute, which `make test-slow` runs."""


def marked(name):
    if name in SLOW:
        return pytest.mark.slow, pytest.mark.claims
    return () if name in FEW else pytest.mark.claims


def test_every_claim_has_a_planted_error():
    assert {name for _, name in PLANTS} == set(NAMES)
    assert set(FEW) <= set(NAMES)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marked(name)) for name in NAMES])
def test_every_claim_is_complete_holds_and_its_control_fails(name):
    claim = load(name)
    for field in dataclasses.fields(Claim):
        assert getattr(claim, field.name), field.name
    outcome = run(name, Effort.QUICK)
    assert outcome.verdict == HELD, (outcome.error, outcome.checks, outcome.controls)
    assert outcome.checks
    assert outcome.controls
    assert all(check.why for check in (*outcome.checks, *outcome.controls))
    assert all(np.asarray(array).dtype.kind in "biuf" for array in outcome.data.values())
    figure = claim.draw(outcome.data, outcome.control_data)
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_ylabel() or not axes.axison


def forget_programs():
    """Clear what JAX and the library keep of the code as it was before an error was planted."""
    jax.clear_caches()
    for module in [value for name, value in sys.modules.items() if name.startswith("widelimit")]:
        for member in list(vars(module).values()):
            if isinstance(member, functools._lru_cache_wrapper):
                member.cache_clear()


@pytest.mark.parametrize(
    ("plant", "name"), [pytest.param(p, n, id=f"{p.__name__}-{n}", marks=marked(n)) for p, n in PLANTS]
)
def test_a_planted_error_makes_the_right_claim_fail(monkeypatch, plant, name):
    plant(monkeypatch)
    forget_programs()
    try:
        found = load(name).measure(Effort.QUICK)
    finally:
        forget_programs()
    assert not all(check.holds for check in found.checks)
