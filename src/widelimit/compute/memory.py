"""Memory: a request that cannot fit is refused before anything is allocated."""

from __future__ import annotations

GIB = 2**30


def available() -> int:
    """Bytes that can be allocated without swapping, within the limit of the control group if there is one."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            return min(free, int(limit.read()) - int(used.read()))
    except (OSError, ValueError):
        return free


def require(size: float, what: str) -> None:
    """Refuse `size` bytes for `what` if they are not there.

    Raises:
        MemoryError: with both sizes in GiB.
    """
    free = available()
    if size > free:
        raise MemoryError(
            f"{what} needs {size / GIB:.1f} GiB and {free / GIB:.1f} GiB are free; use fewer points, float32, or "
            f"blocks of rows with cross(X[i:j], Y)."
        )
