"""Kernels are functions of two inputs with gram, cross and diag."""
