"""`plan` chooses the method of an empirical kernel: that of fewest flops within a budget of memory."""

import functools
import math
import time
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.architecture.layers import Dense
from widelimit.architecture.network import Network
from widelimit.architecture.state import Layer
from widelimit.arithmetic import arithmetic
from widelimit.compute.tiles import PairKernel
from widelimit.kernels.empirical.contraction import Contraction, Layerwise, Outputs, Way
from widelimit.kernels.empirical.factors import SCRATCH, Use
from widelimit.kernels.empirical.model import Cost, Model
from widelimit.kernels.empirical.outputs import OUTPUTS, Output, Split
from widelimit.kernels.empirical.products import VectorProducts
from widelimit.kernels.empirical.uses import Part, parts_of

Method = Literal["auto", "jacobian", "vector_products", "layerwise"]
METHODS: tuple[Method, ...] = ("auto", "jacobian", "vector_products", "layerwise")

COPIES = 3
"""Copies of a block's factors in memory while they are made: values, their transpose, the result."""
CALIBRATED = 512
"""Rows of the matrices by whose product the machine's speed is measured."""
SHOWN = 40
"""Layers in the text of a plan, at most."""
FLOPS_A_NUMBER = 100
"""Flops that take as long as moving a number to memory, about."""
UNFOLDED = 1024
"""Rows of the unfolded matrix (rows times outputs) of a block, about: its products run at full speed."""
COLUMNS = 16
"""Columns that vector products compute at once, at most; more do not run faster."""


class KernelSettings(NamedTuple):
    """The settings are what the caller asked for: the kernel, the method, the memory."""

    kind: Literal["ntk", "nngp"]
    output: Output | Split
    method: Method
    memory: float
    """Budget in GiB; 0 for a share of what is free."""


class PairSizes(NamedTuple):
    """The task is n x m pairs, at most `down` x `across` of them in one call."""

    n: int
    m: int
    down: int
    across: int
    same: bool
    diagonal: bool
    """Only K(x, x) is needed."""

    @property
    def rows(self) -> int:
        """Return the number of rows whose factors are needed."""
        return self.n if self.same else self.n + self.m

    @property
    def kept(self) -> int:
        """Return the number of rows whose factors are needed at once if none are to be made twice."""
        return min(self.down, self.n) if self.diagonal else self.rows


class MethodEstimate(NamedTuple):
    """An estimate of one method says what it would cost, and in which pieces it would run."""

    method: str
    flops: float
    work: float
    """Bytes of working memory, without the result."""
    least: float
    """Bytes of working memory that the method needs at least."""
    rows: int
    """Rows (jacobian, layerwise) or columns (vector_products) at once; 0 if the budget is too small."""
    stored: bool
    """True if the factors of all rows are kept."""
    moved: float = 0.0
    """Numbers that are moved to memory and back."""
    seconds: float = 0.0
    """Seconds at the measured speed of this machine, about; 0 if it was not measured."""


class LayerEstimate(NamedTuple):
    """An estimate of one parameter says what its kernel costs by itself."""

    name: str
    way: Way
    sizes: str
    numbers: int
    """Numbers in the factor of one row."""
    once: float
    """Flops per row."""
    pairs: float
    """Flops for all pairs."""
    scratch: float
    """Numbers that the contraction holds at once."""


