"""Messages show values in short form, of any kind."""

import difflib
import reprlib
from collections.abc import Sequence
from typing import Any, final

import jax
import numpy as np

SHOWN = 5
"""Names that a message lists before "and ... more"."""
LONGEST = 60
"""Characters of a value in a message."""


@final
class _Short(reprlib.Repr):
    """Values are shown by a `repr` of a few entries, arrays and tables by their shape."""

    def repr_instance(self, x: Any, level: int) -> str:
        shape = getattr(x, "shape", None)
        if isinstance(shape, tuple) and shape and not isinstance(x, type):
            dtype = getattr(x, "dtype", None)
            kind = "an array" if isinstance(x, (np.ndarray, jax.Array)) else f"a {type(x).__name__}"
            return f"{kind} of shape {shape}" + ("" if dtype is None else f" and dtype {dtype}")
        if isinstance(x, jax.core.Tracer):
            return "a value that jax is tracing"
        if isinstance(x, (np.ndarray, np.generic)):
            return repr(x.item())
        text = repr(x)
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def shown(value: Any) -> str:
    """Show the value in a message: at most about 100 characters; an array by its shape and dtype, never its entries."""
    if isinstance(value, int) and value.bit_length() > 100:
        return f"an integer of {value.bit_length()} bits"
    short = _Short()
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = 3
    short.maxstring = LONGEST
    short.maxlevel = 2
    try:
        text = short.repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 2 * LONGEST else f"{text[: 2 * LONGEST - 4]} ..."


def first_line(error: Exception) -> str:
    """Return the first line of the message of a user's function, at most 150 characters of it."""
    return str(error).strip().split("\n")[0][:150]


def list_names(names: Sequence[str]) -> str:
    """Return names as text: "a, b, c and 4 more"."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """End a message on an unknown name: "; did you mean 'relu'?", or "." if no known name is near."""
    plain = {other.casefold(): other for other in reversed(known)}
    close = difflib.get_close_matches(name.casefold(), plain, n=1)
    return f"; did you mean {plain[close[0]]!r}?" if close else "."
