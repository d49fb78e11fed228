"""A request that cannot fit in memory is refused before anything is allocated."""

import math
import sys

GIB = 2**30


def available() -> int:
    """Return the bytes that can be allocated without swapping, within the limits of control group and process."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            free = min(free, int(limit.read()) - int(used.read()))
    except (OSError, ValueError):
        pass  # no control group, or one without a limit: the system's figure counts
    return max(0, min(free, _address_space()))


def _address_space() -> int:
    """Return the bytes that `ulimit -v` leaves to this process."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    import psutil

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return int(limit) - int(psutil.Process().memory_info().vms)


def require(
    size: float,
    what: str,
    *,
    limit: float = math.inf,
    remedy: str = "use fewer points, float32, or blocks of rows with cross(X[i:j], Y)",
) -> None:
    """Refuse `size` bytes for `what` if they are over the limit, or not free.

    Raises: MemoryError: with both sizes.
    """
    if size > limit:
        raise MemoryError(f"{what} needs {text(size)} and the budget is {text(limit)}; {remedy}.")
    free = available()
    if size > free:
        raise MemoryError(f"{what} needs {text(size)} and {text(free)} are free; {remedy}.")


def budget(share: float | None) -> float:
    """Return the bytes that one call may take: `share` GiB, if they are free; half of what is free unless given."""
    free = available()
    return min(share * GIB, free) if share else free / 2


def text(size: float) -> str:
    """Format bytes in GiB, in MiB below a tenth of one, and in KiB below a MiB."""
    if size >= GIB / 10:
        return f"{size / GIB:.1f} GiB"
    return f"{size / 2**20:.2g} MiB" if size >= 2**20 else f"{size / 2**10:.2g} KiB"
