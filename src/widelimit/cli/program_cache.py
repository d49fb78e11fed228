"""The command line keeps compiled programs in a cache: a second run of a command does not compile again.

JAX's cache is a folder, in which a full disk or other processes may leave damaged entries, of which it warns. So every
run has a folder of its own, of links to the entries whose checksum is right; at its end what it has compiled takes its
place in the store by a rename. Nothing here imports JAX: environment variables name the folder.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import sys
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from widelimit.fingerprints import sha256

VARIABLE = "WIDELIMIT_CACHE"
OFF = ("off", "no", "0", "")
JAX = "JAX_COMPILATION_CACHE_DIR"
SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
}
"""Short programs are kept too."""
MOST_BYTES = 32 * 2**20
"""The entries beyond it that were unused for longest are removed."""
STALE = 24 * 3600.0
"""Seconds after which the folder of a run that never ended is removed."""
STORE, RUNS, ENTRY = "store", "run-", "-cache"
_places: list[CachePlace] = []


@final
@dataclass(frozen=True)
class CachePlace:
    """A place is a folder where compiled programs are kept."""

    folder: Path | None
    """The folder; None if programs are not kept."""
    reason: str
    """The cause of the place, or of its absence."""

    def entries(self) -> list[Path]:
        """Return the entries of the store, the one that was unused for longest first."""
        return _by_age(self.folder / STORE) if self.folder else []

    def document(self) -> dict[str, str | int]:
        """Return the place and its size in bytes, in JSON."""
        sizes = [_size(entry) for entry in self.entries()]
        return {"folder": str(self.folder or ""), "reason": self.reason, "entries": len(sizes), "bytes": sum(sizes)}


def place(*, off: bool = False) -> CachePlace:
    """Return the folder for this user, processor and versions, not yet made."""
    given = os.environ.get(VARIABLE)
    if off or (given is not None and given.strip().lower() in OFF):
        return CachePlace(None, "off by --no-cache" if off else f"off by {VARIABLE}")
    if JAX in os.environ:
        return CachePlace(None, f"off, as {JAX} is set")
    try:
        base = Path(given).expanduser().absolute() if given else user_folder()
    except RuntimeError as error:
        return CachePlace(None, f"off: {error}")
    return CachePlace(base / fingerprint(), f"by {VARIABLE}" if given else "this user's cache")


def user_folder() -> Path:
    """Return the user's folder for what can be computed again, by the conventions of the system."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "widelimit" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "widelimit"
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "widelimit"


def fingerprint() -> str:
    """Name this processor, with its instructions, and these versions: programs of others may not run here."""
    from importlib.metadata import PackageNotFoundError, version

    facts = [platform.system(), platform.machine(), platform.processor(), platform.python_version(), *_instructions()]
    for package in ("jax", "jaxlib", "widelimit"):
        try:
            facts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            facts.append(package)
    return sha256("\n".join(facts))[:16]


def _instructions() -> list[str]:
    """Read model and flags of the first processor, where Linux reports them."""
    try:
        with open("/proc/cpuinfo") as stream:
            first = stream.read(2**16).partition("\n\n")[0]
    except OSError:
        return []
    named = ("model name", "flags", "Features", "CPU implementer", "CPU part", "cpu", "isa")
    return [line for line in first.splitlines() if line.partition(":")[0].strip() in named]


def require_private(folder: Path) -> None:
    """Make a folder for this user only, or refuse one in which others could place programs.

    Raises:
        PermissionError: it is another's, or others may write to it. OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform == "win32":  # the user's folder is private by its access list
        return
    found = folder.stat()
    if found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(f"{folder} is writable by others (chmod 700 '{folder}')")


def use(*, off: bool) -> Path | None:
    """Let JAX, which is not yet imported, keep its programs in the folder of this run; `publish` takes it later.

    Raises:
        PermissionError: another user could place programs in the store.
    """
    found = place(off=off)
    _places.append(found)
    if found.folder is None or "jax" in sys.modules:
        return None
    for folder in (found.folder.parent, found.folder, found.folder / STORE):
        require_private(folder)
    run = found.folder / f"{RUNS}{os.getpid()}-{time.time_ns()}"
    run.mkdir(mode=0o700)
    _remove_stale(found.folder)
    for entry in found.entries():
        _link(entry, run)
    os.environ.update({JAX: str(run)} | {name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    return run


def note_refusal(error: OSError) -> str:
    """Note that the place is not used; return a remark for the user if they can change that."""
    _places.append(CachePlace(None, f"off: {error}"))
    return "" if error.errno else f"compiled programs are not kept: {error}"


def current_place() -> CachePlace:
    """Return the place that this run uses."""
    return _places[-1] if _places else place()


def _link(entry: Path, run: Path) -> None:
    """Link an entry into the run's folder; an entry whose bytes have changed is removed."""
    checksum, _, name = entry.name.partition("-")
    with suppress(OSError):  # another process may have removed it
        if f"{zlib.crc32(entry.read_bytes()):08x}" != checksum or (run / name).exists():
            entry.unlink()
            return
        try:
            os.link(entry, run / name)
        except OSError:  # a disk without links
            shutil.copyfile(entry, run / name)
        os.utime(run / name, ns=(0, entry.stat().st_mtime_ns))  # a later time of access shows that JAX has read it


def _remove_stale(folder: Path) -> None:
    for run in folder.glob(f"{RUNS}*"):
        with suppress(OSError):
            if time.time() - run.stat().st_mtime > STALE:
                shutil.rmtree(run, ignore_errors=True)


def publish(run: Path) -> None:
    """Move what a run has compiled to the store, keep the store within its bound, and remove the run's folder."""
    store = run.parent / STORE
    known = {entry.name.partition("-")[2]: entry for entry in _by_age(store)}
    for entry in run.glob(f"*{ENTRY}"):
        if entry.name in known:
            with suppress(OSError):
                if entry.stat().st_atime_ns:  # on a disk without times of access the age decides
                    os.utime(known[entry.name])
            continue
        with suppress(OSError):
            data = entry.read_bytes()
            if _whole(data):
                entry.replace(store / f"{zlib.crc32(data):08x}-{entry.name}")
    discard(run)
    entries = _by_age(store)
    excess = sum(map(_size, entries)) - MOST_BYTES
    for entry in entries:
        if excess <= 0:
            break
        excess -= _size(entry)
        with suppress(OSError):
            entry.unlink()


def discard(run: Path) -> None:
    """Remove a run's folder."""
    shutil.rmtree(run, ignore_errors=True)


def _whole(data: bytes) -> bool:
    """Return True if an entry was written to its end: a full disk leaves a part."""
    try:
        if data[:1] == b"\x78":
            zlib.decompress(data)
        elif sys.version_info >= (3, 14):
            from compression import zstd

            zstd.decompress(data)
        else:
            import zstandard

            zstandard.ZstdDecompressor().decompress(data)
    except Exception:  # whatever a decompressor raises, or none is there
        return False
    return True


def _by_age(store: Path) -> list[Path]:
    try:
        found = [(entry.stat().st_mtime_ns, entry.path) for entry in os.scandir(store) if entry.name.endswith(ENTRY)]
    except OSError:
        return []
    return [Path(path) for _, path in sorted(found)]


def _size(entry: Path) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0
