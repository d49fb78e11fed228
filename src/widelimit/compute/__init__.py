"""This package alone allocates n x n arrays and factorises them. It knows nothing of networks."""

from widelimit import memory as memory
