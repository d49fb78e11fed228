"""The command line's cache of compiled programs: found again, private, bounded, whole whatever happens to its files."""

import json
import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest

from commands import invoke
from widelimit import memory
from widelimit.cli import program_cache

ROWS = "a,b,y\n" + "".join(f"{i},{i % 5},{i % 11 + i / 40}\n" for i in range(40))
HIT, MISS = "compilation cache hit", "CACHE MISS"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_text(ROWS)
    return path


def command(cache, *arguments, **variables):
    ours = [name for name in os.environ if name.startswith("JAX_") and name != "JAX_DISABLE_MOST_OPTIMIZATIONS"]
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    environment = kept | {"WIDELIMIT_CACHE": str(cache)} | variables
    line = [sys.executable, "-m", "widelimit", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120)


def run(table, cache, *, logged=False):
    """`widelimit fit`, whose compiler logs what it does if `logged`."""
    arguments = [
        "fit",
        table,
        "--target",
        "y",
        "--estimator",
        "ntk",
        "--depth",
        1,
        "--noise",
        0.1,
        "--model",
        cache.parent / f"{cache.name}.npz",
    ]
    return command(cache, *arguments, **({"JAX_LOGGING_LEVEL": "DEBUG"} if logged else {}))


@pytest.fixture(scope="module")
def filled(table, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache") / "kept"
    first = run(table, cache, logged=True)
    assert first.returncode == 0, first.stderr
    assert MISS in first.stderr
    assert HIT not in first.stderr
    return cache


def store(cache):
    (found,) = cache.glob("*/store")
    return found


def contents(cache):
    return {path.name: path.read_bytes() for path in store(cache).iterdir()}


def test_a_second_run_compiles_nothing(table, filled):
    before = contents(filled)
    assert len(before) >= 2
    assert all(name.startswith(f"{zlib.crc32(data):08x}-") for name, data in before.items())
    second = run(table, filled, logged=True)
    assert (second.returncode, second.stderr.count(MISS)) == (0, 0)
    assert second.stderr.count(HIT) >= len(before)
    assert contents(filled) == before
    assert [path.name for path in store(filled).parent.iterdir()] == ["store"]


def test_the_folder_is_private(filled):
    for folder in (filled, store(filled).parent, store(filled)):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_damaged_entries_are_compiled_again_without_a_word(table, filled):
    before = contents(filled)
    for i, path in enumerate(sorted(store(filled).iterdir())):
        data = bytearray(path.read_bytes())
        if i % 3 == 0:
            data = data[: len(data) // 2]
        elif i % 3 == 1:
            data[len(data) // 2] ^= 1
        else:
            data = bytearray()
        path.write_bytes(data)
    again = run(table, filled)
    assert (again.returncode, again.stderr) == (0, "")
    after = contents(filled)
    assert {name.partition("-")[2] for name in after} == {name.partition("-")[2] for name in before}
    assert all(name.startswith(f"{zlib.crc32(data):08x}-") for name, data in after.items())


def test_parallel_runs(table, tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(run(table, tmp_path / "kept"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(one.returncode, one.stderr) for one in found] == [(0, "")] * 2
    names = [name.partition("-")[2] for name in contents(tmp_path / "kept")]
    assert len(names) >= 2
    assert [path.name for path in store(tmp_path / "kept").parent.iterdir()] == ["store"]


def test_it_is_turned_off(tmp_path):
    for options, variables in (
        (["--no-cache"], {}),
        ([], {"WIDELIMIT_CACHE": "off"}),
        ([], {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}),
    ):
        found = command(tmp_path / "kept", *options, "info", **{"HOME": str(tmp_path / "home"), **variables})
        assert (found.returncode, found.stderr) == (0, "")
        assert "compiled programs  off" in found.stdout
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept").chmod(0o777)
    found = command(tmp_path / "kept", "info")
    assert found.returncode == 0
    assert found.stderr.count("\n") == 1
    assert "compiled programs are not kept" in found.stderr
    assert "writable by others (chmod 700" in found.stderr
    assert list((tmp_path / "kept").iterdir()) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getuid", lambda: (tmp_path / "kept").stat().st_uid + 1)
        (tmp_path / "kept").chmod(0o700)
        with pytest.raises(PermissionError, match="belongs to another user"):
            program_cache.require_private(tmp_path / "kept")


def test_a_place_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    found = command(tmp_path / "file", "info")
    assert (found.returncode, found.stderr) == (0, "")


@pytest.fixture
def small_store(tmp_path):
    run_folder = tmp_path / "key" / "run-1"
    (tmp_path / "key" / "store").mkdir(parents=True)
    run_folder.mkdir()
    return run_folder


def test_the_store_is_bounded_and_the_oldest_go(small_store, monkeypatch):
    monkeypatch.setattr(program_cache, "MOST_BYTES", 2500)
    kept = small_store.parent / "store"
    for i in range(4):
        data = zlib.compress(os.urandom(980))
        path = kept / f"{zlib.crc32(data):08x}-old{i}-cache"
        path.write_bytes(data)
        os.utime(path, (i, i))
    (small_store / "new-cache").write_bytes(zlib.compress(os.urandom(500)))
    program_cache.publish(small_store)
    assert sorted(path.name[9:] for path in kept.iterdir()) == ["new-cache", "old2-cache", "old3-cache"]
    assert not small_store.exists()


def test_entries_in_use_stay(small_store, monkeypatch):
    """Every run has links to all entries; those that JAX reads are in use."""
    kept = small_store.parent / "store"
    for i in range(4):
        data = zlib.compress(os.urandom(980))
        path = kept / f"{zlib.crc32(data):08x}-old{i}-cache"
        path.write_bytes(data)
        os.utime(path, (i + 1, i + 1))
        program_cache._link(path, small_store)
    (small_store / "old0-cache").read_bytes()
    if not (small_store / "old0-cache").stat().st_atime_ns:
        pytest.skip("a disk without times of access")
    monkeypatch.setattr(program_cache, "MOST_BYTES", 2500)
    program_cache.publish(small_store)
    assert sorted(path.name[9:] for path in kept.iterdir()) == ["old0-cache", "old3-cache"]


def test_half_an_entry_is_not_published(small_store):
    data = zlib.compress(os.urandom(900))
    (small_store / "half-cache").write_bytes(data[:500])
    (small_store / "whole-cache").write_bytes(data)
    program_cache.publish(small_store)
    assert [path.name[9:] for path in (small_store.parent / "store").iterdir()] == ["whole-cache"]


def test_the_key_names_processor_and_versions(monkeypatch):
    from importlib import metadata

    names = {program_cache.fingerprint()}
    assert names == {program_cache.fingerprint()}
    monkeypatch.setattr(program_cache, "_instructions", lambda: ["flags : avx512f"])
    names.add(program_cache.fingerprint())
    for package in ("jax", "jaxlib", "widelimit"):
        with monkeypatch.context() as patch:
            patch.setattr(metadata, "version", lambda name, package=package: "2" if name == package else "1")
            names.add(program_cache.fingerprint())
    assert len(names) == 5


def test_the_place_follows_the_conventions_of_the_system(monkeypatch, tmp_path):
    monkeypatch.delenv("WIDELIMIT_CACHE")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for system, folder in (("darwin", "Library/Caches/widelimit"), ("win32", "local/widelimit/Cache")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "platform", system)
            assert program_cache.user_folder() == tmp_path / folder
    assert program_cache.place().folder.parent == tmp_path / ".cache" / "widelimit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert program_cache.place().folder.parent == tmp_path / ".cache" / "widelimit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert program_cache.place().folder.parent == tmp_path / "xdg" / "widelimit"
    for value in ("off", "OFF", "0", ""):
        monkeypatch.setenv("WIDELIMIT_CACHE", value)
        assert program_cache.place().folder is None
    monkeypatch.setenv("WIDELIMIT_CACHE", str(tmp_path / "mine"))
    assert program_cache.place().folder.parent == tmp_path / "mine"
    assert program_cache.place(off=True).folder is None
    assert list(tmp_path.iterdir()) == []


def test_info_shows_place_and_size(filled, monkeypatch):
    monkeypatch.setenv("WIDELIMIT_CACHE", str(filled))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    facts = json.loads(invoke("info", "--json").stdout)["compiled_programs"]
    sizes = [len(data) for data in contents(filled).values()]
    assert facts == {
        "folder": str(store(filled).parent),
        "reason": "by WIDELIMIT_CACHE",
        "entries": len(sizes),
        "bytes": sum(sizes),
    }
    assert f"{store(filled).parent}: {len(sizes)} in {memory.text(sum(sizes))} (" in invoke("info").stdout


def test_the_library_and_a_command_within_another_program_leave_it_alone(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert invoke("info").exit_code == 0
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    sources = (Path(program_cache.__file__).parents[1]).rglob("*.py")
    assert [path.name for path in sources if "COMPILATION_CACHE" in path.read_text()] == ["program_cache.py"]
