"""The factors of a Jacobian are compared with automatic differentiation at two rows, so that no use is overlooked."""

import weakref
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from widelimit.kernels.empirical import factors
from widelimit.kernels.empirical.factors import Affine, Explicit, Factor, Lookup
from widelimit.messages import first_line
from widelimit.torch import inputs
from widelimit.torch.jacobian import RowJacobian, Trial, refuse_functorch
from widelimit.torch.patches import Patched
from widelimit.torch.store import plain

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
"""Bound on differences, as a share of a parameter's largest derivative: above rounding, below an overlooked use."""
SMALL = 1e-4
"""A parameter's largest derivative counts as at least this share of the largest of all parameters."""

_whole: weakref.WeakKeyDictionary[torch.nn.Module, dict[Hashable, frozenset[str]]] = weakref.WeakKeyDictionary()
"""Parameters of modules whose Jacobians are taken whole, as their use cannot be followed, by the shapes of inputs."""


def verified_trial(jacobian: RowJacobian, rows: Any) -> Trial:
    """Find how the first row uses the parameters; Jacobians whose factors are wrong at two rows are taken whole.

    Raises: ValueError: the module is random, or uses a parameter where PyTorch does not show it.
    """
    row, few = (inputs.take(rows, slice(0, n)) for n in (1, min(2, inputs.length(rows))))
    dtype = next(iter(jacobian.weights.trained.values())).dtype
    modes, names = inputs.modes(jacobian.module), tuple(jacobian.weights.trained)
    seen_as = inputs.forms(rows), names, jacobian.of, dtype, inputs.length(few), modes
    known = _whole.setdefault(jacobian.module, {})
    if seen_as in known:
        return jacobian.trial(row, known[seen_as])
    trial, whole = jacobian.trial(row), frozenset[str]()
    weights = torch.as_tensor(np.random.default_rng(0).standard_normal((inputs.length(few), trial.number)))
    right = _gradient(jacobian, few, weights)
    again = _gradient(jacobian, few, weights)
    if _differing(right, again, TOLERANCE[dtype]):
        raise ValueError(
            "the module is random: the same row gives different derivatives at every call (dropout, noise); call "
            "module.eval() first."
        )
    for _ in range(3):
        try:
            wrong = _differing(right, _of_factors(jacobian, trial, few, weights), TOLERANCE[dtype])
        except RuntimeError as error:
            refuse_functorch(error)
            raise
        if not wrong:
            known[seen_as] = whole
            return trial
        whole = whole | wrong if wrong - whole else frozenset(right)
        trial = jacobian.trial(row, whole)
    raise ValueError(
        f"the derivative by parameter {min(wrong)} cannot be followed: the module uses it where PyTorch shows no "
        f"functions, as in an autograd.Function, a scripted part or vmap. Write that part in plain functions of torch."
    )


def _gradient(jacobian: RowJacobian, rows: Any, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the gradient of a weighted sum of the outputs by each parameter, with automatic differentiation alone.

    rows: as many as weights, (r, c). Raises: ValueError: the module cannot be differentiated.
    """
    module, values = jacobian.module, jacobian.weights.values
    own = {n: values[id(t)] for n, t in (*module.named_parameters(), *module.named_buffers()) if id(t) in values}
    trained = {name: p.detach().requires_grad_() for name, p in jacobian.weights.trained.items()}

    def replaced(*given: Any, **named: Any) -> Any:
        return torch.func.functional_call(module, {**own, **trained}, given, named)

    found = {name: torch.zeros_like(p) for name, p in jacobian.weights.trained.items()}
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        for i in range(len(weights)):  # alone: the module may mix rows
            row = inputs.map_tree(torch.clone, inputs.take(rows, slice(i, i + 1)))
            try:
                outputs = inputs.call(replaced, row)
                outputs = outputs if jacobian.of is None else jacobian.of(outputs, row)
                flat = inputs.one_tensor(outputs).reshape(-1)
                total = (flat * weights[i].to(flat)).sum()
                if not total.requires_grad:
                    continue
                slopes = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
                for name, g in zip(trained, slopes, strict=True):
                    found[name] += 0 if g is None else g.detach().to_dense()
            except (RuntimeError, TypeError, NotImplementedError) as error:
                raise ValueError(f"the module cannot be differentiated: {first_line(error)}") from error
    return found


def _of_factors(jacobian: RowJacobian, trial: Trial, rows: Any, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the same gradient from the factors."""
    trained = jacobian.weights.trained
    flat = {name: p.new_zeros(p.untyped_storage().nbytes() // p.element_size()) for name, p in trained.items()}
    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    blocks = [(weights[block], *use) for block, found in jacobian.factors(trial, rows) for use in found.items()]
    for own, place, parts in blocks:
        for part in parts:
            slope = _weighted(part, own).reshape(place.size)
            if place.stride or not place.size:
                flat[place.name].as_strided(place.size, place.stride, place.offset).add_(slope)
            else:
                total[place.name].add_(slope)
    return {
        name: total[name] + flat[name].as_strided(p.shape, p.stride(), p.storage_offset())
        for name, p in jacobian.weights.trained.items()
    }


def _weighted(factor: Factor | Patched, weights: torch.Tensor) -> torch.Tensor:
    """Return sum_nc w_nc J[n, c], in the order of the parameter."""
    part = plain(factor)
    if isinstance(part, Explicit):
        return torch.einsum("nc,ncp->p", weights.to(part.jacobian), part.jacobian)
    assert isinstance(part, Affine | Lookup)
    back = torch.einsum("nc,ncso->nso", weights.to(part.backward), part.backward)[:, None]
    one = Lookup(part.tokens, back, part.rows) if isinstance(part, Lookup) else Affine(part.signals, back)
    own: torch.Tensor = factors.jacobian(one, torch)[:, 0].sum(0)
    return own


def _differing(right: dict[str, torch.Tensor], found: dict[str, torch.Tensor], tolerance: float) -> frozenset[str]:
    """Return the names of parameters whose gradients differ, leaving out gradients that are not finite."""
    finite = {name: g for name, g in right.items() if bool(torch.isfinite(g).all())}
    sizes = {name: float(g.abs().max()) if g.numel() else 0.0 for name, g in finite.items()}
    least = SMALL * max(sizes.values(), default=0.0)
    return frozenset(
        name
        for name, g in finite.items()
        if g.numel() and not float((g - found[name]).abs().max()) <= tolerance * max(sizes[name], least)
    )
