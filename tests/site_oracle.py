"""Sigma and Theta of all pairs of sites of all inputs, one matrix of 60 digits: no mask, no padding, no gaps."""

import mpmath as mp
import numpy as np

import oracles


def average(counts, weight=lambda n: mp.mpf(1) / n):
    """The matrix (inputs, all sites) of a readout."""
    rows = mp.zeros(len(counts), sum(counts))
    for i, n in enumerate(counts):
        for t in range(n):
            rows[i, sum(counts[:i]) + t] = weight(n)
    return rows


def aggregate(adjacencies, normalize, loops):
    """The matrix B over all nodes of all graphs."""
    size = sum(map(len, adjacencies))
    B, at = mp.zeros(size), 0
    for adjacency in adjacencies:
        A = [[mp.mpf(float(v)) + (loops and i == j) for j, v in enumerate(row)] for i, row in enumerate(adjacency)]
        d = [mp.fsum(row) for row in A]
        for i, row in enumerate(A):
            for j, v in enumerate(row):
                scale = {None: 1, "mean": d[i], "symmetric": mp.sqrt(d[i] * d[j])}[normalize]
                B[at + i, at + j] = v / scale if scale else 0
        at += len(A)
    return B


def patches(counts, size, stride):
    """One matrix a tap, (all windows, all sites), and the number of windows: padding "same", centred."""
    after = [-(-n // stride) for n in counts]
    taps = [mp.zeros(sum(after), sum(counts)) for _ in range(size)]
    for i, n in enumerate(counts):
        for o in range(after[i]):
            for k, tap in enumerate(taps):
                if 0 <= (t := o * stride - (size - 1) // 2 + k) < n:
                    tap[sum(after[:i]) + o, sum(counts[:i]) + t] = 1
    return taps, after


def activate(S, T, name):
    dual, value, slope = oracles.DUALS[name], S.copy(), T.copy()
    for i in range(S.rows):
        for j in range(i + 1):
            v, d = dual(S[i, i], S[i, j], S[j, j])
            value[i, j] = value[j, i] = v
            slope[i, j] = slope[j, i] = d * T[i, j]
    return value, slope


def dense(S, T, w=1.0, b=0.0, trained=True):
    after = mp.mpf(w) ** 2 * S + mp.mpf(b) ** 2 * mp.ones(S.rows)
    return after, mp.mpf(w) ** 2 * T + (after if trained else 0 * after)


def kernels(signals, steps):
    """(Sigma, Theta) between inputs, from a list of (t, features), by steps (name, ...)."""
    with mp.workdps(60):
        X = mp.matrix(np.concatenate(signals).tolist())
        S, counts = X * X.T / X.cols, [len(x) for x in signals]
        T = 0 * S
        for name, *given in steps:
            if name == "mix":
                B = given[0](counts) if callable(given[0]) else given[0]
                S, T = B * S * B.T, B * T * B.T
            elif name == "dense":
                S, T = dense(S, T, *given)
            elif name == "conv":
                taps, counts = patches(counts, *given[:2])
                S, T = (sum((tap * M * tap.T for tap in taps), mp.zeros(sum(counts))) / len(taps) for M in (S, T))
                S, T = dense(S, T, *given[2:])
            else:
                S, T = activate(S, T, name)
        return tuple(np.array(M.tolist()) for M in (S, T))
