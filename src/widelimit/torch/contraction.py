"""The kernel of all rows is summed over parameters, each by pieces of its Jacobian or by pairs of positions.

`job_of` chooses the quicker way for a parameter, `run` adds its kernel.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from widelimit.kernels.empirical.factors import Affine, Explicit, Lookup, Use
from widelimit.torch.axes import OutputSplit
from widelimit.torch.jacobian import Factors
from widelimit.torch.products import outer_sums, product
from widelimit.torch.store import ALL, Store, plain
from widelimit.torch.uses import Place

PANEL, LEAST, PARTS = 512, 64, 8
"""Rows of a panel (whose products with all others are taken at once), at most and at least; panels of a triangle."""
CACHED = 2**20
"""Numbers of a Jacobian that are made at once, about: more do not fit in the processor's caches."""
WIDE = 2**18
"""Numbers of a row's Jacobian that are made at once, at most: enough for products to be fast."""
Labels = Callable[[str], str]
Piece = tuple[slice, slice]


class Job(NamedTuple):
    """A job is the kernel of one parameter: by pieces of its Jacobian, or by pairs of panels of rows."""

    place: Place
    how: str
    """"jacobian" or "pairs"."""
    pieces: tuple[Piece, ...]
    """Slices of the weight's outputs and inputs; none for "pairs"."""
    step: int
    """Rows of a panel."""
    flops: float


