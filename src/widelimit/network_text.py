"""A network is text, as `print(net)` gives it: it is read back without executing any of it."""

from __future__ import annotations

import ast
import inspect
import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from widelimit import layers
from widelimit.activations.closed.linear import ABRelu
from widelimit.activations.closed.polynomials import Polynomial
from widelimit.activations.names import BY_NAME, elu
from widelimit.activations.piecewise.polynomial import PiecewisePolynomial
from widelimit.activations.tabulated.numerical import Numerical
from widelimit.architecture.builders import mlp, network, resmlp
from widelimit.architecture.convnets import convnet, garriga_alonso_2019, myrtle, resnet
from widelimit.architecture.graphs import du_2019, gnn
from widelimit.architecture.inputs import Image, Rows
from widelimit.architecture.network import Network
from widelimit.architecture.sequences import Graph, Sequence
from widelimit.architecture.state import Layer
from widelimit.architecture.transformers import transformer

LONGEST = 2**20
"""Characters of a text: 100,000 layers."""
NESTING = 40
"""Calls and lists inside each other."""
LARGEST = 2**53
"""Integers beyond it are no floats."""
MESSAGE = 340
"""Characters of an error without its place."""
_PREFIX = re.compile(r"((wl|widelimit)\.)?(layers\.)?")


def _pieces(kinks: Any, pieces: Any, rtol: Any = None, label: Any = "a piecewise polynomial") -> PiecewisePolynomial:
    lists = [kinks, pieces, *(pieces if isinstance(pieces, (list, tuple)) else ())]
    if not all(isinstance(part, (list, tuple)) for part in lists):
        raise TypeError("kinks is a list of numbers and pieces one of lists: kinks=[0.0], pieces=[[0.0], [0.0, 1.0]].")
    return PiecewisePolynomial(tuple(kinks), tuple(map(tuple, pieces)), rtol, str(label))


_IMAGES = (convnet, resnet, myrtle, garriga_alonso_2019, transformer)
_ACTIVATIONS: set[Any] = {*map(type, BY_NAME.values()), ABRelu, Polynomial} - {Numerical, PiecewisePolynomial}
_NAMES: dict[str, Callable[..., Any]] = {
    **{
        make.__name__: make
        for make in (network, mlp, resmlp, *_IMAGES, gnn, du_2019, elu, Image, Rows, Sequence, Graph)
    },
    "PiecewisePolynomial": _pieces,
    **{name: getattr(layers, name) for name in layers.__all__ if name != "Layer"},
    **{make.__name__: make for make in sorted(_ACTIVATIONS, key=lambda cls: str(cls.__name__))},
}
_LAYERS = ", ".join(
    [
        "network",
        "mlp",
        "resmlp",
        "convnet",
        "resnet",
        "myrtle",
        "transformer",
        *(name for name in layers.__all__ if name != "Layer"),
    ]
)


