"""Networks are chosen with one scale for each input: one network, or several whose predictions are averaged."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from widelimit.estimators.choice import SEARCH_ROWS, HyperparameterChoice, SearchData, choose, warn_at_bounds
from widelimit.estimators.design import Design
from widelimit.estimators.fitted_classes import mixture_shares
from widelimit.inference.average_gradient import gradient_scales
from widelimit.inference.input_scales import ScaledFit, Search, fit_finalists, fit_label_scales, spread
from widelimit.inference.noise_level import LeftOutNoise, least_noise, left_out_noise
from widelimit.inference.outputs import distinct_columns
from widelimit.progress import progress_bar
from widelimit.shapes import Float

LEFT_OUT_ROWS = 1000
"""Training rows that are left out after a search with scales of the inputs: eigenvectors."""
LOUD = 50.0
"""Noise in units of the function's variance from which a target does not seem to depend on its inputs."""
PRIOR_ROWS = 5.0
"""Prior of an average: this many rows count for each network."""
LEAST_SHARE = 0.01
"""Weight below which a network is left out of an average."""


def choose_by_gradients(designs: Sequence[Design], data: SearchData, groups: np.ndarray) -> HyperparameterChoice:
    """Choose one of these networks and input scales by gradients and leave-one-out; the rest as `choose` does."""
    some = data.some(SEARCH_ROWS)
    rows = some.points, some.y, some.weights, groups
    with progress_bar(data.verbose) as report:
        found = [gradient_scales(design.kernel(), *rows, noise=data.noise, progress=report) for design in designs]
    best = max(range(len(found)), key=lambda i: found[i].score)
    scales = found[best].scales
    return replace(choose(designs[best], data._replace(points=data.points * scales)), input_scales=scales)


def choose_scaled(
    designs: Sequence[Design], data: SearchData, groups: np.ndarray, *, labels: bool = False, average: bool = False
) -> HyperparameterChoice:
    """Choose one of these networks, and one scale a group of inputs, for standardised targets, or labels of classes.

    average: keep the other finalists of the race too, for an average.
    """
    distinct, noise = data.distinct(), data.noise
    unit = float(np.median(distinct.weights))  # a row of it counts as one, whatever the unit of weights
    fixed = data.hyperparameters == "fixed"
    search = Search(
        *(data.points, data.y, data.weights / unit, groups, data.objective),
        noise=None if noise is None else noise / unit,
        numbers=tuple(designs[0].values[name] for name in designs[0].family.numbers) if fixed else None,
        spread=spread(len(distinct.points), groups),
    )
    families = [design.family for design in designs]
    with progress_bar(data.verbose) as report:
        if labels:
            found = fit_label_scales(search, families, progress=report)
            return _choice(_above_arithmetic(found, designs, data), designs, data, unit)
        finalists = fit_finalists(search, families, progress=report)
    finalists = tuple(_above_arithmetic(found, designs, data) for found in finalists[: None if average else 1])
    best, *others = [_choice(found, designs, data, unit) for found in finalists]
    _warn_of_scaled(finalists[0], best, data)
    if noise is not None and not others:
        return best
    some = data.distinct().some(LEFT_OUT_ROWS)
    left = [_left_out(choice, some) for choice in (best, *others)]
    best, *others = [_widened(choice, found, some) for choice, found in zip((best, *others), left, strict=True)]
    return _averaged(best, others, left)


def _choice(found: ScaledFit, designs: Sequence[Design], data: SearchData, unit: float) -> HyperparameterChoice:
    """Return what a search has found, with the noise in units of the kernel, and of weights as they are."""
    ratio = (unit * found.noise if data.noise is None else data.noise) / found.amplitude
    scale = np.full(data.y.shape[1], math.sqrt(found.amplitude))
    return HyperparameterChoice(_design(found, designs, data), ratio, scale, found.scales)


def _design(found: ScaledFit, designs: Sequence[Design], data: SearchData) -> Design:
    design = next(design for design in designs if design.family == found.family)
    return design if data.hyperparameters == "fixed" else design.changed(found.values)


def _above_arithmetic(found: ScaledFit, designs: Sequence[Design], data: SearchData) -> ScaledFit:
    """Raise a noise that was searched to the least that arithmetic distinguishes from 0, which is then its bound."""
    if data.noise is not None:
        return found
    least = found.amplitude * least_noise(_design(found, designs, data).kernel(), data.points * found.scales)
    return found if found.noise >= least else found._replace(noise=least, at_bounds=("noise", *found.at_bounds))


def _warn_of_scaled(found: ScaledFit, choice: HyperparameterChoice, data: SearchData) -> None:
    """Warn of numbers at their bounds; of a noise that was searched if it is below the least or drowns the function."""
    if data.noise is None:
        variance = found.amplitude * np.asarray(choice.design.kernel().diag(data.points * found.scales)).mean()
        if "noise" in found.at_bounds:
            warn_at_bounds("lower")
        elif found.noise > LOUD * variance:
            warn_at_bounds("upper")
    ends = [name for name in found.at_bounds if name != "noise"]
    if ends:
        warnings.warn(
            f"the search ended at a bound of {', '.join(ends)}: the rows do not determine it, or it is beyond the "
            "bound.",
            stacklevel=7,
        )


def _left_out(choice: HyperparameterChoice, data: SearchData) -> LeftOutNoise:
    """Return what the rows say, each left out; the density is that of the targets in units of `data`."""
    assert choice.input_scales is not None
    assert choice.scale is not None
    kernel = choice.design.kernel()
    gram = np.asarray(kernel.gram(data.points * choice.input_scales))
    settings: dict[str, Any] = {"fixed": data.noise is not None, "error": kernel.table_error}
    found = left_out_noise(gram, data.y / choice.scale, data.weights, choice.noise, **settings)
    units = float(np.log(choice.scale[distinct_columns(data.y)]).sum())
    return found._replace(log_density=found.log_density - units)


def _widened(choice: HyperparameterChoice, found: LeftOutNoise, data: SearchData) -> HyperparameterChoice:
    """Return the choice with the noise and the scale that left-out rows ask for, unless the noise is given."""
    assert choice.scale is not None
    if data.noise is not None:
        return choice
    return replace(choice, noise=found.noise, scale=choice.scale * np.sqrt(found.factor))


def _averaged(
    best: HyperparameterChoice, others: Sequence[HyperparameterChoice], left: Sequence[LeftOutNoise]
) -> HyperparameterChoice:
    """Return the best choice with the others that have a share in the average, and the shares.

    These are the weights of the mixture of densities that makes rows, each left out, the most likely, with PRIOR_ROWS
    for each network: stacking of predictive distributions (Yao, Vehtari, Simpson and Gelman 2018, Bayesian Analysis
    13), with the leave-one-out densities of Rasmussen and Williams 2006, section 5.4.2.
    """
    shares = stacking_shares(np.stack([each.log_density for each in left], axis=1), left[0].counts)
    kept = [i for i, share in enumerate(shares) if i == 0 or share >= LEAST_SHARE]
    if len(kept) == 1:
        return best
    shares = shares[kept] / shares[kept].sum()
    return replace(best, others=tuple(others[i - 1] for i in kept[1:]), shares=shares)


def stacking_shares(log_density: Float[np.ndarray, "n k"], counts: Float[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """Return argmax over shares of sum_i counts_i log sum_k share_k density_ik + PRIOR_ROWS sum_k log share_k."""
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    return mixture_shares(density, counts, prior=PRIOR_ROWS)
