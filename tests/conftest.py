"""Shapes and types of the pure functions are checked at run time, in the tests only.

Not at the public door: there bad input must meet the library's own errors.
"""

from jaxtyping import install_import_hook

install_import_hook(
    ["widelimit.series", "widelimit.signals", "widelimit.architecture.layers"],
    "beartype.beartype",
)
