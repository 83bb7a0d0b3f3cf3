"""The headline of a run: its models, its results, and what it achieved in one sentence."""

from statistics import fmean
from typing import Any

import numpy as np

from vaopd.evaluation.statistics import Interval, mean_interval, share_interval
from vaopd.report.sources import Source
from vaopd.report.statistics import Number


def overview(source: Source) -> dict[str, Any]:
    """Return the headline of a run: its models, method and results."""

    def key(section: str, name: str) -> str:
        return str(source.config.get(section, {}).get(name, ""))

    def change(name: str) -> tuple[Number, Number] | None:
        values = [row[name] for row in source.validation if row.get(name) is not None]
        return (values[0], values[-1]) if values else None

    steps = [row["step"] for row in source.metrics if "step" in row]
    return {
        "name": source.name,
        "method": key("method", "name"),
        "student": key("student", "model"),
        "teacher": key("teacher", "model"),
        "steps": max(steps, default=0),
        "planned": source.config.get("training", {}).get("max_steps"),
        "is_finished": source.is_finished,
        "warnings": source.warnings,
        "achieved": achieved(source),
        "accuracy": change("accuracy"),
        "accuracy_interval": _last_accuracy(source),
        "degraded_accuracy": change("accuracy_pixelated"),
        "student_va": change("student_va"),
        "teacher_va": change("teacher_va"),
        "seconds": sum(
            value
            for row in source.metrics
            for name, value in row.items()
            if name.startswith("time/")
        ),
        "rollouts": len(source.records),
    }


def achieved(source: Source) -> str:
    """Return in plain words how many held-out problems a run answers, and what training changed.

    Problems are resampled for the intervals, before and after training together. Without the
    responses of the validations there are no intervals.
    """
    if not source.config:
        return ""
    rows = [row for row in source.validation if row.get("accuracy") is not None]
    if not rows:
        return "No held-out problems were answered, so the accuracy is not known."
    first, last = rows[0], rows[-1]
    done, interval = last["step"], _last_accuracy(source)
    count = len(_shares(source, done))
    problems = f"{count} held-out problems" if count else "the held-out problems"
    when = f"After {done} steps" if source.is_finished else f"So far, at step {done},"
    text = f"{when} the student answers {last['accuracy']:.1%} of {problems} correctly"
    text += f" ({interval.low:.1%} to {interval.high:.1%})" if interval else ""
    if first is last:
        return f"{text}."
    text += f"; at step {first['step']} it was {first['accuracy']:.1%}. "
    return text + _change(_difference(source, first["step"], done))


def _change(gap: Interval | None) -> str:
    if gap is None:
        return "Their responses are not in the folder, so the difference has no interval."
    points = f"{100 * gap.mean:+.1f} points ({_ends(gap)})"
    if gap.is_none:
        return f"The difference, {points}, is not distinguishable from zero."
    return f"The difference is {points}."


def _ends(gap: Interval) -> str:
    low, high = (100 * (end or 0.0) for end in (gap.low, gap.high))
    return f"{low:+.1f} to {high:+.1f}"


def _last_accuracy(source: Source) -> Interval | None:
    """Return the accuracy of the last validation with its interval; None without responses."""
    steps = [row["step"] for row in source.validation if row.get("accuracy") is not None]
    shares = _shares(source, steps[-1]) if steps else {}
    if not shares:
        return None
    means = np.array([fmean(samples) for samples in shares.values()])
    return share_interval(means, sum(map(len, shares.values())))


def _difference(source: Source, first: int, last: int) -> Interval | None:
    before, after = _shares(source, first), _shares(source, last)
    both = before.keys() & after.keys()
    if not both:
        return None
    gaps = [fmean(after[name]) - fmean(before[name]) for name in sorted(both)]
    return mean_interval(np.array([gaps]))


def _shares(source: Source, step: int) -> dict[str, list[bool]]:
    """Return by problem whether each response of a validation with the original image is right."""
    found: dict[str, list[bool]] = {}
    for record in source.records:
        group = record.group
        is_here = (group.source, group.step) == ("validation", step) and group.view in (
            "",
            "original",
        )
        if is_here and record.is_correct is not None:
            found.setdefault(group.problem_id, []).append(record.is_correct)
    return found
