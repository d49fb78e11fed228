"""The predictions of several networks are averaged: the law of an output is the mixture of their laws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from widelimit import validation
from widelimit.estimators.choice import HyperparameterChoice
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import Fitted, FittedTraining
from widelimit.estimators.preparation import set_frozen
from widelimit.inference import intervals
from widelimit.inference.input_scales import FINALISTS
from widelimit.inference.left_out import LeftOut, LeftOutRows
from widelimit.inference.posterior import Posterior
from widelimit.inference.scaled_evidence import AnyFamily, NetworkFamily
from widelimit.shapes import Float

NOTHING = np.empty((0, 0))


@final
@dataclass(eq=False)
class FittedAverage:
    """With probability share_k, f is the k-th function scale_k f_k(factor_k z); all are fitted to the same targets.

    All units are those of the first one, whose scales and factors are 1.
    """

    members: tuple[Fitted, ...]
    shares: Float[np.ndarray, " k"]
    factors: Float[np.ndarray, "k d"]
    """Factors of the inputs of the first network, for each network."""
    scales: Float[np.ndarray, "k c"]
    """Scales of the outputs, for each network."""

    def __post_init__(self) -> None:
        set_frozen(self, vars(self))
        self.training: FittedTraining = self.members[0].training

    @property
    def y(self) -> Float[np.ndarray, "n c"]:
        """Return the targets."""
        return self.members[0].y

    @property
    def noise(self) -> float:
        """Return the noise of the first network."""
        return self.members[0].noise

    @property
    def laws(self) -> tuple[Any, ...]:
        """Return the law of the first network, which alone has a marginal likelihood."""
        return self.members[0].laws

    def _inputs(self, Z: np.ndarray) -> list[tuple[Fitted, np.ndarray]]:
        return [(member, Z * factor) for member, factor in zip(self.members, self.factors, strict=True)]

    def _mixed(self, means: Sequence[np.ndarray], variances: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and variance of the mixture from those of the networks in their own units, (..., c)."""
        own = [scale * mean for scale, mean in zip(self.scales, means, strict=True)]
        mean = self._sum(own)
        spread = [each**2 * v + (m - mean) ** 2 for each, v, m in zip(self.scales, variances, own, strict=True)]
        return mean, self._sum(spread)

    def _sum(self, values: Sequence[np.ndarray]) -> np.ndarray:
        return np.asarray(sum(share * each for share, each in zip(self.shares.tolist(), values, strict=True)))

    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the mean of f."""
        means = [member.mean(points) for member, points in self._inputs(Z)]
        return self._sum([scale * mean for scale, mean in zip(self.scales, means, strict=True)])

    def moments(self, Z: Float[np.ndarray, "m d"]) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and variance of f: the mean of the networks' variances, and the variance of their means."""
        means, variances = zip(*(member.moments(points) for member, points in self._inputs(Z)), strict=True)
        return self._mixed(means, variances)

    def joint(self, Z: Float[np.ndarray, "m d"]) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and covariance of f."""
        members = self._inputs(Z)
        means = [scale * member.mean(points) for scale, (member, points) in zip(self.scales, members, strict=True)]
        center, parts = self._sum(means), []
        for (member, points), scale, mean in zip(members, self.scales, means, strict=True):
            away = mean - center
            parts.append(scale**2 * member.covariance(points) + away[:, None] * away)
        return center, self._sum(parts)

    def noise_variance(self, Z: Float[np.ndarray, "m d"], *, moment: bool = True) -> Float[np.ndarray, "m c"]:
        """Return the variance of the noise of a new observation."""
        noise = [scale**2 * member.noise for scale, member in zip(self.scales, self.members, strict=True)]
        return np.tile(self._sum(noise), (len(Z), 1))

    def quantiles(self, Z: Float[np.ndarray, "m d"], levels: Float[np.ndarray, " k"]) -> Float[np.ndarray, "m c k"]:
        """Compute quantiles of a new observation, those of a mixture of normal laws."""
        means, deviations = [], []
        for (member, points), scale in zip(self._inputs(Z), self.scales, strict=True):
            mean, variance = member.moments(points)
            means.append(scale * mean)
            deviations.append(scale * np.sqrt(variance + member.noise))
        return intervals.mixture_quantiles(np.stack(means), np.stack(deviations), self.shares, levels)

    def sample(self, Z: Float[np.ndarray, "m d"], count: int, seed: int) -> Float[np.ndarray, "count m c"]:
        """Draw f: for each draw a network, the same for all points and outputs."""
        which = np.random.default_rng([seed, len(self.members)]).choice(len(self.members), count, p=self.shares)
        draws = np.empty((count, len(Z), self.y.shape[1]))
        for k, (member, points) in enumerate(self._inputs(Z)):
            own = which == k
            if own.any():
                draws[own] = self.scales[k] * member.sample(points, int(own.sum()), seed + k)
        return draws

    def left_out(self) -> LeftOutRows:
        """Predict each distinct row from all others, with the shares as they are. Raises: ValueError: as `Fitted`."""
        members = tuple(member.left_out() for member in self.members)
        # The k-th function predicts y - scale_k error_k, so that these are means up to y.
        means, expected = self._mixed([-each.error for each in members], [each.expected for each in members])
        return LeftOutRows(members[0].X, (LeftOut(-means, NOTHING, NOTHING, NOTHING),), expected, members)

    def leave_one_out(self) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
        """Compute mean and variance of an observation at each row by all others.

        Raises:
            ValueError: a singular covariance, or conjugate gradients, which have no inverse.
        """
        means, variances = [], []
        for member in self.members:
            law = member.law
            assert isinstance(law, Posterior)
            left = law.leave_one_out()
            means.append(left.mean.reshape(member.y.shape))
            variances.append(left.variance[:, None] + member.noise)
        return self._mixed(means, variances)

    def without(self, Z: Float[np.ndarray, "m d"], left: LeftOutRows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, for each output, mean and deviation of new observations without each of the rows that are left out."""
        each = [m.without(z, own) for (m, z), own in zip(self._inputs(Z), left.members, strict=True)]
        for j, laws in enumerate(zip(*each, strict=True)):
            means = [scale * mean for scale, (mean, _) in zip(self.scales[:, j].tolist(), laws, strict=True)]
            center = self._sum(means)
            squares = [scale**2 * sd**2 for scale, (_, sd) in zip(self.scales[:, j].tolist(), laws, strict=True)]
            spread = self._sum([square + (mean - center) ** 2 for square, mean in zip(squares, means, strict=True)])
            yield center, np.sqrt(spread)

    def state(self) -> ModelState:
        """Return the part of the functions that a file holds: of the others what does not follow from the first."""
        first, *others = self.members
        values = {"others": [_document(member) for member in others]}
        arrays = {"shares": self.shares, "factors": self.factors, "scales": self.scales}
        arrays["others.coefficients"] = np.stack([np.asarray(member.coefficients) for member in others])
        return first.state() | ModelState(values, arrays)


