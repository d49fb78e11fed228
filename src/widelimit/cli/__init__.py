"""The command line.

Importing it, and so `widelimit --help`, loads neither NumPy nor JAX: commands load what they need.
"""

from widelimit.cli.app import main

__all__ = ["main"]
