"""Kernel matrices are made of tiles: encode blocks of rows once, then a pure function on pairs of blocks.

Few shapes are ever compiled: blocks have the plan's number of rows, filled up with rows of the data (zeros would all be
duplicates). Inside a compiled tile a loop runs over patches small enough for the processor's cache: those of one
triangle for a block on the diagonal, those inside the matrix for a block at its rim.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory
from widelimit.arithmetic import arithmetic, carried, outside
from widelimit.compute import devices
from widelimit.compute.pair_kernel import Features
from widelimit.compute.pair_kernel import PairKernel as PairKernel
from widelimit.compute.plan import TilePlan, require, tile_plan, usual_budget
from widelimit.progress import KERNEL, Report, no_progress

PATCH = 128
"""Rows of a patch: a few arrays of 128 x 128 numbers are in a core's cache, and the loop's own cost is hidden."""
SMALL_BLOCK = 2**14
"""Numbers of a block of rows up to which its encoding is compiled without optimisation."""
MIRRORED = 16
"""Columns mirrored at once: a cache line or two of each row written."""
POINTS = 2
"""Axes of an array of points."""
Item = TypeVar("Item")
Pairs = list[tuple[int, int]]


class EncodedBlock(NamedTuple):
    """The block holds encoded rows of the data; some at the end may only fill up the shape."""

    patches: Features
    """Features of PATCH rows each (of all, if they are fewer), as `_cut` makes them."""
    diagonal: np.ndarray
    used: int
    """Rows that count."""


def _patch_at(patches: Features, index: jax.Array | int) -> Features:
    # An index that may be negative takes five more operations for each axis, together half of those of a tile.
    place = jnp.asarray(index, jnp.uint32)
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False), patches)


def _of_patches(kernel: PairKernel, x: Features, y: Features, same: jax.Array) -> jax.Array:
    """Compute the kernel of two patches."""
    x, y = jax.tree.map(lambda leaf: leaf if leaf.ndim <= POINTS else jnp.moveaxis(leaf, -1, 0), (x, y))
    return kernel.pairwise(x, y, same=same)


# Twice the width of vectors that XLA takes automatically: with AVX-512 a tile takes half the time, without it the same.
_WIDE = {"xla_cpu_prefer_vector_width": 512}
# Halves the time to compile; of long sums of products the program computes parts again, which takes twice as long.
QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


def _tile(kernel: PairKernel, x: Features, y: Features, pairs: jax.Array, count: int, same: bool) -> jax.Array:
    """Put the patches (s, t) of `pairs` (P, 2), the first `count` of them, in their places; with `same`, x is y.

    Other patches are 0; the triangles of a patch with itself may differ by rounding, its diagonal is meaningless.
    """
    # Traced once, for the shape and for the loop.
    first = _patch_at(x, 0), _patch_at(y, 0), jnp.asarray(same)
    traced, form = jax.make_jaxpr(partial(_of_patches, kernel), return_shape=True)(*first)
    rows, columns = form.shape
    shape = (rows * len(jax.tree.leaves(x)[0]), columns * len(jax.tree.leaves(y)[0]))

    def values(*given: Features) -> jax.Array:
        return jnp.asarray(jax.core.eval_jaxpr(traced.jaxpr, traced.consts, *jax.tree.leaves(given))[0])

    def step(k: int, out: jax.Array) -> jax.Array:
        s, t = pairs[k]
        # The branch is always taken. XLA fuses what a loop looks up and writes with the kernel's own arithmetic, which
        # then takes five times as long; it does not fuse across a branch (and drops `optimization_barrier` before).
        given = _patch_at(x, s), _patch_at(y, t), same & (s == t)
        patch = jax.lax.cond(jnp.less(k, count), values, lambda *_: jnp.zeros(form.shape, form.dtype), *given)
        return jax.lax.dynamic_update_slice(out, patch, (s * rows, t * columns))

    return jnp.asarray(jax.lax.fori_loop(0, count, step, jnp.zeros(shape, form.dtype)))


_tiles = {quick: jax.jit(_tile, compiler_options=_WIDE | (QUICK if quick else {})) for quick in (False, True)}


def _program(kernel: PairKernel, patches: Features) -> Callable[..., jax.Array]:
    """Return the program of a tile; of a single patch the quick one is slower, but for kernels that have only such."""
    first = jax.tree.leaves(patches)[0]
    return _tiles[(len(first) > 1 or kernel.largest_tile < PATCH) and kernel.quick_in(first.dtype)]


def _cut(features: Features, n: int, count: int) -> Features:
    """Cut every array (n, ..) into `count` patches, along a new first axis.

    Points (n, d), of which products are taken, stay so. Of arrays with more axes a pair map reads one number of every
    input at a time: the inputs come last there. Raises: ValueError: an array without the n inputs first.
    """

    def cut(leaf: jax.Array) -> jax.Array:
        if leaf.shape[:1] != (n,):
            raise ValueError(
                f"the encode method of a kernel must return arrays (n, ..) with the n inputs first; it returned shape "
                f"{leaf.shape} for {n} inputs. Move the axis of the inputs: jnp.moveaxis(array, axis, 0)."
            )
        if leaf.ndim <= POINTS:
            return leaf.reshape(count, n // count, *leaf.shape[1:])
        return jnp.moveaxis(jnp.moveaxis(leaf, 0, -1).reshape(*leaf.shape[1:], count, n // count), -2, 0)

    return jax.tree.map(cut, features)


@partial(jax.jit, static_argnames="count")
def _finish(kernel: PairKernel, features: Features, count: int) -> tuple[Features, jax.Array]:
    diagonal = kernel.diagonal(features)
    return _cut(features, len(diagonal), count), diagonal


def _encode(kernel: PairKernel, X: jax.Array, count: int) -> tuple[Features, jax.Array]:
    """Compute the features of a block of rows in `count` patches, and K(x, x) for every row."""
    features = kernel.encode(X)
    return _cut(features, len(X), count), kernel.diagonal(features)


# LLVM's optimisation takes up to a second, and saves .2 ms of a small block; its first level does what all do.
_encodes = [
    jax.jit(_encode, static_argnames="count", compiler_options=QUICK | {"xla_backend_optimization_level": level})
    for level in (1, 0)
]


def _encoder(kernel: PairKernel, X: Any) -> Any:
    return _encodes[kernel.light and X.size <= SMALL_BLOCK]


def _patches(rows: int) -> int:
    return 1 if devices.accelerated() else max(1, rows // PATCH)  # a device takes whole tiles


def encode_block(kernel: PairKernel, X: np.ndarray, rows: int) -> EncodedBlock:
    """Encode the rows X, at most `rows` of them, as a block of that many; of an eager kernel, as they are."""
    if kernel.eager:
        with arithmetic(X.dtype == np.float64):
            features = kernel.encode(jnp.asarray(X))
            return EncodedBlock(features, np.asarray(kernel.diagonal(features)), len(X))
    filled = X if len(X) == rows else np.resize(X, (rows, X.shape[1]))
    with arithmetic(X.dtype == np.float64):
        if kernel.traceable:
            patches, diagonal = _encoder(kernel, filled)(kernel, filled, _patches(rows))
        else:
            patches, diagonal = _finish(kernel, kernel.encode(jnp.asarray(filled)), _patches(rows))
        return EncodedBlock(patches, np.asarray(diagonal), len(X))


_BEGUN: set[int] = set()
"""Hashes of the kernels and shapes whose programs have been compiled, or are being."""


def compile_ahead(kernel: PairKernel, rows: int, features: int, dtype: np.dtype) -> Callable[[], None]:
    """Begin to compile the tile program of a kernel seen for the first time, beside that of `_encode`.

    Returns a function that waits for it: a second thread that needs the same program would compile it again.
    """
    key = hash((jax.tree.structure(kernel), rows, features, dtype))
    if key in _BEGUN or not kernel.traceable:
        return lambda: None
    _BEGUN.add(key)
    inputs = jax.ShapeDtypeStruct((rows, features), dtype)  # type: ignore[no-untyped-call]
    with arithmetic(dtype == np.float64):
        form = _encoder(kernel, inputs).eval_shape(kernel, inputs, _patches(rows))[0]
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), form)
    side = len(jax.tree.leaves(form)[0])

    def run() -> None:
        with arithmetic(dtype == np.float64), contextlib.suppress(Exception):  # the call that counts raises it too
            _program(kernel, empty)(kernel, empty, empty, np.zeros((side**2, 2), np.int32), 0, False)

    thread = Thread(target=carried(run))  # no daemon: Python waits for it at exit, where XLA would crash
    thread.start()
    return thread.join


def _patch(block: EncodedBlock) -> int:
    return len(block.diagonal) // len(jax.tree.leaves(block.patches)[0])


def tile_of(kernel: PairKernel, x: EncodedBlock, y: EncodedBlock) -> np.ndarray:
    """Compute the tile of two blocks of rows: (rows of x that count, rows of y that count)."""
    if kernel.eager:
        tile = np.asarray(kernel.pairwise(x.patches, y.patches, same=x is y))
    else:
        rows, columns = (-(-block.used // _patch(block)) for block in (x, y))
        pairs = [(s, t) for s in range(rows) for t in range(s + 1 if x is y else columns)]
        tile = _compute_pairs(kernel, x, y, pairs, same=x is y)
    tile = tile[: x.used, : y.used]
    return _symmetric(tile, x.diagonal[: x.used], len(tile) if kernel.eager else _patch(x)) if x is y else tile


def _compute_pairs(kernel: PairKernel, x: EncodedBlock, y: EncodedBlock, pairs: Pairs, *, same: bool) -> np.ndarray:
    filled = np.zeros((len(x.diagonal) // _patch(x) * (len(y.diagonal) // _patch(y)), 2), np.int32)
    filled[: len(pairs)] = pairs
    return np.asarray(_program(kernel, x.patches)(kernel, x.patches, y.patches, filled, len(pairs), same))


def _symmetric(tile: np.ndarray, diagonal: np.ndarray, rows: int) -> np.ndarray:
    """Return the lower triangle of a tile, mirrored, `rows` rows at a time, around this diagonal."""
    tile = np.array(tile)
    for start in range(0, len(tile), rows):
        here, below = slice(start, start + rows), slice(start + rows, None)
        patch = np.tril(tile[here, here], -1)
        tile[here, here] = patch + patch.T
        mirror(tile[below, here], tile[here, below])
    np.fill_diagonal(tile, diagonal)
    return tile


def mirror(block: np.ndarray, target: np.ndarray) -> None:
    """target = block.T, in strips: a plain transposed copy jumps through memory and takes six times as long."""
    for i in range(0, len(block), MIRRORED):
        target[:, i : i + MIRRORED] = block[i : i + MIRRORED].T


def run_in_pool(pool: ThreadPoolExecutor, work: Callable[[Item], None], items: Iterable[Item]) -> Iterator[None]:
    """Run `work` on every item; yields after each. An exception (or Ctrl-C) leaves the items that have not begun."""
    futures = [pool.submit(work, item) for item in items]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def compute(
    kernel: PairKernel,
    X: np.ndarray,
    Y: np.ndarray,
    plan: TilePlan,
    write: Callable[[int, int, np.ndarray], None],
    *,
    required: Callable[[int, int], bool] = lambda *_: True,
    report: Report = no_progress,
) -> None:
    """Call `write(i, j, tile)` for every tile of the plan that is `required`, from several threads, in no order.

    A symmetric plan takes X for Y. `report` is called in this thread after each tile. An exception, of
    `write` or by Ctrl-C, ends the work within a tile.
    """

    def encode_blocks(data: np.ndarray, blocks: Sequence[int]) -> dict[int, EncodedBlock]:
        encode = carried(lambda i: encode_block(kernel, data[plan.rows(i)], plan.edge))
        return dict(zip(blocks, (pool.map if pool else map)(encode, blocks), strict=True))

    @carried
    def work(task: tuple[int, int]) -> None:
        i, j = task
        compiled()
        with arithmetic(X.dtype == np.float64):
            write(i, j, tile_of(kernel, rows[i], columns[j]))

    done = 0
    columns: dict[int, EncodedBlock] = {}
    with contextlib.ExitStack() as stack:
        # For one tile threads would take longer to start than a small matrix takes.
        pool = stack.enter_context(ThreadPoolExecutor(plan.workers)) if plan.count > 1 else None
        for row_range, column_range, tiles in plan.groups():
            todo = [task for task in tiles if required(*task)]
            done += len(tiles) - len(todo)
            if not todo:
                continue
            compiled = compile_ahead(kernel, plan.edge, X.shape[1], X.dtype)
            if column_range.start not in columns:
                columns = encode_blocks(Y, column_range)
            known = columns if plan.symmetric else {}
            rows = known | encode_blocks(X, [i for i in row_range if i not in known])
            for _ in run_in_pool(pool, work, todo) if pool else map(work, todo):
                done += 1
                report(KERNEL, done, plan.count)


def plan_of(
    kernel: PairKernel, n: int, m: int, d: int, dtype: Any, *, symmetric: bool, budget: float | None = None
) -> TilePlan:
    """Make the plan of K(X, Y), (n, m), by the sizes that the kernel states; the usual budget unless one is given."""
    sizes = kernel.numbers_per_input(d), kernel.numbers_per_pair
    limit = usual_budget(*sizes, dtype) if budget is None else budget
    if kernel.eager and budget is None:  # features are many, and take long to make again
        limit = max(limit, memory.available() / 4)
    largest = kernel.largest_tile
    return tile_plan(n, m, sizes[0], dtype, symmetric=symmetric, budget=limit, per_pair=sizes[1], largest=largest)


def gram(kernel: PairKernel, X: np.ndarray, *, report: Report = no_progress) -> np.ndarray:
    """Compute K(X, X): one triangle of tiles, the other its mirror; the diagonal is `diagonal`'s, to the bit."""
    return _matrix(kernel, X, X, symmetric=True, mirrored=True, report=report)


