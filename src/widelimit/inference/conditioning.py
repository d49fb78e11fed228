"""A Gaussian-process prior is conditioned on data: the solver is chosen, and checked."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np

from widelimit import validation
from widelimit.compute import devices, iterative
from widelimit.compute.devices import Device, Location
from widelimit.compute.workers import require_client
from widelimit.inference import solver_choice, solvers
from widelimit.inference.exactness import refuse_conflicts, warn_if_inexact
from widelimit.inference.inducing import INDUCING, SparsePosterior, sparse_posterior, sparse_settings
from widelimit.inference.posterior import Posterior
from widelimit.inference.row_sums import Approximation
from widelimit.inference.solvers import SolverRequest
from widelimit.inference.traced import is_traced, traced_posterior
from widelimit.inference.training_set import scalar_kernel, training_set
from widelimit.kernels.base import Kernel
from widelimit.progress import LONG, progress_bar
from widelimit.shapes import Float
from widelimit.validation import Array

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from distributed import Client


@overload
def posterior(
    k: Kernel,
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    noise: float | Float[Array, " n"] = 0.0,
    solver: Literal["auto", "cholesky", "cg"] = "auto",
    precision: Literal["double", "mixed"] = "double",
    tolerance: float = 1e-10,
    matrix: Any = None,
    checkpoint: str | Path | None = None,
    client: Executor | Client | None = None,
    device: Device = None,
    progress: bool = True,
) -> Posterior: ...
@overload
def posterior(
    k: Kernel,
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    noise: float | Float[Array, " n"],
    solver: Literal["nystrom"],
    inducing: int | Float[Array, "m d"] = INDUCING,
    approximation: Approximation = "dtc",
    seed: int = 0,
    precision: Literal["double", "mixed"] = "double",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> SparsePosterior: ...
def posterior(
    k: Kernel,
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    noise: float | Float[Array, " n"] = 0.0,
    solver: Literal["auto", "cholesky", "cg", "nystrom"] = "auto",
    precision: Literal["double", "mixed"] = "double",
    tolerance: float = 1e-10,
    matrix: Any = None,
    checkpoint: str | Path | None = None,
    client: Executor | Client | None = None,
    inducing: int | Float[Array, "m d"] = INDUCING,
    approximation: Approximation = "dtc",
    seed: int = 0,
    device: Device = None,
    progress: bool = True,
) -> Posterior | SparsePosterior:
    """Compute f | y for f ~ GP(0, k) and y = f(X) + e, e ~ N(0, noise): mean K_zX (K_XX + noise)^{-1} y.

    Section 2.4 of the paper.

    One solve, shared by all outputs; `mean` never computes a variance. Computed in float64, float32 data included;
    results are NumPy float64 arrays, or JAX arrays where Z is one. No jitter is added: a singular but consistent system
    (duplicate rows with equal labels, say) is solved in the minimum-norm sense, or refused where the storage leaves no
    room for that. `explain()` of the result says which solver ran, and why; `residual` how exactly.

    Inside jit, vmap and grad, where X, y, noise or the kernel's numbers are traced, the result has mean, variance,
    predict, covariance, log_marginal_likelihood and leave_one_out, in the dtype of the data; nothing is checked by its
    value there, and what would be refused is NaN.

    Args:
        k: a kernel.
        X: (n, d) inputs. "nystrom" reads a `np.memmap`, a Zarr array, or anything else with a shape that gives rows as
            X[i:j], block by block, and y too.
        y: (n,) or (n, c) targets; the c outputs are independent and share the kernel.
        noise: variance of the observation noise (in the square of y's unit), >= 0, one number or (n,), one for each
            training point.
        solver: "cholesky" (n^3/3 flops; one triangle in packed storage where the full matrix does not fit twice), "cg"
            (conjugate gradients, preconditioned by a randomly pivoted Cholesky factor; about 2 n^2 flops for each
            iteration and output), or "auto", which chooses by n and free memory. All are exact. "nystrom" is not: f
            depends on y through its values at inducing points (2 n m^2 flops, O(m^2) memory, one pass over the rows).
        precision: "double", or "mixed": a float32 factor or float32 products, half of the memory and of the time, with
            iterations that bring the residual, computed in float64, down to the tolerance. Of "nystrom": products of
            rows in float32, added up in float64, if on some rows rounding adds less than 1e-6 of the noise to the
            variance of f; else float64. `explain()` says which.
        tolerance: bound on the relative residual of "cg" and "mixed", in [1e-14, 1e-1].
        matrix: K(X, X) without noise, stored already: the folder of `stored_gram`, or anything with shape (n, n) that
            gives rows as matrix[i:j], such as a memmap or a Zarr array. It is not copied: after conjugate gradients
            variances, covariances and samples read it again, and raise ValueError if it has changed since.
        checkpoint: a file in which conjugate gradients, or the pass of "nystrom" over the rows, keep their state, and
            from which a later call with the same arguments goes on. Of "cholesky" its name ends in .zarr: a folder in
            which the tiles of the factor of `matrix` are kept, each written once, so that a later call computes what is
            missing, or damaged; predictions read it.
        client: with `matrix`, who computes its products, or the tiles of its factor: a `concurrent.futures.Executor` or
            a `distributed.Client`; None: threads. The bits of the result do not depend on it. Predictions are made in
            this process.
        inducing: for "nystrom": m points of X, drawn by randomly pivoted Cholesky from a random sample of rows (1000
            unless given; fewer where K(X, X) has a smaller rank), or the points themselves, (m, d).
        approximation: for "nystrom": "dtc" (unless given) or "fitc", as in `SparsePosterior`.
        seed: seed of the draw of inducing points, >= 0.
        device: where work runs, and the matrix stays: a `jax.Device`, "cpu", "gpu", or several devices in a list, which
            share its columns; unless given where X and y lie if they are JAX arrays, else JAX's default. On an
            accelerator only vectors move between it and the host.
        progress: a bar on stderr where that is a terminal, for more than 4000 points.

    Returns:
        A `Posterior` with mean, variance, covariance, sample and log_marginal_likelihood; of "nystrom" a
        `SparsePosterior` with the same, and a lower bound of the exact evidence.

    Raises:
        TypeError, ValueError: bad data; or y cannot be interpolated, as duplicate rows have different labels (they
            are named) or the kernel matrix is numerically singular; then pass a noise.
        MemoryError: the kernel matrix does not fit.
        OSError: the disk is full or not writable. BrokenExecutor, ConnectionError, TimeoutError: a process of `client`
            was killed, its scheduler is gone, or nobody answers. Finished tiles are kept, and the same call goes on.

    Warns:
        UserWarning: the iterations stopped above the tolerance, or a factorisation left a residual above 1e-4, as the
            matrix is too ill-conditioned for its noise; the residual is named, and is in the result.
    """
    _check_options(solver, precision, checkpoint, progress)
    used = _given(matrix=matrix, checkpoint=checkpoint, client=client, device=device)
    tolerance = float(validation.finite_scalar("tolerance", tolerance, at_least=1e-14, at_most=1e-1))
    settings = sparse_settings(inducing, approximation, seed, precision, checkpoint)
    if is_traced(k, X, y, noise):
        used |= {"solver": solver not in ("auto", "cholesky"), "precision": precision != "double", **settings.given()}
        _refuse_unused("not where jax traces the data, the noise or the kernel", used)
        return cast(Posterior, traced_posterior(k, X, y, noise))  # it has those methods that can be traced
    if solver == "nystrom":
        _refuse_unused('not of solver="nystrom"', used | {"checkpoint": False})
        return sparse_posterior(k, X, y, noise=noise, settings=settings, progress=progress)
    _refuse_unused('of solver="nystrom" only', settings.given())
    _check_place(solver, precision, matrix, checkpoint, client)
    data = training_set(scalar_kernel(k), X, y, devices.choose_unless_stored(device, matrix, X, y))
    rows, variance = solvers.open_matrix(matrix), validation.noise(noise, len(data.X))
    request = SolverRequest(data, variance, solver, precision, tolerance, rows, checkpoint, client)
    post = _solve(request, progress=progress)
    if post.fit.converged:
        warn_if_inexact(post.data, post.fit, post.noise, lambda: post.residual)
    else:
        _warn(post.fit)
    return post


def _warn(fit: solvers.SolverFit) -> None:
    if fit.choice.storage == "disk":
        warnings.warn(f"the posterior is not exact: {fit.message}.", stacklevel=3)
    else:
        iterative.warn(fit.message, stacklevel=4)


def _check_options(solver: Any, precision: Any, checkpoint: Any, progress: Any) -> None:
    """Refuse options of another type, or unknown names. Raises: TypeError, ValueError."""
    if not isinstance(solver, str) or solver not in (*solver_choice.SOLVERS, "nystrom"):
        raise ValueError(f'solver must be "auto", "cholesky", "cg" or "nystrom", got {validation.shown(solver)}.')
    if not isinstance(precision, str) or precision not in ("double", "mixed"):
        raise ValueError(f'precision must be "double" or "mixed", got {validation.shown(precision)}.')
    validation.flag("progress", progress)
    if checkpoint is not None:
        validation.path("checkpoint", checkpoint)


def _given(**values: Any) -> dict[str, bool]:
    return {name: value is not None for name, value in values.items()}


def _check_place(solver: str, precision: str, matrix: Any, checkpoint: Any, client: Any) -> None:
    """Refuse a matrix, a checkpoint and a client that are not of one another, or of the solver. Raises: ValueError."""
    require_client(client)
    store = 'matrix=wl.stored_gram(k, X, "K.zarr"), checkpoint="L.zarr"'
    factored = solver_choice.is_factor(checkpoint)
    if client is not None and matrix is None:
        raise ValueError(f"client computes with a stored matrix: pass {store} too, or leave it out.")
    if factored and (matrix is None or solver == "cg"):
        raise ValueError(
            f'checkpoint="{checkpoint}" is for the factor of a stored matrix: pass solver="cholesky", {store}.'
        )
    if solver == "cholesky" and (matrix is not None or checkpoint is not None) and not factored:
        raise ValueError(
            f'solver="cholesky" keeps the factor of a stored matrix in a folder that ends in .zarr: pass {store}; or '
            'pass solver="cg".'
        )
    if factored and precision == "mixed":
        raise ValueError('precision="mixed" has no factor on disk: leave precision or checkpoint out.')


def cholesky_posterior(k: Kernel, X: np.ndarray, y: np.ndarray, noise: float, location: Location) -> Posterior:
    """Compute `posterior` by Cholesky, for the many fits of a search: without warnings about how exact it is."""
    data = training_set(scalar_kernel(k), X, y, location)
    return _solve(SolverRequest(data, validation.noise(noise, len(data.X)), "cholesky"), progress=False)


def _solve(request: SolverRequest, *, progress: bool) -> Posterior:
    with progress_bar(progress and len(request.data.X) > LONG) as report:
        found = solvers.fit(replace(request, report=report))
    refuse_conflicts(request.data, found, request.noise)
    return Posterior(request.data, request.noise, found)


def _refuse_unused(why: str, given: dict[str, bool]) -> None:
    """Refuse options that the solver does not have. Raises: ValueError."""
    names = [name for name, was_given in given.items() if was_given]
    if names:
        raise ValueError(f"{', '.join(names)}: {why}; leave that out.")
