"""A kernel reproduces a space of functions: functions and norms, diagnostics, spectra on spheres."""

from widelimit.rkhs.diagnostics import (
    Certificate,
    effective_dimension,
    eigenvalues,
    is_positive_semidefinite,
    power_function,
)
from widelimit.rkhs.functions import Function, interpolant, ridge
from widelimit.rkhs.spectra import Spectrum, spectrum
from widelimit.rkhs.spherical import SphericalSpectrum, spherical_eigenvalues

__all__ = [
    "Certificate",
    "Function",
    "Spectrum",
    "SphericalSpectrum",
    "effective_dimension",
    "eigenvalues",
    "interpolant",
    "is_positive_semidefinite",
    "power_function",
    "ridge",
    "spectrum",
    "spherical_eigenvalues",
]
