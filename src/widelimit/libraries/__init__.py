"""Kernels of this library become kernels of GPyTorch, BoTorch, tinygp and GPJax: a module for each, and an extra."""
