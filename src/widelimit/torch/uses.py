"""Each use of a trainable parameter in a module's forward pass is recorded, with what its Jacobian needs.

`Watch` intercepts the functions of torch; `RULES` has a function for each of those that are understood.
"""

import contextlib
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, final

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from widelimit.kernels.empirical.factors import Use
from widelimit.torch.patches import Windows

CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
DETACHED = ("detach", "data", "detach_")
FLOATS = (torch.float32, torch.float64)


class Place(NamedTuple):
    """A place is a parameter or a view of one, by its name and its strides: equal places have the same numbers."""

    name: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def end(self) -> int:
        """Return the offset after the last number."""
        return self.offset + 1 + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))


class Site(NamedTuple):
    """A site is one use of a parameter: an affine map, a convolution, a lookup, or a gain or offset."""

    place: Place
    kind: str
    """"affine", "conv", "lookup" or "gain" (offsets are gains without a signal)."""
    tap: int
    """The number of the result."""
    signal: int
    """The number of the signal that multiplies the parameter; -1 for an offset."""
    use: Use
    over: tuple[int, ...] = ()
    """Axes of the result over which a gain is broadcast."""
    windows: Windows | None = None
    """The windows of a convolution."""
    padding: int = -1
    """The token of a lookup whose row has no gradient; -1 for none."""


