"""The command `widelimit cost` predicts what a computation takes before it starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, final

import typer

from widelimit.cli.kernel import NETWORK, chosen_kernel
from widelimit.cli.options import OUTPUT, Output, dataclass_group, with_options
from widelimit.cli.reporting import print_json


@final
@dataclass(frozen=True)
class Rates:
    """The user states these rates of a machine; the others are measured here."""

    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Machines, or processes.")] = 1
    cores: Annotated[int | None, typer.Option(min=1, metavar="N", help="Cores of a worker.")] = None
    gflops: Annotated[float | None, typer.Option(help="1e9 float64 flops a second of a core, in products.")] = None
    memory_gbytes: Annotated[float | None, typer.Option(help="1e9 bytes a second that a core reads.")] = None
    storage_gbytes: Annotated[float | None, typer.Option(help="1e9 bytes a second to where tiles are stored.")] = None
    ram: Annotated[float | None, typer.Option(metavar="GIB", help="Memory of a worker.")] = None
    disk: Annotated[float | None, typer.Option(metavar="GIB", help="Space for tiles; that of this folder.")] = None
    price: Annotated[float, typer.Option(min=0.0, help="Price of a worker for an hour.")] = 0.0

    def machine(self) -> Any:
        """Return the machine. Raises: ValueError: bad rates."""
        from widelimit import memory
        from widelimit.inference.costs import Machine

        given = {name: getattr(self, name) for name in ("cores", "gflops", "memory_gbytes", "storage_gbytes")}
        given |= {"workers": self.workers, "price": self.price}
        given["ram"] = None if self.ram is None else self.ram * memory.GIB
        return replace(Machine.here(), **{name: value for name, value in given.items() if value is not None})

    def space(self) -> float:
        """Return the bytes of the disk. Raises: ValueError: bad number."""
        from widelimit import memory, validation

        free = shutil.disk_usage(".").free
        return free if self.disk is None else validation.finite_scalar("--disk", self.disk, at_least=0.0) * memory.GIB


RATES = dataclass_group(Rates)


@with_options(network=NETWORK, rates=RATES, output=OUTPUT)
def cost(
    *,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of the data.")],
    features: Annotated[int, typer.Option(min=1, metavar="N", help="Columns of numbers, the target left out.")],
    solver: Annotated[
        Literal["all", "gram", "cholesky", "cg", "nystrom"],
        typer.Option(help="One of them, explained; gram: the kernel matrix alone."),
    ] = "all",
    kind: Annotated[Literal["ntk", "nngp"], typer.Option(help="Which kernel of the network.")] = "nngp",
    network: dict[str, Any],
    inducing: Annotated[int, typer.Option(min=1, metavar="N", help="Inducing points of nystrom.")] = 1000,
    outputs: Annotated[int, typer.Option(min=1, metavar="N", help="Columns to predict.")] = 1,
    iterations: Annotated[int, typer.Option(min=1, metavar="N", help="Iterations of cg.")] = 100,
    tile: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of the tiles on disk.")] = 1024,
    rates: Rates,
    output: Output,
) -> None:
    """Predict memory, time and disk of a kernel matrix and of every solver, and which of them are feasible.

    Rates of the machine that you do not give are those of this one, measured in a second, and so is the time of an
    entry of the kernel. Nothing else is computed.
    """
    from widelimit.inference.costs import Cost, compare_costs

    machine, space = rates.machine(), rates.space()
    sizes = {"inducing": inducing, "outputs": outputs, "iterations": iterations, "tile": tile}
    found = compare_costs(chosen_kernel(kind, network), rows, features, machine=machine, **sizes)
    chosen = [each for each in found if solver in ("all", each.work)]
    if not chosen:
        raise ValueError(f"--inducing {inducing}: points are drawn from the {rows} rows; give at most {rows}.")

    def feasible(each: Cost) -> bool:
        return each.fits and each.disk <= space

    if output.as_json:
        facts = ("work", "seconds", "core_seconds", "ram", "disk", "money", "entries", "flops", "stored")
        documents = [{name: getattr(each, name) for name in facts} | {"feasible": feasible(each)} for each in chosen]
        print_json({"rows": rows, "features": features, "costs": documents})
    elif solver == "all":
        _show(chosen, feasible, machine)
    else:
        typer.echo("\n\n".join(f"{each.explain()}\nfeasible: {'yes' if feasible(each) else 'no'}" for each in chosen))


def _show(costs: list[Any], feasible: Any, machine: Any) -> None:
    """Print a table with a row for each solver and place."""
    from widelimit import memory
    from widelimit.cli import terminal
    from widelimit.inference.costs import duration

    table = terminal.grid()
    for name in ("solver", "matrix", "time", "memory", "disk", *(["price"] if machine.price else []), "fits"):
        table.add_column(name, justify="left" if name in ("solver", "matrix") else "right")
    for each in costs:
        place = f"{each.m:,} points" if each.work == "nystrom" else "on disk" if each.disk else "in memory"
        price = [f"{each.money:.2f}"] if machine.price else []
        sizes = memory.text(each.ram), memory.text(each.disk) if each.disk else ""
        table.add_row(each.work, place, duration(each.seconds), *sizes, *price, "yes" if feasible(each) else "no")
    terminal.console().print(table)
