"""Finite networks have kernels, from any function apply(params, X)."""
