"""LAPACK on rectangular full packed (RFP) matrices, by the pointers that SciPy exports.

Solves with a factor that `packed_cholesky` made. SciPy's own wrappers check n (n + 1)/2 in 32 bits and so refuse n
above 46,340; LAPACK itself never forms that product, as an RFP matrix is one rectangle of about n/2 columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import cython_lapack

_PREFIX = {"float64": "d", "float32": "s"}


def _routine(name: str, arguments: int) -> Callable[..., None]:
    capsule = cython_lapack.__pyx_capi__[name]
    ctypes.pythonapi.PyCapsule_GetName.restype = ctypes.c_char_p
    ctypes.pythonapi.PyCapsule_GetName.argtypes = [ctypes.py_object]
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    ctypes.pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = ctypes.pythonapi.PyCapsule_GetPointer(capsule, ctypes.pythonapi.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


def _call(name: str, *arguments: Any) -> None:
    """Call by reference: letters, integers, floats (already ctypes) and arrays."""
    references = []
    for value in arguments:
        if isinstance(value, bytes):
            value = ctypes.c_char(value)
        elif isinstance(value, int):
            value = ctypes.c_int(value)
        references.append(value)
    pointers = [v.ctypes.data if isinstance(v, np.ndarray) else ctypes.addressof(v) for v in references]
    _routine(name, len(pointers))(*pointers)


def _checked(folded: np.ndarray, n: int) -> str:
    """The prefix of the routines for a folded triangle of an (n, n) matrix."""
    assert folded.shape == ((n + 1) // 2, n + 1 - n % 2)
    assert folded.flags.c_contiguous
    return _PREFIX[folded.dtype.name]


def pftrs(folded: np.ndarray, n: int, b: np.ndarray) -> np.ndarray:
    """A^{-1} b from L; (n, c) -> (n, c), in L's dtype."""
    out = np.array(b, folded.dtype, order="F")
    _call(f"{_checked(folded, n)}pftrs", b"N", b"L", n, out.shape[1], folded, out, n, ctypes.c_int(0))
    return out


def tfsm(folded: np.ndarray, n: int, b: np.ndarray) -> np.ndarray:
    """L^{-1} b; (n, c) -> (n, c), in L's dtype."""
    prefix = _checked(folded, n)
    one = (ctypes.c_double if prefix == "d" else ctypes.c_float)(1.0)
    out = np.array(b, folded.dtype, order="F")
    _call(f"{prefix}tfsm", b"N", b"L", b"L", b"N", b"N", n, out.shape[1], one, folded, out, n)
    return out
