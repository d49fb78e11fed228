"""Self-attention: every site averages the signals of all sites, with weights from scores of pairs of signals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Memo
from widelimit.activations.closed.linear import correlate_linear_pieces
from widelimit.architecture.layers import Affine, Dense, written
from widelimit.architecture.mixing import correlation_of_sums
from widelimit.architecture.sites import Sites
from widelimit.architecture.state import Mean, PairState, Params, Ranges, Scalar, Shape
from widelimit.architecture.structure import Structure
from widelimit.interpreter import interpreted
from widelimit.pytrees import changed, pytree
from widelimit.series import safe_divide, safe_sqrt
from widelimit.shapes import Float
from widelimit.signals import (
    Correlation,
    Variance,
    deviation_of,
    largest_exponent,
    power_of_two,
    relative_deviation,
    variance_of,
    within,
)

SCORES = ("softmax", "identity", "relu")
SCALINGS = ("d", "sqrt_d")
_AT_ONCE = 2**17
"""Entries of pairs of scores that are computed at once."""
_STDS = ("query_std", "key_std", "value_std", "output_std")


class _Memo(NamedTuple):
    """The memo of an input has its weights, over the root of the mean square after the average."""

    weights: jax.Array
    """(keys, *S, n): at each site, weights times deviations of all sites."""
    total: jax.Array
    """(*S, n): the sum of these."""
    spread: jax.Array
    """(*S, n): sum_ij M_i M_j gap_ij/2, which the average loses of the square of that sum."""
    dense: Memo
    """The shares of average and bias."""


class _Pairs(NamedTuple):
    """The pairs of sites have 1 - rho, 1 + rho and Theta/(s s') as matrices (batch, sites, sites)."""

    one_minus: jax.Array
    one_plus: jax.Array
    tangent: jax.Array

    @property
    def rho(self) -> jax.Array:
        return (self.one_plus - self.one_minus) / 2


@final
@pytree
@dataclass(frozen=True)
class Attention(Affine):
    """The map is a(p) -> output_std/sqrt(heads d) sum_h O_h sum_i phi(G_h(p, .))_i V_h a(i) + bias_std b.

    Q, K, V a of each head are query_std, key_std, value_std/sqrt(width) times Gaussian matrices with d = head_size
    rows, and phi is the softmax over i, the identity or relu. Every matrix is trained (NTK parameterisation).

    scaling="d": G = (Q a(p)).(K a(i))/d with tied matrices, K a multiple of Q, as the scores of independent ones tend
        to 0. At infinite width, d and width, scores are numbers, A = phi(query_std key_std Sigma(p, i)), heads are all
        alike, and with v = value_std output_std: Sigma <- v^2 A Sigma A'^T + bias_std^2, Theta <- v^2 A Theta A'^T +
        2 v^2 A Sigma A'^T + bias_std^2. What is learned through queries and keys is of order 1/d and vanishes.
    scaling="sqrt_d": G = (Q a(p)).(K a(i))/sqrt(d), Q and K independent. With infinitely many heads, scores are
        Gaussian of covariance c Sigma(p, q) Sigma(i, j), c = (query_std key_std)^2, and Sigma(p, q) <- v^2 sum_ij
        E[phi(G_pi) phi(G_qj)] Sigma(i, j) + bias_std^2. Theta is 2 of these sums, sum_ij E[phi phi] Theta(i, j), and
        through queries and keys c v^2 sum_ij E[phi' phi'] Sigma(i, j) (2 Sigma(p, q) Sigma(i, j) + Theta(p, q)
        Sigma(i, j) + Sigma(p, q) Theta(i, j)). For the identity E[phi phi] = c Sigma(p, q) Sigma(i, j), for relu it is
        the arc-cosine kernel, entry by entry: (sites)^4 numbers a pair of inputs. Finitely many heads have no Gaussian
        limit (arXiv 2506.00846). The softmax has no closed form, and is refused: samples of a pair's scores would give
        matrices that are not positive semi-definite.
    Source: Hron et al. 2020, arXiv 2006.10540; every constant here is that of finite networks.

    1 - rho is right to some eps times the gaps between the sites of an input, and a softmax to eps times the largest
    score: a kinked activation behind attention keeps about the root of that in Theta of near duplicates. With scores
    of both signs (identity) averages may cancel; then eps times the sum of absolute weights squared is lost.

    Args:
        scores: "softmax", "identity" or "relu".
        scaling: "d" or "sqrt_d".
        query_std, key_std, value_std, output_std: > 0. Only query_std key_std and value_std output_std count.
        bias_std: >= 0, of a bias added to the output.
        causal: site p reads sites i <= p only; for sequences.
        heads, head_size: of finite networks; both tend to infinity. About sqrt(outputs) each unless given, so that
            heads head_size is the width after the layer, as usual.

    Raises:
        ValueError, TypeError: a value out of range; the softmax over sqrt_d.
    """

    scores: str = field(default="softmax", metadata={"static": True})
    scaling: str = field(default="d", metadata={"static": True})
    query_std: Scalar = 1.0
    key_std: Scalar = 1.0
    value_std: Scalar = 1.0
    output_std: Scalar = 1.0
    bias_std: Scalar = 0.0
    causal: bool = field(default=False, metadata={"static": True})
    heads: int | None = field(default=None, metadata={"static": True}, kw_only=True)
    head_size: int | None = field(default=None, metadata={"static": True}, kw_only=True)
    trained: bool = field(default=True, metadata={"static": True}, init=False)
    sites: Sites | None = field(default=None, metadata={"static": True}, init=False)
    """Set by `network`, which knows the sites before the layer."""
    mixes_sites: ClassVar[bool] = True
    sitewise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        validation.choice("scores", self.scores, SCORES)
        validation.choice("scaling", self.scaling, SCALINGS)
        for name in _STDS:
            validation.deviation(name, getattr(self, name))
        validation.deviation("bias_std", self.bias_std, zero=True)
        validation.flag("causal", self.causal)
        for name in ("heads", "head_size"):
            if getattr(self, name) is not None:
                validation.integer(name, getattr(self, name), at_least=1)
        if (self.scores, self.scaling) == ("softmax", "sqrt_d"):
            raise ValueError(
                'scores="softmax" with scaling="sqrt_d" has no closed form, and sampled scores of single pairs give '
                'matrices that are not positive semi-definite; write scaling="d", or scores="relu" or "identity".'
            )

    def __repr__(self) -> str:
        usual: dict[str, Any] = {"scores": "softmax", "scaling": "d", "causal": False, "heads": None, "head_size": None}
        texts = [f"{name}={v!r}" for name, given in usual.items() if (v := getattr(self, name)) != given]
        numbers = written("", {name: (getattr(self, name), 1.0) for name in _STDS} | {"bias_std": (self.bias_std, 0.0)})
        text = f"Attention({', '.join(filter(None, [*texts, numbers[1:-1]]))})"
        return text if self.trained else f"Frozen({text})"

    @property
    def placed(self) -> Sites:
        """Return the sites of the network's inputs. Raises: ValueError: no network has set them."""
        if self.sites is None:
            raise ValueError("Attention works within wl.network(..., inputs=wl.Sequence(length, features)).")
        return self.sites

    def place(self, sites: Sites, path: str) -> tuple[Attention, Sites]:
        if not sites.sizes:
            raise ValueError(
                f"{path}: Attention needs inputs with sites, such as inputs=wl.Sequence(length, features)."
            )
        if self.causal and len(sites.sizes) > 1:
            raise ValueError(f"{path}: causal attention needs sites in a row, and the inputs have {sites.sizes}.")
        return changed(self, sites=sites), sites

    def freeze(self) -> Attention:
        return changed(self, trained=False)

    def standardise(self) -> Attention:
        raise ValueError('Attention has the NTK parameterisation only; leave parameterization="standard" out.')

    # The finite map.

    def _sizes(self, outputs: int) -> tuple[int, int]:
        """Return the numbers of heads and of rows of their matrices."""
        usual = math.ceil(math.sqrt(outputs))
        return self.heads or usual, self.head_size or usual

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        heads, size = self._sizes(outputs)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("query", "key", "value"), (heads, size, inputs))
        shapes |= {"output": (outputs, heads, size), "bias": (outputs,)}
        keys = zip(shapes, jax.random.split(key, len(shapes)), strict=True)
        drawn = {name: jax.random.normal(own, shapes[name], dtype) for name, own in keys}
        return {name: leaf for name, leaf in drawn.items() if name != "key" or self.scaling == "sqrt_d"}

    def count(self, shape: Shape) -> int:
        heads, size = self._sizes(shape[1])
        return int(heads * size * ((2 + (self.scaling == "sqrt_d")) * shape[0] + shape[1]) + shape[1])

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        heads, size, own = np.shape(params["query"])[axes:]
        outputs = np.shape(params["bias"])[axes]
        within_heads = {np.shape(leaf)[axes:] for name, leaf in params.items() if name not in ("output", "bias")}
        names = {"query", "value", "output", "bias"} | ({"key"} if self.scaling == "sqrt_d" else set())
        fits = set(params) == names and len(within_heads) == 1
        if (
            not fits
            or (inputs is not None and own != inputs)
            or np.shape(params["output"])[axes:] != (outputs, heads, size)
        ):
            raise ValueError("sizes that do not fit")
        return int(outputs)

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *sites width2"]:
        return self.apply_with(params, signals)

    def apply_with(
        self,
        params: Params,
        signals: jax.Array,
        structure: Structure | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        params = params if self.trained else jax.lax.stop_gradient(params)
        flat = signals.reshape(len(signals), -1, signals.shape[-1])
        heads, size = params["query"].shape[-3:-1]
        root = math.sqrt(flat.shape[-1])

        def project(name: str, std: Scalar) -> jax.Array:
            return jnp.einsum("npc,hdc->nhpd", flat, params[name], precision="highest") * (std / root)

        queries, values = project("query", self.query_std), project("value", self.value_std)
        keys = project("key" if self.scaling == "sqrt_d" else "query", self.key_std)
        over = size if self.scaling == "d" else math.sqrt(size)
        scores = jnp.matmul(queries, jnp.swapaxes(keys, 2, 3), precision="highest") / over
        read = jnp.matmul(self._weights(scores, self._allowed(structure)), values, precision="highest")
        after = jnp.einsum("nhpd,ohd->npo", read, params["output"], precision="highest")
        after = after * (self.output_std / math.sqrt(heads * size)) + self.bias_std * params["bias"]
        return jnp.reshape(after, (*signals.shape[:-1], after.shape[-1]))

    def _allowed(self, structure: Structure | None) -> jax.Array:
        """Return True where a site reads another, (n or 1, sites, sites): not masked, and not later if causal."""
        count = math.prod(self.placed.sizes)
        allowed = jnp.tril(jnp.ones((1, count, count), bool)) if self.causal else jnp.ones((1, count, count), bool)
        return allowed if structure is None else allowed & (structure.mask[:, None, :] > 0)

    def _weights(self, scores: jax.Array, allowed: jax.Array) -> jax.Array:
        """Return phi of scores (n, .., sites, sites), 0 where a site may not be read."""
        allowed = allowed.reshape(len(allowed), *[1] * (scores.ndim - 3), *allowed.shape[1:])
        if self.scores == "softmax":
            highest = jax.lax.stop_gradient(jnp.max(jnp.where(allowed, scores, -jnp.inf), axis=-1, keepdims=True))
            powers = jnp.where(allowed, jnp.exp(jnp.where(allowed, scores - highest, 0)), 0)
            return safe_divide(powers, jnp.sum(powers, axis=-1, keepdims=True))
        return jnp.where(allowed, scores if self.scores == "identity" else jax.nn.relu(scores), 0)

    # The infinite map.

    @property
    def _dense(self) -> Dense:
        """Return the affine map after the average."""
        weight = self.value_std * self.output_std
        if self.scores != "softmax":
            weight = weight * self.query_std * self.key_std
        return changed(Dense(), weight_std=weight, bias_std=self.bias_std, trained=self.trained)

    @property
    def numbers_per_input(self) -> int:
        return 4 + (math.prod(self.sites.sizes) if self.sites else 0)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        if signal.among is None:
            raise ValueError("a network with attention encodes pairs of sites; this one has none.")
        sizes = self.placed.sizes
        exponent = largest_exponent(signal, tuple(range(len(sizes))))
        deviations = relative_deviation(signal, exponent).reshape(-1, exponent.shape[-1]).T
        own = _matrices(signal.among, len(sizes))
        power = exponent.reshape(-1)
        weights = self._averaging(deviations, own.rho, power, self._allowed(signal.structure))
        spread = self._mixed(weights, weights, own, own=True) / 2
        total = jnp.sum(weights, axis=-2)
        square = jnp.maximum(total**2 - 2 * spread, 0)
        root = safe_sqrt(square)
        if self.scaling == "sqrt_d":
            square = square * deviations**2 / (2 if self.scores == "relu" else 1)
        powers = jnp.broadcast_to((power if self.scores == "softmax" else 3 * power)[:, None], square.shape)
        after, dense = self._dense.encode(Variance(*(v.T.reshape(signal.value.shape) for v in (square, powers))))
        shares = jnp.moveaxis(safe_divide(weights, root[:, None]), 0, -1).reshape(-1, *signal.value.shape)
        ratios = safe_divide(total, root), safe_divide(spread, root**2)
        total, spread = (ratio.T.reshape(signal.value.shape) for ratio in ratios)
        return after, _Memo(shares, total, spread, dense)

    def _averaging(self, deviations: jax.Array, rho: jax.Array, power: jax.Array, allowed: jax.Array) -> jax.Array:
        """Return the weights times deviations (n, keys, sites), from deviations (n, sites) over 2^power."""
        if self.scaling == "sqrt_d":
            return jnp.where(jnp.swapaxes(allowed, 1, 2), deviations[:, :, None] ** 2, 0)
        scores = deviations[:, :, None] * deviations[:, None, :] * rho
        if self.scores == "softmax":
            largest = np.finfo(scores.dtype).maxexp // 2
            scale = power_of_two(jnp.clip(2 * power, -largest, largest), scores.dtype)
            scores = scores * (jnp.asarray(self.query_std * self.key_std, scores.dtype) * scale)[:, None, None]
        return jnp.swapaxes(self._weights(scores, allowed), 1, 2) * deviations[:, :, None]

    def _mixed(self, x: jax.Array, y: jax.Array, pairs: _Pairs, *, own: bool = False) -> jax.Array:
        """Compute sum_ij x_i(p) y_j(q) gap_ij for all p, q, or (n, sites) for p = q of one input."""
        gap = pairs.one_minus
        if self.scaling == "sqrt_d":
            gap = gap * pairs.one_plus  # of squares
            if self.scores == "relu":
                after = correlate_linear_pieces(0.5, Correlation(pairs.one_minus, pairs.one_plus))[0]
                gap = after.one_minus + (1 - after.one_minus) * pairs.one_minus
        if own:
            return jnp.sum(x * _product(gap, y), axis=-2)
        return _sum_over(x, gap, y)

    def pair(self, x: _Memo, y: _Memo, state: PairState) -> PairState:
        """1 - rho = (M - M')^2/2 + sum_ij M_i M'_j gap_ij - spread - spread', an energy distance."""
        sizes = self.placed.sizes
        pairs = _matrices(state, len(sizes))
        batch = state.tangent.shape[2 * len(sizes) :]
        u, v = (_batched(memo.weights, len(batch)) for memo in (x, y))
        if self.scaling == "sqrt_d" and self.scores == "relu":
            mixed, tangent = self._relu_of_pairs(u, v, pairs)
        else:
            mixed, tangent = self._mixed(u, v, pairs), jnp.zeros(())
        mixed, tangent = (_sitewise(array, sizes, batch) if array.ndim else array for array in (mixed, tangent))
        one_minus = correlation_of_sums(x, y, mixed).one_minus
        if self.scaling == "d":
            tangent = _sitewise(_sum_over(u, pairs.tangent, v), sizes, batch)
        elif self.scores == "identity":
            mixing = _sitewise(_sum_over(u, pairs.rho * pairs.tangent, v), sizes, batch)
            rho, tangent = state.correlation.rho, 2 * state.correlation.rho * mixing + (1 - one_minus) * state.tangent
            one_minus = within(state.correlation.one_minus + rho * one_minus)
            tangent = tangent + (2 * (1 - one_minus) if self.trained else 0)
        correlation = Correlation(one_minus, 2 - one_minus)
        own = correlation.rho if self.trained else 0
        return self._dense.pair(x.dense, y.dense, PairState(correlation, tangent + own))

    def _relu_of_pairs(self, u: jax.Array, v: jax.Array, pairs: _Pairs) -> tuple[jax.Array, jax.Array]:
        """Compute sum_ij u_i v_j of gaps and of Theta for all p, q: few pairs (p, q) at once, in a core's cache."""
        count = pairs.tangent.shape[-1]

        def one(at: jax.Array) -> tuple[jax.Array, jax.Array]:
            p, q = at // count, at % count
            minus, plus, t = (array[..., p, q][..., None, None] for array in pairs)
            product = (plus - minus) / 2
            same, other = (jnp.where(product >= 0, *pair) for pair in (pairs[:2], pairs[1::-1]))
            near, size = jnp.minimum(minus, plus), jnp.abs(product)
            after, slope = correlate_linear_pieces(0.5, Correlation(near + size * same, near + size * other))
            own = t + 2 * product if self.trained else t
            weight = u[..., :, p][..., :, None] * v[..., :, q][..., None, :]
            even = 1 - after.one_minus
            gap = after.one_minus + even * pairs.one_minus
            theta = even * pairs.tangent + slope * pairs.rho * (pairs.rho * own + product * pairs.tangent)
            return jnp.sum(weight * gap, axis=(-1, -2)), jnp.sum(weight * theta, axis=(-1, -2))

        at_once = max(1, _AT_ONCE // pairs.tangent.size)
        found = jax.lax.map(one, jnp.arange(count**2), batch_size=min(at_once, count**2))
        gaps, thetas = (jnp.moveaxis(array, 0, -1).reshape(pairs.tangent.shape) for array in found)
        return gaps, thetas

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        """Return a grid of deviations after the layer: from 0, where sites cancel, to the largest of any average."""
        largest = interpreted(deviation_of)(signal).max()
        if self.scores != "softmax":
            largest = largest**3 * math.prod(self.placed.sizes)
        grid = np.linspace(0, largest, len(signal.value))
        return interpreted(_after)(self._dense, interpreted(variance_of)(grid)), None


def _after(dense: Dense, signal: Variance) -> Variance:
    return dense.encode(signal)[0]


def _product(array: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(array, y, precision="highest")


def _sum_over(x: jax.Array, array: jax.Array, y: jax.Array) -> jax.Array:
    """Compute sum_ij x_i(p) array_ij y_j(q), (batch, sites, sites)."""
    return _product(_product(jnp.swapaxes(x, -1, -2), array), y)


def _matrices(state: PairState, axes: int) -> _Pairs:
    """Return a state (*S, *S, *batch) as matrices (*batch, sites, sites)."""

    def flat(array: jax.Array) -> jax.Array:
        count = math.prod(array.shape[:axes])
        return jnp.moveaxis(array.reshape(count, -1, *array.shape[2 * axes :]), (0, 1), (-2, -1))

    return _Pairs(*map(flat, (*state.correlation, state.tangent)))


def _batched(weights: jax.Array, batch: int) -> jax.Array:
    """Return weights (keys, *S, 1.., *batch) or (keys, 1.., *S, *batch) as matrices (*batch, keys, sites)."""
    flat = weights.reshape(len(weights), -1, *weights.shape[weights.ndim - batch :])
    return jnp.moveaxis(flat, (0, 1), (-2, -1))


def _sitewise(array: jax.Array, sizes: tuple[int, ...], batch: tuple[int, ...]) -> jax.Array:
    """Return matrices (*batch, sites, sites) as an array (*S, *S, *batch)."""
    return jnp.moveaxis(array, (-2, -1), (0, 1)).reshape(*sizes, *sizes, *batch)
