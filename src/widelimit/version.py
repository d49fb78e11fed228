"""The version is that of the installed package; `pyproject.toml` is the only place that has it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("widelimit")
except PackageNotFoundError:  # run from a folder, not installed
    __version__ = "unknown (not installed)"
