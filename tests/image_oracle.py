"""The recursion over all pairs of sites, in high precision: no gaps, no shares, no series."""

import itertools

import mpmath as mp

import oracles


def size_after(n, size, stride, padding, dilation):
    reach = (size - 1) * dilation + 1
    return -(-n // stride) if padding != "valid" else (n - reach) // stride + 1


def taps(shape, size, stride, padding, dilation):
    """{site after: sites before}, None outside, for axes of these sizes."""
    after, ways = [], []
    for n, k, s, d in zip(shape, size, stride, dilation, strict=True):
        count, reach = size_after(n, k, s, padding, d), (k - 1) * d + 1
        low = 0 if padding == "valid" else max((count - 1) * s + reach - n, 0) // 2
        rows = [[i * s + t * d - low for t in range(k)] for i in range(count)]
        if padding == "circular":
            rows = [[p % n for p in row] for row in rows]
        after.append(count)
        ways.append([[p if 0 <= p < n else None for p in row] for row in rows])
    found = {}
    for site in itertools.product(*map(range, after)):
        rows = [ways[axis][i] for axis, i in enumerate(site)]
        found[site] = [p if None not in p else None for p in itertools.product(*rows)]
    return tuple(after), found


def convolve(state, shape, size, stride=1, padding="same", dilation=1, w=1.0, b=0.0, trained=True, shared=True):
    """Sigma and Theta: {(input, site, input, site): number}; 0 between sites that do not share weights."""
    axes = len(shape)
    after, sites = taps(
        shape, *((v,) * axes if isinstance(v, int) else v for v in (size, stride)), padding, (dilation,) * axes
    )
    sigma, theta = state
    new = ({}, {})
    w, b = mp.mpf(w) ** 2, mp.mpf(b) ** 2
    for a, c in itertools.product("xy", repeat=2):
        for p, q in itertools.product(sites, repeat=2):
            pairs = [(s, t) for s, t in zip(sites[p], sites[q], strict=True) if s is not None and t is not None]
            count = len(sites[p])
            mean = [mp.fsum(part[a, s, c, t] for s, t in pairs) / count for part in (sigma, theta)]
            new[0][a, p, c, q] = (w * mean[0] + b) * (shared or p == q)
            new[1][a, p, c, q] = w * mean[1] * (shared or p == q) + (new[0][a, p, c, q] if trained else 0)
    return new, after


def activate(state, name):
    dual = oracles.DUALS[name]
    sigma, theta = state
    new = ({}, {})
    for a, p, c, q in sigma:
        x, y = sigma[a, p, a, p], sigma[c, q, c, q]
        if x == 0 or y == 0:
            value, slope = mp.mpf(0), mp.mpf(0)
        else:
            value, slope = dual(x, sigma[a, p, c, q], y)
        new[0][a, p, c, q], new[1][a, p, c, q] = value, theta[a, p, c, q] * slope
    return new


def pool(state, shape, size=None, stride=None, padding="valid"):
    size = shape if size is None else (size,) * len(shape)
    stride = size if stride is None else (stride,) * len(shape)
    after, sites = taps(shape, size, stride, padding, (1,) * len(shape))
    new = ({}, {})
    for a, c in itertools.product("xy", repeat=2):
        for p, q in itertools.product(sites, repeat=2):
            pairs = [(s, t) for s in sites[p] for t in sites[q] if s is not None and t is not None]
            for part, out in zip(state, new, strict=True):
                out[a, p, c, q] = mp.fsum(part[a, s, c, t] for s, t in pairs) / len(sites[p]) ** 2
    return new, after


def flatten(state, shape):
    one = (0,) * len(shape)
    sites = list(itertools.product(*map(range, shape)))
    new = ({}, {})
    for a, c in itertools.product("xy", repeat=2):
        for part, out in zip(state, new, strict=True):
            out[a, one, c, one] = mp.fsum(part[a, p, c, p] for p in sites) / len(sites)
    return new, (1,) * len(shape)


def add(states):
    return tuple({key: mp.fsum(state[i][key] for state in states) for key in states[0][i]} for i in (0, 1))


def normalise(state):
    """LayerNorm over channels after signals of mean 0."""
    sigma, theta = state
    new = ({}, {})
    for a, p, c, q in sigma:
        root = mp.sqrt(sigma[a, p, a, p] * sigma[c, q, c, q])
        new[0][a, p, c, q] = sigma[a, p, c, q] / root if root else mp.mpf(0)
        new[1][a, p, c, q] = theta[a, p, c, q] / root if root else mp.mpf(0)
    return new


def normalise_all(state, means=None):
    """LayerNorm over sites and channels: variance and mean are the means over the sites; means: of the signals."""
    sigma, theta = state
    sites = sorted({key[:2] for key in sigma})
    means = dict.fromkeys(sites, mp.mpf(0)) if means is None else means
    own = {a: [at for at in sites if at[0] == a] for a in "xy"}
    middle = {a: mp.fsum(means[at] for at in own[a]) / len(own[a]) for a in "xy"}
    root = {a: mp.sqrt(mp.fsum(sigma[*at, *at] for at in own[a]) / len(own[a]) - middle[a] ** 2) for a in "xy"}
    new = ({}, {})
    for a, p, c, q in sigma:
        shifted = middle[a] * middle[c] - means[a, p] * middle[c] - middle[a] * means[c, q]
        size = root[a] * root[c]
        new[0][a, p, c, q] = (sigma[a, p, c, q] + shifted) / size if size else mp.mpf(0)
        new[1][a, p, c, q] = theta[a, p, c, q] / size if size else mp.mpf(0)
    return new


def relu_normalised(state):
    """relu, whose mean is sqrt(q/(2 pi)), then LayerNorm over sites and channels."""
    means = {key[:2]: mp.sqrt(q / (2 * mp.pi)) for key, q in state[0].items() if key[:2] == key[2:]}
    return normalise_all(activate(state, "relu"), means)


def start(x, y):
    """The state of two images (*S, channels)."""
    shape, channels = x.shape[:-1], x.shape[-1]
    sites = list(itertools.product(*map(range, shape)))
    images = {"x": x, "y": y}
    pixels = {(a, p): [mp.mpf(float(v)) for v in images[a][p]] for a in "xy" for p in sites}
    keys = [(a, p, c, q) for a in "xy" for p in sites for c in "xy" for q in sites]
    sigma = {key: mp.fdot(pixels[key[:2]], pixels[key[2:]]) / channels for key in keys}
    return (sigma, dict.fromkeys(keys, mp.mpf(0))), shape


def run(steps, state, shape):
    for step in steps:
        name, *given = step if isinstance(step, tuple) else (step,)
        if name == "conv":
            state, shape = convolve(state, shape, *given[:1], **(given[1] if given[1:] else {}))
        elif name == "dense":
            state, shape = convolve(state, shape, 1, **(given[0] if given else {}))
        elif name == "pool":
            state, shape = pool(state, shape, *given)
        elif name == "flatten":
            state, shape = flatten(state, shape)
        elif name == "norm":
            state = normalise(state)
        elif name in ("norm all", "relu, norm all"):
            state = (normalise_all if name == "norm all" else relu_normalised)(state)
        elif name == "residual":
            state = add([state, run(given, state, shape)[0]])
        else:
            state = activate(state, name)
    return state, shape


def kernels(steps, x, y):
    """(Sigma, Theta) of the pair, of x with itself, and of y with itself."""
    (sigma, theta), shape = run(steps, *start(x, y))
    one = (0,) * len(shape)
    return [(sigma[a, one, c, one], theta[a, one, c, one]) for a, c in ("xy", "xx", "yy")]
