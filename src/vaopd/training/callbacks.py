"""What a run tells its callbacks: the seam of trackers and of a user's own code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaopd.evaluation.validation import ValidationResult


class Callback:
    """Base of the callbacks of a run; override the methods that you need.

    Give them to ``vaopd.train(config, output, callbacks=[..])``. Only the main process calls them.
    An exception in one ends the run. Records exist in the run folder before a method is called.
    """

    def on_start(self, step: int) -> None:
        """Begin; ``step`` is 0, or the last step of a run that is resumed."""

    def on_step(self, step: int, metrics: dict[str, Any]) -> None:
        """Take the row of ``metrics.jsonl`` of a step."""

    def on_rollouts(self, step: int, rows: Sequence[dict[str, Any]], folder: Path) -> None:
        """Take the rows of a file in ``rollouts/``; their image paths begin at ``folder``."""

    def on_validation(self, step: int, result: ValidationResult) -> None:
        """Take the numbers of a validation."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Take the folder of a checkpoint that was saved."""

    def on_end(self) -> None:
        """End, also after an error."""
