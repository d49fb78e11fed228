"""The cost of a computation is predicted before it starts: flops, entries of the kernel, bytes, seconds, money."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, final

import numpy as np
import scipy.linalg

from widelimit import memory, validation
from widelimit.compute import plan, preconditioners, threads
from widelimit.inference import inducing_points
from widelimit.inference.row_sums import rows_at_once
from widelimit.kernels.base import Kernel, require_kernel

Work = Literal["gram", "cholesky", "cg", "nystrom"]
WORKS: tuple[Work, ...] = ("gram", "cholesky", "cg", "nystrom")
EDGE = 1024
"""Side of the matrices of a calibration: half a second."""
PASSES = 6
"""Readings that an entry costs, in time, to be written to new memory and read, beside its computation."""
FEATURES = 24
"""The same for an entry of K(rows, inducing points), and of the features that it becomes."""
READ = 12.0
"""Bytes of K(X, X), for each pair of rows, that an iteration of conjugate gradients takes as long as to read."""
DRAWN = 1.5
"""Candidates that a draw of inducing points computes for each that it keeps."""
CAPACITY = 0.75
"""Share of a worker's memory that matrices may take."""
COUNTS = 10**15
"""Rows, features, workers and all that is counted is below this, so that its powers stay in float64's range."""
PROBE = 2**24
"""Numbers of the rows, at most, on which the time of an entry is measured: 128 MiB."""


@final
@dataclass(frozen=True, kw_only=True)
class Machine:
    """Some equal workers have these rates.

    Args:
        cores: cores of a worker.
        gflops: float64 flops a second of a core, in products of large matrices, in 1e9.
        memory_gbytes: bytes a second that a core reads from memory, in 1e9.
        storage_gbytes: bytes a second between a worker and where tiles are stored, in 1e9.
        ram: bytes of a worker's memory.
        workers: number of workers.
        price: price of a worker for an hour, in any currency.
    """

    cores: int = 1
    gflops: float
    memory_gbytes: float
    storage_gbytes: float = 0.5
    ram: float = 8.0 * memory.GIB
    workers: int = 1
    price: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cores", "workers"):
            _count(name, getattr(self, name))
        for name in ("gflops", "memory_gbytes", "storage_gbytes", "ram"):
            validation.finite_scalar(name, getattr(self, name), above=0.0)
        validation.finite_scalar("price", self.price, at_least=0.0)

    @classmethod
    def here(cls) -> Machine:
        """Measure this machine, in half a second of one core's time, whatever else runs on it."""
        rng = np.random.default_rng(0)
        a = np.asfortranarray(rng.standard_normal((EDGE, EDGE)))
        root, long = np.asfortranarray(np.triu(a) + EDGE * np.eye(EDGE)), np.ones(2**23)

        def products() -> None:
            phi = scipy.linalg.blas.dtrsm(1.0, root, a, trans_a=1)
            scipy.linalg.blas.dsyrk(1.0, phi)

        with threads.limit(0):
            flops = 2 * EDGE**3 / _seconds(products) / 1e9
            size = long.nbytes / _seconds(lambda: long.sum()) / 1e9
        return cls(cores=plan.usable_cores(), gflops=flops, memory_gbytes=size, ram=float(memory.available()))


def _seconds(work: Callable[[], Any]) -> float:
    """Measure the shortest processor time of three calls of this thread, after one that is not counted."""
    work()
    spent = []
    for _ in range(3):
        start = time.thread_time()
        work()
        spent.append(time.thread_time() - start)
    return max(min(spent), 1e-9)


