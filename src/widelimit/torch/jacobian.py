"""Jacobians of a PyTorch module are computed as factors of each parameter, for a block of rows at a time.

`RowJacobian.trial` finds how one row uses the parameters, `RowJacobian.factors` computes the factors of rows.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch.utils.checkpoint import CheckpointError

from widelimit.kernels.empirical import factors
from widelimit.kernels.empirical.factors import Affine, Explicit, Factor, Lookup
from widelimit.messages import first_line
from widelimit.torch import inputs
from widelimit.torch.patches import Patched, patches
from widelimit.torch.products import outer_sums
from widelimit.torch.uses import Place, Site, Watch

SIGNALS = 2**25
"""Bytes of backward signals that are made at once, about: more do not fit in the processor's caches."""
FUNCTORCH = ("vmap", "functorch", "torch.func", "batching rule", "doesn't have storage")
"""Words of PyTorch's errors for functions that cannot be differentiated within torch.func or vmap."""
ALIVE = 1.5
"""Numbers in memory during a pass over those that are counted: copies in other layouts, workspace of the libraries."""
Factors = dict[Place, list[Factor | Patched]]
Blocks = list[tuple[slice, Factors]]
Of = Callable[[Any, Any], Any]


class Trial(NamedTuple):
    """The trial at one row says how parameters are used, and the shape of the row's outputs."""

    sites: tuple[Site, ...]
    """The uses of parameters that are understood."""
    shapes: tuple[tuple[torch.Size, torch.dtype], ...]
    """Shapes and dtypes of the results of these uses."""
    explicit: frozenset[str]
    """Parameters whose Jacobians are taken whole, by automatic differentiation."""
    outputs: tuple[int, ...]
    """The shape of one row's outputs."""
    numbers: int
    """Numbers in all intermediate results of the forward pass."""
    flops: float
    """Flops of the sites in the forward pass."""

    @property
    def number(self) -> int:
        """Return c, the number of outputs."""
        return math.prod(self.outputs)

    @property
    def backward(self) -> int:
        """Return the numbers of one output's backward signals."""
        return sum(math.prod(shape) for shape, _ in self.shapes)


@final
@dataclass(frozen=True, eq=False)
class Weights:
    """The values of a module's parameters and buffers, in the dtype of one call."""

    trained: Mapping[str, torch.Tensor]
    """Parameters to differentiate by, by name."""
    values: Mapping[int, torch.Tensor]
    """All parameters and buffers, by the id of the module's own tensor."""
    names: Mapping[int, str]
    """Names of `trained`, by the id of the module's own tensor."""


