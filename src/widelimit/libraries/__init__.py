"""Kernels of this library become kernels of GPyTorch, BoTorch, tinygp and GPJax, by one module and extra for each."""
