"""Reads from a run folder what was measured of one model, with 95 % intervals; without torch."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from vaopd.errors import RunFolderError
from vaopd.evaluation.statistics import Interval, mean_interval, share_interval
from vaopd.hub.origin import Origin
from vaopd.records import read_json, read_rows

Shares = dict[str, list[float]]
"""By problem, whether each response is right."""


@dataclass(frozen=True)
class HeldOut:
    """Accuracy on the held-out problems of the recipe; without an interval where responses lack."""

    step: int
    accuracy: Interval
    num_problems: int
    """0 where the responses are not in the folder."""

    accuracy_pixelated: float | None


def held_out(run: Path, step: int) -> HeldOut | None:
    """Return what the validation after ``step`` updates measured; None without one."""
    rows = read_rows(run / "validation.jsonl") if (run / "validation.jsonl").is_file() else []
    row = next((row for row in rows if row["step"] == step), None)
    if row is None:
        return None
    shares = _shares(run, step)
    accuracy = Interval(row["accuracy"], None, None)
    if shares:
        means = np.array([fmean(samples) for samples in shares.values()])
        accuracy = share_interval(means, sum(map(len, shares.values())))
    return HeldOut(step, accuracy, len(shares), row.get("accuracy_pixelated"))


def change(run: Path, first: int, last: int) -> Interval | None:
    """Return the paired difference in accuracy of two validations; None without responses."""
    before, after = _shares(run, first), _shares(run, last)
    both = sorted(before.keys() & after.keys())
    if not both:
        return None
    return mean_interval(np.array([[fmean(after[id]) - fmean(before[id]) for id in both]]))


def _shares(run: Path, step: int) -> Shares:
    path = run / "validation" / f"step_{step:06d}.jsonl"
    found: Shares = defaultdict(list)
    for row in read_rows(path) if path.is_file() else []:
        if row.get("view") == "original":
            found[row["problem_id"]].append(float(row["is_correct"]))
    return found


def evaluations(origin: Origin) -> list[dict[str, Any]]:
    """Return a row for each benchmark that ``vaopd evaluate`` measured of exactly these weights."""
    if origin.run is None or origin.weights is None:
        return []
    found = []
    for path in sorted((origin.run / "evaluations").glob("*/results.json")):
        results = read_json(path)
        protocol = results.get("protocol") or {}
        if protocol.get("weights") == origin.weights:
            scores = results.get("benchmarks") or {}
            found += [_row(path, name, score, protocol) for name, score in scores.items()]
    return found


def _row(path: Path, name: str, score: Any, protocol: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(score, dict) or "value" not in score:
        raise RunFolderError(f"{path} has no value of {name}; score it again by --predictions")
    low, high = score.get("interval") or (None, None)
    sampling = f"temperature {protocol['temperature']:g}, {protocol['max_new_tokens']} new tokens"
    return {**score, "name": name, "sampling": sampling, "low": low, "high": high}
