"""Figures of the site have the house style; MathJax comes with the site."""

import importlib.metadata
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper

from widelimit import plots

FILE = "tex-svg-full.js"
"""MathJax with all of TeX and its own letters, in one file: no font is loaded."""


def mathjax() -> Path:
    """Return the file of MathJax in the installed package that ships it."""
    files = importlib.metadata.files("sphinx-mathjax-offline") or []
    return Path(str(next(file.locate() for file in files if file.name == FILE)))


def house_style(_settings: dict[str, Any], _name: str) -> None:
    """Set the style of figures before an example runs (a hook of sphinx-gallery)."""
    matplotlib.rcParams.update(plots.HOUSE)


def scraper(block: tuple[str, str, int], variables: dict[str, Any], settings: dict[str, Any]) -> str:
    """Keep figures of pyplot, and figures without a window that the example names for the first time (a hook)."""
    seen = variables.setdefault("seen", [])
    seen += [pyplot.figure(number) for number in pyplot.get_fignums()]
    text = str(matplotlib_scraper(block, variables, settings))
    named = [value for value in variables["example_globals"].values() if isinstance(value, Figure)]
    paths = []
    for figure in named:
        if not any(figure is other for other in seen):
            seen.append(figure)
            paths.append(next(variables["image_path_iterator"]))
            figure.savefig(paths[-1], dpi=150)
    return text + (figure_rst(paths, settings["src_dir"]) if paths else "")