@final
@dataclass(frozen=True)
class Cost:
    """A prediction for one computation; `explain()` says it in words."""

    work: Work
    n: int
    m: int
    """Inducing points, or the rank of a preconditioner; 0 without."""
    entries: float
    """Entries of the kernel that are computed."""
    flops: float
    """Flops of linear algebra."""
    entry_flops: float
    """Flops that an entry of this kernel takes as long as."""
    moved: float
    """Bytes read from or written to memory beside the products."""
    stored: float
    """Bytes read from or written to storage."""
    ram: float
    """Bytes held at once, by one worker."""
    machine: Machine

    @property
    def core_seconds(self) -> float:
        """Return the processor time, without waiting for storage."""
        rates = self.machine
        return (
            self.entries * self.entry_flops + self.flops
        ) / rates.gflops / 1e9 + self.moved / rates.memory_gbytes / 1e9

    @property
    def seconds(self) -> float:
        """Return the time if all cores work; what is stored is read meanwhile, or waited for."""
        rates = self.machine
        transfer = self.stored / rates.storage_gbytes / 1e9
        return max(self.core_seconds / rates.cores, transfer) / rates.workers

    @property
    def money(self) -> float:
        """Return the price, in the machine's currency."""
        return self.seconds / 3600 * self.machine.workers * self.machine.price

    @property
    def disk(self) -> float:
        """Return the bytes that are kept in storage: a matrix, and of "cholesky" a triangle; 0 without tiles."""
        kept = {"nystrom": 0.0, "cholesky": 12.0}.get(self.work, 8.0)
        return kept * self.n**2 if self.stored else 0.0

    @property
    def fits(self) -> bool:
        """Return True if a worker holds what it needs at once."""
        return self.ram <= CAPACITY * self.machine.ram

    def explain(self) -> str:
        """Explain the prediction."""
        rates, points = self.machine, f", {self.m:,} inducing points" if self.work == "nystrom" else ""
        count = f"{rates.workers} workers" if rates.workers > 1 else "one worker"
        where = f"{count}, {rates.cores} cores each, {rates.gflops:.0f} Gflop/s a core"
        lines = [
            f"{self.work}: {self.n:,} rows{points}, on {where}",
            f"kernel: {self.entries:.3g} entries, as long as {self.entries * self.entry_flops:.3g} flops",
            f"linear algebra: {self.flops:.3g} flops",
            f"bytes: {memory.text(self.stored)} from and to storage, {memory.text(self.ram)} held by a worker"
            + ("" if self.fits else f", which has {memory.text(rates.ram)}: too little"),
            f"time: {duration(self.seconds)} ({self.core_seconds / 3600:.3g} core hours)",
        ]
        return "\n".join([*lines, f"price: {self.money:.2f}"] if rates.price else lines)


