"""The command `widelimit kernel` streams a Gram matrix to disk."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from widelimit.cli.interruption import resumable
from widelimit.cli.options import AsJson, Debug, Quiet, plain_errors, print_json, warnings_as_notes
from widelimit.progress import progress_bar


class Kind(StrEnum):
    """A network has these kernels."""

    NTK = "ntk"
    NNGP = "nngp"


class Precision(StrEnum):
    """Numbers are computed and stored in one of these precisions."""

    SINGLE = "float32"
    DOUBLE = "float64"


def kernel(
    data: Annotated[Path, typer.Argument(help="Inputs, a row each: .npy, .npz, .csv or .parquet.")],
    out: Annotated[Path, typer.Option(help="The Zarr array to write, or to go on with: a folder NAME.zarr.")],
    kind: Annotated[Kind, typer.Option(help="Which kernel of the network.")] = Kind.NTK,
    depth: Annotated[int, typer.Option(min=1, help="Affine layers; depth - 1 hidden ones.")] = 3,
    activation: Annotated[str, typer.Option(help="A name, as in `widelimit info`.")] = "relu",
    weight_std: Annotated[float, typer.Option(help="sigma_w > 0.")] = 1.0,
    bias_std: Annotated[float, typer.Option(help="beta >= 0.")] = 0.0,
    dtype: Annotated[Precision, typer.Option(help="Precision of the matrix.")] = Precision.DOUBLE,
    array: Annotated[str, typer.Option(help="The array of an .npz file.")] = "",
    drop: Annotated[list[str], typer.Option(help="A column to leave out (again for more): the target, a key.")] = [],  # noqa: B006
    budget: Annotated[float, typer.Option(min=0.0, help="Memory for the work, in MiB.")] = 256.0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the kernel matrix of a file's rows to disk, tile by tile.

    The result is a Zarr array whose chunks are the tiles. Called again after an interruption or a kill it goes on where
    it ended. The matrix of another kernel or of other data is never overwritten.
    """
    with plain_errors(debug=debug), warnings_as_notes(quiet=quiet):
        if not out.parent.is_dir():
            raise ValueError(f"--out {out}: there is no folder {out.parent}; create it (mkdir -p '{out.parent}').")
        from widelimit.cli import matrices

        inputs = matrices.cast(matrices.read_matrix(data, array=array, drop=drop), dtype.value)
        import numpy as np

        import widelimit as wl

        net = wl.mlp(depth=depth, activation=activation, weight_std=weight_std, bias_std=bias_std)
        chosen = wl.ntk(net) if kind is Kind.NTK else wl.nngp(net)
        matrices.require_finite(np.asarray(chosen.diag(inputs)))
        remark = f"the finished tiles are in {out}, and the same command goes on with them"
        with resumable(remark), progress_bar(not quiet, unit="tiles") as report:
            report("kernel matrix", 0, 0)
            tiles = partial(report, "kernel matrix")
            stored = wl.stored_gram(chosen, inputs, out, budget=budget * 2**20, progress=tiles)
    facts = {"path": str(out), "shape": list(stored.shape), "dtype": str(stored.dtype), "tile": stored.chunks[0]}
    if as_json:
        print_json(facts)
    else:
        size = stored.nbytes / 2**30
        typer.echo(f"{kind.value} of {len(inputs)} inputs: {size:.3g} GiB of {stored.dtype} in {out}")
