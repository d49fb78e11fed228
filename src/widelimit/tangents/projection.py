"""Gradients are projected to few dimensions by a sparse Johnson-Lindenstrauss transform that is never stored."""

from typing import NamedTuple

import numpy as np

from widelimit.shapes import Float

PER_COUNTER = 4
"""64-bit words that Philox makes of one value of its counter."""
STRIP = 2**16
"""Parameters whose signs are held at once."""


class Projection(NamedTuple):
    """Parameter p = q size + j goes to coordinate (j + shift_q) mod size with the sign s_p, both of them random.

    Each parameter has one coordinate: P multiplications for a vector of P numbers, in place of size P for a dense
    matrix, and each run of `size` parameters is a contiguous part that is shifted around. Signs and shifts are two
    streams of the counter-based generator Philox, so that any of them is made where it is needed.

    The inner product of two projected vectors estimates u.v without bias. With u_q the runs of u, its variance is
    exactly (1/size) sum_{q != q'} (|u_q|^2 |v_q'|^2 + u_q.v_q u_q'.v_q'), never above (|u|^2 |v|^2 + (u.v)^2)/size:
    only parameters of different runs meet, with probability 1/size, and pairs have independent signs.
    """

    size: int
    seed: int

    def signs(self, start: int, end: int) -> np.ndarray:
        """Return the signs of parameters start to end, 1 or -1 as int8."""
        first = start // (64 * PER_COUNTER)
        words = self._words(2 * self.seed, first, -(-end // 64) - first * PER_COUNTER)
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
        return np.asarray(2 * bits[start - first * 64 * PER_COUNTER :][: end - start].astype(np.int8) - 1)

    def shifts(self, first: int, last: int) -> np.ndarray:
        """Return the shifts of runs first to last, in [0, size)."""
        begin = first // PER_COUNTER
        words = self._words(2 * self.seed + 1, begin, last - begin * PER_COUNTER)
        return np.asarray((words[first - begin * PER_COUNTER :] % np.uint64(self.size)).astype(np.int64))

    def _words(self, key: int, counter: int, count: int) -> np.ndarray:
        return np.asarray(np.random.Philox(key=key, counter=counter).random_raw(count))

    def add(self, out: Float[np.ndarray, "r k"], block: Float[np.ndarray, "r p"], start: int) -> None:
        """Add the projection of a block of gradients, those of parameters start to start + p of all."""
        for low in range(0, block.shape[1], STRIP):
            part = block[:, low : low + STRIP]
            self._add_strip(out, part, start + low)

    def _add_strip(self, out: np.ndarray, block: np.ndarray, start: int) -> None:
        k, end = self.size, start + block.shape[1]
        signs = self.signs(start, end).astype(block.dtype)
        first, last = start // k, -(-end // k)
        for q, shift in zip(range(first, last), self.shifts(first, last).tolist(), strict=True):
            low, high = max(q * k, start), min((q + 1) * k, end)
            run = block[:, low - start : high - start] * signs[low - start : high - start]
            at = (low - q * k + shift) % k
            before_end = min(k - at, high - low)
            out[:, at : at + before_end] += run[:, :before_end]
            out[:, : high - low - before_end] += run[:, before_end:]

    def variance(self, u: Float[np.ndarray, " P"], v: Float[np.ndarray, " P"]) -> float:
        """Compute the exact variance of the estimate of u.v over seeds."""
        runs = np.arange(0, len(u), self.size)
        uu, vv, uv = (np.add.reduceat(np.asarray(a * b, np.float64), runs) for a, b in ((u, u), (v, v), (u, v)))
        return float(uu.sum() * vv.sum() + uv.sum() ** 2 - np.sum(uu * vv + uv**2)) / self.size
