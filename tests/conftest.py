"""Shapes and types of the pure functions are checked at run time, in the tests only.

Not at the public door: there bad input must meet the library's own errors.
"""

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