@final
class Watch(TorchFunctionMode):  # type: ignore[misc]
    """A watch calls the functions of torch with given values of the parameters, and records how these are used.

    Without taps the pass is a trial: it finds sites, the shapes of their results, and `unknown`, the names of
    parameters that are used in ways that no rule covers, whose Jacobians are taken by automatic differentiation.
    Taps are zeros of these shapes that are added to the results: derivatives by them are the backward signals.
    """

    def __init__(self, values: Mapping[int, torch.Tensor], names: Mapping[int, str], taps: Any = None) -> None:
        TorchFunctionMode.__init__(self)
        self.values, self.taps = values, taps
        self.tracked: dict[int, tuple[torch.Tensor, str]] = {
            id(values[own]): (values[own], name) for own, name in names.items()
        }
        self.sites: list[Site] = []
        self.signals: list[torch.Tensor] = []
        self.shapes: list[tuple[torch.Size, torch.dtype]] = []
        self.unknown: dict[str, str] = {}
        self.numbers = 0
        self.flops = 0.0

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = self._valued(args), self._valued(kwargs or {})
        found = [t for t in _tensors((args, kwargs)) if id(t) in self.tracked]
        if found and isinstance(func, types.FunctionType) and func.__module__ == functional.__name__:
            with self:
                return _body(func)(*args, **kwargs)
        rule = RULES.get(func)
        result = NotImplemented
        if rule and (found or func in ALWAYS):
            try:
                result = rule(self, func, *args, **kwargs)
            except TypeError as error:  # arguments by names that the rule does not know
                if "mixed precision" in str(error):
                    raise
        if result is NotImplemented:
            result = func(*args, **kwargs)
            if found:
                self._note(func, found, result)
        if self.taps is None:
            self.numbers += sum(t.numel() for t in _tensors(result))
        return result

    def _valued(self, tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            return self.values.get(id(tree), tree)
        if isinstance(tree, list | tuple) and not isinstance(tree, torch.Size):
            parts = [self._valued(part) for part in tree]
            return parts if isinstance(tree, list) else tuple(parts)
        return {key: self._valued(part) for key, part in tree.items()} if type(tree) is dict else tree

    def _note(self, func: Any, found: list[torch.Tensor], result: Any) -> None:
        """Track a view of a parameter; any other result means that the parameter is used in an unknown way."""
        owner: Any = func.__self__ if isinstance(func, types.MethodWrapperType) else func  # a property, or a function
        label = getattr(owner, "__name__", "")
        made = [t for t in _tensors(result) if t.is_floating_point() or t.is_complex()]
        if label in DETACHED or (not made and label != "__setitem__"):
            return
        storage = found[0].untyped_storage().data_ptr()
        views = bool(made) and len(found) == 1 and not label.endswith("_") and all(_is_view(t, storage) for t in made)
        for t in found:
            name = self.tracked[id(t)][1]
            if views:
                self.tracked |= {id(v): (v, name) for v in made}
            else:
                self.unknown.setdefault(name, label)

    def place(self, t: Any, *, turned: bool = False) -> Place | None:
        """Return the place of a trained parameter or of a view of one (with `turned`, of its transpose), or None."""
        if not isinstance(t, torch.Tensor) or id(t) not in self.tracked:
            return None
        t, name = self.tracked[id(t)]
        seen = t.t() if turned else t
        return Place(name, seen.storage_offset(), tuple(seen.shape), tuple(seen.stride()))

    def keep(self, signal: torch.Tensor) -> int:
        """Keep a signal, and return its number."""
        self.signals.append(signal.detach())
        return len(self.signals) - 1

    def tap(self, result: torch.Tensor, *sites: Callable[[int], Site] | None) -> torch.Tensor:
        """Record the sites that gave a result, and return the result with its tap added."""
        if result.dtype not in FLOATS:
            raise TypeError(
                f"the module computes in {result.dtype} (mixed precision, autocast): its Jacobian has too few digits "
                f"for a kernel. Turn autocast off inside of the module, and keep its parameters in float32."
            )
        number = len(self.shapes)
        self.shapes.append((result.shape, result.dtype))
        self.sites += [site(number) for site in sites if site]
        if self.taps is None:
            return result
        if number >= len(self.taps) or self.taps[number].shape != result.shape:  # a sum would broadcast
            raise RuntimeError("the rows use other layers than the first row, or have other sizes.")
        return result + self.taps[number]

    def offset(self, bias: Any, result: torch.Tensor, axes: tuple[int, ...]) -> Callable[[int], Site] | None:
        """Return the site of a bias that is added to a result along `axes`."""
        return self.gain(bias, result, axes, -1)

    def gain(self, p: Any, result: torch.Tensor, axes: tuple[int, ...], signal: int) -> Callable[[int], Site] | None:
        """Return the site of a gain that multiplies a signal along `axes` of the result (signal -1: a bias)."""
        place = self.place(p)
        if place is None:
            return None
        own = {axis % result.ndim for axis in axes}
        if math.prod(place.size) != math.prod(result.shape[axis] for axis in own):  # broadcast
            self.unknown.setdefault(place.name, "broadcast")
            return None
        over = tuple(i for i in range(result.ndim) if i not in own)
        outputs = math.prod(place.size)
        return lambda tap: Site(place, "gain", tap, signal, Use(result.numel() // max(outputs, 1), 1, outputs), over)


def _body(func: Any) -> Any:
    """Return a function of torch.nn.functional whose statements run one by one, so that a watch sees each."""
    names = {**func.__globals__, **dict.fromkeys(CHECKS, lambda *_: False)}
    own = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    own.__kwdefaults__ = func.__kwdefaults__
    return own


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


def _is_view(t: torch.Tensor, storage: int) -> bool:
    try:
        same = t.untyped_storage().data_ptr() == storage
    except (RuntimeError, NotImplementedError):  # a batched tensor has none
        return False
    if not same or t.is_complex():
        return False
    moves = sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1)
    return all(s > sum((n - 1) * m for m, n in moves[:i]) for i, (s, _) in enumerate(moves))  # no number twice


def _affine(watch: Watch, x: torch.Tensor, weight: Any, *, turned: bool) -> Any:
    place = watch.place(weight, turned=turned)
    if place is None:
        return None
    outputs, inputs = place.size
    signal = watch.keep(x.reshape(-1, inputs))
    use = Use(x.numel() // max(inputs, 1), inputs, outputs)
    return lambda tap: Site(place, "affine", tap, signal, use)


def _linear(watch: Watch, func: Any, input: Any, weight: Any, bias: Any = None) -> Any:
    if watch.place(input) or weight.ndim != 2:
        return NotImplemented
    result = func(input, weight, bias)
    return watch.tap(result, _affine(watch, input, weight, turned=False), watch.offset(bias, result, (-1,)))


def _matmul(watch: Watch, func: Any, input: Any, other: Any) -> Any:
    if watch.place(input) or other.ndim != 2 or watch.place(other) is None:
        return NotImplemented
    result = func(input, other)
    return watch.tap(result, _affine(watch, input, other, turned=True))


def _addmm(watch: Watch, func: Any, input: Any, mat1: Any, mat2: Any) -> Any:
    if watch.place(mat1) or input.ndim != 1:
        return NotImplemented
    result = func(input, mat1, mat2)
    return watch.tap(result, _affine(watch, mat1, mat2, turned=True), watch.offset(input, result, (-1,)))


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """Return a number for every axis."""
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes // len(value))


def _conv(
    watch: Watch, func: Any, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    if watch.place(input):
        return NotImplemented
    result = func(input, weight, bias, stride, padding, dilation, groups)
    axes = weight.ndim - 2
    kernel, steps = tuple(weight.shape[2:]), _each(dilation, axes)
    if isinstance(padding, str):
        whole = [d * (k - 1) if padding == "same" else 0 for d, k in zip(steps, kernel, strict=True)]
        before = tuple(w // 2 for w in whole)
        after = tuple(w - b for w, b in zip(whole, before, strict=True))
    else:
        before = after = _each(padding, axes)
    place, sites = watch.place(weight), []
    if place:
        signal = watch.keep(input)
        outputs = weight.shape[0]
        use = Use(result.numel() // outputs, math.prod(weight.shape[1:]), outputs)
        windows = Windows(kernel, _each(stride, axes), before, after, steps, groups)
        sites.append(lambda tap: Site(place, "conv", tap, signal, use, windows=windows))
    return watch.tap(result, *sites, watch.offset(bias, result, (-1 - axes,)))


def _embedding(
    watch: Watch, func: Any, weight: Any, indices: Any, padding_idx: int = -1, scale: bool = False, *_: Any
) -> Any:
    place = watch.place(weight)
    if place is None or scale:
        return NotImplemented
    result = func(weight, indices, padding_idx, scale, False)
    signal = watch.keep(indices.reshape(-1))
    use = Use(indices.numel(), place.size[0], place.size[1])
    return watch.tap(result, lambda tap: Site(place, "lookup", tap, signal, use, padding=padding_idx))


def _gains(watch: Watch, x: torch.Tensor, weight: Any, bias: Any, axes: tuple[int, ...]) -> torch.Tensor:
    """Multiply normalised signals by a weight and add a bias, along axes."""
    shape = [x.shape[i] if i - x.ndim in axes else 1 for i in range(x.ndim)]
    result = x if weight is None else x * weight.reshape(shape)
    result = result if bias is None else result + bias.reshape(shape)
    gain = watch.gain(weight, result, axes, watch.keep(x)) if watch.place(weight) else None
    return watch.tap(result, gain, watch.offset(bias, result, axes))


def _layer_norm(
    watch: Watch, func: Any, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Any:
    if watch.place(x):
        return NotImplemented
    return _gains(watch, func(x, shape, None, None, eps), weight, bias, tuple(range(-len(shape), 0)))


def _rms_norm(watch: Watch, func: Any, x: Any, shape: Any, weight: Any = None, eps: Any = None) -> Any:
    if watch.place(x):
        return NotImplemented
    return _gains(watch, func(x, shape, None, eps), weight, None, tuple(range(-len(shape), 0)))


def _group_norm(
    watch: Watch, func: Any, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Any:
    if watch.place(x):
        return NotImplemented
    return _gains(watch, func(x, groups, None, None, eps), weight, bias, (1 - x.ndim,))


def _batch_norm(
    watch: Watch, _: Any, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, __: float,
    eps: float, *___: Any,
) -> Any:  # fmt: skip
    if training or watch.place(x) or weight is None or bias is None:
        return NotImplemented
    shape = [-1] + [1] * (x.ndim - 2)
    inverse = (variance + eps).rsqrt()
    scale = weight * inverse
    result = x * scale.reshape(shape) + (bias - mean * scale).reshape(shape)
    axes = (1 - x.ndim,)
    gain = None
    if watch.place(weight):
        gain = watch.gain(weight, result, axes, watch.keep((x.detach() - mean.reshape(shape)) * inverse.reshape(shape)))
    return watch.tap(result, gain, watch.offset(bias, result, axes))


def _instance_norm(
    watch: Watch, func: Any, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, own: bool, _: float,
    eps: float, *__: Any,
) -> Any:  # fmt: skip
    if watch.place(x) or (not own and mean is None):
        return NotImplemented
    return _gains(watch, func(x, None, None, mean, variance, own, 0.0, eps, False), weight, bias, (1 - x.ndim,))


def _aligned(p: torch.Tensor, result: torch.Tensor) -> tuple[int, ...] | None:
    """Return the axes of a result along which a broadcast parameter has numbers, or None if it is the larger one."""
    axes = tuple(i - p.ndim for i in range(p.ndim) if p.shape[i] > 1)
    same = p.ndim <= result.ndim and all(p.shape[i] == result.shape[i] for i in axes)
    return axes if same else None


def _add(watch: Watch, func: Any, a: Any, b: Any, **options: Any) -> Any:
    p, x = (a, b) if watch.place(a) else (b, a)
    if options or watch.place(x) or not isinstance(x, torch.Tensor):
        return NotImplemented
    result = func(a, b)
    axes = _aligned(p, result)
    return NotImplemented if axes is None else watch.tap(result, watch.offset(p, result, axes))


def _mul(watch: Watch, func: Any, a: Any, b: Any) -> Any:
    p, x = (a, b) if watch.place(a) else (b, a)
    if watch.place(x) or not isinstance(x, torch.Tensor):
        return NotImplemented
    result = func(a, b)
    axes = _aligned(p, result)
    if axes is None:
        return NotImplemented
    signal = watch.keep(x.expand(result.shape).to(result.dtype))
    return watch.tap(result, watch.gain(p, result, axes, signal))


def _attention(
    watch: Watch, _: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """Compute softmax(q k^T scale + mask) v step by step: the fused form has no rule for several backward signals."""
    if dropout_p or enable_gqa:
        return NotImplemented
    with watch if any(id(t) in watch.tracked for t in (query, key, value, attn_mask)) else contextlib.nullcontext():
        return _softmax_attention(query, key, value, attn_mask, is_causal, scale)


def _softmax_attention(query: Any, key: Any, value: Any, attn_mask: Any, is_causal: bool, scale: Any) -> Any:
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else weights + attn_mask
    return torch.softmax(weights, -1) @ value


T = torch.Tensor
ALWAYS = {functional.scaled_dot_product_attention}
RULES: dict[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    **dict.fromkeys([torch.matmul, torch.mm, T.matmul, T.mm, T.__matmul__], _matmul),
    **dict.fromkeys([torch.addmm, T.addmm], _addmm),
    **dict.fromkeys([torch.conv1d, torch.conv2d, torch.conv3d], _conv),
    torch.embedding: _embedding,
    torch.layer_norm: _layer_norm,
    torch.rms_norm: _rms_norm,
    torch.group_norm: _group_norm,
    torch.batch_norm: _batch_norm,
    torch.instance_norm: _instance_norm,
    **dict.fromkeys([torch.add, T.add, T.__add__, T.__radd__], _add),
    **dict.fromkeys([torch.mul, T.mul, T.__mul__, T.__rmul__], _mul),
    functional.scaled_dot_product_attention: _attention,
}
