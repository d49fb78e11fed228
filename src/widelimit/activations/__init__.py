"""Activations: the nonlinearity phi, and what it does to a pair of Gaussian signals."""