@final
@dataclass(frozen=True)
class ContractionPlan:
    """A plan says how an empirical kernel is computed: `print` it."""

    method: str
    estimates: tuple[MethodEstimate, ...]
    result: float
    """Bytes of the kernel itself."""
    blocks: float
    """Bytes of the block of the kernel being computed, the same for every method."""
    budget: float
    """Bytes that the call may use."""
    sizes: PairSizes
    cost: Cost
    layers: tuple[LayerEstimate, ...]
    tail: tuple[int, ...]
    """Axes of the kernel after (n, m)."""

    @property
    def chosen(self) -> MethodEstimate:
        """Return the estimate of the method that runs."""
        return next(e for e in self.estimates if e.method == self.method)

    def timed(self, rate: float) -> Self:
        """Return the plan with seconds; rate: flops per second."""
        estimates = [e._replace(seconds=(e.flops + FLOPS_A_NUMBER * e.moved) / rate) for e in self.estimates]
        return replace(self, estimates=tuple(estimates))

    def __str__(self) -> str:
        c, p = self.cost.outputs, self.cost.parameters
        lines = [
            f"{self.sizes.n} x {self.sizes.m} pairs, {c} outputs, {p} parameters, {self.cost.flops:.3g} flops a row "
            f"forward; the result takes {memory.text(self.result)} of the budget of {memory.text(self.budget)}",
            f"{'method':16} {'Gflop':>10} {'GiB':>8} {'seconds':>8}  how",
        ]
        for e in self.estimates:
            mark = "<- chosen: fewest flops within the budget" if e.method == self.method else ""
            figures = f"{e.flops / 1e9:10.4g} {e.work / memory.GIB:8.3g} {e.seconds or math.nan:8.2g}"
            lines.append(f"{e.method:16} {figures}  {_how(e)} {mark}".rstrip())
        if self.method == "layerwise":
            lines.append(f"{'layerwise':26} {'way':9} {'Gflop':>10} {'KiB a row':>10}  sizes")
            for layer in self.layers[:SHOWN]:
                total = (layer.once * self.sizes.rows + layer.pairs) / 1e9
                size = layer.numbers * self.cost.itemsize / 1024
                lines.append(f"{layer.name:26} {layer.way:9} {total:10.4g} {size:10.4g}  {layer.sizes}")
            if len(self.layers) > SHOWN:
                lines.append(f"and {len(self.layers) - SHOWN} more: see .layers")
        return "\n".join(lines)


def _how(e: MethodEstimate) -> str:
    if e.rows == 0:
        return "over the budget"
    if e.method == "vector_products":
        return f"{e.rows} columns at once"
    return "the factors of all rows are kept" if e.stored else f"the factors of {e.rows} rows at once"


def network_of(model: Model) -> Network | None:
    """Return the network if the model is its `apply`, all its layers are simple and one is trained; else None."""
    owner = getattr(model.apply, "__self__", None)
    if not isinstance(owner, Network) or model.apply != owner.apply:
        return None
    parts = jax.tree.leaves(owner, is_leaf=lambda part: isinstance(part, Dense) or not getattr(part, "simple", True))
    layers = [part for part in parts if isinstance(part, Layer)]
    simple = all(layer.simple for layer in layers)
    return owner if simple and any(layer.trained for layer in layers if isinstance(layer, Dense)) else None


def check_settings(kind: Literal["ntk", "nngp"], output: Any, method: Any, budget: Any) -> KernelSettings:
    """Check what the caller asked for. Raises: TypeError, ValueError."""
    for name, value, known in (("output", output, OUTPUTS), ("method", method, METHODS)):
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {validation.shown(value)}.")
    budget = 0.0 if budget is None else validation.finite_scalar("memory", budget, above=0.0)
    return KernelSettings(kind, output, method, budget)


def plan(
    model: Model, settings: KernelSettings, sizes: PairSizes, features: int, dtype: Any, *, layers: bool = True
) -> ContractionPlan:
    """Choose the requested method, or the one of fewest flops within the budget.

    layers: "layerwise" is a choice; else "jacobian" takes its place.
    Raises: MemoryError: no method stays within the budget; the message has every estimate.
    """
    cost = model.cost(features, dtype)
    budget = memory.budget(settings.memory)
    number = float(cost.itemsize) * _numbers(settings.output, cost.outputs)[0]
    result = number * sizes.n * (1 if sizes.diagonal else sizes.m)
    blocks = COPIES * number * sizes.down * (1 if sizes.diagonal else sizes.across)
    each = _layers(parts_of(model, features, dtype), settings.output, sizes, cost)
    estimates = tuple(_estimates(settings, sizes, cost, each, budget - result - blocks))
    # "jacobian" never takes fewer flops than "layerwise", which chooses the better way for each layer.
    usual = ["vector_products", "layerwise" if layers else "jacobian"]
    names = usual if settings.method == "auto" else [settings.method]
    if settings.kind == "nngp":
        names = ["outputs"]
    fitting = [e for e in estimates if e.method in names and e.rows > 0]
    chosen = min(fitting, key=lambda e: e.flops).method if fitting else ""
    found = ContractionPlan(
        chosen, estimates, result, blocks, budget, sizes, cost, each, _tail(settings.output, cost.outputs)
    )
    if not fitting:
        least = result + blocks + min(e.least for e in estimates if e.method in names)
        smaller = 'output="trace", ' if settings.output != "trace" and cost.outputs > 1 else ""
        raise MemoryError(
            f"the empirical kernel needs at least {memory.text(least)} and the budget is {memory.text(budget)}; use "
            f"{smaller}fewer rows by cross(X[i:j], Y), float32, matvec(X, v), or another memory=GiB.\n{found}"
        )
    return found


