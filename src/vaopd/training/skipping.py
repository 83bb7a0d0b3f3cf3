"""Counts skipped steps, whose loss or gradient is not finite, up to a limit."""

from collections.abc import Sequence
from dataclasses import dataclass

from vaopd.errors import TrainingError
from vaopd.problems.problem import Problem


@dataclass
class Skips:
    """Number of steps that a run has skipped; stored in checkpoints."""

    in_a_row: int = 0
    """Consecutive skipped steps up to the last step; 0 if the last step was applied."""

    total: int = 0

    def note(self, is_skipped: bool) -> None:
        """Count one more step."""
        self.in_a_row = self.in_a_row + 1 if is_skipped else 0
        self.total += is_skipped


def describe_skip(
    step: int, in_a_row: int, loss: float, gradient_norm: float, problems: Sequence[Problem]
) -> str:
    """Return a sentence about a skipped step."""
    names = ", ".join(problem.id for problem in problems)
    return (
        f"step {step} skipped ({in_a_row} in a row): loss is {loss} and gradient norm "
        f"{gradient_norm}, not both finite; the weights are as they were; problems: {names}"
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
            "higher training.max_skipped_steps"
        )
