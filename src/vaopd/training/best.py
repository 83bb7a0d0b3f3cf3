"""Keeps the checkpoint with the best validation in a separate model folder, ``checkpoints/best``.

Only the held-out problems of the recipe decide. The student before training is not a candidate,
because it already has a folder.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vaopd.evaluation.validation import ValidationResult
from vaopd.records import new_folder, read_json, write_json
from vaopd.training.checkpoint import checkpoint_path, link_model

METRIC = "accuracy"


@dataclass(frozen=True)
class Best:
    """The best validation, as recorded in ``checkpoints/best.json``."""

    metric: str
    step: int
    value: float


def better(best: Best | None, step: int, result: ValidationResult | None) -> Best | None:
    """Return the best validation so far; among equal ones, the earliest."""
    if result is None or (best is not None and result.accuracy <= best.value):
        return best
    return Best(METRIC, step, result.accuracy)


def best_path(run: Path) -> Path:
    """Return the folder of the best checkpoint."""
    return run / "checkpoints" / "best"


def mark_best(run: Path, best: Best) -> None:
    """Replace ``checkpoints/best`` by the model of a checkpoint that is on disk.

    See ``link_model``. The folder stays complete when the checkpoint is removed or it is copied.
    """
    with new_folder(best_path(run)) as partial:
        link_model(checkpoint_path(run, best.step), partial)
    write_json(_record(run), asdict(best))


def restore_best(run: Path, saved: dict[str, Any] | None) -> Best | None:
    """Set ``checkpoints/best`` to the best validation that the resumed checkpoint recorded.

    They can differ in two cases. The run was killed after a save and before ``best`` was updated.
    Or the newest checkpoint was removed by hand, and ``best`` belongs to steps that will be
    repeated. If the weights of the recorded best no longer exist, no validation is best until the
    next one.
    """
    best = Best(**saved) if saved else None
    if best is not None and _is_marked(run, best):
        return best
    if best is not None and checkpoint_path(run, best.step).is_dir():
        mark_best(run, best)
        return best
    shutil.rmtree(best_path(run), ignore_errors=True)
    _record(run).unlink(missing_ok=True)
    return None


def _is_marked(run: Path, best: Best) -> bool:
    record = _record(run)
    return best_path(run).is_dir() and record.is_file() and read_json(record) == asdict(best)


def _record(run: Path) -> Path:
    return run / "checkpoints" / "best.json"
