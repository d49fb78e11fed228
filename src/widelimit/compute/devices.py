"""One place decides where work runs: on the host, by LAPACK, or on JAX devices, which then keep every matrix.

Given JAX arrays decide, unless `device=` does; else JAX's default device. All that crosses between the host and devices
goes through `to_device` and `to_host`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from widelimit import memory, validation
from widelimit.arithmetic import arithmetic

AXIS = "columns"
"""The axis of several devices: they share the block columns of a matrix."""
Device = Any
"""A jax.Device, several of them (a list, or a mesh of one axis), "cpu", "gpu", or None."""
_FORCED: ContextVar[bool] = ContextVar("forced", default=False)


@contextmanager
def forced() -> Iterator[None]:
    """Treat the CPU platform like an accelerator, so that tests of that branch run anywhere."""
    token = _FORCED.set(True)
    try:
        yield
    finally:
        _FORCED.reset(token)


@final
@dataclass(frozen=True)
class Location:
    """Work runs on these devices of a platform; with `host` by LAPACK on NumPy arrays. It can be pickled."""

    platform: str
    ids: tuple[int, ...]
    host: bool
    why: str

    @property
    def devices(self) -> list[jax.Device]:
        """Return the devices. Raises: ValueError: this machine does not have them."""
        found = [device for device in _devices(self.platform) if device.id in self.ids]
        if len(found) < len(self.ids):
            raise ValueError(f"{self.name} is not a device of this process, which has {_listed()}: compute it again.")
        return found

    @property
    def name(self) -> str:
        """Return the names of the devices: gpu:0."""
        return ", ".join(f"{self.platform}:{index}" for index in self.ids)

    @property
    def sharding(self) -> NamedSharding:
        """Return the placement of an array that every device has whole."""
        return self.placed()

    def placed(self, *axes: str | None) -> NamedSharding:
        """Return the placement of an array with these of its axes cut among the devices."""
        mesh = Mesh(np.array(self.devices), (AXIS,))
        return NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]

    def describe(self) -> str:
        """Say where work runs, why, and how much memory is there."""
        first = self.devices[0]
        by = "by LAPACK on the host" if self.host else f"matrices stay on the device{'s' * (len(self.ids) > 1)}"
        free = f"{memory.text(self.free())} free"
        return f"{self.name} ({first.device_kind}, {memory_of(first)}), {by}, {free}; {self.why}"

    def free(self) -> float:
        """Return the bytes that are free on each of the devices."""
        if self.host:
            return memory.available()
        stats = [statistics for device in self.devices if (statistics := device.memory_stats())]
        if not stats:  # the CPU platform: simulated devices share the host's memory
            return memory.available() / len(self.ids)
        return float(min(each["bytes_limit"] - each["bytes_in_use"] for each in stats))

    def require(self, size: float, what: str, remedy: str = "") -> None:
        """Refuse what needs more bytes of each device than it has left. Raises: MemoryError: with both figures."""
        if size > (free := self.free()):
            remedy = remedy or 'use fewer points, several devices, or device="cpu"'
            raise MemoryError(
                f"{what} needs {memory.text(size)} on {self.name}, {memory.text(free)} are free; {remedy}."
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Compute in float64 on the devices, and report their failures as such. Raises: MemoryError, RuntimeError."""
        try:
            with arithmetic(True), self.default():
                yield
        except jax.errors.JaxRuntimeError as error:
            first = str(error).split("\n", 1)[0][:160]
            if "RESOURCE_EXHAUSTED" in first:
                raise MemoryError(
                    f"{self.name} ran out of memory, {memory.text(self.free())} are free now ({first}); use fewer "
                    'points, several devices, or device="cpu".'
                ) from error
            raise RuntimeError(
                f"{self.name} failed: {first}. If the device was lost (a reset, another process), start Python again; "
                'or pass device="cpu". Data on the host are untouched.'
            ) from error

    def default(self) -> AbstractContextManager[Any]:
        """Let JAX compute NumPy arrays here, in this thread, where that is not its default already."""
        own = self.devices[0]
        return nullcontext() if own == _default() else jax.default_device(own)


def to_device(values: Any, location: Location) -> Any:
    """Move the arrays and numbers of a pytree to every device of the location, in their own dtypes."""
    with location.running():
        return jax.device_put(jax.tree.map(np.asarray, values), location.sharding)


def to_host(values: jax.Array, location: Location) -> np.ndarray:
    """Move an array to the host."""
    with location.running():
        return np.asarray(values)


class _Pickled(NamedTuple):
    """The values of a device keep all their digits: JAX restores its own in float32 where float64 is off."""

    values: np.ndarray
    location: Location


def get_state(result: Any) -> dict[str, Any]:
    """Return the fields of a result to be pickled; a class that keeps arrays on devices takes it as `__getstate__`."""

    def field(value: Any) -> Any:
        if not isinstance(value, jax.Array):
            return value
        location = _location(_homes(value), "where it was kept", True)
        return _Pickled(to_host(value, location), location)

    return {name: field(value) for name, value in vars(result).items()}


