"""The files for contributors are pages of the site too; their links are those of this folder."""

from pathlib import Path

from reference import replace

PAGES = {"changes": "CHANGELOG.md", "contributing": "CONTRIBUTING.md", "measuring": "benchmarks/README.md"}
LINKS = {
    "](../docs/": "](../../",
    "](docs/": "](../../",
    "](benchmarks/README.md)": "](measuring.md)",
    "](README.md)": "](measuring.md)",
}


def write(folder: Path, root: Path) -> None:
    """Write these pages with their links changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in PAGES.items():
        text = (root / file).read_text()
        for old, new in LINKS.items():
            text = text.replace(old, new)
        replace(folder / f"{name}.md", text)
