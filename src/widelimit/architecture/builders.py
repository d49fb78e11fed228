"""Networks are built: layer by layer, or by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax

from widelimit import validation
from widelimit.activations.base import Activation
from widelimit.architecture.aggregation import Aggregate
from widelimit.architecture.chain import Combined, Serial, branch_of
from widelimit.architecture.combine import Branches, Residual
from widelimit.architecture.convolution import Conv
from widelimit.architecture.inputs import Inputs, Rows, Sited
from widelimit.architecture.layers import Activate, Dense, Scale
from widelimit.architecture.locally_connected import LocallyConnected
from widelimit.architecture.network import PARAMETERIZATIONS, Network
from widelimit.architecture.pooling import AveragePool
from widelimit.architecture.recurrent import Recurrent
from widelimit.architecture.repeat import Repeat, kept_numbers
from widelimit.architecture.sites import Sites
from widelimit.architecture.state import DEEPEST, Layer, Scalar, Traits

MOST_NUMBERS = 30 * DEEPEST
"""Numbers that the layers of a network keep of every input."""
ROWS = Rows()
AnyActivation = str | Activation | Callable[[jax.Array], jax.Array]


def network(
    *layers: Any,
    inputs: Inputs = ROWS,
    parameterization: str = "ntk",
    base_width: float | None = None,
    learning_rates: Sequence[float] | None = None,
) -> Network:
    """f = layers in order: a `Network` from a tree of `widelimit.layers`; a name or function is an activation.

    Args:
        layers: the first is a `Dense` layer, which reads the inputs (behind `LayerNorm` and `Scale`, for rows that are
            normalised first), and so is the last, whose outputs are Gaussian.
        inputs: `Rows()`, or for layers with sites `Image(height, width, channels)`, `Sequence(length, features)` or
            `Graph(nodes, features)`.
        parameterization: as in `mlp`.
        base_width: as in `mlp`.
        learning_rates: as in `mlp`; in the order of the dense layers in print(net), those of a repeated block once.

    Raises:
        TypeError: neither layers nor activations.
        ValueError: no layers; a first or last layer that is not dense; an activation after signals that are not
            Gaussian; a sum of branches that are not independent. The message names the place, as layers[2].branch[0].
    """
    validation.choice("parameterization", parameterization, PARAMETERIZATIONS)
    if not isinstance(inputs, (Rows, Sited)):
        kind = validation.shown(inputs)
        raise TypeError(
            f"inputs must be wl.Rows(), wl.Image(height, width, channels), wl.Sequence(length, features) or "
            f"wl.Graph(nodes, features); got {kind}."
        )
    try:
        found = _place(branch_of(layers, "layers"), inputs)
    except RecursionError:
        raise ValueError(
            "the branches of the layers are nested too deep; write layers one after the other, and blocks that are "
            "alike as wl.layers.Repeat([...], times)."
        ) from None
    whole = Serial(*found)
    end = found[-1].block[-1] if isinstance(found[-1], Repeat) else found[-1]
    if not (isinstance(end, Dense) or (isinstance(end, Scale) and len(found) > 1 and isinstance(found[-2], Dense))):
        raise ValueError(
            f"layers[{len(found) - 1}]: a network ends with wl.layers.Dense(), whose outputs are Gaussian at infinite "
            f"width; got {end!r:.80}."
        )
    _require_end(parameterization, whole.depth, end)
    if parameterization == "mup" and (inputs.sites or not isinstance(found[-1], Dense)):
        raise ValueError(
            'parameterization="mup" is for rows, and for a last wl.layers.Dense() that is not part of a repeated block.'
        )
    if not isinstance(next(layer for layer in found if not layer.on_inputs), Dense) and base_width is not None:
        raise ValueError("base_width is for networks of rows whose first layer with weights is wl.layers.Dense().")
    if inputs.sites and learning_rates is not None:
        raise ValueError("learning_rates are for networks of rows, not of images.")
    return replace(_parameterized(found, parameterization, base_width, learning_rates), inputs=inputs)


def _place(layers: tuple[Layer, ...], inputs: Inputs) -> tuple[Layer, ...]:
    """Return the layers for these inputs. Raises: ValueError: they do not fit, or have no limit."""
    whole = Serial(*layers)
    if (kept := kept_numbers(whole, {})) > MOST_NUMBERS:
        raise ValueError(
            f"the layers, with their repeats, keep {kept:.3g} numbers of every input, and at most {MOST_NUMBERS:.3g} "
            f"are taken; give Repeat smaller times."
        )
    at = next((i for i, own in enumerate(layers) if not (own.on_sites if inputs.sites else own.on_inputs)), 0)
    _require_reader(layers[at] if layers else None, f"layers[{at}]", inputs)
    placed, sites = whole.place(Sites(inputs.sites, whole.mixes_sites, inputs.kind), "layers")
    placed.traits(Traits(gaussian=False, centred=False, random=False), "layers")
    if any(n > 1 for n in sites.sizes):
        raise ValueError(
            f"layers[{len(layers) - 1}]: the network ends with {sites.sizes} sites; put wl.layers.Flatten() or "
            f"wl.layers.GlobalAveragePool() before the last wl.layers.Dense()."
        )
    return placed.layers


def _require_reader(first: Layer | None, path: str, inputs: Inputs) -> None:
    """Refuse a first layer that does not read inputs, and branches that do not each begin with a dense layer.

    Scales may stand before it, in graphs sums over nodes. Raises: ValueError.
    """
    if isinstance(first, (Dense, Conv, LocallyConnected, Recurrent)):
        return
    if isinstance(first, (Branches, Repeat)) and inputs.kind in ("rows", "graph"):
        _require_readers(first, path, inputs)
        return
    what = "no layers" if first is None else repr(first)
    raise ValueError(
        f"{path}: a network begins with wl.layers.Dense(), which reads the inputs, behind LayerNorm() or Scale(..) if "
        f"need be; got {what:.80}. Branches may read rows if each begins with wl.layers.Dense(): x + f(x), and "
        f"activations, need signals whose width grows."
    )


def _require_readers(layer: Branches | Repeat, path: str, inputs: Inputs) -> None:
    before = (Aggregate, AveragePool) if inputs.sites else Scale
    repeated = isinstance(layer, Repeat)
    for k, part in enumerate([Serial(*layer.block)] if isinstance(layer, Repeat) else layer.parts):
        i, own = next(((i, own) for i, own in enumerate(part.layers) if not isinstance(own, before)), (0, None))
        place = f"{path}.block" if repeated else f"{path}.branch[{k}]"
        place += f"[{i}]" * (own is not None)
        if isinstance(own, (Branches, Repeat)):
            _require_readers(own, place, inputs)
        elif not isinstance(own, Dense):
            what = "the rows themselves" if own is None else repr(own)
            raise ValueError(
                f"{place}: a {'block' if repeated else 'branch'} that reads rows begins with wl.layers.Dense(); got "
                f"{what:.80}. Other layers, and x + f(x), need signals whose width grows: put wl.layers.Dense() before "
                f"{path}."
            )


def _parameterized(layers: tuple[Layer, ...], parameterization: str, base_width: Any, learning_rates: Any) -> Network:
    """Return the network of these layers, whose finite maps get the parameterisation. Raises: ValueError, TypeError."""
    if base_width is not None:
        base_width = float(validation.finite_scalar("base_width", base_width, above=0.0))
        if parameterization not in ("standard", "mup"):
            raise ValueError(
                f'base_width is the width at which parameterization="standard" or "mup" has its usual scales; with '
                f"{parameterization!r} the limit has no width in it, leave base_width out."
            )
    if parameterization == "standard":
        layers = tuple(layer.standardise() for layer in layers)
    if base_width is None and learning_rates is None and parameterization != "mup":
        return Network(layers, parameterization)
    found: list[Dense] = []
    _map_dense(layers, lambda dense: found.append(dense) or dense)  # type: ignore[func-returns-value]
    count = len(found)
    rates = (1.0,) * count if learning_rates is None else validation.numbers_in("learning_rates", learning_rates)
    for i, rate in enumerate(rates):
        validation.finite_scalar(f"learning_rates[{i}]", rate, above=0.0)
    if len(rates) != count:
        raise ValueError(
            f"learning_rates has {len(rates)} numbers, and the network {count} dense layers (those of a repeated block "
            f"once); a layer that is not to be trained is wl.layers.Frozen(...)."
        )
    mup = parameterization == "mup"
    bases = (None if i == 0 and not mup else base_width for i in range(count))
    sizes = (("outputs" if i < count - 1 else "inputs") if mup else "" for i in range(count))
    each = zip(bases, rates, sizes, strict=True)

    def change(dense: Dense) -> Dense:
        base, rate, size = next(each)
        return replace(dense, base_width=base, learning_rate=rate, rate_by=size)

    changed = _map_dense(layers, change)
    return Network(changed, parameterization, base_width, None if learning_rates is None else rates)


def _require_end(parameterization: str, depth: int, end: Any = None) -> None:
    """Refuse networks whose output cannot be divided by the width. Raises: ValueError."""
    if parameterization not in ("mean_field", "mup"):
        return
    name = {"mean_field": "mean-field", "mup": "maximal update"}[parameterization]
    if end is not None and not isinstance(end, Dense):
        raise ValueError(f"the {name} parameterisation scales a last wl.layers.Dense(); got {end!r:.80}.")
    if depth == 1:
        raise ValueError(f"the {name} parameterisation divides by the width, and a network of depth 1 has none.")


def _map_dense(layers: Sequence[Layer], change: Callable[[Dense], Dense]) -> tuple[Layer, ...]:
    """Return layers with other dense layers, each from the old one, in order, those of a repeated block once."""

    def visit(layer: Layer, path: tuple[Any, ...]) -> Layer:
        if isinstance(layer, Dense):
            return change(layer)
        return layer.map_layers(visit, path) if isinstance(layer, Combined) else layer

    return Serial(*layers).map_layers(visit, ()).layers


def resmlp(
    *,
    blocks: int,
    activation: AnyActivation = "relu",
    branch_scale: Literal["one", "depth"] = "one",
    weight_std: Scalar = 1.0,
    bias_std: Scalar = 0.0,
    parameterization: str = "ntk",
    base_width: float | None = None,
    learning_rates: Sequence[float] | None = None,
) -> Network:
    """f = affine o (a -> a + c affine(phi(a)))^blocks o affine, a residual network; c = 1, or 1/sqrt(blocks).

    With c = 1 variances grow like (1 + weight_std^2 E[phi'^2])^blocks; with 1/sqrt(blocks) kernels have a limit as the
    depth grows (Hayou et al. 2021, arXiv 2010.12859).

    Args:
        blocks: >= 1.
        activation: activation of the branches, as in `mlp`.
        branch_scale: "one" or "depth", c of each branch.
        weight_std: sigma_w > 0 of all affine layers.
        bias_std: beta >= 0 of all affine layers.
        parameterization: as in `mlp`.
        base_width: as in `mlp`.
        learning_rates: three, of the first layer, the branches and the last layer; as in `mlp`.

    Raises:
        ValueError, TypeError: as `mlp`.
    """
    blocks = validation.integer("blocks", blocks, at_least=1, below=DEEPEST + 1)
    validation.choice("branch_scale", branch_scale, ("one", "depth"))
    dense = Dense(validation.deviation("weight_std", weight_std), validation.deviation("bias_std", bias_std, zero=True))
    scale = () if branch_scale == "one" else (Scale(1 / math.sqrt(blocks)),)
    body = Repeat((Residual(Activate(activation), dense, *scale),), blocks)
    return network(
        dense, body, dense, parameterization=parameterization, base_width=base_width, learning_rates=learning_rates
    )


def mlp(
    *,
    depth: int,
    activation: AnyActivation | Sequence[AnyActivation] = "relu",
    weight_std: Scalar | Sequence[Scalar] = 1.0,
    bias_std: Scalar | Sequence[Scalar] = 0.0,
    parameterization: str = "ntk",
    base_width: float | None = None,
    learning_rates: Sequence[float] | None = None,
) -> Network:
    """f = affine o (phi o affine)^(depth - 1), affine(a) = bias_std b + (weight_std/sqrt(width)) W a.

    The network of section 2.2 of the paper, of no width yet.

    Args:
        depth: L >= 1, the number of affine layers; depth 1 is linear regression, depth L has L - 1 hidden layers.
        activation: a name ("relu", "tanh", ...; docs/activations.md has all), an `Activation`, or a function of arrays
            written with jax.numpy (if it has kinks: `wl.activation(phi, kinks=...)`).
        weight_std: sigma_w > 0 (the paper: 1); sqrt(2) keeps the variance of relu signals.
        bias_std: beta >= 0; 0 is no bias.
        parameterization: of the finite networks (n_l: inputs of layer l, n: the width; limits: docs/training.md):
            "ntk": as above, every parameter from N(0, 1). Learning rates are of order 1, the kernel of training has a
                limit and is constant (Jacot et al. 2018).
            "standard": affine(a) = W a + b, W from N(0, weight_std^2/n_l), b from N(0, bias_std^2). The same functions
                at the start; the tangent kernel grows like n, and learning rates go like 1/n.
            "mean_field": the output of "ntk" times 1/sqrt(n). f_0 tends to 0, learning rates go like n, and the kernel
                changes at every width: features are learned (Mei et al. 2018; Chizat et al. 2019). Depth >= 2.
            "mup", maximal update: that network with learning rates of order 1 at every width, n times as large in every
                layer inside: multipliers (sqrt(n), 1, 1/sqrt(n)) of first, hidden and last layers, parameters from
                N(0, 1/n) (Yang and Hu 2021, arXiv 2011.14522, table 1). With base_width N it is "ntk" at n = N, with
                sqrt(N/n) on the output and learning rates n/N. Its limit is no kernel. Rows, depth >= 2.

        base_width: N of "mup", and for the limit of "standard": hidden layers of width n compute sqrt(N/n) W a + b, W
            from N(0, weight_std^2/N), the usual ones at n = N. Theta then has a limit, Theta <- weight_std^2 Theta~ +
            N E[a a'] + 1 (Sohl-Dickstein et al. 2020, arXiv 2001.07301); None: it grows with the width.
        learning_rates: one > 0 for each dense layer, relative to that of training; each multiplies the layer's own part
            of Theta, and finite networks hold parameters over its root. Every layer then has values of its own.

    Returns:
        A `Network`: give it to `nngp`, `ntk` or `trained_ensemble`, or use its `init` and `apply` at a finite width.

    Raises:
        ValueError: depth < 1, weight_std not a positive or bias_std not a non-negative finite number, an unknown
            activation or parameterization.
        TypeError: an argument of another type.
    """
    depth = validation.integer("depth", depth, at_least=1, below=DEEPEST + 1)
    validation.choice("parameterization", parameterization, PARAMETERIZATIONS)
    _require_end(parameterization, depth)
    if (
        parameterization == "mup"
        or learning_rates is not None
        or any(isinstance(v, (list, tuple)) for v in (activation, weight_std, bias_std))
    ):
        layers = _untied(depth, activation, weight_std, bias_std)
    else:
        if depth == 1:  # no variance of hidden signals: the output's own is all that must be in range
            scale = validation.finite_scalar("weight_std", weight_std, above=0.0)
        else:
            scale = validation.deviation("weight_std", weight_std)
        dense = Dense(scale, validation.deviation("bias_std", bias_std, zero=True))
        phi = Activate(activation)
        layers = (dense, Repeat((phi, dense), depth - 1)) if depth > 1 else (dense,)
    return _parameterized(layers, parameterization, base_width, learning_rates)


def _untied(depth: int, activation: Any, weight_std: Any, bias_std: Any) -> tuple[Layer, ...]:
    """Return layers with values of their own. Raises: ValueError: a list of another length."""
    columns = []
    counts = {"activation": depth - 1, "weight_std": depth, "bias_std": depth}
    for (name, count), value in zip(counts.items(), (activation, weight_std, bias_std), strict=True):
        values = list(value) if isinstance(value, (list, tuple)) else [value] * count
        if len(values) != count:
            raise ValueError(f"{name} has {len(values)} values, and a network of depth {depth} has {count} of them.")
        columns.append(values)
    phis, weights, biases = columns
    layers: list[Layer] = []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        scale = validation.deviation(f"weight_std[{i}]", weight)
        dense = Dense(scale, validation.deviation(f"bias_std[{i}]", bias, zero=True))
        layers += [Activate(phis[i - 1]), dense] if i else [dense]
    return tuple(layers)


def dense_chain(net: Network) -> list[Dense]:
    """Return the Dense layers of a network of Dense, activation, Dense, .., as `mlp` makes it; [] of any other."""
    dense, between = net.units[::2], net.units[1::2]
    alone = len(dense) == len(between) + 1 and all(isinstance(unit, Activate) for unit in between)
    found = [unit for unit in dense if isinstance(unit, Dense)]
    return found if alone and len(found) == len(dense) else []
