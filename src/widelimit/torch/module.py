"""The tangent kernel of a module is a sum over parameters of inner products of Jacobians, computed block by block."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch

from widelimit import memory
from widelimit.progress import Report
from widelimit.torch import inputs
from widelimit.torch.axes import AxisSettings, OutputSplit
from widelimit.torch.bits import bits
from widelimit.torch.jacobian import Factors, Of, RowJacobian, Trial, Weights, joined, whole_jacobian
from widelimit.torch.plan import LayerCost, ModulePlan
from widelimit.torch.rowwise import require_rowwise_module
from widelimit.torch.verified import verified_trial

DEFAULT = 3 * 2**28
"""Bytes of working memory unless the caller gives another size: with what is not counted, a peak within 1 GiB."""
Labels = Callable[[str], str]


class Sizes(NamedTuple):
    """Rows a block, blocks held at once on the left, and the bytes of all that."""

    rows: int
    held: int
    bytes: float


@final
@dataclass(frozen=True, eq=False)
class ModuleJacobian:
    """The module, what is differentiated of it by which parameters, and how much memory that may take."""

    module: torch.nn.Module
    names: tuple[str, ...]
    """Parameters that are differentiated by."""
    sums: tuple[tuple[str, int], ...]
    """Sums of the bits of parameters and buffers, which are shared: a change is found by them."""
    layers: tuple[str, ...]
    of: Of | None
    axes: AxisSettings
    memory: float
    report: Report

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """Return the parameters that are differentiated by."""
        found = dict(self.module.named_parameters())
        return {name: found[name] for name in self.names}

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(iter(self.trained.values())).device

    @property
    def dtype(self) -> np.dtype:
        """Return the dtype of the parameters, the widest."""
        wide = any(p.dtype == torch.float64 for p in self.trained.values())
        return np.dtype(np.float64 if wide else np.float32)

    def rows(self, name: str, X: Any) -> Any:
        """Return inputs as tensors of one dtype of floats on the module's device. Raises: TypeError, ValueError."""
        return inputs.tensors(name, X, self.device)

    def prepare(self, *given: Any) -> tuple[RowJacobian, tuple[Any, ...]]:
        """Return the Jacobian in the dtype of the inputs, and the inputs in it.

        Raises: TypeError: the parameters have more digits than the inputs. ValueError: a parameter changed.
        """
        self._require_unchanged()
        floats = [t.dtype for X in given for t in inputs.leaves(X) if inputs.is_float(t)]
        own = {p.dtype for p in self.trained.values()}
        wide = torch.float64 in (floats or own)
        if not wide and torch.float64 in own:
            raise TypeError("X is float32 and the parameters are float64; pass X.astype('float64').")
        dtype = torch.float64 if wide else torch.float32

        def cast(t: torch.Tensor) -> torch.Tensor:
            return t.detach().to(dtype) if t.is_floating_point() else t.detach()

        def kept(t: torch.Tensor) -> torch.Tensor:  # in float32 a module computes as it does, a buffer in float64 too
            return cast(t) if wide else t.detach()

        values = {id(t): kept(t) for t in (*self.module.parameters(), *self.module.buffers())}
        trained = {name: values[id(p)] for name, p in self.trained.items()}
        names = {id(p): name for name, p in self.trained.items()}
        jacobian = RowJacobian(self.module, Weights(trained, values, names), self.of)
        return jacobian, tuple(inputs.map_tree(lambda t: inputs.laid_out(cast(t)), X) for X in given)

    def _require_unchanged(self) -> None:
        sums = dict(self.sums)
        changed = [name for name, t in named_tensors(self.module).items() if sums.get(name) != bits(t)]
        if self.layers != layers_of(self.module):
            changed.append("a layer")
        if changed:
            raise ValueError(
                f"{changed[0]} of the module changed after the kernel was made, which shares it. Make the kernel of a "
                f"copy, empirical_ntk(copy.deepcopy(module)), or make it again after training."
            )

    def trial(self, jacobian: RowJacobian, rows: Any) -> tuple[Trial, OutputSplit]:
        """Find how the first row uses the parameters. Raises: ValueError."""
        found = verified_trial(jacobian, rows)
        return found, self.axes.split(found.outputs)

    def sizes(self, trial: Trial, n: int, itemsize: int, output: Any) -> Sizes:
        """Choose the rows of a block. Raises: MemoryError: one row does not fit."""
        kept, passing = _row_numbers(trial, self.trained)
        kept, passing = kept * itemsize, passing * itemsize
        budget = self.memory * memory.GIB or min(DEFAULT, memory.available() / 2)
        if self.device.type == "cuda":
            budget = min(budget, torch.cuda.mem_get_info(self.device)[0])
        remedy = "pass another memory=GiB, float32, parameters=[...] or of= for fewer outputs"
        memory.require(2 * kept + passing, "the Jacobian of one row, twice,", limit=budget, remedy=remedy)
        room = budget - kept * n if kept * n < 0.6 * budget else budget / 2
        rows = int(max(1, min(n, BLOCK, room // (passing + kept))))
        held = max(1, int((budget - rows * (passing + kept)) // (rows * kept)))
        held = min(held, -(-n // rows))
        return Sizes(rows, held, rows * (passing + (held + 1) * kept))

    def matrix(self, X: Any, Y: Any, labels: Labels) -> dict[str, np.ndarray]:
        """Compute the kernels of all pairs, (n, m, ...), one a label.

        Where Y is None one triangle and its mirror, with the diagonal of `diagonal` to the bit.
        """
        given = (self.rows("X", X),) if Y is None else (self.rows("X", X), self.rows("Y", Y))
        jacobian, rows = self.prepare(*given)
        trial, split = self.trial(jacobian, rows[0])
        require_rowwise_module(jacobian, *rows)
        same, n, m = Y is None, inputs.length(rows[0]), inputs.length(rows[-1])
        sizes = self.sizes(trial, n, _itemsize(jacobian), split.output)
        dtype = np.dtype(str(next(iter(jacobian.weights.trained.values())).dtype).removeprefix("torch."))
        memory.require(float(dtype.itemsize) * n * m * np.prod(split.tail, dtype=float), "the kernel")
        out: dict[str, np.ndarray] = {}
        for here, there, block, own in self._blocks(jacobian, trial, split, rows, sizes, labels):
            for label, values in block.items():
                found = values.cpu().numpy()
                target = out.setdefault(label, np.zeros((n, m, *split.tail), dtype))
                target[here, there] = (found + split.mirror(found)) / 2 if same and here == there else found
                if same and here != there:
                    target[there, here] = split.mirror(found)
            if same and here == there:
                index = np.arange(here.start, here.stop)
                for label, values in own.items():
                    out[label][index, index] = values.cpu().numpy()
        self.require_finite(jacobian, trial, out, dict(zip(("X", "Y"), rows, strict=False)))
        return {label: split.axes.zipped(found, 2) for label, found in out.items()}

    def _blocks(
        self, jacobian: RowJacobian, trial: Trial, split: OutputSplit, rows: Any, sizes: Sizes, labels: Labels
    ) -> Iterator[tuple[slice, slice, dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
        """Yield blocks of the kernel, and the diagonals of those on it.

        Factors of some blocks of rows are held, those of the others made for them.
        """
        same = len(rows) == 1
        n, m = inputs.length(rows[0]), inputs.length(rows[-1])
        groups, right = _slices(n, sizes.rows * sizes.held), _slices(m, sizes.rows)
        done, total = 0, int(_work(n, m, sizes, same)[1])
        for group in groups:
            kept = self._factors(jacobian, trial, rows[0], group, sizes.rows)
            if same:
                diagonal = contracted(kept, kept, split, labels, itself=True)
                yield group, group, contracted(kept, kept, split, labels), diagonal
                done += 1
                self.report("kernel matrix", done, total)
            for there in right:
                if same and there.start >= group.start:
                    break
                other = jacobian.factors(trial, inputs.take(rows[-1], there))
                yield group, there, contracted(kept, other, split, labels), {}
                done += 1
                self.report("kernel matrix", done, total)

    @staticmethod
    def _factors(jacobian: RowJacobian, trial: Trial, rows: Any, group: slice, step: int) -> Factors:
        parts = _slices(group.stop - group.start, step)
        there = [slice(group.start + p.start, group.start + p.stop) for p in parts]
        return joined([jacobian.factors(trial, inputs.take(rows, part)) for part in there])

    def diagonal(self, X: Any, labels: Labels) -> dict[str, np.ndarray]:
        """Compute the kernels of every row with itself, (n, ...), one a label."""
        jacobian, (rows,) = self.prepare(self.rows("X", X))
        trial, split = self.trial(jacobian, rows)
        require_rowwise_module(jacobian, rows)
        n = inputs.length(rows)
        parts: dict[str, list[np.ndarray]] = {}
        for part in _slices(n, self.sizes(trial, n, _itemsize(jacobian), split.output).rows):
            found = jacobian.factors(trial, inputs.take(rows, part))
            for label, values in contracted(found, found, split, labels, itself=True).items():
                parts.setdefault(label, []).append(values.cpu().numpy())
        out = {label: np.concatenate(found) for label, found in parts.items()}
        self.require_finite(jacobian, trial, out, {"X": rows})
        return {label: split.axes.zipped(found, 1) for label, found in out.items()}

    def require_finite(self, jacobian: RowJacobian, trial: Trial, values: Any, given: Mapping[str, Any]) -> None:
        """Refuse values that are not finite: the error names the row and the parameter. Raises: ValueError."""
        if all(np.isfinite(part).all() for part in values.values()):
            return
        for name, rows in given.items():
            for i in range(inputs.length(rows)):
                broken = _broken(jacobian.factors(trial, inputs.take(rows, slice(i, i + 1))))
                if broken:
                    raise ValueError(
                        f"the Jacobian of the module at row {i} of {name} is NaN or infinite, from {broken[-1]} back "
                        f"to the inputs ({len(broken)} of {len(self.trained)} parameters). Usual causes: sqrt, norm or "
                        f"log at 0, a division by 0, an overflow."
                    )
        raise ValueError("the kernel overflows: scale the outputs of the module down, or pass X in float64.")

    def explain(self, X: Any, Y: Any = None) -> ModulePlan:
        """Report flops, bytes and seconds of gram(X), or cross(X, Y), by parameter: a block of rows is timed."""
        given = (self.rows("X", X),) if Y is None else (self.rows("X", X), self.rows("Y", Y))
        jacobian, rows = self.prepare(*given)
        trial, split = self.trial(jacobian, rows[0])
        n, m, c = inputs.length(rows[0]), inputs.length(rows[-1]), trial.number
        itemsize = _itemsize(jacobian)
        sizes = self.sizes(trial, n, itemsize, split.output)
        costs = layer_costs(trial, self.trained, min(n, sizes.rows * sizes.held), c, split.output)
        blocks, pairs = _work(n, m, sizes, Y is None)
        part = slice(0, min(n, sizes.rows))
        jacobian.factors(trial, inputs.take(rows[0], slice(0, 1)))  # the first call of a process loads code
        begin = time.perf_counter()
        found = jacobian.factors(trial, inputs.take(rows[0], part))
        middle = time.perf_counter()
        contracted(found, found, split, str)
        rate = sum(e.flops for e in layer_costs(trial, self.trained, part.stop, c, split.output))
        contracting = (time.perf_counter() - middle) * sum(e.flops for e in costs) / rate
        seconds = blocks * (middle - begin) + pairs * contracting * (
            1 if Y is None and sizes.rows * sizes.held >= n else 1 / sizes.held
        )
        result = float(itemsize) * n * m * np.prod(split.tail, dtype=float)
        return ModulePlan(
            n, m, c, sizes.rows, sizes.held, blocks, pairs, costs, trial.flops, sizes.bytes, result, seconds
        )


BLOCK = 256
"""Rows of a block at most."""


def _slices(n: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def _work(n: int, m: int, sizes: Sizes, same: bool) -> tuple[float, float]:
    """Return how many blocks of rows are differentiated, and how many pairs of blocks contracted."""
    left, right, held = -(-n // sizes.rows), -(-m // sizes.rows), sizes.held
    groups = range(0, left, held)
    if same:
        return float(left + sum(groups)), float(len(groups) + sum(groups))
    return float(left + len(groups) * right), float(len(groups) * right)


def _row_numbers(trial: Trial, trained: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """Return the numbers kept of a row, and those on the way."""
    c = trial.number
    kept, formed = 0.0, 0.0
    for site in trial.sites:
        s, i, o = site.use
        if site.place.name in trial.explicit:
            continue
        if whole_jacobian(site, c):
            kept += c * i * o
            formed += s * i if site.kind == "conv" else 0
        else:
            kept += s * (c * o + (1 if site.kind == "lookup" else i))
    whole = sum(trained[name].numel() for name in trial.explicit)
    return kept + c * whole, trial.numbers + 2 * trial.backward + formed + 2 * whole


def layer_costs(trial: Trial, trained: Any, n: int, c: int, output: Any) -> tuple[LayerCost, ...]:
    """Return what each parameter costs, for n x n pairs of rows."""
    found = []
    for site in trial.sites:
        if site.place.name in trial.explicit:
            continue
        s, i, o = site.use
        structured = site.kind in ("affine", "conv", "lookup") and not whole_jacobian(site, c)
        how, flops = "whole", 2.0 * n * n * c * i * o * (c if output == "full" else 1) + 2.0 * n * c * s * i * o
        if structured:
            how, flops, _ = site.use.order(n, n, c, output)
        found.append(LayerCost(site.place.name, site.kind, how, s, i, o, flops))
    for name in sorted(trial.explicit):
        size = trained[name].numel()
        found.append(LayerCost(name, "any", "autograd", 1, 1, size, 2.0 * n * n * c * size))
    return tuple(found)


def contracted(
    left: Factors, right: Factors, split: OutputSplit, labels: Labels, *, itself: bool = False
) -> dict[str, torch.Tensor]:
    """Compute the kernels of two blocks of rows, summed by label."""
    out: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for place, uses_ in left.items():
            label = labels(place.name)
            for a in uses_:
                for b in right[place]:
                    found = split.contract(a, b, itself=itself)
                    out[label] = out[label] + found if label in out else found
    return out


def _broken(found: Factors) -> list[str]:
    """Return the parameters whose factors are not finite, in the order of the forward pass."""
    names = []
    for place, parts in found.items():
        arrays = [
            getattr(part, name) for part in parts for name in ("jacobian", "signals", "backward") if name in vars(part)
        ]
        if not all(bool(torch.isfinite(a).all()) for a in arrays):
            names.append(place.name)
    return names


def _itemsize(jacobian: RowJacobian) -> int:
    return int(next(iter(jacobian.weights.trained.values())).element_size())


def layers_of(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the layers of a module as they are printed: another layer, or another setting of one, is a change."""
    return tuple(f"{name} {part!r}" for name, part in module.named_modules() if not len(list(part.children())))


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