def fit_average(first: Fitted, scale: Float[np.ndarray, " c"], chosen: HyperparameterChoice) -> FittedAverage:
    """Fit the other networks of a choice to the rows of the first, and to its targets, in units of `scale`."""
    every = (chosen, *chosen.others)
    assert chosen.shares is not None
    factors = np.stack([np.asarray(each.input_scales) / np.asarray(chosen.input_scales) for each in every])
    scales = np.stack([np.asarray(each.scale) / scale for each in every])
    others = []
    for each, factor, unit in zip(chosen.others, factors[1:], scales[1:], strict=True):
        training = replace(first.training, design=each.design, X=first.training.X * factor)
        others.append(Fitted(training, first.y / unit, each.noise))
    return FittedAverage((first, *others), chosen.shares, factors, scales)


def _document(member: Fitted) -> dict[str, Any]:
    design = member.training.design
    return {"family": family_document(design.family), "design": design.document(), "noise": member.noise}


def family_document(family: AnyFamily) -> list[Any]:
    """Return what a file holds of a family: not the network, which is a parameter."""
    return [family.kind] if isinstance(family, NetworkFamily) else list(family)


def restore_average(
    state: ModelState, first: Fitted, restore: Callable[[dict[str, Any], np.ndarray], FittedTraining]
) -> FittedAverage:
    """Restore what `FittedAverage.state` returns; `restore`: the training of a network in it, of rows as it has them.

    Raises: one of model_state.INVALID.
    """
    documents = state.values["others"]
    if not isinstance(documents, list) or not 1 <= len(documents) < FINALISTS:
        raise ValueError("another number of networks than an average has")
    k, (n, c), d = len(documents) + 1, first.y.shape, first.training.X.shape[1]
    shares, factors, scales = (
        state.positive("shares", k),
        state.positive("factors", k, d),
        state.positive("scales", k, c),
    )
    coefficients = state.array("others.coefficients", k - 1, n, c)
    if abs(float(shares.sum()) - 1) > 1e-9 or (factors[0] != 1).any() or (scales[0] != 1).any():
        raise ValueError("shares of an average that are none, or other units than those of its first network")
    others = []
    for kept, factor, unit, own in zip(documents, factors[1:], scales[1:], coefficients, strict=True):
        with np.errstate(over="ignore"):
            rows, y = first.training.X * factor, first.y / unit
        if not np.isfinite(y).all():
            raise ValueError("scales of an average beyond the range of a float")
        noise = float(validation.finite_scalar("noise", kept["noise"], above=0.0))
        others.append(Fitted(restore(kept, rows), y, noise, own))
    return FittedAverage((first, *others), shares, factors, scales)
