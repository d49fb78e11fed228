"""An HTML page is one file with its figures inside, for a phone and for a laptop."""

from __future__ import annotations

import base64
import html
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --paper: #ffffff; --panel: #f6f8fa; --good: #1a7f37;
  --bad: #b42318; --accent: #1b6ca8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 Georgia, "Times New Roman", serif; }
main { max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 0.4rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 0.95rem; margin: 1.2rem 0 0.3rem; font-family: system-ui, sans-serif; }
p { margin: 0.5rem 0; }
.meta, table, summary, nav { font-family: system-ui, sans-serif; font-size: 0.85rem; }
.meta { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); }
th, td { padding: 0.3rem 0.7rem 0.3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { white-space: nowrap; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; } img { width: 100%; max-width: 34rem; height: auto; display: block; }
a { color: var(--accent); text-decoration: none; }
details { margin-top: 0.8rem; } summary { cursor: pointer; color: var(--accent); }
pre { background: var(--panel); padding: 0.8rem; overflow-x: auto; font-size: 0.75rem; line-height: 1.45; }
.banner { padding: 0.7rem 1rem; background: var(--panel); border-left: 4px solid var(--good); margin: 1rem 0;
  font-family: system-ui, sans-serif; } .banner.failed { border-color: var(--bad); }
sup, sub { line-height: 0; } .why { color: var(--soft); } dt { font-weight: 600; } dd { margin: 0 0 0.4rem; }
.up { font: 0.85rem system-ui, sans-serif; }
@media (max-width: 40rem) {
  .checks, .checks tbody { display: block; } .checks tr.head { display: none; }
  .checks tr { display: grid; grid-template-columns: 1fr auto; column-gap: 0.8rem; padding: 0.45rem 0;
    border-bottom: 1px solid var(--line); }
  .checks td { border: 0; padding: 0; } .checks .name { order: 1; } .checks .verdict { order: 2; }
  .checks .number { order: 3; grid-column: 1 / -1; } .checks .why { order: 4; grid-column: 1 / -1; }
  .checks .number::before { content: attr(data-what) " "; color: var(--soft); }
}
@media print { details { display: none; } }
"""


def document(title: str, body: str) -> str:
    """Make the page of its title, plain text, and its body, HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def picture(figure: Figure, text: str) -> str:
    """Draw a figure into the page; `text` says what it shows, for those who cannot see it."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box; the text has it
        figure.savefig(stream, format="png", dpi=200)
    image = base64.b64encode(stream.getvalue()).decode()
    return f'<figure><img alt="{html.escape(text, quote=True)}" src="data:image/png;base64,{image}"></figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a table of plain texts; without a head, if that is empty."""
    cells = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    top = f"<tr>{cells}</tr>" * bool(head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}{lines}</table></div>'


def number(value: float) -> str:
    """Format three or four digits and a power of ten."""
    if math.isinf(value):
        return "&minus;&infin;" if value < 0 else "&infin;"
    digits, _, power = f"{value:.4g}".partition("e")
    factor = {"1": "", "-1": "-"}.get(digits, f"{digits}&middot;")
    text = f"{factor}10<sup>{int(power)}</sup>" if power else digits
    return text.replace("-", "&minus;")
