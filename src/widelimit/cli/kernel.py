"""The command `widelimit kernel` streams a Gram matrix to disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from widelimit import memory
from widelimit.cli.files import given_network
from widelimit.cli.interruption import announce_resumption
from widelimit.cli.options import OUTPUT, Output, parameter_group, with_options
from widelimit.cli.reporting import print_json
from widelimit.progress import progress_bar

DEFAULTS: dict[str, Any] = {"depth": 3, "activation": "relu", "weight_std": 1.0, "bias_std": 0.0}
NETWORK = parameter_group("network", **DEFAULTS)


@with_options(network=NETWORK, output=OUTPUT)
def kernel(
    *,
    data: Annotated[Path, typer.Argument(help="Inputs, a row each: .npy, .npz, .csv, .parquet; or sequences, graphs.")],
    out: Annotated[str, typer.Option(help="The Zarr array to write, or go on with: a folder, or s3://bucket/K.zarr.")],
    kind: Annotated[Literal["ntk", "nngp"], typer.Option(help="Which kernel of the network.")] = "ntk",
    network: dict[str, Any],
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="Precision of the matrix.")] = "float64",
    array: Annotated[str, typer.Option(help="The array of an .npz file.")] = "",
    drop: Annotated[list[str], typer.Option(help="A column to leave out (again for more): the target, a key.")] = [],  # noqa: B006
    budget: Annotated[float, typer.Option(min=0.0, help="Memory for the work, of each process, in MiB.")] = 256.0,
    workers: Annotated[int, typer.Option(min=0, help="Processes of this machine that compute; 0: threads.")] = 0,
    scheduler: Annotated[str, typer.Option(help="Address of a Dask scheduler whose workers compute.")] = "",
    output: Output,
) -> None:
    """Write the kernel matrix of a file's rows, or of the sequences or graphs of --network, to disk, tile by tile.

    The result is a Zarr array whose chunks are the tiles. Called again after an interruption or a kill it goes on where
    it ended. The matrix of another kernel or of other data is never overwritten.
    """
    if "://" not in out and not (parent := Path(out).parent).is_dir():
        raise ValueError(f"--out {out}: there is no folder {parent}; create it (mkdir -p '{parent}').")
    import numpy as np

    import widelimit as wl
    from widelimit.cli import clients, matrices

    chosen = chosen_kernel(kind, network)
    inputs = matrices.cast(_rows(chosen.net, data, array, drop), dtype)
    matrices.require_finite(np.asarray(chosen.diag(inputs)))
    remark = f"the finished tiles are in {out}, and the same command goes on with them"
    with (
        announce_resumption(remark),
        clients.connected(workers, scheduler, quiet=output.quiet) as client,
        progress_bar(not output.quiet, unit="tiles") as report,
    ):
        report("kernel matrix", 0, 0)
        tiles = partial(report, "kernel matrix")
        stored = wl.stored_gram(chosen, inputs, out, client, budget=budget * 2**20, progress=tiles)
    facts = {"path": out, "shape": list(stored.shape), "dtype": str(stored.dtype), "tile": stored.chunks[0]}
    if output.as_json:
        print_json(facts)
    else:
        size = memory.text(stored.nbytes)
        typer.echo(f"{kind} of {len(inputs)} inputs: {size} of {stored.dtype} in {out}")


def _rows(net: Any, data: Path, array: str, drop: list[str]) -> Any:
    """Read rows, or the sequences or graphs of the network; an array that --array names has rows in any case."""
    from widelimit.cli import matrices, structured

    inputs = structured.structure_of(net)
    if inputs is None or array or data.suffix.lower() not in structured.SUFFIXES:
        return matrices.read_matrix(data, array=array, drop=drop)
    return structured.read(data, inputs, drop=drop).X


def chosen_kernel(kind: str, network: dict[str, Any]) -> Any:
    """Return the kernel of this kind of the network that is given."""
    import widelimit as wl

    given = {name: value for name, value in network.items() if value is not None}
    net = given_network(given) if "network" in given else wl.mlp(**DEFAULTS | given)
    return wl.ntk(net) if kind == "ntk" else wl.nngp(net)
