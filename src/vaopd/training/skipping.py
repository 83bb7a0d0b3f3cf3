"""Counts skipped steps, whose loss is not finite or far above those before, up to a limit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from vaopd.errors import TrainingError
from vaopd.problems.problem import Problem

NUM_LOSSES = 20
"""Number of losses whose median a spike is compared with."""

SPIKE_NATS = 1.0
"""A loss that is higher by less is no spike, whatever its factor: losses near 0 vary by factors."""


@dataclass
class Skips:
    """Number of steps that a run has skipped; stored in checkpoints."""

    in_a_row: int = 0
    """Consecutive skipped steps up to the last step; 0 if the last step was applied."""

    total: int = 0

    losses: list[float] = field(default_factory=list)
    """Losses of the last steps that were applied."""

    def is_spike(self, loss: float, factor: float | None) -> bool:
        """Return whether a loss is far above the median of the last applied steps."""
        if factor is None or not self.losses:
            return False
        usual = median(self.losses)
        return loss > usual + SPIKE_NATS and loss > factor * usual

    def note(self, is_skipped: bool, loss: float) -> None:
        """Count one more step."""
        self.in_a_row = self.in_a_row + 1 if is_skipped else 0
        self.total += is_skipped
        if not is_skipped:
            self.losses = [*self.losses, loss][-NUM_LOSSES:]


def describe_skip(
    step: int, in_a_row: int, loss: float, gradient_norm: float, problems: Sequence[Problem]
) -> str:
    """Return a sentence about a skipped step."""
    reason = f"loss is {loss} and gradient norm {gradient_norm}, not both finite"
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        reason = f"loss is {loss:.3g}, far above the steps before (training.spike_factor)"
    names = ", ".join(problem.id for problem in problems)
    return (
        f"step {step} skipped ({in_a_row} in a row): {reason}; the weights are as "
        f"they were; problems: {names}"
    )


def check_may_go_on(in_a_row: int, limit: int, description: str) -> None:
    """Check that a run has not reached the limit of consecutive skipped steps.

    Raises:
        TrainingError: The run has skipped ``training.max_skipped_steps`` steps in a row.
    """
    if in_a_row >= limit:
        raise TrainingError(
            f"{description}; training.max_skipped_steps={limit} ends the run here; start anew with "
            "a lower training.learning_rate or student.dtype=float32, or go on by --resume with a "
            "higher training.max_skipped_steps; checkpoints of the last good steps stay"
        )
