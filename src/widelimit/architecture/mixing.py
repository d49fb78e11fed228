"""Weighted sums over the sites of an input: Sigma <- A Sigma A'^T, A a matrix that depends on the input alone.

Graph aggregation and attention are of this kind; an average over all sites is a matrix of one row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from widelimit.architecture.sites import first_of_pair, pairs_of_equal_sites, second_of_pair
from widelimit.architecture.state import PairState
from widelimit.series import safe_divide, safe_sqrt
from widelimit.signals import Correlation, Variance, largest_exponent, relative_deviation, within


class MixMemo(NamedTuple):
    """The sums of an input over its sites, as `mix_pairs` needs them."""

    weights: jax.Array
    """(T, I, n): A_it s_t/s'_i, the deviations of what is added over that of the sum."""
    total: jax.Array
    """(I, n): sum_t of these."""
    spread: jax.Array
    """(I, n): sum_tu weights_t weights_u (1 - rho_tu)/2."""


def mix(signal: Variance, matrix: jax.Array) -> tuple[Variance, MixMemo]:
    """Return the variance of a'_i = sum_t A_it a_t, with the states of its pairs of sites, and the memo of pairs.

    Args:
        signal: (T, n), with `among`; masked sites are 0.
        matrix: A, (T, I, n), entries of the size of 1.
    """
    if signal.among is None:
        raise ValueError("a layer that mixes sites encodes pairs of sites; this signal has none.")
    exponent = largest_exponent(signal, (0,))
    weights = matrix * relative_deviation(signal, exponent)[:, None]
    gaps = first_sum(first_of_pair(weights, 1, 1), signal.among.correlation.one_minus)
    spread = jnp.einsum("ji...,ij...->i...", weights, gaps, precision="highest") / 2
    total = jnp.sum(weights, axis=0)
    square = jnp.maximum(total**2 - 2 * spread, 0)
    root = safe_sqrt(square)
    memo = MixMemo(safe_divide(weights, root), safe_divide(total, root), safe_divide(spread, square))
    # Here, not by `with_sites`: gaps of nodes that coincide keep fewer digits there, where products round otherwise.
    x, y = (MixMemo(*(of(leaf, 1, 1) for leaf in memo)) for of in (first_of_pair, second_of_pair))
    among = with_itself(mix_pairs(x, y, signal.among))
    after = Variance(square, jnp.broadcast_to(exponent, square.shape)).normalise()
    return after._replace(among=among), memo


def with_itself(state: PairState) -> PairState:
    """Set the gap of a site with itself to 0, where sums over sites have left rounding in it."""
    axes = (state.tangent.ndim - 1) // 2
    own = pairs_of_equal_sites(state.tangent.shape[:axes], state.tangent.ndim)
    one_minus = jnp.where(own, 0, state.correlation.one_minus)
    return PairState(Correlation(one_minus, jnp.where(own, 2, state.correlation.one_plus)), state.tangent)


def correlation_of_sums(x: Any, y: Any, mixed: jax.Array) -> Correlation:
    """1 - rho = (M - M')^2/2 + sum_tu M_t M'_u (1 - rho_tu) - spread - spread': an energy distance.

    x, y: memos with `total`, M, and `spread`; mixed: the double sum.
    """
    one_minus = within((x.total - y.total) ** 2 / 2 + mixed - x.spread - y.spread)
    return Correlation(one_minus, 2 - one_minus)


def mix_pairs(x: MixMemo, y: MixMemo, state: PairState, *, tangent: bool = True) -> PairState:
    """Apply `correlation_of_sums`, and Theta <- A Theta A'^T.

    Right to the rounding of the gaps between sites: two products of matrices, where a Kronecker product takes T^2 more.
    Without `tangent` Theta is 0, and stays so.
    """
    correlation = correlation_of_sums(x, y, mean_over(x, y, state.correlation.one_minus))
    return PairState(correlation, mean_over(x, y, state.tangent) if tangent else state.tangent)


def mean_over(x: MixMemo, y: MixMemo, array: jax.Array) -> jax.Array:
    """Compute sum_tu x_ti y_uj array_tu for arrays (T, U, ..): two products of matrices."""
    mixed = first_sum(x.weights, array)
    return jnp.einsum("uj...,iu...->ij...", jnp.squeeze(y.weights, 1), mixed, precision="highest")


def first_sum(weights: jax.Array, array: jax.Array) -> jax.Array:
    """Compute sum_t weights_ti array_tu, weights (T, I, 1, ..) as pairs of sites have them."""
    return jnp.einsum("ti...,tu...->iu...", jnp.squeeze(weights, 2), array, precision="highest")


def mixed_mean(memo: MixMemo, mean: Any) -> jax.Array:
    """Return the mean of the sums over their root mean square, (I, n), from that before, (T, n)."""
    return jnp.sum(memo.weights * mean[:, None], axis=0)
