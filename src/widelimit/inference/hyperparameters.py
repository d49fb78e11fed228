"""Hyper-parameters are found by maximum likelihood, marginal or leave-one-out."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from widelimit import validation
from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.compute import devices, threads
from widelimit.compute.devices import Device, Location
from widelimit.inference.conditioning import cholesky_posterior, posterior
from widelimit.inference.coordinates import Layout, LeafBuilder, Space, Values, leaf_builder, parameter, values_by_name
from widelimit.inference.outputs import distinct_columns
from widelimit.inference.posterior import Posterior
from widelimit.inference.training_set import points_of
from widelimit.kernels.base import Kernel
from widelimit.kernels.network import nngp
from widelimit.shapes import Float
from widelimit.validation import Array

Builder = Callable[..., Kernel | Network]
DIFFERENCE = 1e-4
"""Step of central differences in the logarithm: truncation error 1e-8; the tables' error of 1e-10 becomes 1e-6."""
ROWS = 32
"""Points are filled up to a multiple of it where gradients are compiled, so that folds of one table share a program."""
FLAT = 1e-12
"""A step that gains less of the score, relatively, ends a search: hyper-parameters often trade along flat valleys."""


class Run(NamedTuple):
    """A run is one search, from one start."""

    start: Values
    values: Values
    score: float
    """-inf: the objective could not be computed at the start."""
    steps: int
    converged: bool
    message: str


@final
@dataclass(frozen=True)
class HyperparameterFit:
    """The fit holds the best hyper-parameters, and how they were found: made by `fit_hyperparameters`."""

    kernel: Kernel
    values: Values
    """The values are by name; "noise" is among them."""
    objective: str
    score: float
    """The log marginal likelihood, or the leave-one-out log density of the observations; larger is better.

    It covers the outputs that count in the search, in the units that `fit_hyperparameters` gives them."""
    runs: tuple[Run, ...]
    at_bounds: tuple[str, ...]
    """Parameters that ended at a bound: the best value lies beyond it, or the data do not determine them."""
    posterior: Posterior
    message: str


def _marginal(post: Posterior) -> tuple[float, np.ndarray]:
    """Compute the log marginal likelihood and its derivative in K(X, X) + noise."""
    return post.log_marginal_likelihood(), post.sensitivity()


def _leave_one_out(post: Posterior) -> tuple[float, np.ndarray]:
    """Compute sum_i log N(y_i; mu_i, 1/Q_ii), over outputs too, and its derivative in A = Q^{-1}.

    With e = alpha/Q_ii: the sum is of log(Q_ii)/2 - alpha_i^2/(2 Q_ii) - log(2 pi)/2. Rasmussen and Williams 2006,
    equations (5.10) to (5.13).
    """
    post.require_squares()
    Q, alpha = post.precision(), post.weights
    own, c = np.diagonal(Q), alpha.shape[1]
    score = np.sum(c * np.log(own) / 2) - np.sum(alpha**2 / own[:, None]) / 2 - alpha.size * math.log(2 * math.pi) / 2
    by_diagonal = c / (2 * own) + np.sum(alpha**2, axis=1) / (2 * own**2)
    by_alpha = -alpha / own[:, None]
    slope = -threads.product(threads.product(Q, by_alpha), alpha.T) - threads.product(Q * by_diagonal, Q)
    return float(score), np.asarray((slope + slope.T) / 2)


OBJECTIVES: dict[str, Callable[[Posterior], tuple[float, np.ndarray]]] = {
    "marginal_likelihood": _marginal,
    "leave_one_out": _leave_one_out,
}


