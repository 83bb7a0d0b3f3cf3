"""Compare runs of one recipe that were launched in different ways.

    python recipes/launch/compare.py DIR

DIR holds the runs; ``one_process`` is what the others are compared with. `steps alike` counts the
first steps whose loss, response lengths and accuracy are its own to a thousandth. p is McNemar's
exact test for the answers of the last validation. Student VA is in nats.
"""

import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vaopd.evaluation.statistics import mcnemar_p
from vaopd.records import read_json, read_rows

BASELINE = "one_process"
NUMBERS = ("loss", "kl/mean", "response/length", "accuracy")
TOLERANCE = 1e-3


def steps_alike(run: Path, baseline: Path) -> int:
    """Return how many steps both runs took alike before rounding, or noise, decided a token."""
    pairs = zip(
        read_rows(run / "metrics.jsonl"), read_rows(baseline / "metrics.jsonl"), strict=True
    )
    for number, (row, other) in enumerate(pairs):
        # A step that was skipped may have no loss, which is like no other.
        values = [(row.get(name, math.nan), other.get(name, math.nan)) for name in NUMBERS]
        if not all(math.isclose(*pair, rel_tol=TOLERANCE) for pair in values):
            return number
    return number + 1


def answers(run: Path) -> dict[str, bool]:
    """Return by problem whether the answer to the original view at the end is right."""
    last = max((run / "validation").glob("step_*.jsonl"))
    return {r["problem_id"]: r["is_correct"] for r in read_rows(last) if r["view"] == "original"}


def row_of(run: Path, baseline: Path) -> list[str]:
    """Return the cells of a run."""
    ours, theirs = answers(run), answers(baseline)
    gained = sum(ours[problem] and not theirs[problem] for problem in theirs)
    lost = sum(theirs[problem] and not ours[problem] for problem in theirs)
    summary = read_json(run / "summary.json")
    after = summary["after"]
    return [
        run.name.replace("_", " "),
        f"{steps_alike(run, baseline)} of {summary['steps']}",
        f"{after['accuracy']:.1%}",
        f"+{gained} -{lost}",
        f"{mcnemar_p(gained, lost):.2f}",
        f"{after['student_va']:.3f}",
        f"{summary['seconds']:.0f}",
    ]


def main(folder: Path) -> None:
    """Print a table of all runs in the folder."""
    found = sorted(path.parent for path in folder.glob("*/summary.json"))
    runs = sorted(found, key=lambda run: run.name != BASELINE)
    table = Table("run", "steps alike", "accuracy", "answers", "p", "student VA", "seconds")
    for run in runs:
        table.add_row(*row_of(run, folder / BASELINE))
    Console().print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
