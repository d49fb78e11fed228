"""
From one machine to many
========================

A kernel matrix that does not fit into memory is computed tile by tile into a Zarr array, by the threads of this
machine, its processes, or the workers of a cluster. The code is the same.
"""

# %%
# What would it cost?
# -------------------
# Before a large computation, ask. Rates of this machine are measured; those of another can be given.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import widelimit as wl

k = wl.ntk(wl.mlp(depth=3, bias_std=0.1))
machine = wl.Machine(
    cores=16, gflops=30.0, memory_gbytes=10.0, storage_gbytes=1.0, ram=64 * 2**30, workers=10, price=1.0
)
costs = {work: wl.predict_cost(work, k, 300_000, 100, machine=machine) for work in ("gram", "cg", "cholesky")}
fig, ax = plt.subplots(figsize=(5, 1.8))
ax.barh(list(costs), [cost.seconds / 3600 for cost in costs.values()])
ax.set(xlabel="predicted time for 300,000 points on ten workers (hours)")
print(costs["cholesky"].explain())

# %%
# One machine
# -----------
# :py:obj:`~widelimit.stored_gram` writes the matrix to a folder. A tile is written whole or not at all, with a checksum.

X = np.random.default_rng(0).standard_normal((600, 8))
y = np.sin(X[:, 0])
path = Path(tempfile.mkdtemp()) / "K.zarr"
K = wl.stored_gram(k, X[:500], path)
print(K.shape, K.chunks, f"{sum(f.stat().st_size for f in path.rglob('*') if f.is_file()) / 1e6:.1f} MB")

# %%
# After a kill
# ------------
# Storage is the state: what is there is not computed again. Here one tile is lost, as if its disk had failed.

tile = next(f for f in path.rglob("*") if f.is_file() and f.stat().st_size > 10_000)
tile.unlink()
again = wl.stored_gram(k, X[:500], path)
assert np.array_equal(again[:], k.gram(X[:500]))
print("the same matrix, to the last bit")

# %%
# Inference on it
# ---------------
# The factorisation reads the stored matrix tile by tile and keeps its own checkpoint: neither is ever held in memory.

post = wl.posterior(
    k, X[:500], y[:500], noise=0.01, matrix=path, checkpoint=path.with_name("L.zarr"), solver="cholesky"
)
error = np.sqrt(np.mean((post.mean(X[500:]) - y[500:]) ** 2))
print(f"root mean square error: {error:.2f} (of {np.std(y[500:]):.2f})")

# %%
# Many machines
# -------------
# Pass a client of Dask, and the workers compute the tiles. The bits of the matrix are the same.
#
# .. code-block:: python
#
#    from distributed import Client
#
#    K = wl.stored_gram(k, X, "s3://bucket/K.zarr", Client("tcp://scheduler:8786"))
#
# .. code-block:: console
#
#    widelimit kernel X.npy --out K.zarr --scheduler tcp://scheduler:8786
#
# Next: :doc:`/cluster` for SLURM, Kubernetes and object stores, :doc:`/matrices` for the array, :doc:`/solvers` for what
# is done with it, :doc:`/accelerators` for GPUs.
