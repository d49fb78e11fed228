"""A training that does not fit in memory is refused before it begins."""

from typing import Any

import jax
import numpy as np

from widelimit import memory
from widelimit.training.optimisers import UpdateRule, group_size
from widelimit.training.problem import TrainingProblem

KEPT = 1 / 3
"""Of the numbers that a forward pass makes, the derivative keeps at least this share: fused steps keep none."""
MOVED = 2
"""Copies of the parameters in a step beside theta_0 and theta: the gradient, and theta after it."""
STAGES = 14
"""Copies of the parameters that the flow's solver of order 5 holds."""
WIDEST = 2
"""Results of its largest step that a forward pass holds at once."""
REMEDY = "use a smaller width, fewer rows (batch_size, probes), fewer networks, or float32"


def copies(flow_time: Any) -> int:
    """Return the copies of the parameters that training, by steps or for a time, holds at least, theta_0 included."""
    return 1 + (MOVED if flow_time is None else STAGES)


def require(problem: TrainingProblem, rule: UpdateRule | None, probes: Any) -> None:
    """Refuse training, by steps or (without a rule) by the flow, whose arrays do not fit. Raises: MemoryError."""
    cost = problem.one().cost(problem.X.shape[1], problem.dtype)
    n, members = len(problem.X), problem.members
    held = 0.0  # the optimiser's own memory, before and after a step
    if rule:
        made = jax.eval_shape(problem.for_each(rule.transformation.init), problem.f.params)
        held = 2.0 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made))
    rows = (rule.batch if rule else 0) or n
    together = group_size(problem, rule.batch) if rule else members
    step = together * rows * max(KEPT * cost.signals, WIDEST * cost.largest)
    # Probes that are no array are refused later, by `recorder`.
    probed = sum(np.shape(probes)[:1]) if isinstance(probes, (np.ndarray, jax.Array)) else 0
    records = members * max(n, probed) * WIDEST * cost.largest
    size = held + cost.itemsize * (members * cost.parameters * (MOVED if rule else STAGES) + max(step, records))
    what = f"training {members} networks with {cost.parameters} parameters each on {rows} rows a step"
    memory.require(size, what, remedy=REMEDY)
