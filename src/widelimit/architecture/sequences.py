"""Sequences and graphs of unequal sizes are packed into rows: signals, mask, and the adjacency of graphs."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.architecture.inputs import Sited
from widelimit.architecture.structure import Structure
from widelimit.lossless import is_sparse, refuse_masked
from widelimit.shapes import Float
from widelimit.validation import Array


class _Masked(Sited):
    """The sites of an input stand on one axis, and those behind its mask only fill the array."""

    def __post_init__(self) -> None:
        for name, value in zip(self._names, self._given, strict=True):
            validation.integer(f"{name} of {type(self).__name__}", value, at_least=1, below=2**20)

    @property
    @abc.abstractmethod
    def _names(self) -> tuple[str, str]: ...

    @property
    def _given(self) -> tuple[int, int]:
        length, features = (getattr(self, name) for name in self._names)
        return length, features

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self._given

    @property
    def _signals(self) -> int:
        return self.shape[0] * self.shape[1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.shape}"

    def _mask(self, X: Any) -> Any:
        return X[:, self._signals : self._signals + self.shape[0]]

    def rows(self, name: str, X: Any) -> Array:
        """Return packed rows (n, size): of a list as of `pack`, or packed already. Raises: TypeError, ValueError."""
        if self._is_packed(X):
            points = validation.points(name, X)
            if points.shape[1] != self.size:
                raise ValueError(
                    f"{name} has rows of {points.shape[1]} numbers, and {self} packs an input to {self.size}; pass the "
                    f"{self.kind}s themselves, a list of arrays, or net.inputs.pack(...) of them."
                )
            if not validation.traced(points):
                self._check(name, np.asarray(points))
            return points
        return self._packed(name, X)

    def _is_packed(self, X: Any) -> bool:
        return not _is_list(X) and np.ndim(X) <= 2

    @abc.abstractmethod
    def _packed(self, name: str, X: Any) -> Array:
        """Return what is no row yet as rows."""

    def _faults(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return faults beside those of the mask, and which rows have them."""
        return {}

    def _check(self, name: str, rows: np.ndarray) -> None:
        """Refuse packed rows whose mask or adjacency is none. Raises: ValueError."""
        mask = self._mask(rows)
        if not np.isin(mask, (0, 1)).all():
            raise ValueError(f"{name}: the mask in packed rows of {self} is 0 or 1; make rows by net.inputs.pack(...).")
        if (empty := np.flatnonzero(~mask.any(axis=1))).size:
            raise ValueError(f"{name}[{empty[0]}] has no {self._site} that is not masked; leave the {self.kind} out.")
        for text, found in self._faults(rows).items():
            if found.any():
                raise ValueError(f"{name}[{int(np.argmax(found))}]: the adjacency {text}.")

    @property
    def _site(self) -> str:
        return "node" if self.kind == "graph" else "site"

    def _blank(self, name: str, n: int, dtype: Any) -> np.ndarray:
        if not n:
            raise ValueError(f"{name} is empty; at least one {self.kind} is needed.")
        memory.require(float(n) * self.size * np.dtype(dtype).itemsize, f"{n} packed rows of {self}")
        return np.zeros((n, self.size), dtype)

    def _signals_of(self, place: str, value: Any) -> np.ndarray:
        """Return the signals of one input, (t, features). Raises: TypeError, ValueError."""
        array = np.asarray(validation.as_float_array(place, value))
        length, features = self.shape
        if array.ndim == 1 and features == 1:
            array = array[:, None]
        if array.ndim != 2 or array.shape[1] != features:
            raise ValueError(
                f"{place} has shape {array.shape}; {self} takes ({self._names[0]} or fewer, {features}) numbers."
            )
        if not 1 <= len(array) <= length:
            fix = (
                "leave it out, or"
                if not len(array)
                else f"write wl.{type(self).__name__}({len(array)}, {features}), or"
            )
            raise ValueError(
                f"{place} has {len(array)} {self._site}s, and {self} takes 1 to {length}; {fix} shorten it."
            )
        validation.refuse_non_finite(place, array)
        return array

    def _fill(self, rows: np.ndarray, signals: Iterable[np.ndarray]) -> None:
        """Write signals and masks into blank rows."""
        for row, own in zip(rows, signals, strict=True):
            row[: own.size] = own.ravel()
            row[self._signals : self._signals + len(own)] = 1


