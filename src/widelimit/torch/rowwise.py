"""A module whose output for a row depends on other rows is refused: a few rows are computed together and alone."""

import functools
import weakref
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from widelimit.kernels.empirical.rows import NUDGE, Probe, choose_rows, require_rowwise
from widelimit.torch import inputs
from widelimit.torch.jacobian import RowJacobian, run

SAMPLED = 4096
"""Entries of each parameter's gradient that are compared, about."""

_passed: weakref.WeakKeyDictionary[torch.nn.Module, set[Hashable]] = weakref.WeakKeyDictionary()
"""Modules that were found not to mix rows, each with its modes, parameters, shapes of inputs and `of`."""


def require_rowwise_module(jacobian: RowJacobian, *given: Any) -> None:
    """Refuse a module that mixes rows, by its outputs at a few rows of the inputs and the gradient of their sum.

    given: one or two inputs. Raises: ValueError: the module mixes rows.
    """
    forms = inputs.forms(given[0])
    if forms != inputs.forms(given[-1]):  # rows of different sizes cannot be in one array
        for X in given:
            require_rowwise_module(jacobian, X)
        return
    seen_as = inputs.modes(jacobian.module), tuple(jacobian.weights.trained), forms, jacobian.of
    passed = _passed.setdefault(jacobian.module, set())
    if seen_as not in passed:
        compare_rows(jacobian, *given)
        passed.add(seen_as)


def compare_rows(jacobian: RowJacobian, *given: Any) -> None:
    """Compare a few rows computed together with each alone; differences below those of a nudge are rounding."""
    points = _choose(*given)
    n = inputs.length(points)
    single = [slice(i, i + 1) for i in range(n)]
    alone = gradients(jacobian, points, single)
    try:
        together = gradients(jacobian, points, [slice(0, n)])
    except (RuntimeError, IndexError):  # the module accepts one row at a time only, so it cannot mix rows
        return
    dtype = np.float64 if next(iter(jacobian.weights.trained.values())).dtype == torch.float64 else np.float32
    try:
        for both in zip(together, alone, strict=True):
            require_rowwise("the module", Probe(*both, both[1]), dtype)
    except ValueError:
        near = gradients(_nudged(jacobian), inputs.map_tree(_nudge, points), single)
        for kind in zip(together, alone, near, strict=True):
            require_rowwise("the module", Probe(*kind), dtype)


def gradients(jacobian: RowJacobian, rows: Any, groups: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """Compute outputs (n, c), and a sample of the gradient of a weighted sum of them by every parameter, (1, k).

    groups: the rows that are computed together in one call of the module.
    """
    total: list[torch.Tensor] | None = None
    outputs = []
    names = list(jacobian.weights.trained)
    for group in groups:
        trained = {name: p.detach().requires_grad_() for name, p in jacobian.weights.trained.items()}
        part = inputs.take(rows, group)
        with torch.enable_grad():
            values = run(jacobian.watch(explicit=trained), functools.partial(jacobian.outputs, part))
            count = inputs.length(part)
            if values.ndim == 0 and count == 1:
                values = values[None]
            if values.ndim == 0 or len(values) != count:
                raise ValueError(
                    f"the module must give a row of outputs for every row of inputs; {count} rows gave shape "
                    f"{tuple(values.shape)}."
                )
            flat = values.reshape(count, -1)
            weights = np.random.default_rng(0).standard_normal((inputs.length(rows), flat.shape[1]))[group]
            whole = (flat * torch.as_tensor(weights, dtype=flat.dtype, device=flat.device)).sum()
        outputs.append(flat.detach().cpu().numpy())
        found: Any = [None] * len(names)
        if whole.requires_grad:
            found = torch.autograd.grad(whole, [trained[name] for name in names], allow_unused=True)
        some = [
            (torch.zeros_like(trained[name]) if g is None else g.to_dense()).reshape(-1)[
                :: max(1, trained[name].numel() // SAMPLED)
            ]
            for name, g in zip(names, found, strict=True)
        ]
        total = some if total is None else [a + b if len(a) == len(b) else a for a, b in zip(total, some, strict=True)]
    assert total is not None
    return np.concatenate(outputs), torch.cat(total).cpu().numpy()[None]


def _choose(*given: Any) -> Any:
    """Choose up to three different rows of every array; if all rows are equal, others are made from the first."""
    trees = [inputs.leaves(X) for X in given]
    chosen = []
    for leaf in zip(*trees, strict=True):
        if not isinstance(leaf[0], torch.Tensor):
            chosen.append(leaf[0])
            continue
        arrays = [t.cpu().numpy() for t in leaf]
        if inputs.is_float(leaf[0]):
            found = choose_rows(*arrays)
        else:
            found = np.unique(np.concatenate([a[:64] for a in arrays]), axis=0)[:3]
            found = found if len(found) > 1 else np.concatenate([found, np.roll(found, 1, axis=-1)])
        chosen.append(torch.as_tensor(found).to(leaf[0]))
    n = max(len(t) for t in chosen if isinstance(t, torch.Tensor))
    filled = [t[torch.arange(n, device=t.device) % len(t)] if isinstance(t, torch.Tensor) else t for t in chosen]
    return inputs.rebuilt(given[0], filled)


def _nudge(t: torch.Tensor) -> torch.Tensor:
    """Move numbers by `NUDGE` eps, up and down in turn."""
    if not t.is_floating_point():
        return t
    signs = torch.ones(t.numel(), dtype=t.dtype, device=t.device)
    signs[1::2] = -1
    return t * (1 + NUDGE * torch.finfo(t.dtype).eps * signs.reshape(t.shape))


def _nudged(jacobian: RowJacobian) -> RowJacobian:
    """Return the Jacobian at nudged parameters."""
    """Return the Jacobian at nudged parameters."""
    old = jacobian.weights
    trained = {name: _nudge(p) for name, p in old.trained.items()}
    return replace(jacobian, weights=replace(old, trained=trained))
