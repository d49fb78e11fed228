"""The Jacobian of a parameter, at each of its uses, is a sum over positions of products of two signals.

J[n, c] = sum_s G[n, c, s] (x) A[n, s]: the signal A multiplies the parameter at position s (a token, a pixel), and the
backward signal G is the derivative of output c by the result there. Inner products of J are computed from A and G
("structured derivatives", Novak, Sohl-Dickstein and Schoenholz 2022), or from J of this one parameter, whichever costs
less.

Arrays may be of any library with NumPy's einsum: `xp` is that module (numpy, jax.numpy, torch).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from widelimit.kernels.empirical.outputs import PAIRS, Output

SCRATCH = 2**26
"""Bytes of the products in one contraction, about; more are computed for some rows on the left at a time."""


@final
@dataclass(frozen=True)
class Affine:
    """The parameter is the weight of z = A W^T: signals A (n, S, I) and backward signals G (n, c, S, O)."""

    signals: Any
    backward: Any


@final
@dataclass(frozen=True)
class Lookup:
    """The parameter is a table of `rows` rows, one of which each position takes: tokens (n, S), G (n, c, S, O)."""

    tokens: Any
    backward: Any
    rows: int


@final
@dataclass(frozen=True)
class Explicit:
    """The factor is the Jacobian itself, (n, c, P)."""

    jacobian: Any


Factor = Affine | Lookup | Explicit


class Use(NamedTuple):
    """The sizes of one use of a parameter are known before anything is computed; a bias or gain has 1 input."""

    positions: int
    inputs: int
    outputs: int

    def order(
        self, n: int, m: int, c: int, output: Output, *, same: bool = False, jacobian: bool = True
    ) -> tuple[str, float, float]:
        """Return the order of fewest flops for an `Affine`, its flops, and numbers in memory, for n x m pairs of rows.

        The orders are "signals": inner products of A and of G at all pairs of positions; "mixed" (all pairs of
        outputs): inner products of A times G of one side, then times G of the other; "jacobian": J of both sides, then
        their inner products.

        same: both sides are the same rows. jacobian: the order "jacobian" is a choice.
        """
        s, i, o = self
        pairs, each = 2.0 * n * m, 2.0 * c * s * i * o * (n if same else n + m)
        products = pairs * c * i * o * (c if output == "full" else 1)
        found = [self.signals(n * m, c, output)]
        if jacobian:
            found.append(("jacobian", each + products, float((n + m) * c * i * o)))
        return min(found, key=lambda order: order[1])

    def signals(self, pairs: float, c: int, output: Output, *, times: int = 1) -> tuple[str, float, float]:
        """Return the order of fewest flops that forms no Jacobian, "signals" or "mixed", as `order` does.

        times: number of products of backward signals, for outputs that are summed afterwards.
        """
        s, i, o = self
        kept = {"full": c * c, "diagonal": c, "trace": 1}[output]
        orders = [("signals", s * s * c * o * (c if output == "full" else 1), s * s * (1 + kept))]
        if output == "full":
            orders.append(("mixed", s * c * o * (s + c), s * (s + c * o)))
        name, flops, held = min(orders, key=lambda order: order[1])
        return name, 2.0 * pairs * (s * s * i + times * flops), float(pairs) * held * times


def numbers(use: Use, c: int) -> int:
    """Return how many numbers are stored for one row: its Jacobian or both signals, whichever is less."""
    s, i, o = use
    return min(c * i * o, s * (i + c * o))


def use_of(factor: Factor) -> Use:
    """Return the sizes of a factor."""
    if isinstance(factor, Explicit):
        return Use(1, 1, int(factor.jacobian.shape[2]))
    s, o = (int(k) for k in factor.backward.shape[2:])
    if isinstance(factor, Affine):
        return Use(s, int(factor.signals.shape[2]), o)
    return Use(s, factor.rows, o)


def jacobian(factor: Factor, xp: Any) -> Any:
    """Compute J, (n, c, P), P in the order of the parameter."""
    if isinstance(factor, Explicit):
        return factor.jacobian
    back = factor.backward
    n, c = back.shape[:2]
    if isinstance(factor, Lookup):
        one = factor.tokens.reshape(-1)[:1]  # in its library and on its device
        places = xp.cumsum(xp.ones_like(xp.broadcast_to(one, (factor.rows,))), 0) - 1
        taken = _equal(places, factor.tokens, xp, back)
        return xp.einsum("vns,ncso->ncvo", taken, back).reshape(n, c, -1)
    return xp.einsum("ncso,nsi->ncoi", back, factor.signals).reshape(n, c, -1)


def contract(left: Factor, right: Factor, output: Output, xp: Any, *, itself: bool = False) -> Any:
    """Compute sum_p J[n, a, p] J'[m, b, p] of one parameter: (n, m, c, c), (n, m, c), or the sum over a = b, (n, m).

    Two uses of one parameter may be of different kinds. With `itself` row n of one side meets row n of the other only:
    (n, c, c), (n, c) or (n,).
    """
    n = _rows(left)
    order, _, held = _order(left, right, output, itself=itself)
    if isinstance(left, Lookup) and isinstance(right, Affine):
        found = contract(right, left, output, xp, itself=itself)
        if itself:
            return found.swapaxes(1, 2) if output == "full" else found
        return found.swapaxes(0, 1).swapaxes(2, 3) if output == "full" else found.swapaxes(0, 1)
    if isinstance(left, Affine) and isinstance(right, Lookup):
        pairs = [(_part(left, i, 1), _part(right, i, 1) if itself else right) for i in range(n)]
        found = xp.concatenate([_contract_table(a, b, output, xp) for a, b in pairs])
        return found[:, 0] if itself else found
    if order == "jacobian":
        return _contract_jacobians(left, right, output, xp, itself, held)
    step = max(1, int(n * SCRATCH // (held * _itemsize(left) + 1)))
    if step >= n:
        return _contract_signals(left, right, order, output, xp, itself)
    parts = []
    for i in range(0, n, step):
        there = _part(right, i, step) if itself else right
        parts.append(_contract_signals(_part(left, i, step), there, order, output, xp, itself))
    return xp.concatenate(parts)


def _contract_jacobians(left: Factor, right: Factor, output: Output, xp: Any, itself: bool, held: float) -> Any:
    """Form both Jacobians, for some of the weight's outputs at a time, and take their inner products."""
    rule = _rule(PAIRS[output], itself)
    if not (isinstance(left, Affine) and isinstance(right, Affine)):
        a = jacobian(left, xp)
        return xp.einsum(rule, a, a if right is left else jacobian(right, xp))
    size = use_of(left).outputs
    step = max(1, int(size * SCRATCH // (held * _itemsize(left) + 1)))
    total: Any = 0
    for i in range(0, size, step):
        some = [Affine(f.signals, f.backward[:, :, :, i : i + step]) for f in (left, right)]
        a = jacobian(some[0], xp)
        total = total + xp.einsum(rule, a, a if right is left else jacobian(some[1], xp))
    return total


def _contract_table(left: Affine, right: Lookup, output: Output, xp: Any) -> Any:
    """Contract a weight's Jacobian at one row with that of the same numbers used as a table."""
    picked = left.backward[0][:, :, right.tokens]  # (c, S, m, T)
    inner = xp.einsum("si,mbti->smbt", left.signals[0], right.backward)
    rule = {"full": "asmt,smbt->mab", "trace": "asmt,smat->m", "diagonal": "asmt,smat->ma"}[output]
    return xp.einsum(rule, picked, inner)[None]


def _order(left: Factor, right: Factor, output: Output, *, itself: bool) -> tuple[str, float, float]:
    structured = isinstance(left, Affine | Lookup) and type(left) is type(right)
    if not structured:
        return "jacobian", 0.0, 0.0
    n, m, a, b = _rows(left), 1 if itself else _rows(right), use_of(left), use_of(right)
    mean = Use(math.isqrt(a.positions * b.positions), a.inputs, a.outputs)
    return mean.order(n, m, _outputs(left), output, same=left is right)


def _contract_signals(left: Any, right: Any, order: str, output: Output, xp: Any, itself: bool) -> Any:
    g, h = left.backward, right.backward
    if isinstance(left, Lookup):
        if itself:
            alike = xp.asarray(left.tokens[:, :, None] == right.tokens[:, None, :], dtype=g.dtype)
        else:
            alike = _equal(left.tokens, right.tokens, xp, g)
    else:
        alike = xp.einsum(_rule("nsi,mti->nsmt", itself), left.signals, right.signals)
    if order == "mixed":
        mixed = xp.einsum(_rule("nsmt,mbto->nsmbo", itself), alike, h)
        return xp.einsum(_rule("naso,nsmbo->nmab", itself), g, mixed)
    pairs = {"full": "naso,mbto->nsmtab", "trace": "naso,mato->nsmt", "diagonal": "naso,mato->nsmta"}[output]
    total = {"full": "nsmt,nsmtab->nmab", "trace": "nsmt,nsmt->nm", "diagonal": "nsmt,nsmta->nma"}[output]
    return xp.einsum(_rule(total, itself), alike, xp.einsum(_rule(pairs, itself), g, h))


def _rule(rule: str, itself: bool) -> str:
    """Return the rule where row m of the right side is row n of the left one."""
    if not itself:
        return rule
    return ",".join(
        "".join(dict.fromkeys(part)) for part in rule.replace("m", "n").replace("->", ",>").split(",")
    ).replace(",>", "->")


def _equal(left: Any, right: Any, xp: Any, like: Any) -> Any:
    """Return 1 where two indices agree, 0 elsewhere: the shape of one side, then that of the other."""
    return xp.asarray(left.reshape(*left.shape, *(1,) * right.ndim) == right, dtype=like.dtype)


def _rows(factor: Factor) -> int:
    return int((factor.jacobian if isinstance(factor, Explicit) else factor.backward).shape[0])


def _outputs(factor: Factor) -> int:
    return int((factor.jacobian if isinstance(factor, Explicit) else factor.backward).shape[1])


def _itemsize(factor: Any) -> int:
    return int(factor.backward.dtype.itemsize)


def _part(factor: Any, start: int, step: int) -> Any:
    """Return some rows of a factor with signals."""
    rows = slice(start, start + step)
    if isinstance(factor, Lookup):
        return Lookup(factor.tokens[rows], factor.backward[rows], factor.rows)
    return Affine(factor.signals[rows], factor.backward[rows])
