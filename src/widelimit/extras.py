"""A package that only an extra of the installation brings is named, with the extra, where it is missing."""

PACKAGES = {
    "distributed": ("Dask", "cluster"),
    "gpjax": ("GPJax", "gpjax"),
    "gpytorch": ("GPyTorch", "gpytorch"),
    "matplotlib": ("matplotlib", "plots"),
    "obstore": ("obstore", "cluster"),
    "polars": ("polars", "tables"),
    "sklearn": ("scikit-learn", "tables"),
    "tinygp": ("tinygp", "tinygp"),
    "torch": ("PyTorch", "torch"),
}
"""The name of each such package, and the extra of pyproject.toml that brings it."""


def needed(package: str, what: str) -> str:
    """Return the line that says how to install the package which `what` needs."""
    name, extra = PACKAGES[package]
    return f'{what} needs {name}: pip install "widelimit[{extra}]"'


def explained(error: ModuleNotFoundError, what: str) -> ModuleNotFoundError:
    """Return an error with that line for `what`; the error itself if the missing module belongs to no extra."""
    package = (error.name or "").partition(".")[0]
    return ModuleNotFoundError(needed(package, what), name=error.name) if package in PACKAGES else error
