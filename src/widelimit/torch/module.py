"""The tangent kernel of a module is a sum over parameters of inner products of Jacobians, computed block by block.

`ModuleJacobian.matrix` first stores the factors of all rows, a block of rows at a time, then sums the kernels of all
parameters (`torch.contraction`).
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, final

import numpy as np
import torch

from widelimit import memory
from widelimit.progress import Report
from widelimit.torch import contraction, inputs
from widelimit.torch.axes import AxisSettings, OutputSplit
from widelimit.torch.bits import bits
from widelimit.torch.contraction import WIDE, Labels, own, slices
from widelimit.torch.devices import SHARE, free, full_precision
from widelimit.torch.jacobian import (
    Factors,
    Of,
    RowJacobian,
    Trial,
    Weights,
    not_finite,
    overlapping,
    require_outputs,
    row_numbers,
    run,
)
from widelimit.torch.kept import Filled, KeptFactors, kept_of, key_of
from widelimit.torch.plan import LayerCost, ModulePlan
from widelimit.torch.rowwise import require_rowwise_module
from widelimit.torch.store import Store, folder
from widelimit.torch.verified import verified_trial

DEFAULT = 3 * 2**28
"""Bytes of working memory unless the caller gives another size: the peak, with memory not counted, is below 1 GiB."""


Method = TypeVar("Method", bound=Callable[..., Any])


def _differentiable(method: Method) -> Method:
    """Let a method compute gradients even in the caller's inference mode, and with full precision."""
    return full_precision()(torch.inference_mode(mode=False)(method))  # type: ignore[no-any-return]


class Sizes(NamedTuple):
    """These are the sizes of one computation."""

    rows: int
    """Rows that are differentiated at once."""
    bytes: float
    """Bytes of memory, at most."""
    stored: float
    """Bytes of the factors of all rows."""
    disk: bool
    """True if these factors are stored on disk."""
    room: float
    """Bytes of Jacobians that are contracted at once."""
    of_rows: int
    """The number of all rows."""
    kept: float
    """Bytes of memory that factors may take."""