def read_network(text: str) -> Network:
    """Read the text that `print(net)` gives, or code of the same kind: network(Dense(), "relu", Dense()).

    Nothing is executed: a text may hold calls of network, mlp, resmlp, layers and activations (with or without `wl.`
    and `layers.`), numbers, names in quotes, lists and keywords. The arguments are checked as those of the calls.

    Raises:
        ValueError: anything else, with line and column and what may be written there; a text that is too long or too
            deeply nested; what the calls refuse.
        TypeError: not a text.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"text must be a text such as 'network(Dense(), \"relu\", Dense())', got {type(text).__name__}."
        )
    found = _read(text)
    if not isinstance(found, Network):
        raise ValueError(
            f"the text describes {type(found).__name__}, and a network is needed: network(Dense(), ..., Dense())."
        )
    return found


def read_network_file(path: str | os.PathLike[str]) -> Network:
    """Read a file that holds the text of a network. Raises: ValueError: as `read_network`; OSError."""
    with Path(path).open("rb") as stream:
        content = stream.read(4 * LONGEST + 1)
    try:
        return read_network(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text of UTF-8, as the file of a network is.") from None
    except ValueError as error:
        raise ValueError(f"{str(path)[-150:]}: {error}"[:398]) from None


def network_text(net: Network) -> str:
    """Return the text from which `read_network` makes the same network, with all digits.

    Raises:
        TypeError: a layer that is no text: one of your own, or with a function as its activation.
    """
    if not _is_text(net):
        at = [f"layers[{i}]: {layer!r:.100}" for i, layer in enumerate(net.layers) if not _is_text(layer)]
        raise TypeError(
            f"{at[0] if at else 'a network of so many or so deeply nested layers'} cannot be written as text that is "
            f"read back without executing code: only layers of wl.layers, with activations of this library by name or "
            f"class, can."
        )
    return repr(net)


def _is_text(part: Network | Layer) -> bool:
    """Return True if the text of a network or a layer is read back as the same."""
    try:
        again = _read(repr(part))
    except ValueError:
        return False
    if isinstance(part, Layer):  # a network says for all layers if they are standard
        part, again = part.standardise(), again.standardise()
    (leaves, structure), (others, structure2) = jax.tree.flatten(part), jax.tree.flatten(again)
    return structure == structure2 and all(map(np.array_equal, leaves, others))  # type: ignore[operator]


def _read(text: str) -> Any:
    """Return what the text describes. Raises: ValueError."""
    if len(text) > LONGEST:
        raise ValueError(f"the text of a network has at most {LONGEST} characters, got {len(text)}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(" \t\r\n"), mode="eval")
    except SyntaxError as error:
        place = f"line {error.lineno or 1}, column {error.offset or 1}"
        raise ValueError(
            f"the text of the network, {place}: {str(error.msg)[:80]}; one "
            f'expression is needed, as print(net) gives it: network(Dense(), "relu", Dense()).'
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        cause = str(error)[:80] or "too deeply nested"
        raise ValueError(f"the text of the network cannot be read: {cause}.") from None
    return _value(tree.body, 0)


def _refused(node: Any, why: str) -> ValueError:
    why = why if len(why) <= MESSAGE else f"{why[: MESSAGE - 4]} ..."
    return ValueError(f"the text of the network, line {node.lineno}, column {node.col_offset + 1}: {why}")


def _value(node: Any, depth: int) -> Any:
    """Return the value of a part of the text. Raises: ValueError."""
    if depth > NESTING:
        raise _refused(node, f"more than {NESTING} calls and lists are inside each other.")
    match node:
        case ast.Constant(value=None | bool() | str()):
            return node.value
        case ast.Constant(value=int() | float()):
            return _number(node)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as size)) if size is not True:
            return -_number(node.operand)
        case ast.List() | ast.Tuple():
            values = [_value(part, depth + 1) for part in node.elts]
            return values if isinstance(node, ast.List) else tuple(values)
        case ast.Call():
            return _call(node, depth)
    raise _refused(
        node,
        f"{_shown(node)} is no value; write calls of network, mlp, resmlp, layers and activations, finite numbers, "
        f'names of activations in quotes ("relu"), lists, True, False or None.',
    )


def _number(node: Any) -> float:
    if not math.isfinite(node.value) if isinstance(node.value, float) else abs(node.value) > LARGEST:
        raise _refused(node, "a number is not finite, or an integer beyond 2^53; write it as a float.")
    return node.value  # type: ignore[no-any-return]


def _call(node: ast.Call, depth: int) -> Any:
    """Return what a call makes. Raises: ValueError."""
    name = _dotted(node.func)
    make = _NAMES.get(_PREFIX.sub("", name, count=1))
    if make is None:
        raise _refused(
            node,
            f"{_shown(node.func)} is no layer or activation; known: {_LAYERS}, and classes of activations as in "
            f"docs/activations.md: LeakyRelu(0.3).",
        )
    if any(word.arg is None for word in node.keywords):
        raise _refused(node, "** is no keyword; write name=value.")
    if len({word.arg for word in node.keywords}) < len(node.keywords):
        raise _refused(node, "a keyword is given twice; write it once.")
    values = [_value(part, depth + 1) for part in node.args]
    named = {word.arg: _value(word.value, depth + 1) for word in node.keywords if word.arg is not None}
    if misfit := _misfit(name, make, values, named):
        raise _refused(node, misfit)
    try:
        return make(*values, **named)
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise _refused(node, str(error)) from None


def _misfit(name: str, make: Callable[..., Any], values: list[Any], named: dict[str, Any]) -> str:
    """Say how these arguments are not those of a call, and which are; "": they are."""
    signature = inspect.signature(make)
    internal = {part.name for part in fields(make) if part.metadata.get("internal")} if is_dataclass(make) else set()
    usual = [word for word in signature.parameters.values() if word.name not in internal]
    signature = signature.replace(parameters=usual)
    try:
        signature.bind(*values, **named)
    except TypeError as error:
        known = ", ".join(str(word.replace(annotation=word.empty)) for word in signature.parameters.values())
        return f"{str(error)[:100]}; write {name}({known})."
    return ""


def _dotted(node: Any) -> str:
    """Return a name with its prefixes, of at most three parts; else ""."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute) and len(parts) < 3:
        parts, node = [node.attr, *parts], node.value
    return ".".join([node.id, *parts]) if isinstance(node, ast.Name) else ""


def _shown(node: Any) -> str:
    """Name a part of the text in an error."""
    name = _dotted(node)
    if name:
        return repr(name[:40])
    return {"Constant": "a number of this kind, or bytes", "Starred": "*"}.get(type(node).__name__, type(node).__name__)
