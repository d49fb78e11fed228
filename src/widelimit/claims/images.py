"""These are the images of Figure 3 of Jacot et al."""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

MNIST_LEAST = 512
"""Images in Figure 3 of the paper."""


class Images(NamedTuple):
    """Figure 3 is drawn for these images."""

    pixels: np.ndarray
    """(n, d) grey values in [0, 1], n at least 512."""
    is_mnist: bool


def digits() -> Images:
    """Load 1797 digits of 8 x 8 pixels that scikit-learn ships."""
    return Images(load_digits().data / 16, False)