@final
@dataclass(frozen=True, repr=False)
class Sequence(_Masked):
    """Inputs are sequences of at most `length` sites with `features` numbers each, of unequal lengths.

    Data are a list of arrays (t, features), t <= length, or an array (n, length, features); `pack` also takes lengths
    or a mask. A row has length*features signals and then the mask, length numbers, 1 where a site is there.
    Masked sites have no influence: layers that mix sites take them as 0, averages divide by the number of the others.

    Raises: TypeError, ValueError: not two integers >= 1.
    """

    length: int
    features: int
    kind: ClassVar[str] = "sequence"

    @property
    def _names(self) -> tuple[str, str]:
        return "length", "features"

    @property
    def size(self) -> int:
        """Return the length of a packed row."""
        return self._signals + self.length

    def structure(self, X: Float[Array, "n d"]) -> Structure:
        return Structure(self._mask(X))

    def pack(self, X: Any, *, lengths: Any = None, mask: Any = None) -> Array:
        """Return rows (n, size) of sequences: a list of arrays (t, features), or an array (n, length, features).

        Args:
            X: the sequences; (t,) and (n, length) where features is 1. Of an array, what is masked may be anything.
            lengths: for an array, the number of sites of each sequence, (n,); all unless given.
            mask: for an array, True for sites that the sequence has, (n, length), in place of `lengths`.

        Raises:
            TypeError, ValueError: other shapes, NaN at a site that is there, a sequence without sites or longer than
                `length`, lengths beyond the array.
        """
        if isinstance(X, (list, tuple)) and lengths is None and mask is None:
            return self._packed("X", X)
        return self._of_array("X", X, lengths, mask)

    def _packed(self, name: str, X: Any) -> Array:
        if _is_list(X):
            own = [self._signals_of(f"{name}[{i}]", one) for i, one in enumerate(X)]
            rows = self._blank(name, len(own), np.result_type(*own, np.float32) if own else np.float64)
            self._fill(rows, own)
            return rows
        return self._of_array(name, X, None, None)

    def _mask_of(self, n: int, lengths: Any, mask: Any) -> np.ndarray | None:
        for name, value in (("mask", mask), ("lengths", lengths)):
            refuse_masked(name, value)
        if mask is not None:
            found = np.asarray(mask)
            if lengths is not None or found.shape != (n, self.length) or not np.isin(found, (0, 1)).all():
                raise ValueError(
                    f"mask must be ({n}, {self.length}) of True and False, without lengths; got shape {found.shape}."
                )
            return found.astype(bool)
        if lengths is None:
            return None
        counts = np.asarray(lengths)
        if counts.shape != (n,) or counts.dtype.kind not in "iu" or not ((counts >= 1) & (counts <= self.length)).all():
            raise ValueError(
                f"lengths must be {n} integers from 1 to {self.length}, one a sequence; got "
                f"{validation.shown(lengths)}."
            )
        return np.asarray(np.arange(self.length) < counts[:, None])

    def _of_array(self, name: str, X: Any, lengths: Any, mask: Any) -> Array:
        array = validation.as_float_array(name, X)
        if array.ndim == 2 and self.features == 1:
            array = array[..., None]
        if array.shape[1:] != self.shape or not len(array):
            raise ValueError(
                f"{name} has shape {array.shape}; {self} takes (n, {self.length}, {self.features}), or a list of "
                f"arrays (t, {self.features}) with t <= {self.length}."
            )
        there = self._mask_of(len(array), lengths, mask)
        if there is None:
            validation.refuse_non_finite(name, array)
            xp: Any = jnp if isinstance(array, jax.Array) else np
            return xp.concatenate([array.reshape(len(array), -1), xp.ones((len(array), self.length), array.dtype)], 1)  # type: ignore[no-any-return]
        signals = np.where(there[..., None], array, 0)
        validation.refuse_non_finite(name, signals)
        rows = np.concatenate([signals.reshape(len(signals), -1), there], axis=1, dtype=array.dtype)
        self._check(name, rows)
        return rows