def _tail(output: Output | Split, c: int) -> tuple[int, ...]:
    if isinstance(output, Split):
        return output.full, output.full, output.diagonal
    return {"full": (c, c), "trace": (), "diagonal": (c,)}[output]


def rows_of_pair(output: Output | Split, c: int) -> int:
    """Return the rows of the unfolded kernel matrix for one row of inputs, about."""
    return 1 if output == "trace" else output.full * output.diagonal if isinstance(output, Split) else c


def _numbers(output: Output | Split, c: int) -> tuple[int, int]:
    """Return how many numbers a kernel has for one pair, and from how many inner products of Jacobian rows."""
    if isinstance(output, Split):
        return output.numbers(), output.numbers() * output.trace
    return {"full": (c * c, c * c), "trace": (1, c), "diagonal": (c, c)}[output]


def _layers(parts: tuple[Part, ...], output: Output | Split, sizes: PairSizes, cost: Cost) -> tuple[LayerEstimate, ...]:
    """Choose how each parameter is contracted: the way of fewest flops for all pairs, moves of numbers included."""
    c, pairs = cost.outputs, float(sizes.n) * (1 if sizes.diagonal else sizes.m)
    products, found = 2.0 * pairs * _numbers(output, c)[1], []
    for part in parts:
        explicit = LayerEstimate(
            part.name,
            "explicit",
            f"{part.size} parameters",
            c * part.size,
            2.0 * c * part.size,
            products * part.size,
            0,
        )
        if not part.used:
            found.append(explicit._replace(way="none", sizes="not used", numbers=0, once=0.0, pairs=0.0))
            continue
        if part.use is None:
            found.append(explicit)
            continue
        s, i, o = part.use
        shown = f"{s} positions, {i} x {o}" + (f", {part.groups} groups" if part.groups > 1 else "")
        made = explicit._replace(way="jacobian", sizes=shown, once=2.0 * c * s * part.size)
        alike, kept = (0 if part.table else i), s * (1 if part.table else i) + c * s * o
        form, outputs, times = (output, c, 1) if isinstance(output, str) else output.contraction
        _, flops, scratch = Use(s, alike, o).signals(pairs, outputs, form, times=times)
        signals = LayerEstimate(part.name, "signals", shown, kept, 0.0, flops, scratch)
        moved = [(2.0 * sizes.rows * e.numbers + 2 * e.scratch) * FLOPS_A_NUMBER for e in (signals, made)]
        costs = [sizes.rows * e.once + e.pairs + more for e, more in zip((signals, made), moved, strict=True)]
        found.append(signals if part.table or (part.groups == 1 and costs[0] <= costs[1]) else made)
    return tuple(found)


