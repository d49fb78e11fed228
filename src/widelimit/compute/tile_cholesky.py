"""A stored matrix is factorised tile by tile, left-looking: A = L L^T, every tile of L written once to a store.

Tile (i, j) is chol(A_jj - sum_k L_jk L_jk^T) on the diagonal, (A_ij - sum_k L_ik L_jk^T) L_jj^{-T} below, with k < j.
It reads tiles that are finished and never change, in a fixed order, by one BLAS thread: the store is the whole state,
and its bits do not depend on who computes which tile, when, or again after a kill.
Scheme: Buttari, Langou, Kurzak and Dongarra 2009 (arXiv 0709.1272), left-looking, on disk.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import scipy.linalg

from widelimit.compute import stored_rows, threads
from widelimit.compute.linalg import EPS, Factor
from widelimit.compute.packed import NotPositiveDefinite
from widelimit.compute.places import Place, remote_errors
from widelimit.compute.storage import GRAM, description
from widelimit.compute.stored_rows import StoredRows
from widelimit.compute.stores import FORM, VERSION, Contents, TileStore, kept, open_store
from widelimit.compute.workers import Task, gather, run
from widelimit.fingerprints import sha256
from widelimit.progress import FACTOR, Report, no_progress

CHOLESKY = Contents(
    "widelimit_cholesky",
    "a Cholesky factor",
    "noise",
    (FORM, ("matrix", "of another matrix"), ("noise", "of a matrix with other noise"), VERSION),
)
LARGEST, SMALLEST, BLOCKS = 1024, 128, 16
"""Rows of a tile at most, at least, and the blocks of rows that a matrix between them has: work for several workers."""
TILES = 5
"""Tiles that a task holds at most: its own, two that it multiplies, and what Zarr reads and decodes beside them."""


def update(tile: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Subtract left right^T from the tile, (a, k), (b, k) -> (a, b), in its place; all in C's order."""
    product = scipy.linalg.blas.dgemm
    return np.asarray(product(-1.0, right.T, left.T, 1.0, tile.T, trans_a=1, overwrite_c=1)).T