@final
@dataclass(frozen=True, repr=False)
class Graph(_Masked):
    """Inputs are undirected graphs of at most `nodes` nodes with `features` numbers each.

    Data are a list of (signals, adjacency): signals (t, features), t <= nodes, and adjacency (t, t), symmetric weights
    >= 0, dense or of scipy.sparse; or of networkx graphs, whose nodes have the attribute "features". A row has
    nodes*features signals, then the mask, nodes numbers, and nodes^2 of the adjacency.

    Raises: TypeError, ValueError: not two integers >= 1.
    """

    nodes: int
    features: int
    kind: ClassVar[str] = "graph"

    @property
    def _names(self) -> tuple[str, str]:
        return "nodes", "features"

    @property
    def size(self) -> int:
        """Return the length of a packed row."""
        return self._signals + self.nodes + self.nodes**2

    def _adjacency(self, X: Any) -> Any:
        return X[:, self._signals + self.nodes :].reshape(len(X), self.nodes, self.nodes)

    def structure(self, X: Float[Array, "n d"]) -> Structure:
        return Structure(self._mask(X), self._adjacency(X))

    def degree(self, X: Any) -> float:
        return float(np.max(np.sum(self._adjacency(np.asarray(X)), axis=2, dtype=np.float64)))

    def pack(self, X: Many[Any]) -> np.ndarray:
        """Return rows (n, size) of graphs: a list of (signals, adjacency) or of networkx graphs.

        Raises:
            TypeError, ValueError: no such list, a graph without nodes or with more than `nodes`, an adjacency of
                another shape, with entries that are not finite or below 0, or not symmetric.
        """
        return self._packed("X", X)

    def _packed(self, name: str, X: Any) -> np.ndarray:
        if not isinstance(X, (list, tuple)):
            raise TypeError(f"{name} must be a list of graphs, each (signals, adjacency); got {validation.shown(X)}.")
        own = [self._graph(f"{name}[{i}]", graph) for i, graph in enumerate(X)]
        rows = self._blank(
            name, len(own), np.result_type(*(part for one in own for part in one), np.float32) if own else np.float64
        )
        self._fill(rows, [signals for signals, _ in own])
        for matrix, (_, adjacency) in zip(self._adjacency(rows), own, strict=True):
            matrix[: len(adjacency), : len(adjacency)] = adjacency
        self._check(name, rows)
        return rows

    def _graph(self, place: str, graph: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return signals and adjacency of one graph. Raises: TypeError, ValueError."""
        if type(graph).__module__.startswith("networkx"):
            graph = _of_networkx(place, graph, self.features)
        if not isinstance(graph, (list, tuple)) or len(graph) != 2:
            raise TypeError(
                f"{place} must be (signals, adjacency), arrays (t, {self.features}) and (t, t), or a networkx graph; "
                f"got {validation.shown(graph)}."
            )
        signals, given = self._signals_of(f"{place}: signals", graph[0]), graph[1]
        if is_sparse(given):
            _require_square(place, given.shape, len(signals))  # before it is made dense
            given = given.toarray()
        adjacency = np.asarray(validation.as_finite_floats(f"{place}: adjacency", given))
        _require_square(place, adjacency.shape, len(signals))
        return signals, adjacency

    def _faults(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        adjacency, mask = self._adjacency(rows), self._mask(rows)
        beside = (adjacency != 0) & (mask[:, None] == 0)
        return {
            "has entries below 0; give edges weights >= 0": (adjacency < 0).any(axis=(1, 2)),
            "is not symmetric; for directed edges take (A + A.T) / 2": (adjacency != adjacency.mT).any(axis=(1, 2)),
            "has edges at masked nodes; make rows by net.inputs.pack(...)": beside.any(axis=(1, 2)),
        }


def _require_square(place: str, shape: tuple[int, ...], nodes: int) -> None:
    """Refuse an adjacency of another shape than (nodes, nodes). Raises: ValueError."""
    if shape != (nodes, nodes):
        raise ValueError(
            f"{place}: the adjacency has shape {shape}, and there are {nodes} nodes; it must be ({nodes}, {nodes})."
        )


def _is_list(X: Any) -> bool:
    """Return True for inputs one by one, of unequal lengths perhaps; anything else is one array, or traced as one."""
    return isinstance(X, (list, tuple)) or (isinstance(X, np.ndarray) and X.dtype == object)


def _of_networkx(place: str, graph: Any, features: int) -> tuple[Any, Any]:
    """Return signals and adjacency of a networkx graph. Raises: TypeError, ValueError: its features or weights."""
    from networkx import to_scipy_sparse_array

    values = {node: data.get("features") for node, data in graph.nodes(data=True)}
    if any(value is None for value in values.values()):
        raise ValueError(
            f'{place}: every node of a networkx graph needs the attribute "features", an array: graph.nodes[v]'
            f'["features"] = [1.0].'
        )
    if not values:
        return np.zeros((0, features)), np.zeros((0, 0))
    for u, v, weight in graph.edges(data="weight", default=1):
        validation.as_finite_floats(f"{place}: the weight of edge {validation.shown((u, v))}", weight)
    rows = [_node_features(place, node, value, features) for node, value in values.items()]
    return np.stack(rows), to_scipy_sparse_array(graph)


def _node_features(place: str, node: Any, value: Any, features: int) -> np.ndarray:
    """Return the features of a networkx graph's node, (features,). Raises: TypeError, ValueError."""
    name = f'{place}: nodes[{validation.shown(node)}]["features"]'
    array = np.atleast_1d(validation.as_finite_floats(name, value))
    if array.shape != (features,):
        raise ValueError(f"{name} has shape {array.shape}; ({features},) numbers are needed.")
    return array