def _estimates(
    settings: KernelSettings, sizes: PairSizes, cost: Cost, layers: tuple[LayerEstimate, ...], room: float
) -> list[MethodEstimate]:
    c, p, s = cost.outputs, cost.parameters, float(cost.itemsize)
    mixed = _numbers(settings.output, c)[1]
    pairs = float(sizes.n) * sizes.m
    signals = cost.signals * s
    if settings.kind == "nngp":
        return [_contraction("outputs", sizes, room, c * s, signals, cost.flops, 2 * mixed * pairs)]
    backward = (1 + 2 * c) * cost.flops
    passed, made = 2.0 * sizes.rows * c * cost.signals, 2.0 * sizes.rows * sum(layer.numbers for layer in layers)
    found = [_contraction("jacobian", sizes, room, c * p * s, c * signals, backward, 2 * mixed * p * pairs)]
    found = [found[0]._replace(moved=2 * passed + 2.0 * sizes.rows * c * p)]
    if not isinstance(settings.output, Split):
        column = 2 * p * s + 2 * sizes.down * signals
        kept = 2 * sizes.down * signals
        columns = int(min(COLUMNS, max(room - kept, 0) // column))
        flops = sizes.m * c * 2 * cost.flops * (1 + sizes.n)
        found.append(
            MethodEstimate(
                "vector_products",
                flops,
                kept + max(columns, 1) * column,
                kept + column,
                columns,
                stored=False,
                moved=2.0 * sizes.m * c * (cost.signals * (1 + sizes.n) + p),
            )
        )
    unit = s * sum(layer.numbers for layer in layers)
    once = (1 + c) * cost.flops + sum(layer.once for layer in layers)
    passing = c * signals
    total = sum(layer.pairs for layer in layers)
    task = pairs if not sizes.diagonal else float(sizes.n)
    block = float(sizes.down) * (1 if sizes.diagonal else sizes.across)
    held = [s * layer.scratch * block / task for layer in layers]
    scratch = max(min(one, max(SCRATCH, one / sizes.down)) for one in held)
    e = _contraction("layerwise", sizes, room - scratch, unit, passing, once, total, scratch)
    found.append(e._replace(moved=passed + made + 2 * sum(layer.scratch for layer in layers)))
    return found


def _contraction(
    method: str,
    sizes: PairSizes,
    room: float,
    unit: float,
    passing: float,
    once: float,
    pairs: float,
    scratch: float = 0.0,
) -> MethodEstimate:
    """Estimate: a row's factors take `unit` bytes (`passing` while made) and `once` flops; `pairs` flops in all.

    `scratch` bytes are held beside them, which are not part of the room.
    """
    block = max(sizes.down, sizes.across)
    least = (COPIES + 1) * unit + passing
    all_kept = sizes.kept * unit + block * ((COPIES - 1) * unit + passing)
    if all_kept <= room:
        flops, work = sizes.rows * once + pairs, all_kept + scratch
        return MethodEstimate(method, flops, work, min(least, all_kept) + scratch, block, True)
    rows = int(min(block, max(room, 0) // least))
    again = math.ceil(sizes.n / max(rows, 1))
    flops, work = (sizes.n + again * sizes.m) * once + pairs, max(rows, 1) * least + scratch
    return MethodEstimate(method, flops, work, least + scratch, rows, False)


def pairs_of(model: Model, settings: KernelSettings, found: ContractionPlan) -> PairKernel:
    """Return the two phases of the kernel by the method chosen."""
    chosen = found.chosen
    if chosen.method == "vector_products" and not isinstance(settings.output, Split):
        return VectorProducts(model, settings.output, chosen.rows)
    ways: dict[Way, Way] = {} if chosen.method == "layerwise" else {"signals": "explicit", "jacobian": "explicit"}
    layers = tuple(ways.get(layer.way, layer.way) for layer in found.layers)
    factors: Any = Outputs(model) if chosen.method == "outputs" else Layerwise(model, layers)
    return Contraction(factors, settings.output, chosen.rows, chosen.stored)


@functools.cache
def rate(dtype: np.dtype[Any]) -> float:
    """Measure the flops per second of a product of matrices, once per process, in a few hundredths of a second."""
    with arithmetic(dtype == np.float64):
        product, matrix, times = jax.jit(jnp.matmul), jnp.ones((CALIBRATED, CALIBRATED), dtype), []
        for _ in range(4):
            start = time.perf_counter()
            product(matrix, matrix).block_until_ready()
            times.append(time.perf_counter() - start)
    return float(2 * CALIBRATED**3 / min(times))


def block_rows(n: int, outputs: int) -> int:
    """Return the rows of a block, so that n rows are cut evenly in blocks of about `UNFOLDED` unfolded rows.

    The number is rounded up to one of eight sizes between powers of 2, so that few shapes are compiled and at most one
    row in eight is padding.
    """
    count = math.ceil(n / max(1, UNFOLDED // outputs))
    rows = math.ceil(n / count)
    step = 1 << max(0, (rows - 1).bit_length() - 4)
    return math.ceil(rows / step) * step
