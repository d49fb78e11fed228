"""Shapes and types of the pure functions are checked at run time, in the tests only.

Not at the public door: there bad input must meet the library's own errors.
"""

import gc
import os
import pathlib
import time

import compiled
import grids

CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache"
PROGRAMS = CACHE / "compiled" / compiled.machine()
compiled.share(PROGRAMS, os.environ)
compiled.keep_modules(CACHE / "modules", os.environ)
# The modules and programs of a session are millions of objects that stay: looking through them at Python's default of
# every 700 new ones is a fifth of the suite's time.
gc.set_threshold(50_000, 20, 20)

import jax  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402
from numpy.random import Generator  # noqa: E402

install_import_hook(
    ["widelimit.series", "widelimit.signals", "widelimit.architecture.layers"],
    "beartype.beartype",
)

from searches import shorten_searches  # noqa: E402

compiled.encode_without_optimisation(os.environ)


def pytest_configure(config):
    """Once a session, before its workers start."""
    if not hasattr(config, "workerinput"):
        compiled.tidy(PROGRAMS)


LONGEST = ("devices", "finite_width_training", "recurrent", "sequences_and_graphs", "solvers", "traced")
"""Files of tests/ that cost the most seconds a test: a run with an end begins with all others."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config, items):
    for item in items:
        if grids.left_out(item.nodeid):
            item.add_marker("grid")
    if {(config.rootpath / path).resolve() for path in config.args} == {config.rootpath / "tests"}:  # all tests
        found = grids.faults([item.nodeid for item in items])
        if found:
            raise pytest.UsageError("tests/grids.py: " + "; ".join(found))
    if "TESTS_UNTIL" in os.environ:
        items.sort(key=lambda item: item.path.stem.removeprefix("test_") in LONGEST)


STATES = {}
"""The state of each module's generator of random numbers when all tests are collected."""


def pytest_collection_finish(session):
    for module in {item.module for item in session.items if isinstance(getattr(item.module, "RNG", None), Generator)}:
        STATES[module] = module.RNG.bit_generator.state


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Let every test draw the same numbers, whichever others ran before it in its process."""
    if item.module in STATES:
        item.module.RNG.bit_generator.state = STATES[item.module]
    leave_out_what_is_late()


def leave_out_what_is_late():
    """Leave out what is left at TESTS_UNTIL, in seconds since 1970: continuous integration has an end (`.ci/run`)."""
    if time.time() > float(os.environ.get("TESTS_UNTIL", "inf")):
        pytest.skip("no time is left (TESTS_UNTIL)")


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_end_before_memory_does():
    """The programs of all tests together would take 7 GiB a process, and more memory maps than Linux allows.

    They are dropped between modules, and only where they are many: modules share programs, too.
    """
    yield
    share = psutil.virtual_memory().total / 4 / int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if psutil.Process().memory_info().rss > share or compiled.memory_maps() > 15_000:
        jax.clear_caches()
        compiled.return_memory()


@pytest.fixture(scope="module")
def short_searches():
    with pytest.MonkeyPatch.context() as patch:
        shorten_searches(patch)
        yield


@pytest.fixture(scope="module")
def no_programs():
    """For tests that count compilations: nothing is left of earlier modules."""
    jax.clear_caches()


@pytest.fixture
def no_stored_programs():
    """For tests that count or time compilations: JAX compiles what it has on disk, too."""
    with compiled.ignored():
        yield


@pytest.fixture(scope="session", autouse=True)
def _the_command_line_keeps_its_programs_here(tmp_path_factory):
    """Not in the cache of the user who runs the tests; one folder for all processes."""
    root = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "WIDELIMIT_CACHE", str((root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "compiled")
        )
        yield
