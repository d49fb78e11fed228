"""Both kernels of trees of layers in high precision, by raw second moments and means: none of the library's formulas.

A network is a list: "d" (a dense layer of W, B), "d1", "f" (frozen), ["d", w, b], ["f", w, b], a name of `DUALS`,
"norm", "half", "double", ["scale", f], ["drop", keep], ["sum", branch, ...], ["beside", share, branch, ...].
"""

import functools

import mpmath as mp
import numpy as np

import oracles

W, B = 1.3, 0.2
DUALS = oracles.DUALS | {
    "sine": oracles.VARIANTS["sin, no phase"][1],
    "cosine": functools.partial(oracles._cos, 1),
    "hermite 2": oracles.VARIANTS["hermite 2"][1],
    "erf, parameters": oracles.VARIANTS["erf, parameters"][1],
}
ZERO = mp.mpf(0)


def _wave(a, b):
    return lambda q: mp.sin(mp.mpf(b)) * mp.exp(-(mp.mpf(a) ** 2) * q / 2)


def _root(factor):
    """That of factor max(u, 0) + ..., for a function of degree 1."""
    return lambda q: mp.mpf(factor) * mp.sqrt(q / (2 * mp.pi))


MEANS = {
    "relu": _root(1),
    "leaky_relu": lambda q: (1 - mp.mpf(0.01)) * mp.sqrt(q / (2 * mp.pi)),
    "abs": _root(2),
    "erf": lambda q: ZERO,
    "identity": lambda q: ZERO,
    "sine": lambda q: ZERO,
    "cosine": lambda q: mp.exp(-q / 2),
    "gelu": lambda q: q / mp.sqrt(2 * mp.pi * (1 + q)),
    "sin": _wave(1.2, 0.4),
    "cos": lambda q: mp.exp(-(mp.mpf(0.8) ** 2) * q / 2),
    "snake": lambda q: (1 - mp.exp(-2 * mp.mpf(0.7) ** 2 * q)) / (2 * mp.mpf(0.7)),
    "rbf": lambda q: mp.exp(-mp.mpf(0.6) * q),
    "exp": lambda q: mp.mpf(0.5) * mp.exp(mp.mpf(0.5) ** 2 * q / 2),
    "gaussian": lambda q: mp.mpf(1.3) / mp.sqrt(1 + 2 * mp.mpf(0.5) * q),
    "polynomial": lambda q: mp.mpf(0.3) + mp.mpf(0.2) * q,
    "monomial": lambda q: q,
    "hermite 2": lambda q: (q - 1) / mp.sqrt(2),
    "erf, parameters": lambda q: mp.mpf(0.6),
}


def merged(parts):
    """The moments of the whole width."""
    return tuple(mp.fsum(share * state[i] for share, state in parts) for i in range(6))


def after(layers, state):
    """(q, c, q', theta, m, m') after the layers, of signals that have one law before them."""
    return merged(parts_after(layers, [(mp.mpf(1), state)]))


def parts_after(layers, parts, same=False):
    """[(share of the width, (q, c, q', theta, m, m'))]; `same`: both inputs are one, with the masks of one."""
    for layer in layers:
        parts = _step(layer, parts, same)
    return parts


def _step(layer, parts, same):
    kind, *given = layer if isinstance(layer, list) else (layer,)
    if kind in ("d", "d1", "f"):
        return [
            (mp.mpf(1), _dense(merged(parts), *(given or ((1, 0) if kind == "d1" else (W, B))), frozen=kind == "f"))
        ]
    if kind == "norm":
        return _normalised(parts)
    if kind in ("half", "double", "scale"):
        f = mp.mpf(given[0] if given else 0.5 if kind == "half" else 2)
        return [(share, tuple(f**k * v for k, v in zip((2, 2, 2, 2, 1, 1), own, strict=True))) for share, own in parts]
    if kind == "drop":
        rate = mp.mpf(given[0])
        rates = (rate, rate if same else 1, rate, rate if same else 1, 1, 1)
        return [(share, tuple(v / r for v, r in zip(own, rates, strict=True))) for share, own in parts]
    if kind == "sum":
        return _added([parts_after(branch, parts, same) for branch in given])
    if kind == "beside":
        ends = [
            (mp.mpf(size), parts_after(branch, parts, same))
            for size, branch in zip(given[::2], given[1::2], strict=True)
        ]
        return [(size * share, own) for size, end in ends for share, own in end]
    return [(share, _activated(kind, own)) for share, own in parts]


def _dense(state, w, b, *, frozen):
    w, b = mp.mpf(w) ** 2, mp.mpf(b) ** 2
    q, c, p, theta = w * state[0] + b, w * state[1] + b, w * state[2] + b, w * state[3]
    return q, c, p, theta + (0 if frozen else c), ZERO, ZERO


