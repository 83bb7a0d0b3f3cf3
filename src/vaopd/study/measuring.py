"""What a study needs of each run, in one small file that outlives the run's folder."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from vaopd.records import read_rows, write_text
from vaopd.report.statistics import SHARES, concentration
from vaopd.study.plan import PlannedRun
from vaopd.study.runs import record_file, run_folder

Row = dict[str, Any]


@dataclass(frozen=True)
class MeasuredRun:
    """Results of one run, or of its student before training."""

    problem_ids: tuple[str, ...]
    kinds: tuple[str | None, ...]
    """The kind of each problem."""

    measured: dict[str, np.ndarray]
    """A number for each problem by metric; nan if a problem has none."""

    by_run: dict[str, float]
    """A single number by metric."""

    sparsity: list[float] = field(default_factory=list)
    """Result of `sparsity`."""

    @cached_property
    def by_problem(self) -> dict[str, np.ndarray]:
        """``measured``, and accuracy by kind, which is nan for problems of other kinds."""
        accuracy = self.measured["accuracy"]
        of_kind = {kind: np.array([k == kind for k in self.kinds]) for kind in self.kinds if kind}
        by_kind = {
            f"accuracy/{kind}": np.where(is_here, accuracy, np.nan)
            for kind, is_here in sorted(of_kind.items())
        }
        return {**self.measured, **by_kind}


@dataclass(frozen=True)
class RunMeasures:
    """Results of a finished run, before and after training."""

    before: MeasuredRun
    after: MeasuredRun
    curve: list[Row]
    """Result of `learning_curve`."""

    environment: Row
    """The run's ``environment.json`` without its command, which names folders of one machine."""

    def as_json(self) -> Row:
        """Return the record for its file; the problems are those of both validations."""
        return {
            "problem_ids": self.after.problem_ids,
            "kinds": self.after.kinds,
            "curve": self.curve,
            "environment": self.environment,
            **{name: _as_json(getattr(self, name)) for name in ("before", "after")},
        }

    @classmethod
    def from_json(cls, values: Row) -> "RunMeasures":
        """Return the record that `as_json` wrote."""
        ids, kinds = tuple(values["problem_ids"]), tuple(values["kinds"])
        before, after = (
            MeasuredRun(
                ids,
                kinds,
                {
                    metric: np.array([np.nan if n is None else n for n in numbers], dtype=float)
                    for metric, numbers in values[name]["by_problem"].items()
                },
                values[name]["by_run"],
                values[name]["sparsity"],
            )
            for name in ("before", "after")
        )
        return cls(before, after, values["curve"], values["environment"])


def _as_json(run: MeasuredRun) -> Row:
    return {
        "by_problem": {
            metric: [_short(number) for number in numbers.tolist()]
            for metric, numbers in run.measured.items()
        },
        "by_run": run.by_run,
        "sparsity": run.sparsity,
    }


def _short(number: float) -> float | int | None:
    """Return a number as short as JSON can hold it: to 6 digits, whole ones without a point."""
    if np.isnan(number):
        return None
    return int(number) if number == int(number) else round(number, 6)


def record_of(output: Path, run: PlannedRun) -> RunMeasures:
    """Return the record of a finished run; measure and write it at the first call."""
    path = record_file(output, run)
    if path.is_file():
        return RunMeasures.from_json(json.loads(path.read_text(encoding="utf-8")))
    record = measure(run_folder(output, run))
    write_text(path, json.dumps(record.as_json(), separators=(",", ":")) + "\n")
    return record


def measure(folder: Path) -> RunMeasures:
    """Return what a study needs of a finished run folder."""
    files = sorted((folder / "validation").glob("step_*.jsonl"))
    validations = read_rows(folder / "validation.jsonl")
    before, after = (
        _measured(read_rows(files[place]), validations[place]) for place in (0, len(files) - 1)
    )
    steps = read_rows(folder / "metrics.jsonl")
    after.by_run["seconds"] = sum((step_seconds(row) for row in steps), 0.0)
    after.by_run["tokens_trained"] = float(sum(row["response/tokens"] for row in steps))
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    environment.pop("command", None)
    return RunMeasures(before, after, learning_curve(folder), environment)


