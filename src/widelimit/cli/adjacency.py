"""The edges of graphs are read from arrays: a matrix for each, or the parts of one sparse matrix for all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

CSR = ("A_data", "A_indices", "A_indptr")


def adjacencies(given: Mapping[str, np.ndarray], places: list[Any]) -> list[Any]:
    """Return the adjacency of each graph, dense or sparse.

    Args:
        given: A, (n, t, t); or A_data, A_indices and A_indptr, the CSR form of one matrix of all nodes, graph by graph.
        places: for each graph, the index of its nodes in X.

    Raises: ValueError: neither, or sizes that do not agree; edges of nodes that are not there, or between graphs.
    """
    parts = [name for name in CSR if name in given]
    if ("A" in given) == bool(parts) or (parts and len(parts) < len(CSR)):
        have = ", ".join(["A"] * ("A" in given) + parts) or "none of them"
        raise ValueError(
            f"edges are one array A (n, t, t), or all of A_data, A_indices and A_indptr (CSR, all nodes in a row); it "
            f"has {have}."
        )
    nodes = [at[1] if isinstance(at, tuple) else np.arange(len(at)) for at in places]
    return _sparse(given, [len(own) for own in nodes]) if parts else _dense(given["A"], nodes)


def _dense(A: np.ndarray, nodes: list[np.ndarray]) -> list[np.ndarray]:
    most = max(int(own[-1]) + 1 if len(own) else 0 for own in nodes)
    if A.ndim != 3 or len(A) != len(nodes) or A.shape[1] != A.shape[2] or A.shape[1] < most:
        raise ValueError(f"A has shape {A.shape}; it must be ({len(nodes)}, t, t), and graphs have up to {most} nodes.")
    found = []
    for i, (matrix, own) in enumerate(zip(A, nodes, strict=True)):
        inside = np.zeros(len(matrix), bool)
        inside[own] = True
        if np.nan_to_num(matrix)[~(inside[:, None] & inside)].any():
            raise ValueError(f"A[{i}] has edges at nodes that are not there: the graph has {len(own)}.")
        found.append(matrix[np.ix_(own, own)])
    return found


def _sparse(given: Mapping[str, np.ndarray], sizes: list[int]) -> list[Any]:
    from scipy.sparse import csr_array

    (data, indices, indptr), total = (given[name] for name in CSR), sum(sizes)
    whole = all(part.ndim == 1 for part in (data, indices, indptr)) and {indices.dtype.kind, indptr.dtype.kind} <= set(
        "iu"
    )
    if not whole or len(indptr) != total + 1 or len(data) != len(indices) or indptr[0] != 0 or indptr[-1] != len(data):
        raise ValueError(
            f"A_data, A_indices and A_indptr are no CSR matrix of {total} nodes: A_indptr has {total + 1} integers "
            f"from 0 to the number of entries, len(A_data) = len(A_indices)."
        )
    ends, columns = indptr.astype(np.int64), indices.astype(np.int64)
    counts = ends[1:] - ends[:-1]
    if (counts < 0).any() or (columns < 0).any() or (columns >= total).any():
        raise ValueError(f"A_indptr must not fall, and A_indices are nodes, 0 to {total - 1}.")
    graph = np.repeat(np.arange(len(sizes)), sizes)
    start = np.cumsum([0, *sizes])
    rows = np.repeat(np.arange(total), counts)
    if (beside := np.flatnonzero(graph[rows] != graph[columns])).size:
        one, other = rows[beside[0]], columns[beside[0]]
        raise ValueError(f"an edge joins the nodes {one} and {other}, of the graphs {graph[one]} and {graph[other]}.")
    matrix = csr_array((data, columns, ends), shape=(total, total))
    return [matrix[i:k, i:k] for i, k in itertools.pairwise(start)]
