"""An HTML page is one file with its figures inside, for a phone and for a laptop."""

from __future__ import annotations

import base64
import html
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def document(title: str, body: str) -> str:
    """Make a page from its title (plain text) and its body (HTML)."""
    style = resources.files("widelimit").joinpath("pages.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>\n{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def picture(figure: Figure, text: str) -> str:
    """Return the figure as a PNG inside HTML; `text` says what it shows, for those who cannot see it."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box; the text has it
        figure.savefig(stream, format="png", dpi=200)
    image = base64.b64encode(stream.getvalue()).decode()
    return f'<figure><img alt="{html.escape(text, quote=True)}" src="data:image/png;base64,{image}"></figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a table of plain texts; an empty `head` makes one without a header."""
    cells = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    top = f"<tr>{cells}</tr>" * bool(head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}{lines}</table></div>'


def digits(value: float, count: int = 4) -> str:
    """Format so many digits as plain text, without a power of ten between 1e-4 and 1e7."""
    short = f"{value:.{count}g}"
    return f"{float(short):.0f}" if "e" in short and 1 <= abs(value) < 1e7 else short


def number(value: float) -> str:
    """Format three or four digits and a power of ten in HTML."""
    if math.isinf(value):
        return "&minus;&infin;" if value < 0 else "&infin;"
    digits, _, power = f"{value:.4g}".partition("e")
    factor = {"1": "", "-1": "-"}.get(digits, f"{digits}&middot;")
    text = f"{factor}10<sup>{int(power)}</sup>" if power else digits
    return text.replace("-", "&minus;")
