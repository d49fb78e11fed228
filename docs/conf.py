"""Sphinx makes the site from this folder: `make docs`. Nothing is fetched when it is built or read."""

import importlib.metadata
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "site"))

import claim_pages
import figures
import offline
import project_pages
import reference
from sphinx.application import Sphinx

project, author = "widelimit", "The widelimit authors"
release = version = importlib.metadata.version("widelimit")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["build", "site", "figures/*.py", "tutorials", "gallery"]
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*"), ("py:exc", ".*")]  # types of attributes, of others and of this library
root_doc = "index"
smartquotes = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"

mathjax_path = "tex-svg-full.js"
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "pydata_sphinx_theme"
html_title = "widelimit"
html_static_path = ["static", str(figures.mathjax())]
html_css_files = ["house.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_nav_level": 1,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
}
html_sidebars = {"index": []}
copyright = "The widelimit authors; Apache-2.0"

sphinx_gallery_conf = {
    "examples_dirs": [str(HERE / "tutorials"), str(HERE / "gallery")],
    "gallery_dirs": ["generated/tutorials", "generated/gallery"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("figures.scraper",),
    "reset_modules": ("figures.house_style",),
    "capture_repr": ("_repr_html_",),
    "abort_on_example_error": True,
    "show_memory": False,
    "min_reported_time": 10,
    "show_signature": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "doc_module": ("widelimit",),
    "backreferences_dir": None,
    "write_computation_times": False,
}


def write_pages(app: Sphinx) -> None:
    """Write the pages that are made from the code."""
    generated = Path(app.srcdir) / "generated"
    reference.write(generated / "api")
    claim_pages.write(generated / "claims", HERE.parent / "tests" / "test_every_claim.py")
    project_pages.write(generated / "project", HERE.parent)


def check_pages(app: Sphinx, error: Exception | None) -> None:
    """Refuse a site that asks other hosts."""
    if error is None:
        offline.check(Path(app.outdir))


def setup(app: Sphinx) -> None:
    """Connect the pages that are made from the code, and the docstrings."""
    app.connect("builder-inited", write_pages, priority=100)
    app.connect("build-finished", check_pages)
    app.connect("autodoc-process-docstring", reference.docstring, priority=400)
