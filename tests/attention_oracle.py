"""The recursion of networks with attention over all pairs of sites, in high precision: covariances, no gaps.

A state is (Sigma, Theta), {(input, site, input, site): number}, over the sites that are there: sequences may have
unequal lengths, so that masks are what the library needs them for.
"""

import itertools

import mpmath as mp
import numpy as np

import image_oracle
import oracles

PHI = {"identity": lambda v: v, "relu": lambda v: max(v, mp.mpf(0))}


def start(x, y):
    inputs = {"x": x, "y": y}
    sites = [(a, p) for a in "xy" for p in range(len(inputs[a]))]
    rows = {at: [mp.mpf(float(v)) for v in inputs[at[0]][at[1]]] for at in sites}
    sigma = {(*s, *t): mp.fdot(rows[s], rows[t]) / len(rows[s]) for s in sites for t in sites}
    return sigma, dict.fromkeys(sigma, mp.mpf(0))


def dense(state, w=1.0, b=0.0):
    w, b = mp.mpf(w) ** 2, mp.mpf(b) ** 2
    sigma = {key: w * value + b for key, value in state[0].items()}
    return sigma, {key: w * value + sigma[key] for key, value in state[1].items()}


def positions(state, encoding, std=1.0):
    """Vectors e(p), with weights of their own, trained."""
    rows = [[mp.mpf(float(v)) for v in row] for row in encoding]
    own = {key: mp.mpf(std) ** 2 * mp.fdot(rows[key[1]], rows[key[3]]) / len(rows[0]) for key in state[0]}
    return tuple({key: part[key] + own[key] for key in own} for part in state)


def pool(state):
    new = ({}, {})
    for a, c in itertools.product("xy", repeat=2):
        for part, out in zip(state, new, strict=True):
            own = [value for key, value in part.items() if (key[0], key[2]) == (a, c)]
            out[a, 0, c, 0] = mp.fsum(own) / len(own)
    return new


def _softmax(values):
    powers = [mp.exp(v - max(values)) for v in values]
    return [v / mp.fsum(powers) for v in powers]


def _lengths(sigma):
    return {a: 1 + max(key[1] for key in sigma if key[0] == a) for a in "xy"}


def attend(state, scores="softmax", scaling="d", qk=1.0, vo=1.0, b=0.0, causal=False):
    """One layer; qk and vo: products of standard deviations of queries and keys, values and outputs."""
    sigma, theta = state
    lengths, new = _lengths(sigma), ({}, {})
    qk, v2, b2 = mp.mpf(qk), mp.mpf(vo) ** 2, mp.mpf(b) ** 2
    read = {(a, p): range(p + 1 if causal else lengths[a]) for a in "xy" for p in range(lengths[a])}
    weights = {at: _weights(sigma, at, read[at], scores, qk) for at in read} if scaling == "d" else {}
    for s, t in itertools.product(read, repeat=2):
        pairs = [(i, j, (s[0], i, t[0], j)) for i in read[s] for j in read[t]]
        here, there = sigma[*s, *t], theta[*s, *t]
        k = learned = mp.mpf(0)
        for i, j, at in pairs:
            if scaling == "d":
                both = weights[s][i] * weights[t][j]
                k, learned = k + both * sigma[at], learned + both * theta[at]
                continue
            sizes = [qk**2 * sigma[*u, *u] * sigma[u[0], n, u[0], n] for u, n in ((s, i), (t, j))]
            both, slope = qk**2 * here * sigma[at], mp.mpf(1)
            if scores == "relu":
                both, slope = oracles.DUALS["relu"](sizes[0], both, sizes[1])
            k += both * sigma[at]
            through = sigma[at] * (2 * here * sigma[at] + there * sigma[at] + here * theta[at])
            learned += both * theta[at] + qk**2 * slope * through
        new[0][*s, *t] = v2 * k + b2
        new[1][*s, *t] = v2 * (learned + 2 * k) + b2
    return new


def _weights(sigma, at, read, scores, qk):
    given = [qk * sigma[*at, at[0], i] for i in read]
    return _softmax(given) if scores == "softmax" else [PHI[scores](v) for v in given]


def run(steps, state):
    """Steps: "pool", "norm", ("dense", {..}), ("attention", {..}), ("positions", e, std), ("residual", *steps), phi."""
    for step in steps:
        name, *given = step if isinstance(step, tuple) else (step,)
        if name == "residual":
            state = image_oracle.add([state, run(given, state)])
        elif name in STEPS:
            keywords = given.pop() if given and isinstance(given[-1], dict) else {}
            state = STEPS[name](state, *given, **keywords)
        else:
            state = image_oracle.activate(state, name)
    return state


STEPS = {"dense": dense, "attention": attend, "positions": positions, "pool": pool, "norm": image_oracle.normalise}


def kernels(steps, x, y):
    """(Sigma, Theta) of the pair, of x with itself, and of y with itself."""
    sigma, theta = run(steps, start(x, y))
    return [(sigma[a, 0, c, 0], theta[a, 0, c, 0]) for a, c in ("xy", "xx", "yy")]


def errors(steps, X, grams, pairs):
    """Errors of both kernels over sqrt(K(x, x) K(x', x')), in units of eps; X: a list of arrays (t, features)."""
    worst = [0.0, 0.0]
    with mp.workdps(60):
        for i, j in pairs:
            xy, xx, yy = kernels(steps, X[i], X[j])
            for kind, gram in enumerate(grams):
                size = mp.sqrt(xx[kind] * yy[kind])
                known = [((i, j), xy), ((i, i), xx), ((j, j), yy)]
                found = (float(abs(mp.mpf(float(gram[at])) - value[kind]) / size) for at, value in known)
                worst[kind] = max(worst[kind], *found)
    return [value / np.finfo(grams[0].dtype).eps for value in worst]