def _activated(name, state):
    q, c, p, theta = state[:4]
    dual = DUALS[name]
    value, slope = dual(q, c, p)
    if name == "identity":
        return state
    return dual(q, q, q)[0], value, dual(p, p, p)[0], theta * slope, MEANS[name](q), MEANS[name](p)


def _normalised(parts):
    """Less the mean of the whole width, over its deviation; 0 where that is 0."""
    q, _, p, _, m, n = merged(parts)
    s, t = mp.sqrt(q - m**2), mp.sqrt(p - n**2)
    over = [1 / v if v else ZERO for v in (s**2, s * t, t**2, s, t)]
    found = []
    for share, (a, c, b, theta, u, v) in parts:
        moments = a - 2 * u * m + m**2, c - u * n - m * v + m * n, b - 2 * v * n + n**2
        state = (
            *(x * y for x, y in zip(moments, over, strict=False)),
            theta * over[1],
            (u - m) * over[3],
            (v - n) * over[4],
        )
        found.append((share, state))
    return found


def _added(ends):
    """The sum of independent branches, in the pieces of the width in which no branch changes its law."""
    cuts = sorted(
        {mp.nstr(mp.fsum(s for s, _ in end[: k + 1]), 12) for end in ends for k in range(len(end))}, key=mp.mpf
    )
    found, below = [], ZERO
    for cut in map(mp.mpf, cuts):
        middle = (below + cut) / 2
        here = [
            next(own for k, (_, own) in enumerate(end) if middle < mp.fsum(s for s, _ in end[: k + 1])) for end in ends
        ]
        found.append((cut - below, _sum(here)))
        below = cut
    return found if len(found) > 1 else [(mp.mpf(1), found[0][1])]


def _sum(ends):
    q, c, p, theta, m, n = (mp.fsum(column) for column in zip(*ends, strict=True))
    for i, a in enumerate(ends):
        for b in ends[:i] + ends[i + 1 :]:
            q, c, p = q + a[4] * b[4], c + a[4] * b[5], p + a[5] * b[5]
    return q, c, p, theta, m, n


def exact(layers, x, y, *, same=False):
    """(Sigma, Theta) of two rows of floats; with `same` of a row with itself, as on the diagonal of a Gram matrix."""
    x, y = ([v if isinstance(v, mp.mpf) else mp.mpf(float(v)) for v in point] for point in (x, y))
    raw = [mp.fdot(a, b) / len(x) for a, b in ((x, x), (x, y), (y, y))]
    state = merged(parts_after(layers, [(mp.mpf(1), (*raw, ZERO, ZERO, ZERO))], same))
    return state[1], state[3]


def numbers(layers):
    """The lists of a description that hold numbers, each once, in the order of the network's leaves."""
    found = []
    for layer in [layer for layer in layers if isinstance(layer, list) and layer]:
        own = [layer] if layer[0] in ("d", "f", "scale") else numbers(layer)
        found += [one for one in own if not any(one is known for known in found)]
    return found


def slopes(layers, x, y, kind):
    """Central differences of Sigma (kind 0) or Theta (1) by x, and by the numbers of the layers, in high precision."""
    step = mp.mpf(10) ** -25
    x = [mp.mpf(float(v)) for v in x]

    def by(place, k):
        kept, ends = place[k], []
        for sign in (1, -1):
            place[k] = mp.mpf(kept) + sign * step
            ends.append(exact(layers, x, y)[kind])
        place[k] = kept
        return float((ends[0] - ends[1]) / (2 * step))

    with mp.workdps(90):
        rows = [by(x, k) for k in range(len(x))]
        return np.array(rows), np.array([by(layer, k) for layer in numbers(layers) for k in range(1, len(layer))])


def worst(described, X, grams):
    """The largest error over sqrt(K(x, x) K(x', x')), and that of one entry with a planted error of 1000 eps."""
    pairs, eps = [(i, j) for i in range(len(X)) for j in range(i + 1)], np.finfo(X.dtype).eps
    with mp.workdps(50):
        known = {(i, j): exact(described, X[i], X[j]) for i, j in pairs}
        scale = {(i, j, kind): mp.sqrt(known[i, i][kind] * known[j, j][kind]) for i, j in pairs for kind in (0, 1)}
        errors = {
            (i, j, kind): float(abs(mp.mpf(float(grams[kind][i, j])) - known[i, j][kind]) / size)
            for (i, j, kind), size in scale.items()
            if size
        }
    return max(errors.values()), float(known[1, 0][1]) * 1000 * eps / float(scale[1, 0, 1])