@final
@dataclass(frozen=True, eq=False)
class ModuleJacobian:
    """The Jacobian of a module by chosen parameters gives kernels of rows, within a limit of memory."""

    module: torch.nn.Module
    names: tuple[str, ...]
    """The parameters to differentiate by."""
    sums: tuple[tuple[str, int], ...]
    """Hashes of all parameters, which are shared with the module: a change is found by them."""
    buffers: tuple[tuple[str, torch.Tensor], ...]
    """Copies of the buffers, as a module may change them in a call (a counter)."""
    layers: tuple[str, ...]
    """The layers, as `layers_of` describes them."""
    of: Of | None
    axes: AxisSettings
    memory: float
    """GiB of working memory; 0 for a default."""
    report: Report

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """Return the parameters to differentiate by, by name."""
        found = dict(self.module.named_parameters())
        return {name: found[name] for name in self.names}

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(iter(self.trained.values())).device

    @property
    def dtype(self) -> np.dtype:
        """Return the widest dtype of the parameters."""
        wide = any(p.dtype == torch.float64 for p in self.trained.values())
        return np.dtype(np.float64 if wide else np.float32)

    def rows(self, name: str, X: Any) -> Any:
        """Return inputs as tensors on the module's device. Raises: TypeError, ValueError."""
        return inputs.tensors(name, X, self.device)

    def prepare(self, *given: Any) -> tuple[RowJacobian, tuple[Any, ...]]:
        """Return the Jacobian in the dtype of the inputs, and the inputs in it.

        Raises: TypeError: the parameters have more digits than the inputs. ValueError: a parameter changed.
        """
        floats = [t.dtype for X in given for t in inputs.leaves(X) if inputs.is_float(t)]
        own = {p.dtype for p in self.trained.values()}
        wide = torch.float64 in (floats or own)
        if not wide and torch.float64 in own:
            raise TypeError("X is float32 and the parameters are float64; pass X.astype('float64').")
        dtype = torch.float64 if wide else torch.float32

        def cast(t: torch.Tensor) -> torch.Tensor:
            return t.detach().to(dtype) if t.is_floating_point() else t.detach()

        def kept(t: torch.Tensor) -> torch.Tensor:  # float32 modules may hold buffers in float64: these stay
            return cast(t) if wide else t.detach()

        values = {id(t): kept(t) for t in self.module.parameters()}
        copies, now = dict(self.buffers), dict(self.module.named_buffers())
        values |= {id(t): kept(copies.get(name, t)).to(self.device, copy=True) for name, t in now.items()}
        trained = {name: values[id(p)] for name, p in self.trained.items()}
        names = {id(p): name for name, p in self.trained.items()}
        jacobian = RowJacobian(self.module, Weights(trained, values, names), self.of)
        found = tuple(inputs.map_tree(lambda t: inputs.laid_out(cast(t)), X) for X in given)
        self._require_unchanged(jacobian, found[0])
        return jacobian, found

    def _require_unchanged(self, jacobian: RowJacobian, rows: Any) -> None:
        """Refuse a module whose parameters, layers, or buffers that matter changed. Raises: ValueError."""
        sums = dict(self.sums)
        changed = [name for name, t in self.module.named_parameters() if sums.get(name) != bits(t)]
        own, now = dict(self.buffers), dict(self.module.named_buffers())
        moved = [name for name, t in now.items() if name not in own or bits(t) != bits(own[name])]
        if not changed and moved and self._depends(jacobian, inputs.take(rows, slice(0, 1))):
            changed = moved
        if self.layers != layers_of(self.module):
            changed.append("a layer")
        if changed:
            raise ValueError(
                f"{changed[0]} of the module changed after the kernel was made; the kernel shares it. Make the kernel "
                f"of a copy, empirical_ntk(copy.deepcopy(module)), or make it again after training."
            )

    def _depends(self, jacobian: RowJacobian, row: Any) -> bool:
        """Return True if a row's outputs differ between the module's buffers and the copies of them."""
        values = dict(jacobian.weights.values)
        values |= {id(t): t.detach().to(values[id(t)].dtype).clone() for t in self.module.buffers()}
        other = replace(jacobian, weights=replace(jacobian.weights, values=values))
        with torch.no_grad():
            kept, found = (run(j.watch(), functools.partial(j.outputs, row)) for j in (jacobian, other))
        return kept.shape != found.shape or not torch.equal(kept, found)

    @_differentiable
    def trial(self, jacobian: RowJacobian, rows: Any) -> tuple[Trial, OutputSplit]:
        """Find how the first row uses the parameters. Raises: ValueError."""
        found = verified_trial(jacobian, rows)
        return found, self.axes.split(found.outputs)

    def sizes(self, trial: Trial, n: int, itemsize: int) -> Sizes:
        """Choose the rows of a block, and where the factors of n rows are stored.

        Raises: MemoryError: one row does not fit.
        """
        kept, passing = (numbers * itemsize for numbers in row_numbers(trial, self.trained))
        available, host = free(self.device), self.device.type == "cpu"
        default = min(DEFAULT, available / SHARE) if host else available / SHARE
        budget = min(self.memory * memory.GIB or default, available)
        remedy = "pass another memory=GiB, float32, parameters=[...] or of= for fewer outputs"
        memory.require(2 * kept + passing, "the Jacobian of one row, twice,", limit=budget, remedy=remedy)
        room = min(ROOM, budget / 4, n * WIDE * itemsize)
        left = budget - n * kept  # beside the factors of all rows, where they are in memory
        disk = left < max(2 * min(room, LEAST_ROOM), min(n, FEW) * (passing + kept))
        held = 0.0 if disk else n * kept
        room = room if disk else min(room, left / 2)
        rows = int(max(1, min(n, BLOCK, (budget - held) // (passing + kept))))
        work = max(2 * room, rows * (passing + kept))
        return Sizes(rows, held + work, n * kept, disk, room, n, budget - work)

    @_differentiable
    def matrix(self, X: Any, Y: Any, labels: Labels) -> dict[str, np.ndarray]:
        """Compute the kernels of all pairs of rows, (n, m, ...), one for each label.

        If Y is None, one triangle is computed and mirrored, and the diagonal is that of `diagonal` to the bit.
        """
        given = (self.rows("X", X),) if Y is None else (self.rows("X", X), self.rows("Y", Y))
        jacobian, rows = self.prepare(*given)
        trials, split = self._trials(jacobian, rows)
        require_rowwise_module(jacobian, *rows)
        n, m, like, kept = inputs.length(rows[0]), inputs.length(rows[-1]), _like(jacobian), kept_of(self)
        size = float(like.element_size()) * n * m * np.prod(split.tail, dtype=float)
        memory.require(size, "the kernel", limit=free(self.device))  # made there, then copied to the host
        out = {labels(name): like.new_zeros(n, m, *split.tail) for name in self.names}
        mixed = frozenset(self.names)
        while mixed:
            largest = max(trials, key=lambda trial: sum(row_numbers(trial, self.trained)))
            longest = max(map(inputs.length, rows))
            count = 2 * longest if kept else sum(map(inputs.length, rows))
            sizes = self.sizes(largest, count, like.element_size())
            with folder(sizes.stored, disk=sizes.disk and not kept) as path, torch.no_grad():
                filled = self._fill(path, kept, jacobian, trials, rows, sizes, split, labels)
                stores = tuple(part.store for part in filled)
                diagonal = filled[0].diagonal if len(filled) == 1 else {}
                mixed = overlapping(place for store in stores for place in store.kinds)
                if mixed:  # rows use other parts of a parameter: its Jacobian is taken whole in all
                    each = zip(trials, rows, strict=True)
                    trials = tuple(jacobian.trial(inputs.take(x, slice(0, 1)), t.explicit | mixed) for t, x in each)
                else:
                    self._contract(stores, split, sizes.room / like.element_size(), labels, out)
        for label, values in diagonal.items():
            contraction.mirror(out[label], split)
            index = torch.arange(n, device=values.device)
            out[label][index, index] = values
        results = {label: values.cpu().numpy() for label, values in out.items()}
        self.require_finite(jacobian, trials[0], results, dict(zip(("X", "Y"), rows, strict=False)))
        return {label: split.axes.zipped(found, 2) for label, found in results.items()}

    def _trials(self, jacobian: RowJacobian, rows: tuple[Any, ...]) -> tuple[tuple[Trial, ...], OutputSplit]:
        """Find how rows use the parameters; rows of Y of another form than X have a trial of their own."""
        first, split = self.trial(jacobian, rows[0])
        alike = inputs.forms(rows[0]) == inputs.forms(rows[-1])
        trials = tuple(first if alike or part is rows[0] else verified_trial(jacobian, part) for part in rows)
        require_outputs(first, trials[-1])
        return trials, split

    def _fill(
        self, path: Path | None, kept: KeptFactors | None, jacobian: RowJacobian, trials: tuple[Trial, ...],
        rows: tuple[Any, ...], sizes: Sizes, split: OutputSplit, labels: Labels,
    ) -> tuple[Filled, ...]:  # fmt: skip
        """Return the factors of all rows, and their kernels with themselves: computed now, or kept from before."""
        like = _like(jacobian)
        found: list[Filled] = []
        named = tuple(map(labels, self.names))
        keys = [None if kept is None else key_of(part, trial, named) for part, trial in zip(rows, trials, strict=True)]
        missing = [inputs.length(x) for x, key in zip(rows, keys, strict=True) if kept is None or not kept.get(key)]
        done, total = 0, sum(missing)
        for key, trial, part in zip(keys, trials, rows, strict=True):
            n = inputs.length(part)
            old = kept.get(key) if kept else None
            if old is None:
                size = sizes.stored * n / sizes.of_rows
                if kept is None:
                    old = Filled(Store(n, path, like), {})
                else:
                    old = kept.begin(n, like, size, sizes.kept, disk=sizes.disk, needed=keys)
                for block, found_now in self._blocks(jacobian, trial, part, sizes.rows):
                    old.store.write(block, found_now)
                    if kept is not None or len(rows) == 1:
                        self._add_diagonal(old.diagonal, n, block, found_now, split, labels)
                    self.report("gradients", done + block.stop, total)
                done += n
                if kept is not None:
                    kept.add(key, old, size)
            found.append(old)
        return tuple(found)

    @staticmethod
    def _add_diagonal(
        out: dict[str, torch.Tensor], n: int, block: slice, found: Factors, split: OutputSplit, labels: Labels
    ) -> None:
        """Write the kernels of a block of rows with themselves to `out`, (n, ...) for each label."""
        for label, values in own(found, split, labels).items():
            out.setdefault(label, values.new_zeros(n, *split.tail))[block] = values

    @staticmethod
    def _blocks(jacobian: RowJacobian, trial: Trial, rows: Any, step: int) -> Iterator[tuple[slice, Factors]]:
        """Yield the factors of all rows, `step` rows at a time at most, with the places of these rows."""
        for block in slices(inputs.length(rows), step):
            for part, found in jacobian.factors(trial, inputs.take(rows, block)):
                yield slice(block.start + part.start, block.start + part.stop), found

    def _contract(
        self, stores: tuple[Store, ...], split: OutputSplit, room: float, labels: Labels, out: dict[str, torch.Tensor]
    ) -> None:
        """Add up the kernels of all parameters by label."""
        places = [place for place in stores[0].kinds if place in stores[-1].kinds]
        jobs = [contraction.job_of(stores, place, split, room) for place in places]
        done, steps = 0, sum(contraction.steps(job, stores) for job in jobs)
        for job in jobs:
            for _ in contraction.run(job, stores, split, out[labels(job.place.name)]):
                done += 1
                self.report("kernel matrix", done, steps)

    @_differentiable
    def diagonal(self, X: Any, labels: Labels) -> dict[str, np.ndarray]:
        """Compute the kernels of every row with itself, (n, ...), one for each label."""
        jacobian, (rows,) = self.prepare(self.rows("X", X))
        trial, split = self.trial(jacobian, rows)
        require_rowwise_module(jacobian, rows)
        n, like, kept = inputs.length(rows), _like(jacobian), kept_of(self)
        out = {labels(name): like.new_zeros(n, *split.tail) for name in self.names}
        if kept:
            sizes = self.sizes(trial, 2 * n, like.element_size())
            with torch.no_grad():
                (filled,) = self._fill(None, kept, jacobian, (trial,), (rows,), sizes, split, labels)
            out |= filled.diagonal
        else:
            step = self.sizes(trial, n, like.element_size()).rows
            for block, found in self._blocks(jacobian, trial, rows, step):
                self._add_diagonal(out, n, block, found, split, labels)
        results = {label: values.cpu().numpy() for label, values in out.items()}
        self.require_finite(jacobian, trial, results, {"X": rows})
        return {label: split.axes.zipped(values, 1) for label, values in results.items()}

    def require_finite(self, jacobian: RowJacobian, trial: Trial, values: Any, given: Mapping[str, Any]) -> None:
        """Refuse kernels that are not finite, with the row and the parameter in the error. Raises: ValueError."""
        if all(np.isfinite(part).all() for part in values.values()):
            return
        for name, rows in given.items():
            for i in range(inputs.length(rows)):
                ((_, found),) = jacobian.factors(trial, inputs.take(rows, slice(i, i + 1)))
                broken = not_finite(found)
                if broken:
                    raise ValueError(
                        f"the Jacobian of the module at row {i} of {name} is NaN or infinite, from {broken[-1]} back "
                        f"to the inputs ({len(broken)} of {len(self.trained)} parameters). Usual causes: sqrt, norm or "
                        f"log at 0, a division by 0, an overflow."
                    )
        raise ValueError("the kernel overflows: scale the outputs of the module down, or pass X in float64.")

    @_differentiable
    def explain(self, X: Any, Y: Any = None) -> ModulePlan:
        """Report flops, bytes and seconds of gram(X), or cross(X, Y), by parameter, from parts that are timed."""
        given = (self.rows("X", X),) if Y is None else (self.rows("X", X), self.rows("Y", Y))
        jacobian, rows = self.prepare(*given)
        trial, split = self.trial(jacobian, rows[0])
        n, m, c, like = inputs.length(rows[0]), inputs.length(rows[-1]), trial.number, _like(jacobian)
        total = sum(map(inputs.length, rows))
        sizes = self.sizes(trial, total, like.element_size())
        block = min(n, sizes.rows)
        jacobian.factors(trial, inputs.take(rows[0], slice(0, 1)))  # the first call of a process loads code
        with folder(sizes.stored, disk=sizes.disk) as path, torch.no_grad():
            few = Store(block, path, like)
            begin = time.perf_counter()
            for there, found in self._blocks(jacobian, trial, inputs.take(rows[0], slice(0, block)), block):
                few.write(there, found)
                own(found, split, str)
            seconds = (time.perf_counter() - begin) * total / few.n
            whole = tuple(few.like(inputs.length(part)) for part in rows)
            jobs = [contraction.job_of(whole, place, split, sizes.room / like.element_size()) for place in few.kinds]
            costs = []
            for job in jobs:
                one = contraction.seconds(job, whole, few, split)
                use = few.use(job.place, 0)
                costs.append(LayerCost(job.place.name, few.kind(job.place), job.how, *use, job.flops, one))
                seconds += one
        result = float(like.element_size()) * n * m * np.prod(split.tail, dtype=float)
        steps = sum(contraction.steps(job, whole) for job in jobs)
        return ModulePlan(
            n, m, c, sizes.rows, float(-(-n // sizes.rows)), float(steps), tuple(costs), total * trial.flops * (1 + c),
            sizes.bytes, sizes.stored if sizes.disk else 0.0, result, seconds,
        )  # fmt: skip


BLOCK, FEW = 256, 4
"""Rows differentiated at once, at most, and at least: where fewer fit in memory, the factors of all rows go to disk."""
ROOM, LEAST_ROOM = 2**28, 2**26
"""Bytes of Jacobians of all rows that are contracted at once, at most; so many at least before factors go to disk."""


def _like(jacobian: RowJacobian) -> torch.Tensor:
    """Return a tensor with the dtype and device of the computation: a parameter."""
    return next(iter(jacobian.weights.trained.values()))


def layers_of(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the layers of a module as they are printed, to detect another layer or another setting of one."""
    return tuple(f"{name} {part!r}" for name, part in module.named_modules() if not len(list(part.children())))
