"""Kernels of finite networks, from any function apply(params, X)."""