def lower_gram(kernel: PairKernel, X: np.ndarray, *, report: Report = no_progress) -> np.ndarray:
    """Compute the lower triangle of `gram` in an (n, n) array: what is above the diagonal is undefined."""
    return _matrix(kernel, X, X, symmetric=True, mirrored=False, report=report)


def cross(kernel: PairKernel, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Compute K(X, Y)."""
    return _matrix(kernel, X, Y, symmetric=False, mirrored=False, report=no_progress)


@outside
def _matrix(
    kernel: PairKernel, X: np.ndarray, Y: np.ndarray, *, symmetric: bool, mirrored: bool, report: Report
) -> np.ndarray:
    (n, d), m = X.shape, len(Y)
    dtype = np.dtype(kernel.result_dtype(X.dtype))
    require(n, m, dtype)
    plan = plan_of(kernel, n, m, d, X.dtype, symmetric=symmetric)
    planes = np.empty((1 + (dtype.kind == "c"), n, m), X.dtype)

    def write(i: int, j: int, tile: np.ndarray) -> None:
        nonlocal planes
        if tile.flags.owndata and tile.dtype == planes.dtype and tile.shape == (n, m):
            planes = tile[None]  # the whole matrix: a copy would take as long as some patches
            return
        for out, part in zip(planes, (np.real, np.imag), strict=False):
            values = part(tile)
            out[plan.rows(i), plan.rows(j)] = values
            if mirrored and i != j:
                mirror(values, out[plan.rows(j), plan.rows(i)])

    compute(kernel, X, Y, plan, write, report=report)
    return planes if len(planes) > 1 else planes[0]


@outside
def diagonal(kernel: PairKernel, X: np.ndarray, *, beside: int = 1) -> np.ndarray:
    """Compute K(x, x) for every row, in the blocks of `cross` with `beside` other rows: nothing is compiled again."""
    n, d = X.shape
    plan = plan_of(kernel, n, max(n, beside), d, X.dtype, symmetric=True)
    parts = (encode_block(kernel, X[plan.rows(i)], plan.edge) for i in range(plan.row_blocks))
    return np.concatenate([block.diagonal[: block.used] for block in parts])
