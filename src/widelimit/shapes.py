"""Float[jax.Array, "n d"] annotates arrays and their shapes.

Type checkers use jaxtyping's classes, and so does a program that has imported jaxtyping before, as the tests do to
check shapes at run time. Otherwise they are not evaluated, and the import would take a tenth of that of JAX.
"""

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