def _measured(responses: list[Row], validation: Row) -> MeasuredRun:
    ids, kinds, by_problem = _by_problem(responses)
    by_run, shares = {}, sparsity(responses)
    if validation.get("va_correlation") is not None:
        by_run["va_correlation"] = validation["va_correlation"]
    if shares:
        by_run["va_mass_top_10"] = shares[SHARES.index(10)]
    return MeasuredRun(ids, kinds, by_problem, by_run, shares)


def step_seconds(row: Row) -> float:
    """Return the seconds of one step, without validations and checkpoints."""
    return sum((value for key, value in row.items() if key.startswith("time/")), 0.0)


def learning_curve(folder: Path) -> list[Row]:
    """Return accuracy at each validation with the steps, seconds and tokens spent until then."""
    steps = read_rows(folder / "metrics.jsonl")
    curve = []
    for row in read_rows(folder / "validation.jsonl"):
        past = [step for step in steps if step["step"] <= row["step"]]
        curve.append(
            {
                "steps": row["step"],
                "seconds": sum(step_seconds(step) for step in past),
                "tokens": sum(step["response/tokens"] for step in past),
                "accuracy": row["accuracy"],
            }
        )
    return curve


def sparsity(responses: Sequence[Row]) -> list[float]:
    """Return the `concentration` of the teacher's advantage over the tokens of all responses."""
    return concentration(value for row in responses for value in row.get("visual_advantage", ()))


def _by_problem(
    responses: list[Row],
) -> tuple[tuple[str, ...], tuple[str | None, ...], dict[str, np.ndarray]]:
    """Return ids and kinds of the problems, and a number for each by metric."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in responses:
        groups[row["view"], row["problem_id"]].append(row)
    ids = tuple(problem for view, problem in groups if view == "original")
    seen = [groups["original", problem] for problem in ids]
    values = {
        "accuracy": _each(seen, lambda row: row["is_correct"]),
        "response_length": _each(seen, lambda row: len(row["token_ids"])),
        "truncated": _each(seen, lambda row: row["finish_reason"] == "length"),
        "student_va": np.array([_student_va(group) for group in seen]),
        "teacher_kl": np.array([_teacher_kl(group) for group in seen]),
    }
    if all(("sampled", problem) in groups for problem in ids):
        drawn = [groups["sampled", problem] for problem in ids]
        values["accuracy_sampled"] = _each(drawn, lambda row: row["is_correct"])
    kinds = tuple(group[0]["kind"] for group in seen)
    if all(("degraded", problem) in groups for problem in ids):
        blind = [groups["degraded", problem] for problem in ids]
        values["accuracy_pixelated"] = _each(blind, lambda row: row["is_correct"])
        values["answer_change_rate"] = _each(blind, lambda row: row["is_changed"])
    return ids, kinds, {name: v for name, v in values.items() if not np.isnan(v).all()}


def _each(groups: list[list[Row]], number: Callable[[Row], float]) -> np.ndarray:
    """Return the mean over the samples of each problem."""
    return np.array([fmean(number(row) for row in group) for group in groups])


def _teacher_kl(group: list[Row]) -> float:
    """Return the mean KL to the teacher over the response tokens of one problem, nats."""
    values = [value for row in group for value in row.get("teacher_kl", ())]
    return fmean(values) if values else float("nan")


def _student_va(group: list[Row]) -> float:
    """Return the student's mean advantage on the teacher's high tokens of one problem, nats."""
    values = [
        value
        for row in group
        if "is_high" in row
        for value, is_high in zip(row["student_visual_advantage"], row["is_high"], strict=True)
        if is_high
    ]
    return fmean(values) if values else float("nan")
