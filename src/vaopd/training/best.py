"""The checkpoint that validated best, as a model folder of its own: ``checkpoints/best``.

Only held-out problems of the recipe decide. The student as it was given is no candidate: it has a
folder already.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vaopd.evaluation.validation import ValidationResult
from vaopd.records import new_folder, read_json, write_json
from vaopd.training.checkpoint import STATE, checkpoint_path

METRIC = "accuracy"


@dataclass(frozen=True)
class Best:
    """Which validation was best, as ``checkpoints/best.json`` says it."""

    metric: str
    step: int
    value: float


def better(best: Best | None, step: int, result: ValidationResult | None) -> Best | None:
    """Return the best validation so far; the earliest of equals."""
    if result is None or (best is not None and result.accuracy <= best.value):
        return best
    return Best(METRIC, step, result.accuracy)


def best_path(run: Path) -> Path:
    """Return the folder of the best checkpoint."""
    return run / "checkpoints" / "best"


def mark_best(run: Path, best: Best) -> None:
    """Make ``checkpoints/best`` the model of a checkpoint that is on disk.

    Weights are hard links where the file system has them: no second copy while the checkpoint is
    kept, whole files once it is removed, and whole files again wherever the folder is copied to.
    """
    with new_folder(best_path(run)) as partial:
        shutil.copytree(
            checkpoint_path(run, best.step),
            partial,
            ignore=shutil.ignore_patterns(STATE),
            copy_function=_link_weights,
            dirs_exist_ok=True,
        )
    write_json(_record(run), asdict(best))


def restore_best(run: Path, saved: dict[str, Any] | None) -> Best | None:
    """Bring ``checkpoints/best`` to what the checkpoint that is resumed from knew.

    A kill may come between a save and its mark. Where the newest checkpoint was removed by hand,
    ``best`` may belong to steps that are now forgotten; if the weights of the one before it are
    gone, no validation is best until the next.
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


def _link_weights(source: str, target: str) -> None:
    """Link the large files, which are only ever replaced whole; copy what a user may edit."""
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # no hard links here: a copy costs space only
    shutil.copy2(source, target)
