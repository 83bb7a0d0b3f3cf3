"""Results of ``vaopd evaluate`` for the models of a run, as tables of the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from vaopd.errors import ConfigError, RunFolderError
from vaopd.evaluation.comparison import Comparison, compare_folders
from vaopd.evaluation.registry import BENCHMARKS, PAPER
from vaopd.evaluation.runner import RESULTS
from vaopd.evaluation.tables import title_of
from vaopd.records import read_json

FOLDER = "evaluations"
"""Folder inside a run folder, with one evaluation in each of its folders."""


@dataclass(frozen=True)
class Evaluation:
    """An output folder of ``vaopd evaluate``."""

    name: str
    path: Path
    results: dict[str, Any]


def is_evaluation(path: Path) -> bool:
    """Return whether a path is the output folder of a finished ``vaopd evaluate``."""
    return (path / RESULTS).is_file()


def find_evaluations(paths: Sequence[Path]) -> list[Evaluation]:
    """Return the evaluations inside run folders and those that are named directly.

    Raises:
        RunFolderError: The results of one are damaged.
    """
    found = chain.from_iterable(
        [path] if is_evaluation(path) else sorted((path / FOLDER).glob("*")) for path in paths
    )
    folders = {path.resolve(): path for path in found if is_evaluation(path)}
    return [_read(path) for path in folders.values()]


def _read(path: Path) -> Evaluation:
    results = read_json(path / RESULTS)
    found = results.get("benchmarks")
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise RunFolderError(f"{path / RESULTS} has no benchmarks; score it again by --predictions")
    return Evaluation(path.resolve().name, path, results)


def evaluation_tables(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return scores by benchmark and evaluation, and their differences to the first.

    All numbers are in per cent; a score without a value is ``None``. Two evaluations that cannot be
    compared get a sentence with the reason.
    """
    compared = [_compared(evaluations[0], other) for other in evaluations[1:]]
    return {
        "names": [one.name for one in evaluations],
        "rows": _score_rows(evaluations),
        "averages": _averages(evaluations),
        "comparisons": compared,
        "reach": max(
            (
                abs(end)
                for pair in compared
                for row in pair["rows"]
                for end in (row["low"], row["high"])
            ),
            default=0.0,
        ),
    }


def _score_rows(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    named = {name for one in evaluations for name in one.results["benchmarks"]}
    order = [*(name for name in (*PAPER, *BENCHMARKS) if name in named), *sorted(named)]
    rows = []
    for name in dict.fromkeys(order):
        having = [one for one in evaluations if name in one.results["benchmarks"]]
        for place, one in enumerate(having):
            score = one.results["benchmarks"][name]
            low, high = score.get("interval") or (None, None)
            rows.append(
                {
                    # The first row of a benchmark names it for the others.
                    "span": len(having) if place == 0 else 0,
                    "benchmark": title_of(name),
                    "metric": score.get("headline", ""),
                    "evaluation": one.name,
                    "value": score.get("value"),
                    "low": low,
                    "high": high,
                    "unparsed": score.get("unparsed"),
                    "truncated": score.get("truncated"),
                    "items": score.get("items"),
                    "samples": score.get("samples"),
                }
            )
    return rows


def _averages(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    found = [
        {"evaluation": one.name, "label": label, "value": value}
        for one in evaluations
        for label, value in (one.results.get("averages") or {}).items()
    ]
    return sorted(found, key=lambda row: row["label"])


def _compared(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    pair = {"first": first.name, "second": second.name}
    try:
        compared = compare_folders(first.path, second.path)
    # With another protocol or other items the scores are valid, but not their difference.
    except ConfigError as error:
        return pair | {"rows": [], "reason": str(error)}
    return pair | {"rows": [_difference(one) for one in compared], "reason": ""}


def _difference(one: Comparison) -> dict[str, Any]:
    return one.as_json() | {
        "title": title_of(one.benchmark),
        "is_clear": one.low > 0 or one.high < 0,
    }
