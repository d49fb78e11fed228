"""A page of the site asks no other host for anything that it shows or runs."""

import re
from pathlib import Path

LOADED = re.compile(
    r"""<(?:script|link|img|iframe|source|audio|video)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
)


def foreign(text: str) -> list[str]:
    """Return the addresses on other hosts that a page of HTML loads; links that a reader may follow do not count."""
    return LOADED.findall(text)


def check(folder: Path) -> None:
    """Read all pages. Raises: ValueError: one loads something from another host."""
    for path in folder.rglob("*.html"):
        if found := foreign(path.read_text()):
            raise ValueError(f"{path.relative_to(folder)} loads {found[0]}: the site is to be read without a network")
