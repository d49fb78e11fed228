"""A pickle holds functions and arrays of JAX: a function by its name, an array with all its digits.

`jax.jit` leaves an object in place of a function, which pickle refuses: it is found again by the name under which it
stands in its module. A float64 array that is read where float64 is off would lose half of its digits.
"""

import functools
import importlib
import pickle
import sys
import types
from typing import Any, Self, TypeVar, final

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")

PUBLIC = ("jax.numpy", "jax.nn", "jax.lax", "jax.scipy.special")
"""Functions are searched here first: the modules in which they are defined differ from version to version."""


@final
class Reference:
    """A reference is a function or an array in the state of a pickled or copied object; a copy holds the same."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        value = self.value
        if isinstance(value, jax.Array):
            return _array, (np.asarray(value),)
        if isinstance(value, functools.partial):
            return _partial, (Reference(value.func), referenced(value.args), referenced(value.keywords))
        if isinstance(value, types.MethodType):
            return getattr, (value.__self__, value.__name__)
        by_value = _by_value()
        for module in PUBLIC if by_value else (*PUBLIC, value.__module__):
            if _at(module, value.__qualname__) is value:
                return found, (module, value.__qualname__)
        if by_value:
            return _itself, (value,)
        raise pickle.PicklingError(
            f"{value.__qualname__} of {value.__module__} cannot be pickled: it has no name of its own in a module. "
            f"Write it with def at the top of a module that both sides import, and pass that function."
        )


def referenced(state: Any) -> Any:
    """Return the state of an object, in dicts, lists and tuples: its functions and JAX arrays as references."""
    return _mapped(lambda value: Reference(value) if _is_function(value) or _is_array(value) else value, state)


def resolved(state: Any) -> Any:
    """Return the state of a copy without references; those of a pickle are resolved by then."""
    return _mapped(lambda value: value.value if isinstance(value, Reference) else value, state)


def by_reference(cls: type[T]) -> type[T]:
    """Pickle the functions and arrays among the fields of a class that does not pickle itself as references."""
    if not {"__getstate__", "__reduce__"} & vars(cls).keys():
        setattr(cls, "__getstate__", lambda self: referenced(vars(self)))  # noqa: B010
        setattr(cls, "__setstate__", _set_state)  # noqa: B010
    return cls


def _set_state(instance: Any, state: dict[str, Any]) -> None:
    instance.__dict__.update(resolved(state))


def found(module: str, name: str) -> Any:
    """Find the function of that name. Raises: pickle.UnpicklingError: there is none."""
    importlib.import_module(module)
    function = _at(module, name)
    if function is None:
        raise pickle.UnpicklingError(f"the module {module} has no {name}, which this pickle needs.")
    return function


def _mapped(change: Any, state: Any) -> Any:
    if type(state) is dict:
        return {name: _mapped(change, value) for name, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_mapped(change, value) for value in state)
    return change(state)


def _at(module: str | None, name: str) -> Any:
    return functools.reduce(lambda at, part: getattr(at, part, None), name.split("."), sys.modules.get(module or ""))


def _is_function(value: Any) -> bool:
    named = callable(value) and isinstance(getattr(value, "__qualname__", None), str)
    return isinstance(value, functools.partial) or (named and not isinstance(value, type))


def _is_array(value: Any) -> bool:
    return (
        isinstance(value, jax.Array)
        and not isinstance(value, jax.core.Tracer)
        and not jnp.issubdtype(value.dtype, jax.dtypes.extended)
    )


def _array(values: np.ndarray) -> jax.Array:
    with jax.enable_x64(values.dtype.itemsize == 8):
        return jnp.asarray(values)


def _itself(value: Any) -> Any:
    return value


def _by_value() -> bool:
    """Return True while cloudpickle or dill writes functions by their code, as joblib does between processes."""
    frame = sys._getframe()
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if "cloudpickle" in name or name.split(".")[0] == "dill":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _partial(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return functools.partial(function, *resolved(arguments), **resolved(keywords))