def panel(n: int, least: int = LEAST) -> int:
    """Return the rows of a panel of a triangle with n rows; half of each block on the diagonal is not needed."""
    return min(PANEL, max(least, -(-n // PARTS)))


def slices(n: int, step: int) -> list[slice]:
    """Cut n in parts of `step` at most."""
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def job_of(stores: tuple[Store, ...], place: Place, split: OutputSplit, room: float) -> Job:
    """Choose the way of fewest flops for one parameter, and pieces or panels that take `room` numbers at most."""
    store = stores[0]
    kinds = store.kinds[place]
    uses = [store.use(place, k) for k in range(len(kinds))]
    c, n, m = split.table.size, stores[0].n, stores[-1].n
    d, f, t = split.table.shape
    use, explicit = uses[0], kinds[0]["kind"] is Explicit
    rows = panel(n, -(-128 // max(1, use.positions)))  # of pairs; their products have 128 positions at least
    share, half = (1.0 if len(stores) == 2 else 0.5 * (1 + min(1, step / n)) for step in (panel(n), rows))
    made = 0.0 if explicit else sum(2.0 * c * math.prod(u) for u in uses) * sum(s.n for s in stores)
    jacobian = made + share * n * m * 2.0 * d * f * f * t * use.inputs * use.outputs
    pairs, between = math.inf, len(uses) ** 2
    if not any(kind["kind"] is Explicit for kind in kinds):
        mean = Use(sum(u.positions for u in uses) // len(uses), use.inputs, use.outputs)
        pairs = half * between * mean.order(n, m, c, split.output, jacobian=False)[1]
    forms = {(kind["kind"], *s.use(place, k)[1:]) for s in stores for k, kind in enumerate(s.kinds[place])}
    one = len(forms) == 1
    if one and jacobian <= pairs:
        columns = min(room / sum(s.n for s in stores), WIDE) / c
        pieces = tuple(_pieces(kinds[0], use, c, columns))
        return Job(place, "jacobian", pieces, PANEL, jacobian)
    numbers = sum(u.positions * (u.inputs + c * u.outputs) for u in uses)
    step = max(1, min(rows if len(stores) == 1 else PANEL, int(room // (4 * numbers)), max(s.n for s in stores)))
    return Job(place, "pairs", (), step, min(pairs, jacobian))


def _pieces(kind: Mapping[str, Any], use: Use, c: int, columns: float) -> Iterator[Piece]:
    """Cut a parameter in pieces whose Jacobian has at most `columns` columns, so that little is read more than once."""
    _, i, o = use
    if kind["kind"] is Explicit:
        yield from ((ALL, part) for part in slices(o, max(1, int(columns))))
        return
    units = 1 if kind["kind"] is Lookup else _units(kind, i)
    unit = i // units
    count = max(1.0, i * o / max(columns, 1))
    cuts = min(float(o), count, max(1.0, math.sqrt(count * c * o / i)))
    outs = slices(o, max(1, int(o / cuts)))
    width = max(1, int(columns / (unit * (outs[0].stop - outs[0].start))))
    for ins in slices(units, width):
        yield from ((out, ALL if kind["kind"] is Lookup else ins) for out in outs)


def _units(kind: Mapping[str, Any], inputs: int) -> int:
    """Return the number of inputs that pieces divide: those of an affine map, the channels of a convolution."""
    return inputs // math.prod(kind["windows"].kernel) if "windows" in kind else inputs


def made(store: Store, place: Place, piece: Piece, old: torch.Tensor | None = None) -> torch.Tensor:
    """Compute a piece of the Jacobian of all rows, (n, c, columns), summed over uses, in the memory of `old` if any."""
    outs, ins = piece
    found: Any = None
    for k in range(len(store.kinds[place])):
        s, i, o = store.use(place, k)
        kind = store.kinds[place][k]
        units = _units(kind, i)
        numbers = s * (len(range(o)[outs]) + len(range(units)[ins]) * (i // units))
        numbers = len(range(o)[ins]) if kind["kind"] is Explicit else numbers
        for rows in slices(store.n, max(1, 2 * CACHED // numbers)):
            factor: Any = plain(store.read(place, k, rows, outs, ins))
            whole = isinstance(factor, Explicit)
            back = factor.jacobian if whole else factor.backward
            signals: Any = None if whole else factor.signals if isinstance(factor, Affine) else _one_hot(factor)
            if found is None:
                shape = store.n, back.shape[1], back.shape[2] if whole else back.shape[3] * signals.shape[2]
                size = math.prod(shape)
                found = (back.new_empty(size) if old is None or old.numel() < size else old.view(-1)[:size]).view(shape)
            if k == 0 and not whole:
                outer_sums(back, signals, found[rows])
            elif k == 0:
                found[rows] = back
            else:
                found[rows] += back if whole else outer_sums(back, signals)
    return found


def _one_hot(factor: Any) -> torch.Tensor:
    """Return the tokens as signals, (n, S, rows)."""
    back = factor.backward
    found = back.new_zeros(len(back), back.shape[2], factor.rows)
    return found.scatter_(2, factor.tokens.long()[:, :, None], 1.0)


def grouped(jacobian: torch.Tensor, split: OutputSplit) -> torch.Tensor:
    """Reshape (n, c, P) to (d, n f, t P), with c = d f t outputs: d paired with themselves, f in full, t traced."""
    n, p = len(jacobian), jacobian.shape[2]
    d, f, t = split.table.shape
    order = split.table.reshape(-1)
    if (order[1:] < order[:-1]).any():
        jacobian = jacobian[:, torch.as_tensor(order, device=jacobian.device)]
    return jacobian.reshape(n, d, f, t * p).permute(1, 0, 2, 3).reshape(d, n * f, t * p)


def add_products(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor, split: OutputSplit, *, same: bool) -> None:
    """Add the inner products of two `grouped` Jacobians to the kernel; with `same` in its lower triangle only."""
    d, f, t = split.table.shape
    for a in slices(len(out), panel(len(out)) if same else PANEL):
        b = slice(0, a.stop if same else out.shape[1])
        for k in range(d):
            found = product(left[k, a.start * f : a.stop * f], right[k, : b.stop * f])
            block = found.reshape(a.stop - a.start, f, b.stop, f).transpose(1, 2)
            out[a, b][..., k].add_(block, alpha=1 / t)


def run(job: Job, stores: tuple[Store, ...], split: OutputSplit, out: torch.Tensor) -> Iterator[None]:
    """Add one parameter's kernel to `out`, (n, m, *tail), for one store its lower triangle; yield after each step."""
    same = len(stores) == 1
    old: list[torch.Tensor | None] = [None, None]
    for piece in job.pieces:
        sides = [made(store, job.place, piece, one) for store, one in zip(stores, old, strict=False)]
        old = [_larger(side, one) for side, one in zip(sides, old, strict=False)]
        add_products(out, grouped(sides[0], split), grouped(sides[-1], split), split, same=same)
        yield
    if job.pieces:
        return
    left_uses, right_uses = (range(len(s.kinds[job.place])) for s in (stores[0], stores[-1]))
    for a in slices(stores[0].n, job.step):
        left_parts = [plain(stores[0].read(job.place, k, a)) for k in left_uses]
        for b in slices(stores[-1].n, job.step):
            if same and b.start > a.start:
                break
            alike = same and a == b
            right_parts = left_parts if alike else [plain(stores[-1].read(job.place, k, b)) for k in right_uses]
            for x in left_parts:
                for y in right_parts:
                    out[a, b] += split.contract(x, y)
            yield


def _larger(a: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    return a if b is None or b.numel() < a.numel() else b


def steps(job: Job, stores: tuple[Store, ...]) -> int:
    """Return how many steps `run` has."""
    if job.pieces:
        return len(job.pieces)
    left, right = (-(-s.n // job.step) for s in (stores[0], stores[-1]))
    return left * (left + 1) // 2 if len(stores) == 1 else left * right


def mirror(out: torch.Tensor, split: OutputSplit) -> None:
    """Fill the upper triangle from the lower one, block by block."""
    for a in slices(len(out), PANEL):
        block = out[a, a]
        n = len(block)
        below = torch.ones(n, n, dtype=torch.bool, device=out.device).tril()
        block[:] = torch.where(below.view(n, n, *[1] * (block.ndim - 2)), block, split.mirror(block))
        out[: a.start, a] = split.mirror(out[a, : a.start])


def own(found: Factors, split: OutputSplit, labels: Labels) -> dict[str, torch.Tensor]:
    """Compute the kernels of rows with themselves, (n, *tail), summed by label."""
    out: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for place, uses in found.items():
            label = labels(place.name)
            parts = [plain(part) for part in uses]
            for a in parts:
                for b in parts:
                    value = split.contract(a, b, itself=True)
                    out[label] = out[label] + value if label in out else value
    return {label: torch.where(_below(value), value, value.transpose(1, 2)) for label, value in out.items()}


def _below(value: torch.Tensor) -> torch.Tensor:
    """Mark the lower triangle of the axes 1 and 2: products are symmetric to rounding only."""
    return torch.ones(value.shape[1:3], dtype=torch.bool, device=value.device).tril()[:, :, None]


def seconds(job: Job, stores: tuple[Store, ...], few: Store, split: OutputSplit) -> float:
    """Predict the seconds of a job from one step of it, timed with the rows in `few`."""
    same, n, m = len(stores) == 1, stores[0].n, stores[-1].n
    d, f, t = split.table.shape
    if job.pieces:
        part: Any = made(few, job.place, job.pieces[0])
        begin = time.perf_counter()
        part = made(few, job.place, job.pieces[0], part)
        making: float = (time.perf_counter() - begin) * sum(s.n for s in stores) / few.n
        rows = min(PANEL, n)
        side = part.new_ones(d, rows * f, t * part.shape[2])
        out = part.new_zeros(rows, rows, *split.tail)
        begin = time.perf_counter()
        add_products(out, side, side, split, same=False)
        panels = slices(n, panel(n) if same else PANEL)
        area: float = sum((a.stop - a.start) * (a.stop if same else m) for a in panels) / rows**2
        return float(len(job.pieces) * (making + (time.perf_counter() - begin) * area))
    rows = min(job.step, few.n)
    out = torch.zeros(few.n, few.n, *split.tail, device=few.device, dtype=few.dtype)
    begin = time.perf_counter()
    for _ in run(job._replace(step=rows), (few,), split, out):
        pass
    area = n * m * (1 + min(1.0, job.step / n)) / 2 if same else n * m
    return (time.perf_counter() - begin) * area / (few.n**2 * (1 + rows / few.n) / 2)
