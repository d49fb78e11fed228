"""phi is a polynomial between kinks: hard tanh, hard swish, clip, relu6, shrinkage."""

from dataclasses import field, replace
from typing import Any, ClassVar, Self, final

import jax
import numpy as np

from widelimit import validation
from widelimit.activations.base import ANY_DEPTH, Activation
from widelimit.activations.piecewise.closed_form import ClosedForm
from widelimit.activations.piecewise.parity import PiecesMemo
from widelimit.activations.piecewise.tabulation import tabulate_pieces
from widelimit.activations.row_groups import by_rows
from widelimit.activations.tabulated import fixed_lengths
from widelimit.activations.tabulated.lookup import TableMemo, correlate_by_table, look_up
from widelimit.activations.tabulated.moments import second_moment_of
from widelimit.activations.tabulated.tables import Table, error_target, half_octaves
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, correlation_from_gap, correlation_with_itself

LARGEST_DEGREE = 2


@final
@pytree
class PiecewisePolynomial(Activation):
    """phi(u) = sum_i pieces[k][i] u^i between kinks[k-1] and kinks[k]. Dual: sums of bivariate normal integrals.

    Derived from Price's theorem (Price 1958) at pairs of kinks. It needs no tables: it works under jax.jit, grad and
    vmap. Errors are a few eps of sqrt(E[phi(u)^2] E[phi(v)^2]), times s^2/E[phi(u)^2] where that is large.

    Args:
        kinks: points where one polynomial ends and the next begins, ascending, at least one.
        pieces: one more than kinks; each the coefficients of 1, u and u^2, as many as are needed.
        rtol: bound on the error of duals relative to sqrt(E[phi(u)^2] E[phi(v)^2]), met or an error is raised (where
            deviations are known: not under jit, grad and vmap); None is 1e-10 in float64 and 1e-6 in float32.
        label: name of phi in errors.

    Raises:
        ValueError: kinks that do not ascend, another number of pieces, a degree above 2, coefficients that are not
            finite, a phi that jumps at a kink, or all of them 0.
        TypeError: not numbers.
    """

    kinks: tuple[float, ...] = field(metadata={"static": True})
    pieces: tuple[tuple[float, ...], ...] = field(metadata={"static": True})
    rtol: float | None = field(default=None, metadata={"static": True})
    label: str = field(default="a piecewise polynomial", metadata={"static": True})
    table: Table | None = field(default=None, repr=False)
    name: ClassVar[str] = "piecewise_polynomial"
    looped: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rtol is not None:
            validation.finite_scalar("rtol", self.rtol, at_least=1e-13)
        kinks = np.array(validation.numbers_in("kinks", self.kinks))
        if len(kinks) == 0 or (np.diff(kinks) <= 0).any():
            raise ValueError(f"kinks must ascend, at least one is needed; got {self.kinks}.")
        if not isinstance(self.pieces, (tuple, list)):
            raise TypeError(f"pieces must be a tuple of tuples of numbers, got {validation.shown(self.pieces)}.")
        if len(self.pieces) != len(kinks) + 1:
            raise ValueError(f"{len(kinks)} kinks part {len(kinks) + 1} pieces, got {len(self.pieces)}.")
        for piece in self.pieces:
            validation.numbers_in("pieces", piece)
            if not 1 <= len(piece) <= LARGEST_DEGREE + 1:
                raise ValueError(f"a piece has 1 to {LARGEST_DEGREE + 1} coefficients, got {len(piece)}.")
        table = self.closed.coefficients()
        if not table.any():
            raise ValueError("all pieces are 0.")
        for kink, left, right in zip(kinks, table, table[1:], strict=False):
            terms = kink ** np.arange(3) * np.array([left, right])
            if abs(np.subtract(*terms.sum(axis=1))) > 1e-12 * np.abs(terms).max():
                raise ValueError(f"the pieces do not meet at {kink:g}: phi must be continuous; wl.Step() jumps.")

    @property
    def closed(self) -> ClosedForm:
        """Return phi with its closed form."""
        return ClosedForm(self.kinks, self.pieces)

    @property
    def numbers_per_input(self) -> int:
        return self.table.numbers_per_input if self.table else 8 * (len(self.kinks) + 1)

    @property
    def quick_depth(self) -> int:  # type: ignore[override]
        return ANY_DEPTH if self.table else 0

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return self.closed(u)

    def in_few_shapes(self, dtype: Any, rows: int) -> Self:
        key = self.closed, np.dtype(dtype).name, rows
        return replace(self, table=fixed_lengths.in_few_shapes(self.table, key))

    def rtol_in(self, dtype: Any) -> float:
        return error_target(self.rtol, dtype)

    def prepared(self, low: float, high: float, dtype: Any) -> Self:
        if high > np.finfo(dtype).max ** 0.25 / 256:
            raise ValueError(f"{self.label}: signals of standard deviation {high:.3g} overflow; scale the inputs down.")
        rtol = self.rtol_in(dtype)
        errors = self.closed.errors(np.array([low, high]), dtype)
        if max(errors) > rtol:
            size = (low, high)[int(np.argmax(errors))]
            raise ValueError(
                f"{self.label}: its duals at a standard deviation of {size:.3g} are right to {max(errors):.1g} in "
                f"{np.dtype(dtype).name}, not to rtol = {rtol:g}. Bring the signals to the size of the kinks (they are "
                f"at {', '.join(f'{kink:g}' for kink in self.kinks)}), use float64, or pass a larger rtol."
            )
        return self

    def tabulated(self, low: float, high: float, dtype: Any) -> Self:
        """Make a table for these deviations, right to rtol: it costs a tenth of the closed form.

        Without one where all kinks are at 0, where kinks of different distance could coincide (two distances), where
        the kinks are so close to 0 that the table is too long, and in a range of one deviation.
        """
        ready = self.prepared(low, high, dtype)
        if low == high or len(self.closed.halves()[0]) != 1:
            return ready
        kink = float(self.closed.halves()[0][0])
        return replace(ready, table=tabulate_pieces(self.closed, kink, *half_octaves(low, high), self.rtol_in(dtype)))

    def second_moment(self, signal: Variance) -> Variance:
        """Compute E[phi(u)^2] for u ~ N(0, signal) of float64, by quadrature: the closed form takes long to trace."""
        return second_moment_of(self.closed, self.kinks, signal)

    def encode(self, signal: Variance) -> tuple[Variance, PiecesMemo | TableMemo]:
        return look_up(self.table, signal) if self.table else self.closed.encode(signal)

    def itself(self, x: Any, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        if self.table:
            return correlation_with_itself(correlation.one_minus), x.itself
        return self.correlate(x, x, correlation)

    def correlate(self, x: Any, y: Any, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        if self.table:
            return correlate_by_table(self.table, x, y, correlation)
        gap, slope = by_rows(self.closed.pair_map, x, y, correlation)
        return correlation_from_gap(gap, correlation.positive), slope
