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
        pass
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

    Raises: MemoryError: with both sizes in GiB.
    """
    if size > limit:
        raise MemoryError(f"{what} needs {gib(size)} and the budget is {gib(limit)}; {remedy}.")
    free = available()
    if size > free:
        raise MemoryError(f"{what} needs {gib(size)} and {gib(free)} are free; {remedy}.")


def budget(share: float | None) -> float:
    """Return the bytes that one call may take: `share` GiB, if they are free; half of what is free unless given."""
    free = available()
    return min(share * GIB, free) if share else free / 2


def gib(size: float) -> str:
    """Format a size in GiB, with one digit after the point; more for a small one."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / GIB:.2g} GiB"
