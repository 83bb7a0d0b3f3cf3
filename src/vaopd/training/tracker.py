"""Records the steps and validations of a run and raises its warnings."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vaopd.config import RunConfig
from vaopd.errors import RunFolderError
from vaopd.evaluation.validation import Validation, ValidationResult
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.problems.problem import Problem
from vaopd.records import append_row, write_rows
from vaopd.training.alarms import Alarms
from vaopd.training.callbacks import Callback
from vaopd.training.ledger import note_file, note_row
from vaopd.training.metrics import problem_pictures, rollout_rows, step_metrics
from vaopd.training.result import RunResult, summary
from vaopd.training.schedule import is_due
from vaopd.training.skipping import check_may_go_on, describe_skip
from vaopd.training.step import Step
from vaopd.training.step_result import StepResult
from vaopd.training.tracking import Tracking


class Tracker:
    """Writes rows, responses and images into the run folder; used in the main process only."""

    def __init__(
        self, config: RunConfig, output: Path, step: Step, say: Callable[[str], None]
    ) -> None:
        self.config = config
        self.output = output
        self.student = step.student
        self.encoder: PromptEncoder = step.pipeline.encoder
        self.say = say
        self.alarms = Alarms(config, output, say)
        self.place: tuple[int, int] | None = None
        self.callbacks: list[Callback] = []
        if config.tracking.backend:
            self.callbacks.append(Tracking(config, output, say))

    def check_folder(self) -> None:
        """Check that the run folder is still the one of the first call.

        Raises:
            RunFolderError: It was moved or removed, so that new files would begin another one.
        """
        place = None
        if self.output.is_dir():
            found = self.output.stat()
            place = (found.st_dev, found.st_ino)
            self.place = self.place or place
        if place is None or place != self.place:
            raise RunFolderError(
                f"run folder {self.output} was moved or removed during the run; put it back and go "
                "on with --resume, or start anew"
            )

    def start(self, step: int) -> None:
        """Tell the callbacks that the run begins, or goes on after ``step``."""
        for callback in self.callbacks:
            callback.on_start(step)

    def checkpoint(self, step: int, folder: Path) -> None:
        """Tell the callbacks about a checkpoint."""
        for callback in self.callbacks:
            callback.on_checkpoint(step, folder)

    def end(self) -> None:
        """Tell the callbacks that the run has ended."""
        for callback in self.callbacks:
            callback.on_end()

    def step(
        self, result: StepResult, problems: list[Problem], step: int, learning_rate: float
    ) -> dict[str, Any]:
        """Write the records of a step and return its row of numbers."""
        self.check_folder()
        training, method = self.config.training, self.config.method
        row = step_metrics(
            result,
            problems,
            step=step,
            learning_rate=learning_rate,
            is_own_text=method.needs.responses == "student",
        )
        append_row(self.output / "metrics.jsonl", row)
        note_row(self.output, "metrics.jsonl", row)
        for callback in self.callbacks:
            callback.on_step(step, row)
        if skipped := result.skipped_in_a_row:
            line = describe_skip(step, skipped, result.loss, result.gradient_norm, problems)
            check_may_go_on(skipped, training.max_skipped_steps, line)
            self.say(line)
        if result.noise_floor is not None:
            floor = f"{result.noise_floor:.2g} nats"
            self.say(f"noise floor of the visual advantage: {floor} (the original view, twice)")
        self.alarms.watch_step(row, len(result.rollouts), int(result.responses.has_image.sum()))
        if is_due(training.log_rollouts_every, step) and method.needs.sampling:
            folder = self.output / "rollouts"
            whose = "teacher" if method.needs.views == 2 else None
            pictures = problem_pictures(problems, self.encoder, folder, degraded_for=whose)
            rows = rollout_rows(result, problems, self.student, pictures, step=step)
            write_rows(folder / f"step_{step:06d}.jsonl", rows)
            note_file(self.output, folder / f"step_{step:06d}.jsonl", step)
            for callback in self.callbacks:
                callback.on_rollouts(step, rows, folder)
        return row

    def summary(self, result: RunResult) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        first = self.alarms.first_row()
        return summary(result, self.alarms.raised(), first.get("va/noise_floor"))

    def validation(
        self, step: int, problems: Sequence[Problem], validation: Validation
    ) -> ValidationResult:
        """Write the records of a validation and return its numbers."""
        self.check_folder()
        # Write the responses before the row of numbers, so that they exist for every row.
        folder = self.output / "validation"
        pictures = problem_pictures(
            problems,
            self.encoder,
            folder,
            degraded_for="student" if self.config.validation.pixelated else None,
        )
        rows = [{"step": step, **row, **pictures[row["problem_id"]]} for row in validation.rows]
        write_rows(folder / f"step_{step:06d}.jsonl", rows)
        note_file(self.output, folder / f"step_{step:06d}.jsonl", step)
        row = {"step": step, **asdict(validation.result)}
        append_row(self.output / "validation.jsonl", row)
        note_row(self.output, "validation.jsonl", row)
        num_responses = sum(row["view"] == "original" for row in rows)
        self.alarms.watch_validation(step, validation.result, num_responses)
        for callback in self.callbacks:
            callback.on_validation(step, validation.result)
        return validation.result