@dataclass(frozen=True)
@final
class _Search:
    """The search has an objective that is a function of the coordinates z."""

    build: Builder
    X: np.ndarray
    y: np.ndarray
    space: Space
    noise: float
    objective: Callable[[Posterior], tuple[float, np.ndarray]]
    slopes: Callable[[np.ndarray, np.ndarray], np.ndarray]
    location: Location

    def posterior(self, z: np.ndarray) -> Posterior:
        values = self.space.floats(z)
        noise = values.pop("noise", self.noise)
        return cholesky_posterior(_kernel(self.build, values), self.X, self.y, noise, self.location)

    def negative(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Return minus the objective and its gradient in z."""
        post = self.posterior(z)
        if post.data.rows is not None:
            return self._negative_there(post, z)
        score, weights = self.objective(post)
        return -score, -self._with_noise(np.array(self.slopes(z, weights)), z, np.trace(weights))

    def _negative_there(self, post: Posterior, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Do the same where the matrices stay on a device, which gives the slope in every leaf of the kernel."""
        slopes = post.log_marginal_likelihood_gradient()

        def leaves(z: jax.Array) -> list[jax.Array]:
            kernel = _kernel(self.build, values_by_name(self.space.layout, z))
            return [jnp.asarray(leaf, float) for leaf in jax.tree.leaves(kernel)]

        with arithmetic(True):
            _, pull = jax.vjp(leaves, jnp.asarray(z))
            gradient = np.array(pull([jnp.asarray(leaf, float) for leaf in jax.tree.leaves(slopes.kernel)])[0])
        return -post.log_marginal_likelihood(), -self._with_noise(gradient, z, float(np.sum(slopes.noise)))

    def _with_noise(self, gradient: np.ndarray, z: np.ndarray, slope: float) -> np.ndarray:
        """Add the slope in the noise, if it is searched for."""
        place = 0
        for p in self.space.parameters:
            if p.name == "noise":
                gradient[place] += slope * math.exp(z[place])
            place += p.start.size
        return gradient

    def run(self, z: np.ndarray, max_steps: int) -> tuple[Run, np.ndarray]:
        start = self.space.floats(z)
        try:
            value, gradient = self.negative(z)
        except (ValueError, ArithmeticError) as error:
            return Run(start, start, -math.inf, 0, False, str(error)), z
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            return Run(start, start, -math.inf, 0, False, _explain_start(value)), z
        first, best, at, wall = value, value, z, 1e10 * (abs(value) + 1.0)
        causes: list[str] = []

        def evaluate(z: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal best, at
            try:
                value, gradient = self.negative(z)
                if math.isfinite(value) and np.isfinite(gradient).all():
                    if value < best:
                        best, at = value, z.copy()
                    return value, gradient
                causes.append("it is not finite")
            except (ValueError, ArithmeticError) as error:  # the search turns back from the wall
                causes.append(str(error))
            return wall, np.zeros_like(z)

        bounds = scipy.optimize.Bounds(self.space.concatenate("low"), self.space.concatenate("high"))
        options = {"maxiter": max_steps, "maxfun": 4 * max_steps, "ftol": FLAT, "gtol": 1e-6}
        found = scipy.optimize.minimize(evaluate, z, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        if found.fun < wall:
            best, at = float(found.fun), found.x
        stuck = bool(causes) and not best < first
        text = f"{found.message}; no objective at {len(causes)} points, at the last: {causes[-1]}" if causes else ""
        converged = bool(found.success) and bool(found.fun < wall) and not stuck
        return Run(start, self.space.floats(at), -best, int(found.nit), converged, text or str(found.message)), at


def _explain_start(value: float) -> str:
    """Explain that a search cannot begin: minus the objective, or its gradient, is not finite."""
    if not math.isfinite(value):
        return f"it is {-value} there. Pass another start, or a larger noise."
    return (
        'its gradient is not finite there. Pass gradient="differences" (tabulated activations such as tanh need it '
        "where signals have standard deviations beyond 8), another start, or inputs of another unit."
    )


def _kernel(build: Builder, values: Values) -> Kernel:
    built = build(**{name: value for name, value in values.items() if name != "noise"})
    if isinstance(built, Network):
        return nngp(built)
    if not isinstance(built, Kernel):
        raise TypeError(f"the builder must return a kernel or a network, it returned {type(built).__name__}.")
    return built


def _total(build: Builder, layout: Layout, z: jax.Array, X: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(weights * _kernel(build, values_by_name(layout, z)).gram(X))


_slopes_of_leaves = jax.jit(jax.grad(_total, argnums=2), static_argnums=(0, 1))


def _autodiff(build: Builder, X: np.ndarray, space: Space) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return (z, weights) -> the gradient in z of sum_ij weights_ij K_z(x_i, x_j).

    A function of the user's is traced for every fit, as what it looks up may have changed.
    """
    compiled: Callable[..., jax.Array]
    if isinstance(build, LeafBuilder):
        compiled = functools.partial(_slopes_of_leaves, build, space.layout)
    else:
        compiled = jax.jit(jax.grad(lambda *arguments: _total(build, space.layout, *arguments)))
    n = len(X)
    rows = ROWS * math.ceil(n / ROWS)
    filled, padded = np.resize(X, (rows, X.shape[1])), np.zeros((rows, rows))

    def slopes(z: np.ndarray, weights: np.ndarray) -> np.ndarray:
        padded[:n, :n] = weights
        with arithmetic(True):
            return np.asarray(compiled(z, filled, padded))

    return slopes


def _differences(build: Builder, X: np.ndarray, space: Space) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Compute the same by central differences of the kernel matrix."""

    def total(z: np.ndarray, weights: np.ndarray) -> float:
        return float(np.sum(weights * np.asarray(_kernel(build, space.floats(z)).gram(X))))

    def slopes(z: np.ndarray, weights: np.ndarray) -> np.ndarray:
        steps = DIFFERENCE * np.eye(len(z))
        return np.array([(total(z + h, weights) - total(z - h, weights)) / (2 * DIFFERENCE) for h in steps])

    return slopes


def _starts(space: Space, restarts: int, seed: int) -> list[np.ndarray]:
    """Return the start given, and points around it: within a factor of 10, or in the bounds of a linear one."""
    first, low, high = (space.concatenate(field) for field in ("start", "low", "high"))
    linear = np.concatenate([np.full(p.start.size, not p.logarithmic) for p in space.parameters])
    rng = np.random.default_rng(seed)
    starts = [first]
    for _ in range(restarts):
        near = np.clip(first + math.log(10) * rng.uniform(-1, 1, first.shape), low, high)
        starts.append(np.where(linear, rng.uniform(low, high), near))
    return starts


def _space(given: Mapping[str, Any], limits: Mapping[str, Any]) -> Space:
    """Make the parameters that are fitted, from their starts and bounds by name. Raises: ValueError."""
    if set(limits) - set(given):
        raise ValueError(f"bounds names {sorted(set(limits) - set(given))}; the parameters are {sorted(given)}.")
    if not given:
        raise ValueError("there is nothing to fit: give start={name: value}, or a positive noise.")
    space = Space(tuple(parameter(name, value, limits.get(name)) for name, value in given.items()))
    if any(p.name == "noise" and not p.logarithmic for p in space.parameters):
        raise ValueError("the lower bound of noise must be > 0.")
    return space


SLOPES = {"autodiff": _autodiff, "differences": _differences}


def fit_hyperparameters(
    build: Builder | Kernel | Network,
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    start: Mapping[str, Any] | None = None,
    noise: float,
    fit_noise: bool = True,
    objective: Literal["marginal_likelihood", "leave_one_out"] = "marginal_likelihood",
    bounds: Mapping[str, tuple[Any, Any]] | None = None,
    restarts: int = 2,
    seed: int = 0,
    max_steps: int = 100,
    gradient: Literal["auto", "autodiff", "differences"] = "auto",
    device: Device = None,
) -> HyperparameterFit:
    """Find argmax over hyper-parameters of log p(y | X), or of sum_i log p(y_i | X, y without y_i).

    L-BFGS-B in the logarithms of positive parameters, from the start given and from `restarts` random points around it.
    Every evaluation costs a kernel matrix, its derivative and an inverse, O(n^3). Deterministic for a seed.

    Outputs that are constant, or repeat another up to a factor, do not count (unless none varies). The others are all
    scaled to the root mean square of the first of them, in whose unit kernel and noise are found.
    Source: Rasmussen and Williams 2006, section 5.4.

    Args:
        build: a function of the named hyper-parameters that returns a kernel, or a network (whose NNGP kernel is
            taken), e.g. `lambda w, b: wl.ntk(wl.mlp(depth=3, weight_std=w, bias_std=b))`; or a kernel or a network, all
            of whose leaves are then fitted, by the names of their paths.
        X: (n, d) inputs.
        y: (n,) or (n, c) targets.
        start: {name: value} for a builder, numbers or (d,) arrays; not given with a kernel or network.
        noise: variance of the observation noise to start from, >= 0 (in the square of y's unit); 0 stays 0.
        fit_noise: whether a positive noise is fitted too.
        objective: "marginal_likelihood" or "leave_one_out".
        bounds: {name: (low, high)}; start times 10^-3 and 10^3 unless given. A parameter that starts at 0 or below
            needs them. Where low <= 0 the parameter is searched as it is, not by its logarithm.
        restarts: further searches, >= 0.
        seed: seed of the random starts, >= 0.
        max_steps: iterations of each search, >= 1.
        gradient: "autodiff"; "differences" (of 2 kernel matrices a parameter) for kernels that JAX cannot trace, and
            for tabulated activations such as tanh where signals have standard deviations beyond 8, where their tables
            under a trace end; "auto": differences for images in machine code, else autodiff.
        device: where work runs, as in `posterior`; leave-one-out and differences run on the host.

    Returns:
        A `HyperparameterFit` with the kernel, the values, the score, every run and the posterior.

    Raises:
        TypeError, ValueError: bad data or arguments; no start at which the objective can be computed.
    """
    validation.choice("objective", objective, tuple(OBJECTIVES))
    validation.choice("gradient", gradient, ("auto", *SLOPES))
    max_steps = validation.integer("max_steps", max_steps, at_least=1)
    restarts = validation.integer("restarts", restarts, at_least=0)
    validation.flag("fit_noise", fit_noise)
    for name, value in (("start", start), ("bounds", bounds)):
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a dictionary by the names of parameters, got {validation.shown(value)}.")
    builder, given = _builder(build, start)
    points = np.asarray(points_of(nngp(build) if isinstance(build, Network) else build, "X", X), np.float64)
    variance = float(validation.finite_scalar("noise", noise, at_least=0.0))
    if fit_noise and variance > 0:
        given["noise"] = variance
    space = _space(given, bounds or {})
    if gradient == "auto":
        gradient = "differences" if _kernel(builder, given).prepared(points[:1]).eager else "autodiff"
    slopes = SLOPES[gradient](builder, points, space)
    location, targets = _location(device, objective, gradient, X, y), _search_targets(y, len(points))
    search = _Search(builder, points, targets, space, variance, OBJECTIVES[objective], slopes, location)
    seed = validation.integer("seed", seed, at_least=0)
    with location.default():
        search.posterior(space.concatenate("start"))  # errors in the data or the builder are reported here, unguarded
        found = [search.run(z, max_steps) for z in _starts(space, restarts, seed)]
    return _result(replace(search, y=np.array(y)), objective, found, variance)


def _location(device: Device, objective: str, gradient: str, X: Any, y: Any) -> Location:
    """Choose where the fits of a search run. Raises: TypeError, ValueError: as `devices.choose`; not there."""
    there = objective == "marginal_likelihood" and gradient == "autodiff"
    location = devices.choose("cpu" if device is None and not there else device, X=X, y=y)
    if not (there or location.host):
        raise ValueError('device: leave-one-out and differences run on the host; pass device="cpu".')
    return location


def _search_targets(y: Any, n: int) -> np.ndarray:
    """Return the targets of the search: those that `distinct_columns` picks, all at the size of the first."""
    targets = validation.targets("y", y, n)
    if targets.ndim == 1:
        return targets
    chosen = targets[:, distinct_columns(targets)]
    largest = np.abs(chosen).max(axis=0)
    unit = np.where(largest > 0, largest, 1.0)
    size = unit * np.sqrt(np.mean((chosen / unit) ** 2, axis=0))
    return np.asarray(chosen / np.where(size > 0, size, 1.0) * size[0]) if len(size) > 1 else chosen


def _builder(build: Any, start: Mapping[str, Any] | None) -> tuple[Builder, Values]:
    if isinstance(build, Network):
        build = nngp(build)
    if isinstance(build, Kernel):
        if start is not None:
            raise ValueError("a kernel or network starts at its own hyper-parameters; start is for a builder.")
        return leaf_builder(build)
    if not callable(build):
        raise TypeError(f"build: a builder, a kernel or a network is needed, got {validation.shown(build)}.")
    given = dict(start or {})
    if "noise" in given:
        raise ValueError("noise is an argument of its own, not one of the builder's.")
    return build, given


def _result(search: _Search, objective: str, found: list[tuple[Run, np.ndarray]], noise: float) -> HyperparameterFit:
    runs = tuple(run for run, _ in found)
    best, z = max(found, key=lambda pair: pair[0].score)
    if not math.isfinite(best.score):
        raise ValueError(f"the objective cannot be computed at any start: {best.message}")
    low, high = search.space.concatenate("low"), search.space.concatenate("high")
    names = [p.name for p in search.space.parameters for _ in range(p.start.size)]
    ends = tuple(dict.fromkeys(n for n, v, a, b in zip(names, z, low, high, strict=True) if v in (a, b)))
    near = sum(run.score > best.score - 1e-3 * max(1.0, abs(best.score)) for run in runs)
    message = f"{near} of {len(runs)} searches ended within 0.1% of the best score {best.score:.6g}; "
    message += "the best converged" if best.converged else f"the best did not converge: {best.message}"
    if ends:
        message += f"; at a bound: {', '.join(ends)}"
    values = {"noise": noise, **best.values}
    kernel = _kernel(search.build, values)
    where = search.location
    post = posterior(kernel, search.X, search.y, noise=values["noise"], solver="cholesky", device=where, progress=False)
    return HyperparameterFit(kernel, values, objective, best.score, runs, ends, post, message + ".")
