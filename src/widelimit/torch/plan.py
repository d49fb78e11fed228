"""A plan says how the kernel of a module is computed, and what that takes: `print` it."""

from dataclasses import dataclass
from typing import NamedTuple, final

from widelimit import memory


class LayerCost(NamedTuple):
    """This is the cost of one parameter for all pairs of rows; the sizes are those of its first use."""

    name: str
    kind: str
    how: str
    """"jacobian": by pieces of its Jacobian; "pairs": by signals of all pairs of positions."""
    positions: int
    inputs: int
    outputs: int
    flops: float
    seconds: float


@final
@dataclass(frozen=True)
class ModulePlan:
    """The plan of a module's kernel has its rows, outputs, blocks, flops, bytes and seconds."""

    n: int
    m: int
    outputs: int
    rows: int
    """Rows that are differentiated at once."""
    blocks: float
    """Blocks of rows of X."""
    steps: float
    """Steps of the contraction, as `progress` counts them."""
    layers: tuple[LayerCost, ...]
    passes: float
    """Flops of the forward and backward passes of all rows."""
    work: float
    """Bytes of working memory."""
    disk: float
    """Bytes in a temporary folder, if the factors of all rows do not fit in memory; else 0."""
    result: float
    """Bytes of the kernel."""
    seconds: float
    """Seconds in all, predicted from the times of parts."""

    @property
    def flops(self) -> float:
        """Return the flops of passes and contractions."""
        return self.passes + sum(layer.flops for layer in self.layers)

    def __str__(self) -> str:
        spilled = f", {memory.text(self.disk)} on disk" if self.disk else ""
        lines = [
            f"{self.n} x {self.m} rows, {self.outputs} outputs: {self.flops / 1e9:.4g} Gflop, {self.seconds:.3g} s; "
            f"{memory.text(self.work)} of working memory{spilled}, and {memory.text(self.result)} for the result",
            f"{self.rows} rows are differentiated at once; {self.steps:g} steps of contraction",
            f"{'parameter':40} {'kind':8} {'how':8} {'positions':>9} {'inputs':>8} {'outputs':>8} {'Gflop':>9} "
            f"{'s':>8}",
        ]
        for e in self.layers:
            sizes = f"{e.positions:9} {e.inputs:8} {e.outputs:8} {e.flops / 1e9:9.3g} {e.seconds:8.3g}"
            lines.append(f"{e.name[-40:]:40} {e.kind:8} {e.how:8} {sizes}")
        return "\n".join(lines)
