"""Random trees of layers, each beside its description for `tree_oracle`."""

import numpy as np

import cases
import widelimit as wl
from widelimit.layers import Concatenate, Dense, Dropout, Frozen, LayerNorm, Repeat, Residual, Scale, Serial, Sum

ACTIVATIONS = {
    "relu": "relu",
    "leaky_relu": wl.LeakyRelu(0.01),
    "abs": "abs",
    "erf": "erf",
    "gelu": "gelu",
    **{name: cases.ACTIVATIONS[name] for name in ("sin", "cos", "snake", "rbf", "exp", "gaussian", "polynomial")},
    "hermite 2": wl.Hermite(2),
    "erf, parameters": wl.Erf(-1.7, 0.4, 0.6),
}
FREE_OF_SCALE = ("relu", "leaky_relu", "abs")


class Draws:
    """A source of random layers: at most `most` activations on the way through a tree, of these kinds."""

    def __init__(self, seed, kinds=tuple(ACTIVATIONS), biases=(0.1, 0.5), drop=True):
        self.rng, self.kinds, self.biases, self.drop = np.random.default_rng(seed), kinds, biases, drop

    def choose(self, options):
        return options[int(self.rng.integers(len(options)))]

    def dense(self, bias=None):
        w, b = float(self.choose((0.7, 1.0, 1.4))), float(self.choose(self.biases) if bias is None else bias)
        if self.rng.random() < 0.2:
            return [Frozen(Dense(w, b))], [["f", w, b]]
        return [Dense(w, b)], [["d", w, b]]

    def activation(self):
        name = self.choose(self.kinds)
        return [ACTIVATIONS[name]], [name]

    def norm(self):
        return [LayerNorm()], ["norm"]

    def scale(self):
        factor = float(self.choose((0.5, 1.5)))
        return [Scale(factor)], [["scale", factor]]

    def dropout(self):
        return ([Dropout(0.8)], [["drop", 0.8]]) if self.drop else self.scale()

    def some(self, *makers):
        """These layers in order."""
        ends = [maker() for maker in makers]
        return [layer for end in ends for layer in end[0]], [layer for end in ends for layer in end[1]]

    def branch(self, depth):
        """Layers with random weights: a dense one, and what may stand before and after it."""
        before = self.choose(((), (self.activation,), (self.norm, self.activation), (self.norm,), (self.scale,)))
        after = self.choose(((), (), (self.activation,), (self.norm,), (self.activation, self.norm), (self.dropout,)))
        inner = (lambda: self.block(depth - 1),) if depth > 0 and self.rng.random() < 0.3 else ()
        return self.some(*before, self.dense, *inner, *after)

    def block(self, depth):
        """Layers after Gaussian signals of one law, which end with such signals."""
        kind = self.choose(("plain", "residual", "sum", "beside", "repeat", "post"))
        if kind == "plain":
            return self.some(
                self.activation, *self.choose(((), (self.norm,), (self.dropout,), (self.scale,))), self.dense
            )
        if kind == "repeat":
            layers, described = self.block(depth - 1) if depth > 0 else self.some(self.activation, self.dense)
            times = int(self.rng.integers(2, 4))
            return [Repeat(layers, times)], described * times
        if kind == "post":
            layers, described = self.branch(depth)
            norm = self.choose(((), (self.norm,)))
            tail = self.some(*norm, self.dense)
            return [Residual(*layers), *tail[0]], [["sum", [], described], *tail[1]]
        branches = [self.branch(depth) for _ in range(int(self.rng.integers(1, 3)) + (kind != "residual"))]
        tail = self.some(*self.choose(((), (self.norm,), (self.scale,))), self.dense)
        if kind == "beside":
            shares = (0.25, 0.75) if len(branches) == 2 else (0.25, 0.25, 0.5)
            told = [item for share, (_, own) in zip(shares, branches, strict=True) for item in (share, own)]
            return [Concatenate(*(own for own, _ in branches), shares=shares), *tail[0]], [["beside", *told], *tail[1]]
        joined = [] if kind == "sum" else [Serial()]
        told = [[]] * len(joined) + [own for _, own in branches]
        return [Sum(*joined, *(own for own, _ in branches)), *tail[0]], [["sum", *told], *tail[1]]


def random_tree(seed, *, blocks=2, **options):
    """(layers, their description): a dense layer, blocks of all kinds, nested, and a dense layer."""
    draws = Draws(seed, **options)
    layers, described = draws.some(draws.dense, *[lambda: draws.block(1)] * blocks, draws.dense)
    return layers, described
