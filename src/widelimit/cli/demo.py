"""The command `widelimit demo` runs the benchmark on data that scikit-learn ships, and draws a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from widelimit.cli.options import OUTPUT, Output, with_options
from widelimit.cli.reporting import print_json, version


@with_options(output=OUTPUT)
def demo(
    *,
    out: Annotated[Path, typer.Option(help="The figure to write: .png, .pdf or .svg.")] = Path("widelimit-demo.png"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the train/test splits.")] = 0,
    output: Output,
) -> None:
    """Compare with scikit-learn on real data, and draw a figure.

    NNGP and NTK models, and a convolutional one for images, beside a Gaussian process, ridge regression, a random
    forest and support vectors; the figure shows how a wide network learns. Needs no network and no file. Takes about a
    minute.
    """
    from widelimit.cli.files import FIGURES, check_output

    check_output(out, FIGURES)
    from widelimit.cli import demonstration

    result = demonstration.run(out=out, seed=seed, quiet=output.quiet)
    if output.as_json:
        print_json({"widelimit": version(), **result.document()})
    else:
        demonstration.show(result)
