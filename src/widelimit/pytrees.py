"""Frozen dataclasses become JAX pytrees."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, dataclass_transform

import jax

from widelimit.references import by_reference

T = TypeVar("T")


def require_pytree(value: Any) -> None:
    """Refuse an object of a class that JAX does not know. Raises: TypeError."""
    if jax.tree_util.all_leaves([value]):
        raise TypeError(
            f"the class {type(value).__name__} is not registered with JAX: write @wl.pytree above the class."
        )


def leaf_names(tree: Any) -> tuple[str, ...]:
    """Return the names of the leaves of a pytree: their paths, as "layers[1].branch[1].weight_std" of a network."""
    return tuple(jax.tree_util.keystr(path).lstrip(".") for path, _ in jax.tree_util.tree_leaves_with_path(tree))


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and register it with JAX: its fields are the leaves of a pytree.

    A field with metadata {"static": True} is structure instead. Own activations and kernels need it: write `@wl.pytree`
    above the class. A class that is a dataclass already is only registered.

    `jax.tree_util.register_dataclass` is not used: its structures compare equal for two classes with equal static
    fields (JAX 0.10.2), and the compiled program of one activation was then seen to be used for another. Here the class
    is part of what is compared. Functions among the fields are pickled by name.

    Raises:
        TypeError: not a class, or one with an `__init__` of its own, which a frozen dataclass cannot have.
    """
    given: Any = cls
    if not isinstance(given, type) or ("__init__" in vars(given) and not is_dataclass(given)):
        raise TypeError(f"cls must be a class that declares its fields, without __init__; got {cls!r:.80}.")
    if "__dataclass_fields__" not in vars(given):
        dataclass(frozen=True)(given)
    static = [f.name for f in fields(given) if f.metadata.get("static")]
    children = [f.name for f in fields(given) if not f.metadata.get("static")]

    of_children, of_structure = _getter(children), _getter(static)

    def flatten(value: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return of_children(value), (cls, *of_structure(value))

    def flatten_with_keys(value: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        leaves, structure = flatten(value)
        return tuple(zip(map(jax.tree_util.GetAttrKey, children), leaves, strict=True)), structure

    def unflatten(structure: tuple[Any, ...], leaves: Iterable[Any]) -> Any:
        value = object.__new__(cls)
        for name, item in zip([*static, *children], [*structure[1:], *leaves], strict=True):
            object.__setattr__(value, name, item)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return by_reference(cls)


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that reads these attributes: every call of a compiled function reads all of a kernel's."""
    if len(names) > 1:
        return operator.attrgetter(*names)
    return (lambda value: (getattr(value, names[0]),)) if names else (lambda _: ())


def changed(value: T, **given: Any) -> T:
    """Return a copy with other values of fields, those that the constructor does not take among them."""
    copy = object.__new__(type(value))
    for name, item in (vars(value) | given).items():
        object.__setattr__(copy, name, item)
    return copy
