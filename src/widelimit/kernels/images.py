"""Kernels of networks of images are computed by machine code, where their layers' pair maps can be written as such."""

from __future__ import annotations

import functools
import math
import time
from typing import Any, final

import jax
import numpy as np

from widelimit import memory
from widelimit.architecture.native.engine import Engine, Features
from widelimit.architecture.native.program import Unknown
from widelimit.arithmetic import arithmetic
from widelimit.compute.pair_kernel import PairKernel
from widelimit.compute.plan import LARGEST, usable_cores
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.signals import scaled, scaled_pairs

TILE = 3e8
"""Pairs of sites, over all layers, of a tile: some tenths of a second."""


@final
@pytree
class InMachineCode(PairKernel):
    """The kernel computes Sigma, Theta or both (`tangents`, as the kernels of networks have them) by an engine."""

    engine: Engine
    tangents: tuple[bool, ...]

    def __reduce__(self) -> Any:  # another process compiles for its own processor
        engine = self.engine
        return _loaded, (engine.net, engine.dtype.name, engine.tangent, self.tangents)

    @property
    def traceable(self) -> bool:
        return False

    @property
    def eager(self) -> bool:
        return True

    @property
    def largest_tile(self) -> int:
        rows = 1 << int(math.log2(max(1.0, TILE / self.engine.work)) / 2)
        return int(min(LARGEST, max(self.engine.width, rows)))

    def numbers_per_input(self, d: int) -> int:
        return 2 * self.engine.length

    @property
    def numbers_per_pair(self) -> int:
        return 8

    def result_dtype(self, dtype: Any) -> Any:
        return np.result_type(dtype, np.complex64) if len(self.tangents) > 1 else dtype

    def encode(self, X: jax.Array) -> Features:
        return self.engine.encode(np.asarray(X))

    def pairwise(self, x: Features, y: Features, *, same: bool | jax.Array = False) -> Any:
        found = self.engine.pair(x, y, lower=bool(same))
        values = [interpreted(scaled_pairs)(found[theta], x.variance, y.variance) for theta in self.tangents]
        return interpreted(joined)(values)

    def diagonal(self, x: Features) -> Any:
        one = np.ones_like(x.variance.value)
        values = [self.engine.diagonal(x) if theta else one for theta in self.tangents]
        return interpreted(joined)([interpreted(scaled)(value, x.variance, x.variance) for value in values])


def joined(values: list[jax.Array]) -> jax.Array:
    """Return one kernel's values as they are, those of two kernels as one complex array."""
    return jax.lax.complex(*values) if len(values) == 2 else values[0]


def in_machine_code(kernel: Any, key: Any, dtype: Any) -> PairKernel:
    """Return the kernel of a network (by its key) in machine code, or as it is where that cannot be made."""
    engine = engine_of(key, np.dtype(dtype).name, any(kernel.tangents))
    return InMachineCode(engine, kernel.tangents) if isinstance(engine, Engine) else kernel


@functools.lru_cache(maxsize=16)
def engine_of(key: Any, dtype: str, tangent: bool) -> Engine | str:
    """Return the engine, or what keeps it from being made."""
    return _engine_with_numbers(key.net, dtype, tangent)


def _engine_with_numbers(net: Any, dtype: str, tangent: bool) -> Engine | str:
    if net.rtol(dtype) > 0:  # its tables are those of its numbers
        return _engine(net, dtype, tangent)
    leaves, structure = jax.tree.flatten(net)
    made = _engine_alike(structure, tuple(map(np.shape, leaves)), dtype, tangent)
    return made if isinstance(made, str) else made.with_numbers_of(net)


def _loaded(net: Any, dtype: str, tangent: bool, tangents: tuple[bool, ...]) -> InMachineCode:
    engine = _engine_with_numbers(net, dtype, tangent)
    if isinstance(engine, str):
        raise TypeError(f"the kernel of images cannot be compiled here, where machine code knows no {engine}.")
    return InMachineCode(engine, tangents)


@functools.lru_cache(maxsize=16)
def _engine_alike(structure: Any, shapes: tuple[tuple[int, ...], ...], dtype: str, tangent: bool) -> Engine | str:
    """Return the engine of a network with these layers and any numbers."""
    return _engine(jax.tree.unflatten(structure, [np.ones(shape) for shape in shapes]), dtype, tangent)


def _engine(net: Any, dtype: str, tangent: bool) -> Engine | str:
    try:
        return Engine(net, dtype, tangent=tangent)
    except Unknown as reason:
        return str(reason)


def explain(engine: Engine | str, X: np.ndarray) -> str:
    """Explain how pairs of these images are computed, with bytes and seconds from a short measurement."""
    if isinstance(engine, str):
        return f"compiled by XLA, as machine code for images knows no {engine}"
    with arithmetic(X.dtype == np.float64):
        x = engine.encode(X[: engine.width])  # some of it is traced once
        few = jax.tree.map(lambda leaf: leaf[: max(1, int(TILE / 16 / engine.work))], x)
        engine.pair(few, x)
        start = time.perf_counter()
        engine.encode(X[: engine.width])
        middle = time.perf_counter()
        engine.pair(few, x)
    image, pair = (middle - start) / len(x.keys), (time.perf_counter() - middle) / (len(few.keys) * len(x.keys))
    seconds = (image * len(X) + pair * len(X) * (len(X) + 1) / 2) / (cores := usable_cores())
    planes = " -> ".join(f"{len(planes):,} of {math.prod(plan.sites[-1]):,} sites" for plan, planes in engine.stages_of)
    size = engine.dtype.itemsize * engine.length
    state, one, everything = (memory.text(v) for v in (engine.state, size, size * len(X)))
    return (
        f"machine code, {engine.width} pairs at once; planes of pairs of sites: {planes}\n"
        f"state: {state} a thread; {one} an image, {everything} all\n"
        f"time: {image:.2g} s an image, {pair:.2g} s a pair, {seconds:.2g} s for {len(X)} images on {cores} cores"
    )