def duration(seconds: float) -> str:
    """Format a time in its largest unit."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _count(name: str, value: Any) -> int:
    return validation.integer(name, value, at_least=1, below=COUNTS)


def predict_cost(
    work: Work,
    k: Kernel,
    n: int,
    d: int,
    *,
    inducing: int = 1000,
    outputs: int = 1,
    iterations: int = 100,
    tile: int | None = None,
    machine: Machine | None = None,
) -> Cost:
    """Predict flops, bytes, seconds and money of K(X, X) or of `posterior(k, X, y, solver=work)`, X (n, d).

    gram: n^2/2 entries. cholesky: these, and n^3/3 flops. cg: these, and 2 n^2 flops an iteration and output. nystrom:
    n m entries, and 2 n m^2 flops, on one worker. The time of an entry is measured here (a fraction of a second, and
    the compilation of the kernel), in flops of this machine; it is the same number of flops on another. Compilation,
    the start of workers and predictions are not counted.

    Args:
        work: "gram", "cholesky", "cg" or "nystrom".
        k: the kernel.
        n: rows, >= 1.
        d: features, >= 1.
        inducing: m, of "nystrom".
        outputs: columns of y.
        iterations: number of iterations of "cg"; 30 to 100 are usual with its preconditioner, see docs/solvers.md.
        tile: rows of tiles that are stored, as by `stored_gram`; None: everything is in memory.
        machine: rates of the machine; those of this machine, measured now, unless given.

    Raises:
        TypeError, ValueError: bad arguments; more inducing points than rows.
    """
    validation.choice("work", work, WORKS)
    side = 0 if tile is None else _count("tile", tile)
    return _problem(k, n, d, inducing, outputs, iterations, machine).cost(work, side)


def compare_costs(
    k: Kernel, n: int, d: int, *, inducing: int, outputs: int, iterations: int, tile: int, machine: Machine
) -> list[Cost]:
    """Predict the costs of every solver: in the memory of one worker, and on disk by all; arguments as `predict_cost`.

    Raises: as `predict_cost`.
    """
    side = _count("tile", tile)
    whole = _problem(k, n, d, inducing, outputs, iterations, machine)
    alone = whole._replace(rates=replace(machine, workers=1))
    return [
        *(alone.cost(work, 0) for work in WORKS if work != "nystrom" or inducing <= n),
        *(whole.cost(work, side) for work in WORKS if work != "nystrom"),
    ]


def _problem(k: Kernel, n: Any, d: Any, inducing: Any, outputs: Any, iterations: Any, machine: Any) -> _Problem:
    """Check the arguments of `predict_cost`, and measure the kernel here. Raises: as there."""
    rows, columns, m = _count("n", n), _count("d", d), _count("inducing", inducing)
    c, steps = _count("outputs", outputs), _count("iterations", iterations)
    if machine is not None and not isinstance(machine, Machine):
        raise TypeError(f"machine must be wl.Machine(...) or None, got {validation.shown(machine)}.")
    kernel, here = require_kernel(k), Machine.here()
    per_entry = here.gflops * 1e9 * _seconds_of_an_entry(kernel, columns)
    return _Problem(rows, columns, m, c, steps, per_entry, machine or here)


class _Problem(NamedTuple):
    """The problem has this size, on a machine of these rates."""

    n: int
    d: int
    m: int
    c: int
    steps: int
    per_entry: float
    rates: Machine

    def cost(self, work: Work, side: int) -> Cost:
        """Predict the cost with stored tiles of so many rows, or in memory (0).

        Raises: ValueError: more inducing points than rows.
        """
        n, rates, triangle = self.n, self.rates, 4.0 * self.n**2
        if work == "nystrom":
            if self.m > n:
                raise ValueError(f"inducing={self.m} points are to be drawn from {n} rows: pass at most {n}.")
            rates = replace(rates, workers=1)  # the pass runs on one machine
        made = Cost(work, n, 0, n**2 / 2, 0.0, self.per_entry, PASSES * triangle, triangle if side else 0.0, 0.0, rates)
        if work == "nystrom":
            return _nystrom(made, self.d, self.m, self.c)
        if work == "cholesky":
            made = replace(made, flops=n**3 / 3, stored=8.0 * n**3 / 3 / side + made.stored if side else 0.0)
        if work == "cg":
            made = _cg(made, self.c, self.steps)
        whole = triangle if work == "cg" else 2 * triangle
        return replace(made, ram=max(6 * 8.0 * side**2, 8.0 * n * (self.d + self.c)) if side else whole)


def _cg(made: Cost, c: int, steps: int) -> Cost:
    """Add a preconditioner and iterations, which read one triangle, from storage if it is there, else from memory."""
    n, rank = made.n, preconditioners.default_rank(made.n)
    stored = 4.0 * n**2 * steps
    return replace(
        made,
        m=rank,
        entries=made.entries + n * rank,
        flops=2.0 * n**2 * c * steps + 3.0 * n * rank**2 + 4.0 * n * rank * c * steps,
        moved=made.moved + READ * n**2 * steps,
        stored=made.stored + stored if made.stored else 0.0,
    )


def _nystrom(made: Cost, d: int, m: int, c: int) -> Cost:
    """Count the draw of the points, the pass, and the factorisations."""
    n = made.n
    drawn = inducing_points.number_of_candidates(n, m)
    held = max(preconditioners.bytes_needed(drawn, m), 8.0 * (3 * m**2 + 3 * m * rows_at_once(m)))
    return replace(
        made,
        m=m,
        entries=(n + DRAWN * drawn) * m,
        flops=2.0 * n * m**2 + 2.0 * n * m * c + DRAWN * drawn * m**2 + 2 / 3 * m**3,
        moved=8.0 * FEATURES * n * m,
        stored=8.0 * n * (d + c),
        ram=held,
    )


def _seconds_of_an_entry(k: Kernel, d: int) -> float:
    """Measure the processor time of an entry of K(X, Y), in blocks as large as those of the computations."""
    side = min(2 * EDGE, max(16, PROBE // d))
    memory.require(
        4 * 8.0 * side * d, f"the time of an entry for {d} features, measured on {side} rows", remedy="pass a smaller d"
    )
    X = np.random.default_rng(0).standard_normal((side, d))
    k.cross(X, X[::-1])  # compiles
    spent = []
    for _ in range(2):
        start = time.process_time()
        k.cross(X, X[::-1])
        spent.append(time.process_time() - start)
    return max(min(spent), 1e-9) / side**2