def update_diagonal(tile: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Subtract left left^T from the lower triangle of the tile in its place; nothing else of it is meant."""
    return np.asarray(scipy.linalg.blas.dsyrk(-1.0, left.T, 1.0, tile.T, trans=1, overwrite_c=1)).T


def root(tile: np.ndarray, before: np.ndarray, n: int) -> np.ndarray:
    """Find L with L L^T = tile, (b, b), from its lower triangle, in its place; 0 above the diagonal.

    before: (b,) the diagonal of A there; n: rows of all of A. Raises: NotPositiveDefinite: a pivot is at most n eps of
    its entry of `before`; the order counts from the first row of this tile.
    """
    upper, order = scipy.linalg.lapack.dpotrf(tile.T, lower=0, clean=1, overwrite_a=1)
    sound = len(tile) if not order else int(order) - 1
    weak = np.diagonal(upper)[:sound] ** 2 <= n * EPS * before[:sound]
    if weak.any() or order:
        raise NotPositiveDefinite(int(np.argmax(weak)) + 1 if weak.any() else int(order))
    return np.asarray(upper.T)


def divide(tile: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Compute tile L^{-T}, (a, b), in its place, from the tile L (b, b) on the diagonal."""
    return np.asarray(scipy.linalg.blas.dtrsm(1.0, corner.T, tile.T, trans_a=1, overwrite_b=1)).T


def compute_tile(store: TileStore, matrix: StoredRows, noise: np.ndarray, i: int, j: int) -> None:
    """Compute and write tile (i, j) of L unless it is there; noise: (b,) of the rows of a tile on the diagonal.

    Raises: NotPositiveDefinite; ValueError: a tile that it reads is damaged or missing, an entry of the matrix is not
    finite.
    """
    if store.whole(i, j):  # by a worker that was lost before it could say so
        return
    tile = matrix.block(store.rows(i), store.rows(j))
    if i != j:
        for k in range(j):
            tile = update(tile, store.read(i, k), store.read(j, k))
        store.write(i, j, divide(tile, store.read(j, j)))
        return
    tile[np.diag_indices(len(tile))] += noise
    before = np.diagonal(tile).copy()
    for k in range(j):
        tile = update_diagonal(tile, store.read(j, k))
    try:
        store.write(i, i, root(tile, before, store.n))
    except NotPositiveDefinite as error:
        raise NotPositiveDefinite(store.rows(j).start + error.order) from None


def choose_edge(n: int) -> int:
    """Return the rows of a tile, a power of two."""
    return min(LARGEST, max(SMALLEST, 1 << (-(-n // BLOCKS) - 1).bit_length()))


def factor_store(place: Place, matrix: StoredRows, noise: np.ndarray, client: Any) -> TileStore:
    """Open the store of the factor of A + diag(noise), noise (n,), and make it if it is not there.

    A matrix of `stored_gram` is known by its description, another one by its bytes. Raises: as `storage.open_store`.
    """
    attributes = getattr(matrix.source, "attrs", {})
    if GRAM.key in attributes:
        known = attributes[GRAM.key]
    else:
        parts = gather(stored_rows.digest, [(matrix.sent(client), rows) for rows in matrix.spans()], client)
        known = {"shape": [matrix.n, matrix.n], "dtype": str(matrix.source.dtype), "sha256": sha256(*parts)}
    manifest = {"matrix": known, "noise": description(noise)}
    edge = choose_edge(matrix.n)
    return open_store(place, CHOLESKY, manifest, n=matrix.n, edge=edge, dtype=np.dtype(np.float64), share=0.5)


def tasks(store: TileStore, matrix: StoredRows, noise: np.ndarray, missing: list[tuple[int, int]]) -> dict[str, Task]:
    """Return the tasks that compute the missing tiles, each after those that it reads; noise: (n,)."""
    absent = set(missing)
    found = {}
    for i, j in sorted(missing, key=_turn):
        read = [(row, k) for row in {i, j} for k in range(j)] + ([(j, j)] if i > j else [])
        own = noise[store.rows(i)] if i == j else noise[:0]
        after = tuple(_name(*each) for each in read if each in absent)
        found[_name(i, j)] = Task(compute_tile, (store, matrix, own, i, j), after)
    return found


def _name(i: int, j: int) -> str:
    return f"L-{i}-{j}"


def _turn(tile: tuple[int, int]) -> tuple[int, float]:
    """Order the tiles by columns; the next one on the diagonal, for which a whole column waits, as early as it can."""
    i, j = tile
    return (j, i) if i > j else (j - 1, j + 0.5)


def missing_in_row(store: TileStore, i: int) -> list[tuple[int, int]]:
    """Return the tiles of row i that are missing or damaged."""
    return [(i, j) for j in range(i + 1) if not store.whole(i, j)]


def pivots(store: TileStore, i: int) -> np.ndarray:
    """Return the diagonal of tile (i, i)."""
    return np.diagonal(store.read(i, i)).copy()


@final
@dataclass(frozen=True)
class StoredFactor(Factor):
    """A = L L^T with the tiles of L on disk: solves read them in turn, and hold two beside the vectors."""

    store: TileStore
    pivots: np.ndarray
    rank: int
    spread: float

    def solve(self, b: np.ndarray) -> np.ndarray:
        x = self.whiten(b)
        with threads.limit(threads.work(self.rank, self.rank, b.shape[1])):
            for i in reversed(range(self.store.blocks)):
                own = x[self.store.rows(i)]
                for k in range(i + 1, self.store.blocks):
                    own -= self.store.read(k, i).T @ x[self.store.rows(k)]
                own[:] = scipy.linalg.solve_triangular(
                    self.store.read(i, i), own, trans=1, lower=True, check_finite=False
                )
        return x

    def whiten(self, b: np.ndarray) -> np.ndarray:
        return self._forward(np.array(b, np.float64, order="C"))

    def squares(self, b: np.ndarray) -> np.ndarray:
        whitened = self._forward(np.require(b, np.float64, ["W"]))
        return np.asarray(np.einsum("ij,ij->j", whitened, whitened))

    def log_determinant(self) -> float:
        return float(2 * np.sum(np.log(self.pivots)))

    def _forward(self, x: np.ndarray) -> np.ndarray:
        """Compute L^{-1} x in its place."""
        with threads.limit(threads.work(self.rank, self.rank, x.shape[1])):
            for i in range(self.store.blocks):
                own = x[self.store.rows(i)]
                for k in range(i):
                    own -= self.store.read(i, k) @ x[self.store.rows(k)]
                own[:] = scipy.linalg.solve_triangular(self.store.read(i, i), own, lower=True, check_finite=False)
        return x


def factorise(
    place: Place, source: Any, noise: np.ndarray, diagonal: np.ndarray, client: Any, *, report: Report = no_progress
) -> StoredFactor:
    """Compute the tiles of L, L L^T = A + diag(noise), that are not yet in the store at the place.

    Args:
        place: of the store, made if it is not there.
        source: A, as `StoredRows` reads it.
        noise: (n,).
        diagonal: (n,) of A.
        client: as of `workers.run`.
        report: called with the tiles.

    Raises: NotPositiveDefinite: a pivot is at most n eps of its diagonal entry; OSError: the disk is full; finished
    tiles are kept. As `workers.run`, `storage.open_store`.
    """
    matrix = StoredRows(source, stored_rows.BLOCK)
    with remote_errors(place):
        store = factor_store(place, matrix, noise, client)
        rows = [(store, i) for i in range(store.blocks)]
        missing = [tile for row in gather(missing_in_row, rows, client) for tile in row]
        if missing:
            store.require_disk(len(missing))
            report(FACTOR, 0, 0)
            with kept(place):
                run(tasks(store, matrix.sent(client), noise, missing), client, report=report, stage=FACTOR)
        found = np.concatenate(gather(pivots, rows, client))
    return StoredFactor(store, found, matrix.n, float(np.sqrt(((diagonal + noise) / found**2).max())))
