"""Sends the numbers, images and tokens of a run to trackers; a failing one is left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from vaopd.config import RunConfig
from vaopd.evaluation.validation import ValidationResult
from vaopd.records import read_json, write_json
from vaopd.training.backends import OPENERS, RunIdentity, TrackerBackend
from vaopd.training.callbacks import Callback

MOST_ROLLOUTS = 16
"""Rollouts of a logged step that a tracker gets, whole sibling groups as far as they fit."""

ID_FILE = "tracking.json"

ROLLOUT_COLUMNS = ("problem_id", "sibling", "prompt", "answer", "response", "is_correct",
                   "finish_reason", "rollout_weight")  # fmt: skip
TOKEN_COLUMNS = {"tokens": "token", "visual_advantage": "visual_advantage", "is_high": "is_high",
                 "kl": "kl", "nll": "nll", "token_weight": "token_weight"}  # fmt: skip
"""Columns of a rollout row with one entry a token, and their names in the table of tokens."""

VIEWS = {"original": "images", "teacher's": "teacher_images", "degraded": "degraded_images"}
"""Columns of a rollout row with paths of images, by the names of their views."""


class Tracking(Callback):
    """Passes what a run records to the trackers of its recipe."""

    def __init__(self, config: RunConfig, output: Path, say: Callable[[str], None]) -> None:
        self.config = config
        self.output = output
        self.say = say
        self.backends: dict[str, TrackerBackend] = {}

    def on_start(self, step: int) -> None:
        """Open the trackers; a resumed run goes on in the run that it had there."""
        identity = self._identity(step)
        for name in dict.fromkeys(self.config.tracking.backend):
            try:
                self.backends[name] = OPENERS[name](identity, self.config)
            # A tracker raises any error of its network or its account.
            except Exception as error:
                self._leave_out(name, error)

    def _identity(self, step: int) -> RunIdentity:
        path = self.output / ID_FILE
        if not path.is_file():
            write_json(path, {"id": uuid4().hex})
        tracking = self.config.tracking
        return RunIdentity(
            id=str(read_json(path)["id"]),
            name=tracking.name or self.output.resolve().name,
            project=tracking.project,
            step=step,
            folder=self.output / "tracking",
            is_offline=tracking.offline,
        )

    def on_step(self, step: int, metrics: dict[str, Any]) -> None:
        """Send the numbers of a step."""
        self._numbers(metrics, step)

    def on_validation(self, step: int, result: ValidationResult) -> None:
        """Send the numbers of a validation, each as ``validation/NAME``."""
        self._numbers({"validation": asdict(result)}, step)

    def on_rollouts(self, step: int, rows: Sequence[dict[str, Any]], folder: Path) -> None:
        """Send rollouts and their tokens as tables, and the images of both views."""
        shown = rows[:MOST_ROLLOUTS]
        rollouts = [{name: row.get(name) for name in ROLLOUT_COLUMNS} for row in shown]
        tokens = token_table(shown)
        images = {
            f"{row['problem_id']}, {view}": folder / path
            for row in shown
            for view, key in VIEWS.items()
            for path in row.get(key, ())
        }
        self._each(step, lambda backend: backend.table("rollouts", rollouts, step))
        self._each(step, lambda backend: backend.table("tokens", tokens, step))
        self._each(step, lambda backend: backend.images("images", images, step))

    def on_end(self) -> None:
        """Close the trackers."""
        self._each(None, lambda backend: backend.finish())
        self.backends.clear()

    def _numbers(self, values: Mapping[str, Any], step: int) -> None:
        numbers = numbers_of(values)
        self._each(step, lambda backend: backend.numbers(numbers, step))

    def _each(self, step: int | None, send: Callable[[TrackerBackend], None]) -> None:
        for name, backend in list(self.backends.items()):
            try:
                send(backend)
            # As above; the run folder has everything, so the run goes on.
            except Exception as error:
                del self.backends[name]
                self._leave_out(name, error, "" if step is None else f" at step {step}")

    def _leave_out(self, name: str, error: Exception, when: str = "") -> None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.say(
            f"warning: tracking.backend {name} failed{when} ({reason}); it gets nothing more of "
            "this run, and the run folder has everything"
        )


def numbers_of(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a row; those of an inner object as ``outer/inner``."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            found[prefix + key] = float(value)
    return found


def token_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each token of rollouts; all have the same columns, also those of text."""
    found = [token for row in rows for token in token_rows(row)]
    names = list(dict.fromkeys(name for token in found for name in token))
    return [{name: token.get(name) for name in names} for token in found]


def token_rows(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each token of a rollout, with its numbers."""
    columns = {new: row[old] for old, new in TOKEN_COLUMNS.items() if row.get(old) is not None}
    place = {"problem_id": row["problem_id"], "sibling": row["sibling"]}
    return [
        {**place, "position": n, **{name: values[n] for name, values in columns.items()}}
        for n in range(len(row["tokens"]))
    ]