def set_state(result: Any, state: dict[str, Any]) -> None:
    """Put pickled arrays on the same devices again, a buffer of tiles by its first axis; taken as `__setstate__`."""
    for name, value in state.items():
        if isinstance(value, _Pickled):
            place = value.location.placed(AXIS) if value.values.ndim == 3 else value.location.sharding
            with value.location.running():
                value = jax.device_put(value.values, place)
        object.__setattr__(result, name, value)


def choose(device: Device = None, **arrays: Any) -> Location:
    """Decide where work runs: by `device`, else where those of the arrays lie that are JAX's, else by JAX's default.

    The CPU platform means the host, unless several of its devices are given (or `forced`).

    Raises: TypeError, ValueError: no such device; arrays on different devices.
    """
    forced = _FORCED.get()
    if isinstance(device, Location):
        return device
    if device is not None:
        return _location(_given(device), "as device= says", forced and not isinstance(device, str))
    homes = {name: _homes(value) for name, value in arrays.items() if _is_concrete(value)}
    if len(set(homes.values())) > 1:
        listed = "; ".join(f"{name} on {', '.join(map(str, home))}" for name, home in homes.items())
        raise ValueError(
            f"the arrays lie on different devices: {listed}. Move them to one, jax.device_put(array, device), or pass "
            "device=."
        )
    if homes:
        return _location(next(iter(homes.values())), "where the given arrays lie", forced)
    return _location((_default(),), "the default of JAX", forced)


def choose_unless_stored(device: Device, matrix: Any, X: Any, y: Any) -> Location | None:
    """Choose where work runs; a stored matrix has no device: None. Raises: as `choose`; ValueError."""
    if matrix is None:
        return choose(device, X=X, y=y)
    if device is not None:
        raise ValueError("device: not of a stored matrix; leave that out.")
    return None


def accelerated() -> bool:
    """Return True if JAX's default device, which computes NumPy arrays, is an accelerator (or `forced`)."""
    return _FORCED.get() or _default().platform != "cpu"


def require_here(name: str, value: Any, location: Location) -> None:
    """Refuse a JAX array that was put on another device than the one a result is kept on. Raises: ValueError."""
    if _is_concrete(value) and value.committed and not location.host and set(_homes(value)) != set(location.devices):
        raise ValueError(
            f"{name} lies on {', '.join(map(str, _homes(value)))} and the result is kept on {location.name}: pass "
            f"jax.device_put({name}, device), or a NumPy array."
        )


def memory_of(device: jax.Device) -> str:
    """Return how much memory a device has, as text."""
    stats = device.memory_stats()
    return memory.text(stats["bytes_limit"]) if stats else "memory of this machine"


def _location(found: tuple[jax.Device, ...], why: str, forced: bool) -> Location:
    platform = found[0].platform
    host = platform == "cpu" and len(found) == 1 and not forced
    return Location(platform, tuple(device.id for device in found), host, why)


def _is_concrete(value: Any) -> bool:
    return validation.is_jax(value) and not validation.traced(value)


def _homes(value: jax.Array) -> tuple[jax.Device, ...]:
    return tuple(sorted(value.devices(), key=lambda device: device.id))


def _default() -> jax.Device:
    known = jax.default_device.value
    if isinstance(known, str):
        return jax.local_devices(backend=known)[0]
    return known if known is not None else jax.local_devices()[0]


def _devices(platform: str) -> list[jax.Device]:
    try:
        return list(jax.local_devices(backend=platform))
    except RuntimeError:  # JAX has no such platform
        return []


def _listed() -> str:
    known = dict.fromkeys([*jax.local_devices(), *_devices("cpu")])
    return ", ".join(f"{device.platform}:{device.id}" for device in known)


def _given(device: Device) -> tuple[jax.Device, ...]:
    """Return the devices that `device=` names. Raises: TypeError, ValueError."""
    if isinstance(device, str):
        platform, _, index = device.partition(":")
        found = [known for known in _devices(platform) if index in ("", str(known.id))] if platform else []
        if not found:
            raise ValueError(f"device={validation.shown(device)} is not here: this process has {_listed()}.")
        return (found[0],)
    several = device.devices.ravel().tolist() if isinstance(device, Mesh) else device
    several = list(several) if isinstance(several, list | tuple) else [several]
    if not several or not all(isinstance(each, jax.Device) for each in several):
        raise TypeError(
            'device must be a jax.Device, a list of them, "cpu", "gpu", "gpu:1" or None; got '
            f"{validation.shown(device)}."
        )
    if len({each.platform for each in several}) > 1 or len(set(several)) < len(several):
        raise ValueError(f"device must be different devices of one platform; got {validation.shown(device)}.")
    return tuple(several)
