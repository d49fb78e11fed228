"""Recurrent networks: the same random weights act at every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Activation, Memo
from widelimit.activations.closed.linear import Identity
from widelimit.activations.names import activation as resolve
from widelimit.activations.names import name_or_repr
from widelimit.architecture.layers import INTERNAL, Activate, mean_share, weigh, written
from widelimit.architecture.sites import Sites
from widelimit.architecture.state import (
    Change,
    Layer,
    Mean,
    PairState,
    Params,
    Ranges,
    Scalar,
    Shape,
    Traits,
    add_all,
)
from widelimit.architecture.structure import Structure
from widelimit.interpreter import interpreted
from widelimit.pytrees import changed, pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, deviation_of, sum_signals, variance_of

Readout = Literal["all", "last"]
READOUTS = ("all", "last")
_USUAL = {"input_std": 1.0, "weight_std": 1.0, "bias_std": 0.0}
_GRID = 33


class _Memo(NamedTuple):
    """The shares in the deviation before the activation have sum of squares 1; times are the axis before the inputs."""

    shares: tuple[jax.Array, jax.Array, jax.Array]
    """Shares of the previous state, of the input and of the bias, each (T, n)."""
    activation: Memo
    before: jax.Array
    """(T, n): the previous time that is not masked; 0 if there is none."""
    mask: jax.Array
    """(T, n)."""
    last: jax.Array
    """(1, n): the last time that is not masked."""


@final
@pytree
@dataclass(frozen=True, init=False)
class Recurrent(Layer):
    """h_t = phi(weight_std/sqrt(n) W h_{t-1} + input_std/sqrt(m) U x_t + bias_std b), h_0 = 0; W, U, b serve all t.

    Infinite width, z_t before the activation: Sigma_z(t, t') = weight_std^2 Sigma_h(t-1, t'-1) + input_std^2
    Sigma_x(t, t') + bias_std^2, Theta_z(t, t') = weight_std^2 Theta_h(t-1, t'-1) + input_std^2 Theta_x(t, t') +
    Sigma_z(t, t'), for all pairs of times of two sequences; Sigma_h and Theta_h are those after the activation. With
    weights of its own at every time Sigma_z(t, t') would be 0 for t != t'.
    Masked times are skipped. All terms are sums of independent signals: 1 - rho keeps its digits.
    Source: Alemohammad et al. 2021, arXiv 2006.10246, Theorem 1 (whose published code adds a multiple of the identity,
    which is no function of the inputs); Yang 2020, arXiv 2006.14548.

    Args:
        activation: phi: a name, an `Activation` or a function.
        input_std: scale of the weights U of the signals x_t, > 0.
        weight_std: scale of the weights W of the state, > 0.
        bias_std: >= 0.
        readout: "all": h_t at every time; "last": that of the last time that is there, one site.
    """

    activation: Activation
    input_std: Scalar
    weight_std: Scalar
    bias_std: Scalar
    readout: Readout = field(metadata={"static": True})
    refined: bool = field(metadata=INTERNAL)
    trained: bool = field(metadata=INTERNAL)
    times: int = field(metadata=INTERNAL)
    """Set by `network`."""
    random: ClassVar[bool] = True
    mixes_sites: ClassVar[bool] = True
    sitewise: ClassVar[bool] = False

    def __init__(
        self,
        activation: Any = "tanh",
        *,
        input_std: Scalar = 1.0,
        weight_std: Scalar = 1.0,
        bias_std: Scalar = 0.0,
        readout: Readout = "all",
    ) -> None:
        validation.finite_scalar("input_std", input_std, above=0.0)
        validation.finite_scalar("weight_std", weight_std, above=0.0)
        validation.finite_scalar("bias_std", bias_std, at_least=0.0)
        validation.choice("readout", readout, READOUTS)
        given = {"activation": resolve(activation), "input_std": input_std, "weight_std": weight_std}
        for name, value in (given | {"bias_std": bias_std, "readout": readout}).items():
            object.__setattr__(self, name, value)
        for name, value in (("refined", True), ("trained", True), ("times", 0)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        numbers = {name: (getattr(self, name), usual) for name, usual in _USUAL.items()}
        more = "" if self.readout == "all" else f"readout={self.readout!r}"
        given = [name_or_repr(self.activation), written("", numbers)[1:-1], more]
        text = f"Recurrent({', '.join(filter(None, given))})"
        return text if self.trained else f"Frozen({text})"

    def place(self, sites: Sites, path: str) -> tuple[Layer, Sites]:
        if len(sites.sizes) != 1 or sites.kind == "graph":
            raise ValueError(
                f"{path}: Recurrent needs times in order, one axis of sites; pass inputs=wl.Sequence(length, features) "
                f"to wl.network, or wl.Image(length, features) where all have one length."
            )
        after = sites._replace(sizes=(1,)) if self.readout == "last" else sites
        return changed(self, times=sites.sizes[0]), after

    def structure_after(self, structure: Structure) -> Structure | None:
        return None if self.readout == "last" else structure

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        keys = jax.random.split(key, 3)
        sizes = {"weight": (outputs, inputs), "recurrent": (outputs, outputs), "bias": (outputs,)}
        return {name: jax.random.normal(k, size, dtype) for k, (name, size) in zip(keys, sizes.items(), strict=True)}

    def apply(self, params: Params, signals: Float[jax.Array, "n t m"]) -> Float[jax.Array, "n t2 width"]:
        return self.apply_with(params, signals)

    def apply_with(
        self, params: Params, signals: jax.Array, structure: Structure | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        U, W, b = (params[name] for name in ("weight", "recurrent", "bias"))
        if not self.trained:
            U, W, b = jax.lax.stop_gradient((U, W, b))
        scale = [size / np.sqrt(n) for size, n in ((self.input_std, U.shape[1]), (self.weight_std, len(W)))]
        given = scale[0] * jnp.matmul(signals, U.T, precision="highest") + self.bias_std * b
        there = jnp.ones(signals.shape[:2], signals.dtype) if structure is None else structure.mask

        def step(h: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            given, there = now
            after = self.activation(scale[1] * jnp.matmul(h, W.T, precision="highest") + given)
            h = jnp.where(there[:, None] > 0, after, h)
            return h, h

        last, states = jax.lax.scan(step, jnp.zeros_like(given[:, 0]), (jnp.moveaxis(given, 1, 0), there.T))
        return last[:, None] if self.readout == "last" else jnp.moveaxis(states, 0, 1)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return self._encoded(signal)[1:]

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        before, after, memo = self._encoded(signal)
        last = memo.last.astype(int)
        at = (lambda v: jnp.take_along_axis(v, last, 0)) if self.readout == "last" else (lambda v: v)
        own = Variance(*map(at, before))
        return (
            after,
            None if isinstance(self.activation, Identity) else lambda: mean_share(self.activation, own, after),
            memo,
        )

    def _encoded(self, signal: Variance) -> tuple[tuple[jax.Array, jax.Array], Variance, _Memo]:
        """Return the variance before the activation, that after it as the readout takes it, and the memo."""
        times = len(signal.value)
        mask = jnp.ones_like(signal.value) if signal.structure is None else signal.structure.mask.T
        mask = mask.astype(signal.value.dtype)
        first = jnp.argmax(mask, axis=0)[None]
        filled = [jnp.where(mask > 0, v, jnp.take_along_axis(v, first, 0)) for v in signal[:2]]
        given, bias = weigh(Variance(*filled), self.input_std), variance_of(jnp.asarray(self.bias_std, mask.dtype))

        def step(h: Variance, now: Any) -> tuple[Variance, Any]:
            (value, exponent), there = now
            parts = weigh(h, self.weight_std), Variance(value, exponent), bias
            z, shares = add_all([Variance(*jnp.broadcast_arrays(*part[:2], value)[:2]) for part in parts])
            after, memo = self.activation.encode(z)
            kept = [jnp.where(there > 0, new, old) for new, old in zip(after[:2], h[:2], strict=True)]
            return Variance(*kept), (z[:2], tuple(kept), tuple(shares), memo)

        zero = Variance(jnp.zeros_like(mask[0]), jnp.zeros_like(signal.exponent[0]))
        before, after, shares, memo = jax.lax.scan(step, zero, (given[:2], mask))[1]
        there = jnp.where(mask > 0, jnp.arange(times)[:, None], 0).astype(mask.dtype)
        seen = jax.lax.cummax(there, axis=0)
        memo = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2), memo)
        found = _Memo(shares, memo, jnp.concatenate([seen[:1], seen[:-1]]), mask, seen[-1:])
        if self.readout == "last":
            after = [jnp.take_along_axis(v, seen[-1:].astype(int), 0) for v in after]
        return before, Variance(*after), found

    def pair(self, x: _Memo, y: _Memo, state: PairState) -> PairState:
        """Scan over the times of the first input; a step has all times of the second, (1, T', ..)."""
        beside = state.tangent.ndim - 2
        layer = Activate(self.activation, refined=self.refined)
        rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -beside - 2, 0), x._replace(last=x.mask))
        rows = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, leaf.ndim - beside - 1), rows)
        at = y.before.astype(int)

        def step(h: PairState, now: Any) -> tuple[PairState, PairState]:
            own, given = now
            h_before = jax.tree.map(lambda v: jnp.take_along_axis(v, jnp.broadcast_to(at, v.shape), 1), h)
            z = self._summed(own.shares, y.shares, h_before, given)
            after = layer.pair(own.activation, y.activation, z)
            h = jax.tree.map(lambda new, old: jnp.where(own.mask > 0, new, old), after, h)
            return h, h

        each = jax.tree.map(lambda v: v[:, None], state)
        start = PairState(Correlation(*[jnp.ones_like(each.tangent[0])] * 2), jnp.zeros_like(each.tangent[0]))
        states: PairState = jax.tree.map(lambda v: v[:, 0], jax.lax.scan(step, start, (rows, each))[1])
        if self.readout == "all":
            return states
        ends = [memo.last.astype(int) for memo in (x, y)]
        return jax.tree.map(lambda v: _at(_at(v, ends[0], 0), ends[1], 1), states)  # type: ignore[no-any-return]

    def _summed(self, x: Any, y: Any, h: PairState, given: PairState) -> PairState:
        """Return the state before the activation from those of the state before and of the input."""
        correlation = sum_signals(x, y, (h.correlation, given.correlation))
        tangent = x[0] * y[0] * h.tangent + x[1] * y[1] * given.tangent
        return PairState(correlation, tangent + correlation.rho if self.trained else tangent)

    @property
    def numbers_per_input(self) -> int:
        return 6 + self.activation.numbers_per_input

    @property
    def depth(self) -> int:
        return 1

    def activations(self) -> Iterator[Activation]:
        yield self.activation

    def traits(self, before: Traits, path: str) -> Traits:
        linear = isinstance(self.activation, Identity)
        return Traits(gaussian=linear, centred=linear, random=True)

    def count(self, shape: Shape) -> int:
        return int((shape[0] + shape[1] + 1) * shape[1])

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        outputs, own = np.shape(params["weight"])[axes:]
        sizes = [np.shape(params[name])[axes:] for name in ("recurrent", "bias")]
        if (inputs is not None and own != inputs) or sizes != [(outputs, outputs), (outputs,)]:
            raise ValueError("sizes that do not fit")
        return int(outputs)

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        """Enter the range before the activation over all times."""
        x = interpreted(deviation_of)(signal) * float(self.input_std)
        least, most = np.hypot(x.min(), float(self.bias_std)), np.hypot(x.max(), float(self.bias_std))
        low, high = least, most
        for _ in range(self.times - 1):
            h = interpreted(deviation_of)(self.activation.second_moment(_grid(low, high))) * float(self.weight_std)
            wider = min(low, np.hypot(least, h.min())), max(high, np.hypot(most, h.max()))
            if wider == (low, high):
                break
            low, high = wider
        return Activate(self.activation).survey(_grid(low, high, max(len(x), 2)), None, path, ranges)

    def map_activations(self, change: Change, path: tuple[Any, ...]) -> Recurrent:
        return changed(self, activation=change(self.activation, path))

    def freeze(self) -> Recurrent:
        return changed(self, trained=False)

    def standardise(self) -> Layer:
        raise ValueError("Recurrent has the NTK parameterisation only; leave parameterization out.")

    def without_refinement(self) -> Recurrent:
        return changed(self, refined=False)


def _grid(low: float, high: float, count: int = _GRID) -> Variance:
    return interpreted(variance_of)(np.linspace(low, high, count))  # type: ignore[no-any-return]


def _at(array: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Return the array at one place of an axis, another for every input."""
    shape = [1 if k == axis else n for k, n in enumerate(array.shape)]
    return jnp.take_along_axis(array, jnp.broadcast_to(index, shape), axis)
