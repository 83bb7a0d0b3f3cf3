"""Finds the run that the weights of a model folder come from; without torch."""

from dataclasses import dataclass
from pathlib import Path

from vaopd.evaluation.protocol import weights_of
from vaopd.records import read_json, read_rows
from vaopd.run_records import is_run


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The run and the step of exported weights."""

    run: Path | None = None
    """The run folder; None for a model folder outside of one."""

    step: int | None = None
    """The number of updates that made the weights."""

    is_best: bool = False
    """Whether a validation chose this step among others."""

    weights: str | None = None
    """Fingerprint of the weights, which tells the evaluations of this model from those of others;
    None for weights that are being written."""


def origin_of(folder: Path) -> Origin:
    """Return the origin of a model folder: ``final/``, a checkpoint, or adapters in one of them."""
    place = folder.resolve()
    run = next((parent for parent in place.parents[:2] if is_run(parent)), None)
    if run is None:
        return Origin(weights=weights_of(str(folder)))
    is_best = place == run / "checkpoints" / "best"
    return Origin(run=run, step=_step(run, place), is_best=is_best, weights=weights_of(str(folder)))


def _step(run: Path, place: Path) -> int | None:
    if place.name.startswith("step_") and place.name[5:].isdigit():
        return int(place.name[5:])
    if place.name == "best":
        return int(read_json(place.with_name("best.json"))["step"])
    if not (run / "metrics.jsonl").is_file():
        return None
    return max((row["step"] for row in read_rows(run / "metrics.jsonl")), default=None)
