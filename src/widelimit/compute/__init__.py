"""The only place that allocates n x n arrays or factorises them. It knows nothing of networks."""

from widelimit import memory as memory
