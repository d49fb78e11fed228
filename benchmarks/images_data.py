"""The images and the network of benchmarks/images.py are the same here and at the peers: NumPy alone."""

import numpy as np

SIZE, CHANNELS = 32, 3
STD, BIAS = 2**0.5, 0.1


def images(n: int, dtype: str) -> np.ndarray:
    """Draw images (n, 32, 32, 3) that are smooth like photographs: sums of waves, of amplitudes 1/frequency."""
    frequency = np.fft.fftfreq(SIZE)[:, None] ** 2 + np.fft.rfftfreq(SIZE) ** 2
    amplitude = 1 / np.sqrt(np.maximum(frequency, 1 / SIZE**2))[..., None]
    drawn = []
    for seed in range(n):
        parts = np.random.default_rng(seed).standard_normal((2, SIZE, SIZE // 2 + 1, CHANNELS))
        X = np.fft.irfft2(amplitude * (parts[0] + 1j * parts[1]), s=(SIZE, SIZE), axes=(0, 1))
        drawn.append(X / X.std())
    return np.stack(drawn).astype(dtype)
