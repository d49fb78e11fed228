"""Float[jax.Array, "n d"] annotates arrays and their shapes.

Those are jaxtyping's to type checkers, and to whoever has imported it before, as the tests do to check shapes at run
time. To all others they are never evaluated, and its import would take a tenth of that of JAX.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Float as Float
    from jaxtyping import Int as Int
else:

    class Float:
        """The class stands for jaxtyping's."""

        def __class_getitem__(cls, _: Any) -> type:
            return cls

    class Int(Float):
        """The class stands for jaxtyping's."""
