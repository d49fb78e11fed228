"""A Gram matrix on disk: its tiles are computed by tasks that write one each, and those that are there are left.

The array's attributes say of which kernel and data it is.
"""

import contextlib
import dataclasses
import inspect
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from widelimit.compute import tile_tasks, tiles, workers
from widelimit.compute.places import Place
from widelimit.compute.stores import FORM, TILES, VERSION, Contents, kept, open_store
from widelimit.compute.tile_tasks import Address, Work
from widelimit.compute.workers import Task
from widelimit.fingerprints import sha256
from widelimit.progress import KERNEL, Report

GRAM = Contents(
    "widelimit_gram",
    "a Gram matrix",
    "data",
    (
        FORM,
        ("kernel", "of another kernel"),
        ("data", "of other data"),
        VERSION,
        ("values", "of a kernel with other values: another function of the same name, or another processor"),
    ),
)


def store_gram(
    kernel: tiles.PairKernel,
    prepared: tiles.PairKernel,
    X: np.ndarray,
    place: Place,
    *,
    budget: float,
    report: Report,
    client: Any = None,
) -> None:
    """Compute the tiles of K(X, X) that are not yet at the place, which is made if it is not there.

    `prepared` is the kernel that computes, `kernel` the one that is described. Raises: see `stored_gram`.
    """
    n, d = X.shape
    plan = tiles.plan_of(prepared, n, n, d, X.dtype, symmetric=True, budget=budget)
    manifest = {
        "kernel": description(kernel),
        "data": description(X),
        "values": tile_tasks.probe(prepared, X),  # last: an error names what differs first
    }
    store = open_store(place, GRAM, manifest, n=n, edge=plan.edge, dtype=X.dtype, share=1.0)
    if store.edge > plan.edge:
        raise MemoryError(
            f"the tiles of {place.name} are {store.edge} x {store.edge}; the budget is enough for {plan.edge} x "
            f"{plan.edge}."
        )
    work = tile_tasks.begin_work(store, prepared, X, replace(plan, edge=store.edge))
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept(place))
        stack.enter_context(prepared.keeping())
        if client is None:
            client = stack.enter_context(ThreadPoolExecutor(plan.workers))
        source = work if isinstance(client, ThreadPoolExecutor) else tile_tasks.write_work(work, manifest["values"])
        _fill(work, source, client, report)
    place.clear(tile_tasks.FOLDER)


def _fill(work: Work, source: Work | Address, client: Any, report: Report) -> None:
    """Compute and write what is missing or damaged."""
    plan, store, place = work.plan, work.store, work.store.place
    missing = {(i, j) for i in range(plan.row_blocks) for j in range(i + 1)}
    if place.keys(TILES):
        rows = workers.gather(tile_tasks.missing_in_row, [(source, i) for i in range(plan.row_blocks)], client)
        missing = {at for row in rows for at in row}
    store.require_disk(sum(1 + (i != j) for i, j in missing))
    todo = [at for _, _, group in plan.groups() for at in group if at in missing]
    tasks = {f"tile-{i}-{j}": Task(tile_tasks.write_tile, (source, i, j)) for i, j in todo}
    known = plan.count - len(todo)
    workers.run(tasks, client, report=lambda _, done, __: report(KERNEL, known + done, plan.count))
    there = set(place.keys(TILES))
    if lost := [at for at in todo if f"{TILES}{at[0]}/{at[1]}" not in there]:
        raise OSError(
            f"{len(lost)} tiles were computed and are not in {place.name}: workers in other processes need a path "
            "that leads to the same files everywhere (a shared file system or an object store, no memory)."
        )


def _hash(array: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(array).data)


def description(value: Any) -> Any:
    """Describe the value in JSON: classes and functions by their names, arrays by their hashes."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: description(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, (tuple, list)):
        return [description(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        named = value if inspect.isroutine(value) or isinstance(value, type) else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    array = np.asarray(value)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": _hash(array)}
