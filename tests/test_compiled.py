"""The programs that these tests keep on disk."""

import platform
import sys
import time
import zlib

import jax
import numpy as np
import psutil
import pytest
from jax.experimental.compilation_cache import compilation_cache

import compiled
from widelimit.compute import tiles


def test_damaged_programs_are_removed_and_whole_ones_stay(tmp_path, monkeypatch):
    content = zlib.compress(np.random.default_rng(0).bytes(1000))
    flipped = content[:500] + bytes([content[500] ^ 1]) + content[501:]
    for name, data in {"a": content, "cut": content[:500], "flipped": flipped, "empty": b""}.items():
        (tmp_path / f"{name}-cache").write_bytes(data)
    (tmp_path / "a-atime").write_bytes(b"12345678")
    compiled.tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-atime", "a-cache"]
    monkeypatch.setattr(compiled, "LARGEST", 100)
    compiled.tidy(tmp_path)
    assert not list(tmp_path.iterdir())
    compiled.tidy(tmp_path / "none")


def test_variables_that_are_set_stay(tmp_path):
    environment = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "2"}
    compiled.share(tmp_path, environment)
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)
    assert environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "2"
    assert "emitters" in environment["XLA_FLAGS"]


def test_modules_are_kept_where_none_are_wanted_beside_the_sources(tmp_path, monkeypatch):
    for name in ("dont_write_bytecode", "pycache_prefix"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    for environment in ({"PYTHONDONTWRITEBYTECODE": "1"}, {"PYTHONDONTWRITEBYTECODE": ""}):
        kept = bool(environment["PYTHONDONTWRITEBYTECODE"])
        compiled.keep_modules(tmp_path, environment)
        assert environment == ({"PYTHONPYCACHEPREFIX": str(tmp_path)} if kept else {})
        assert (not sys.dont_write_bytecode, sys.pycache_prefix) == (True, str(tmp_path))


def test_programs_of_users_are_compiled_as_users_do(tmp_path):
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    compiled.share(tmp_path, environment)
    assert "XLA_FLAGS" not in environment


def test_blocks_are_encoded_without_optimisation_unless_programs_are_those_of_users(monkeypatch):
    made = []
    monkeypatch.setattr(jax, "jit", lambda *_, compiler_options, **__: made.append(compiler_options) or "made")
    for disabled, left in (("0", "before"), ("1", "made")):
        monkeypatch.setattr(tiles, "_encodes", ["before", "small"])
        compiled.encode_without_optimisation({"JAX_DISABLE_MOST_OPTIMIZATIONS": disabled})
        assert tiles._encodes == [left, "small"]
    assert made == [tiles.QUICK | {"xla_backend_optimization_level": 0}]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc has other ways")
def test_memory_that_was_freed_goes_back_to_the_system():
    """Blocks of 4 KB, every hundredth of which stays: malloc by itself returns none of the others."""

    def resident():
        return psutil.Process().memory_info().rss / 2**20

    blocks = [np.ones(512) for _ in range(30_000)]
    full = resident()
    blocks = blocks[::100]
    kept = resident()
    compiled.return_memory()
    assert len(blocks) == 300
    assert full - kept < 50  # of 117 MiB
    assert kept - resident() > 80


def test_programs_are_kept_unless_a_test_asks_for_none(tmp_path):
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_enable_compilation_cache": True,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        with compiled.ignored():
            jax.jit(lambda x: 2 * x + 37.25)(np.ones(3, np.float32))
        assert not list(tmp_path.iterdir())
        jax.jit(lambda x: 3 * x + 37.25)(np.ones(3, np.float32))
        assert list(tmp_path.iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_tests_after_the_end_of_a_run_are_skipped_and_those_before_it_are_not(monkeypatch):
    import conftest

    for until, skipped in ((time.time() - 1, True), (time.time() + 60, False), (None, False)):
        monkeypatch.setenv("TESTS_UNTIL", str(until)) if until else monkeypatch.delenv("TESTS_UNTIL")
        try:
            conftest.leave_out_what_is_late()
            assert not skipped
        except pytest.skip.Exception:
            assert skipped


RNG = np.random.default_rng(0)


@pytest.mark.parametrize("_", range(2))
def test_every_test_draws_the_same_numbers(_):
    assert RNG.standard_normal() == np.random.default_rng(0).standard_normal()