@final
@dataclass(frozen=True, eq=False)
class RowJacobian:
    """The Jacobian of a module's outputs at rows, by its parameters, is computed as factors."""

    module: torch.nn.Module
    weights: Weights
    of: Of | None
    """A function of outputs and inputs that takes the place of the outputs."""

    def outputs(self, rows: Any) -> torch.Tensor:
        """Compute the outputs of rows of inputs, one tensor (n, ...)."""
        values = inputs.call(self.module, rows)
        if self.of is not None:
            values = self.of(values, rows)
        return inputs.one_tensor(values)

    def watch(self, taps: Any = None, explicit: Mapping[str, torch.Tensor] | None = None) -> Watch:
        """Return a watch over a forward pass, with the values in `explicit` for the parameters named there."""
        other = explicit or {}
        own = {i: other[name] if name in other else self.weights.values[i] for i, name in self.weights.names.items()}
        names = {i: name for i, name in self.weights.names.items() if name not in other}
        return Watch({**self.weights.values, **own}, names, taps)

    def trial(self, rows: Any, whole: frozenset[str] = frozenset()) -> Trial:
        """Find how one row uses the parameters; the Jacobians by those in `whole` will be taken whole.

        Raises: ValueError: the module fails on it, or gives no outputs.
        """
        try:
            watch, values = self._first_pass(rows, whole)
            while more := explicit_names(watch):  # another pass, so that no tap belongs to a use that is left out
                whole = whole | more
                watch, values = self._first_pass(rows, whole)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AssertionError) as error:
            if isinstance(error, TypeError) and "mixed precision" in str(error):
                raise
            raise ValueError(
                f"the module fails for inputs of {inputs.describe(rows)}: {first_line(error)} It is called as "
                f"module(*X) for a tuple X, as module(**X) for a dictionary, and integers keep their dtype."
            ) from error
        if (values.ndim and values.shape[0] != 1) or values.numel() == 0:
            raise ValueError(
                f"the module must give a row of outputs for every row of inputs; it mapped one row to "
                f"{tuple(values.shape)}."
            )
        if not values.is_floating_point():
            raise ValueError(
                f"the module's outputs are {values.dtype}, which have no derivative; pass of=lambda outputs, X: ... "
                f"for a differentiable part of them."
            )
        flops = sum(2.0 * math.prod(site.use) for site in watch.sites if site.kind in ("affine", "conv"))
        return Trial(
            tuple(watch.sites), tuple(watch.shapes), whole, tuple(values.shape[1:]),
            watch.numbers, flops,
        )  # fmt: skip

    def _first_pass(self, rows: Any, whole: frozenset[str]) -> tuple[Watch, torch.Tensor]:
        watch = self.watch(explicit={name: self.weights.trained[name] for name in whole})
        with torch.enable_grad():  # a module may take derivatives itself
            return watch, run(watch, lambda: self.outputs(inputs.map_tree(torch.clone, rows))).detach()

    def factors(self, trial: Trial, rows: Any) -> Blocks:
        """Compute the factors of n rows: at once if torch.vmap can, else one by one, each row with its own trial."""
        n = inputs.length(rows)
        try:
            return [(slice(0, n), self._block(trial, rows, batched=True))]
        except IndexError as error:
            raise ValueError(f"the module fails at a row of X: {first_line(error)} Are all tokens in range?") from error
        except (RuntimeError, ValueError, NotImplementedError):
            pass
        found = []
        for i in range(n):
            row = inputs.take(rows, slice(i, i + 1))
            own = self.trial(row, trial.explicit)
            require_outputs(trial, own)
            try:
                found.append((slice(i, i + 1), self._block(own, row, batched=False)))
            except RuntimeError as error:
                refuse_functorch(error)
                raise
        return found

    def _block(self, trial: Trial, rows: Any, *, batched: bool) -> Factors:
        """Compute the factors of n rows by vmap, or of one row without it. Raises: RuntimeError: vmap cannot."""
        n, c = inputs.length(rows), trial.number
        device = next(iter(self.weights.trained.values())).device
        taps = [torch.zeros((), dtype=t, device=device).expand(n, *s).requires_grad_() for s, t in trial.shapes]
        whole = {
            name: self.weights.trained[name].expand(n, *self.weights.trained[name].shape).detach().requires_grad_()
            for name in sorted(trial.explicit)
        }

        def row(taps: Any, whole: Any, one: Any) -> tuple[Any, Any]:
            watch = self.watch(taps, whole)
            values = run(watch, lambda: self.outputs(inputs.lifted(one)))
            if len(watch.shapes) != len(trial.shapes) or values.numel() != c:
                raise RuntimeError("the rows use fewer layers than the first row, or have other outputs.")
            return values.reshape(-1), watch.signals

        with torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # torch.vmap runs it row by row: as fast
            if batched:
                values, signals = torch.vmap(row)(taps, whole, rows)
            else:
                one = row(*(_first(part) for part in (taps, whole, rows)))
                values, signals = one[0][None], [signal[None] for signal in one[1]]
        pieces = Pieces(trial, signals, n)
        leaves = [*taps, *whole.values()]
        size = n * (trial.backward + sum(p.numel() // n for p in whole.values())) * values.element_size()
        step = max(1, min(c, int(SIGNALS // max(size, 1))))
        for start in range(0, c, step):
            stop = min(start + step, c)
            back = _backward(values, leaves, start, stop)
            pieces.add(start, stop, back[: len(taps)], dict(zip(whole, back[len(taps) :], strict=True)))
        return pieces.factors()


def refuse_functorch(error: Exception) -> None:
    """Refuse a module that PyTorch cannot differentiate under a watch; other errors are not of that kind and pass.

    Raises: ValueError: the error is that of a checkpoint, of torch.func or of vmap.
    """
    if isinstance(error, CheckpointError):
        raise ValueError(
            "the module computes parts of itself again in the backward pass (torch.utils.checkpoint), where its "
            "parameters cannot be followed: turn that off, for Hugging Face modules by "
            "module.gradient_checkpointing_disable()."
        ) from error
    if any(word in str(error).lower() for word in FUNCTORCH):
        raise ValueError(
            f"the module cannot be differentiated: {first_line(error)[:200]} Write it in plain functions of torch, "
            f"without torch.func inside."
        ) from error


def explicit_names(watch: Watch) -> frozenset[str]:
    """Return the parameters whose Jacobians are taken whole: used in unknown ways, or by views that overlap."""
    return overlapping(site.place for site in watch.sites) | watch.unknown.keys()


def overlapping(places: Iterable[Place]) -> frozenset[str]:
    """Return the parameters of which two places share numbers; a place without strides is the whole parameter."""
    named: dict[str, set[Place]] = {}
    for place in places:
        named.setdefault(place.name, set()).add(place)
    mixed = set()
    for name, found in named.items():
        row = sorted(found, key=lambda p: p.offset)
        whole = len(row) > 1 and not all(p.stride for p in row)
        if whole or any(a.end > b.offset for a, b in itertools.pairwise(row)):
            mixed.add(name)
    return frozenset(mixed)


def require_outputs(first: Trial, other: Trial) -> None:
    """Refuse rows with outputs of another shape. Raises: ValueError."""
    if first.outputs != other.outputs:
        raise ValueError(
            f"a kernel needs outputs of one shape for every row; the module gives {first.outputs} for one row and "
            f"{other.outputs} for another. Pass of=lambda outputs, X: ... that returns one shape."
        )


def run(watch: Watch, function: Callable[[], Any]) -> Any:
    """Call a function under a watch, with compiled parts of the module run uncompiled."""
    with torch.compiler.set_stance("force_eager"), watch:
        return function()


def _first(tree: Any) -> Any:
    return inputs.map_tree(lambda t: t[0], tree)


def _backward(values: torch.Tensor, leaves: list[torch.Tensor], start: int, stop: int) -> list[torch.Tensor]:
    """Compute the derivatives of some outputs of all rows by the leaves, (n, outputs, ...) each."""
    if not values.requires_grad:
        return [leaf.new_zeros(()).expand(len(leaf), stop - start, *leaf.shape[1:]) for leaf in leaves]
    last, c = stop == values.shape[1], values.shape[1]
    eye = torch.eye(c, dtype=values.dtype, device=values.device)[start:stop]
    if stop - start == 1:
        found: Any = torch.autograd.grad(
            values, leaves, eye.expand(len(values), c), retain_graph=not last, allow_unused=True
        )
        found = [None if g is None else g[None] for g in found]
    else:
        each = eye[:, None].expand(stop - start, len(values), c)
        found = torch.autograd.grad(
            values, leaves, each, retain_graph=not last, allow_unused=True, is_grads_batched=True
        )
    zero = [leaf.new_zeros(()).expand(stop - start, *leaf.shape) for leaf in leaves]
    return [(z if g is None else g).detach().transpose(0, 1) for g, z in zip(found, zero, strict=True)]


def _empty(part: torch.Tensor, c: int) -> torch.Tensor:
    """Return an empty array for c outputs; backward signals (n, c, S, O) are laid out as (n, S, c, O), for products."""
    n, _, *rest = part.shape
    return part.new_empty(n, c, *rest) if len(rest) == 1 else part.new_empty(n, rest[0], c, rest[1]).transpose(1, 2)


@final
class Pieces:
    """Factors are collected from some outputs at a time: backward signals, or the Jacobian where that is smaller."""

    def __init__(self, trial: Trial, signals: list[torch.Tensor], n: int) -> None:
        self.trial, self.signals, self.n = trial, signals, n
        self.sites = [site for site in trial.sites if site.place.name not in trial.explicit]
        self.kept: dict[int, torch.Tensor] = {}
        self.whole: dict[str, torch.Tensor] = {}
        self.ready = {k: self._ready(site) for k, site in enumerate(self.sites)}

    def _ready(self, site: Site) -> Any:
        """Return the signal in the form that every output needs: patches, where a convolution's Jacobian is formed."""
        signal = self.signals[site.signal] if site.signal >= 0 else None
        if site.windows is None or site.windows.groups > 1 or not whole_jacobian(site, self.trial.number):
            return signal
        return patches(site.windows, signal).flatten(2)

    def add(self, start: int, stop: int, back: list[torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
        """Add the derivatives of outputs `start` to `stop`: by results, (n, outputs, 1, ...), and by parameters."""
        for k, site in enumerate(self.sites):
            g = back[site.tap]
            part = _summed(site, g, self.ready[k], whole=whole_jacobian(site, self.trial.number))
            if k not in self.kept:
                self.kept[k] = _empty(part, self.trial.number)
            self.kept[k][:, start:stop] = part
        for name, g in whole.items():
            if name not in self.whole:
                self.whole[name] = g.new_empty((self.n, self.trial.number, *g.shape[2:]))
            self.whole[name][:, start:stop] = g

    def factors(self) -> Factors:
        """Return the factors of all parameters, (n, c, ...)."""
        found: Factors = {}
        for k, site in enumerate(self.sites):
            kept = self.kept[k]
            if kept.ndim == 3:
                factor: Factor | Patched = Explicit(kept)
            elif site.kind == "lookup":
                factor = Lookup(self.ready[k], kept, site.use.inputs)
            elif site.windows:
                factor = Patched(self.ready[k], kept, site.windows)
            else:
                factor = Affine(self.ready[k], kept)
            found.setdefault(site.place, []).append(factor)
        for name, jacobian in self.whole.items():
            place = Place(name, 0, tuple(jacobian.shape[2:]), ())
            found[place] = [Explicit(jacobian.flatten(2))]
        return found


def whole_jacobian(site: Site, c: int) -> bool:
    """Return True where a site's Jacobian is kept, because it is smaller than its signals or cannot be split."""
    s, i, o = site.use
    if site.kind == "gain" or (site.windows is not None and site.windows.groups > 1):
        return True
    return site.kind != "lookup" and factors.numbers(site.use, c) == c * i * o and s > 1


def _summed(site: Site, g: torch.Tensor, signal: Any, *, whole: bool) -> torch.Tensor:
    """Return the Jacobian (n, outputs, P), or backward signals (n, outputs, S, O)."""
    n, c = g.shape[:2]
    if site.kind == "gain":
        if signal is not None:
            g = g * signal[:, None]
        return g.sum([2 + axis for axis in site.over]).reshape(n, c, -1) if site.over else g.reshape(n, c, -1)
    if site.windows is not None:
        axis = g.ndim - 1 - len(site.windows.kernel)
        if site.windows.groups > 1:
            return _grouped(site, g, signal, axis)
        g = g.movedim(axis, -1)
    g = g.reshape(n, c, -1, site.use.outputs)
    if site.kind == "lookup":
        return g * (signal != site.padding)[:, None, :, None] if site.padding >= 0 else g
    if not whole:
        return g
    return outer_sums(g, signal)


def _grouped(site: Site, g: torch.Tensor, signal: torch.Tensor, axis: int) -> torch.Tensor:
    """Compute the Jacobian of a convolution whose channels are in groups."""
    assert site.windows is not None
    groups = site.windows.groups
    a = patches(site.windows, signal)
    n, s = a.shape[:2]
    a = a.reshape(n, s, groups, -1)
    back = g.movedim(axis, -1).reshape(n, g.shape[1], s, groups, -1)
    return torch.einsum("ncsgo,nsgi->ncgoi", back, a).flatten(2)


def row_numbers(trial: Trial, trained: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """Return how many numbers the factors of a row have, and how many its forward and backward passes make."""
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
            windows = site.windows  # for a convolution the images are stored, not their patches
            shrunk = math.prod(windows.kernel) / math.prod(windows.stride) if windows else 1
            kept += s * (c * o + (1 if site.kind == "lookup" else i / min(shrunk, i)))
    whole = sum(trained[name].numel() for name in trial.explicit)
    return kept + c * whole, ALIVE * (trial.numbers + 2 * trial.backward + formed + 2 * whole)


def not_finite(found: Factors) -> list[str]:
    """Return the parameters whose factors are not finite, in the order of the forward pass."""
    names = []
    for place, parts in found.items():
        arrays = [
            getattr(part, name) for part in parts for name in ("jacobian", "signals", "backward") if name in vars(part)
        ]
        if not all(bool(torch.isfinite(a).all()) for a in arrays):
            names.append(place.name)
    return names
