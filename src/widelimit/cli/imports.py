"""scikit-learn loads SciPy's statistics and pandas, which is a third of the start of a command and hardly used.

A command that does its work a second time has its programs compiled: what is left of its start are imports.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from types import ModuleType
from typing import Any, final


@final
class _AtFirstUse(ModuleType):
    """The module is imported when something in it is used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def defer() -> None:
    """Import scikit-learn without SciPy's statistics, which follow at their first use, and without pandas."""
    missing = [name for name in ("scipy.stats", "pandas") if name not in sys.modules]
    sys.modules.update({name: _AtFirstUse(name) if name == "scipy.stats" else None for name in missing})  # type: ignore[misc]
    try:
        with suppress(ModuleNotFoundError):  # it comes with an extra
            import sklearn.base  # noqa: F401
    finally:
        if "pandas" in missing:
            del sys.modules["pandas"]
