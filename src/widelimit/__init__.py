"""Infinitely wide neural networks have exact kernels, Bayesian inference and gradient descent in function space."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
