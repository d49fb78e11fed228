"""Shapes and types of the pure functions are checked at run time, in the tests only.

Not at the public door: there bad input must meet the library's own errors.
"""

import os

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook(
    ["widelimit.series", "widelimit.signals", "widelimit.architecture.layers"],
    "beartype.beartype",
)


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_end_with_their_module():
    """The programs of all tests together would take 7 GiB a process, and more memory maps than Linux allows."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def _the_command_line_keeps_its_programs_here(tmp_path_factory):
    """Not in the cache of the user who runs the tests; one folder for all processes."""
    root = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "WIDELIMIT_CACHE", str((root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "compiled")
        )
        yield
