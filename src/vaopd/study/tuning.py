"""Chooses an arm's settings from a grid, on seeds and problems that no comparison uses."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vaopd.errors import StudyError
from vaopd.study.measuring import record_of
from vaopd.study.plan import Choices, PlannedRun, TunedArm
from vaopd.study.runs import is_finished

CHOICES_FILE = "choices.json"


def choose(arms: Sequence[TunedArm], output: Path) -> list[dict[str, Any]]:
    """Return for each arm the candidate of highest mean accuracy over the tuning seeds.

    Among equal ones the first of the grid is taken. Every candidate's accuracies stand beside the
    choice, so that a reader can see how close the others were.

    Raises:
        StudyError: A tuning run is not finished.
    """
    rows = []
    for arm in arms:
        tried = [
            {
                "settings": list(candidate.settings),
                "accuracy": {
                    seed: _accuracy(arm, run, output) for seed, run in candidate.runs.items()
                },
            }
            for candidate in arm.candidates
        ]
        best = max(tried, key=lambda row: fmean(row["accuracy"].values()))
        rows.append(
            {"table": arm.table, "arm": arm.arm, "chosen": best["settings"], "tried": tried}
        )
    return rows


def chosen(rows: Sequence[dict[str, Any]]) -> Choices:
    """Return the choices for `Plan.with_choices` from the rows of `choose`."""
    return {(row["table"], row["arm"]): tuple(row["chosen"]) for row in rows}


def _accuracy(arm: TunedArm, run: PlannedRun, output: Path) -> float:
    if not is_finished(output, run):
        raise StudyError(
            f"the tuning run {run.name} of arm {arm.arm} in table {arm.table} is not finished, so "
            "its settings cannot be chosen; the same command tries again"
        )
    return record_of(output, run).curve[-1]["accuracy"]
