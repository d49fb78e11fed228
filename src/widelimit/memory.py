"""A request that cannot fit in memory is refused before anything is allocated."""

import math
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath

GIB = 2**30
GROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Folder, and names for limit, use and cached files, of control groups of version 2 and 1."""
UNLIMITED = 2**60
"""A limit from here on is none: version 1 writes a large number."""


def available() -> int:
    """Return the bytes that can be allocated without swapping, within the limits of control group and process."""
    import psutil

    return max(0, min(int(psutil.virtual_memory().available), control_groups(), _address_space()))


def control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes that the control groups of this process leave, of version 1 or 2; cached files count as free."""
    free = sys.maxsize
    for folder, limit, used, cached in _limited_groups(root, own):
        with suppress(OSError):  # the process was moved to another group
            files = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            free = min(free, limit - int((folder / used).read_text()) + int(files[cached]))
    return free


@cache
def _limited_groups(root: Path, own: Path) -> list[tuple[Path, int, str, str]]:
    """Find the groups that this process is in, and that have a limit: folder, limit, names for use and cached files."""
    found = []
    lines = own.read_text().splitlines() if own.exists() else []  # Linux has it
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            base, limit, used, cached = GROUPS[controllers]
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):  # a container may see the last one only
                folder = root / base / group.relative_to("/")
                with suppress(OSError, ValueError):  # no such group, or one without a limit, "max"
                    found.append((folder, int((folder / limit).read_text()), used, cached))
    return [group for group in found if group[1] < UNLIMITED]


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
