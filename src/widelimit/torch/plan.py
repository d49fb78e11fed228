"""A plan says how the kernel of a module is computed, and what that takes: `print` it."""

from dataclasses import dataclass
from typing import NamedTuple, final

from widelimit import memory


class LayerCost(NamedTuple):
    """The cost is that of one use of a parameter, for one block of rows with itself."""

    name: str
    kind: str
    how: str
    """"signals", "mixed" and "jacobian" from both signals, "whole" where the Jacobian is kept, or "autograd"."""
    positions: int
    inputs: int
    outputs: int
    flops: float


@final
@dataclass(frozen=True)
class ModulePlan:
    """The plan has rows, outputs, blocks, flops, bytes and seconds of a module's kernel."""

    n: int
    m: int
    outputs: int
    rows: int
    """Rows of a block."""
    held: int
    """Blocks of rows whose factors are held at once."""
    blocks: float
    """Blocks of rows that are differentiated, again where they were not held."""
    pairs: float
    """Pairs of blocks that are contracted."""
    layers: tuple[LayerCost, ...]
    forward: float
    """Flops of a row's forward pass."""
    work: float
    """Bytes of working memory."""
    result: float
    """Bytes of the kernel."""
    seconds: float
    """Predicted from the time of one block of rows."""

    @property
    def flops(self) -> float:
        """Return the flops of passes and contractions."""
        passes = self.blocks * self.rows * self.forward * (1 + self.outputs)
        return passes + self.pairs * sum(layer.flops for layer in self.layers)

    def __str__(self) -> str:
        lines = [
            f"{self.n} x {self.m} rows, {self.outputs} outputs: {self.flops / 1e9:.4g} Gflop, {self.seconds:.3g} s; "
            f"{memory.text(self.work)} of working memory and {memory.text(self.result)} for the result",
            f"{self.rows} rows a block, {self.held} blocks held, {self.blocks:g} differentiated, {self.pairs:g} pairs",
            f"{'parameter':40} {'kind':8} {'how':10} {'positions':>9} {'inputs':>8} {'outputs':>8} {'Gflop':>9}",
        ]
        for e in self.layers:
            sizes = f"{e.positions:9} {e.inputs:8} {e.outputs:8} {e.flops / 1e9:9.3g}"
            lines.append(f"{e.name[-40:]:40} {e.kind:8} {e.how:10} {sizes}")
        return "\n".join(lines)
