"""Float[jax.Array, "n d"]: arrays and their shapes in annotations.

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
        """Stands for jaxtyping's."""

        def __class_getitem__(cls, _: Any) -> type:
            return cls

    class Int(Float):
        """Stands for jaxtyping's."""
