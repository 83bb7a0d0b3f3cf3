"""Numbers of run folders: rows, intervals of arms, paired comparisons.

Letters in shapes: S seeds, P problems.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from vaopd.config import RunConfig
from vaopd.config.methods import high_fraction
from vaopd.errors import StudyError
from vaopd.evaluation.statistics import Interval, mean_interval, paired_difference
from vaopd.records import read_rows
from vaopd.report.statistics import SHARES, concentration
from vaopd.study.recipe import Arm, Plan, PlannedRun, StudyTable
from vaopd.study.runs import is_finished, run_folder

Row = dict[str, Any]

NEEDS_SAME_TEACHER = ("student_va", "va_correlation", "va_mass_top_10")
"""Metrics over tokens that the teacher (and ``method.high_fraction``) choose: comparable only where
both arms have the same."""

NEEDS_SAME_VIEW = ("accuracy_pixelated", "answer_change_rate", *NEEDS_SAME_TEACHER)
"""Metrics that mean the same in two arms only if both degrade the image in the same way."""


RANGES = {"va_correlation": (-1.0, 1.0)} | dict.fromkeys(
    ("accuracy", "accuracy_pixelated", "answer_change_rate", "truncated", "va_mass_top_10"),
    (0.0, 1.0),
)
"""Smallest and largest possible value of a metric; the others have no largest one and are not
negative."""


@dataclass(frozen=True)
class MeasuredRun:
    """Results of one run, or of its student before training."""

    problem_ids: tuple[str, ...]
    by_problem: dict[str, np.ndarray]
    """A number for each problem by metric; nan if a problem has none."""

    by_run: dict[str, float]
    """A single number by metric."""


@dataclass(frozen=True)
class Mean:
    """An arm's mean of a metric over its finished seeds."""

    table: str
    arm: str
    metric: str
    interval: Interval
    seeds: list[int]


@dataclass(frozen=True)
class ArmComparison:
    """The difference between an arm and the baseline of its table."""

    table: str
    arm: str
    baseline: str
    metric: str
    interval: Interval
    seeds: list[int]
    """Seeds that both arms have finished."""

    def row(self) -> Row:
        """Return the comparison in the format of ``study.json``."""
        values = asdict(self)
        interval = values.pop("interval")
        difference = {"difference": interval["mean"], "low": interval["low"]}
        return values | difference | {"high": interval["high"], "seeds": self.seeds}


@dataclass(frozen=True)
class Results:
    """All numbers of a study."""

    rows: list[Row]
    """One number of one seed per row: table, arm, seed, metric, value."""

    means: list[Mean]
    comparisons: list[ArmComparison]


def collect(plan: Plan, output: Path) -> Results:
    """Return the numbers of every finished run of the plan, by table and arm."""
    cache: dict[tuple[str, bool], MeasuredRun] = {}
    rows: list[Row] = []
    means: list[Mean] = []
    comparisons: list[ArmComparison] = []
    for table in plan.tables:
        arms = {name: _measured(arm, table, output, cache) for name, arm in table.arms.items()}
        for name, by_seed in arms.items():
            rows += _seed_rows(table.name, name, by_seed)
            means += _means(table.name, name, by_seed)
            if name != table.settings.baseline:
                comparisons += _comparisons(table, name, arms)
    return Results(rows, means, comparisons)


def measure(folder: Path, *, is_untrained: bool) -> MeasuredRun:
    """Return the results of a finished run, or of its student before the first step."""
    files = sorted((folder / "validation").glob("step_*.jsonl"))
    responses = read_rows(files[0] if is_untrained else files[-1])
    validations = read_rows(folder / "validation.jsonl")
    numbers = validations[0] if is_untrained else validations[-1]
    ids, by_problem = _by_problem(responses)
    by_run = {}
    if numbers.get("va_correlation") is not None:
        by_run["va_correlation"] = numbers["va_correlation"]
    shares = sparsity(responses)
    if shares:
        by_run["va_mass_top_10"] = shares[SHARES.index(10)]
    if not is_untrained:
        steps = read_rows(folder / "metrics.jsonl")
        by_run["seconds"] = sum((step_seconds(row) for row in steps), 0.0)
        by_run["tokens_trained"] = float(sum(row["response/tokens"] for row in steps))
    return MeasuredRun(ids, by_problem, by_run)


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


def _by_problem(responses: list[Row]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
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
    }
    for kind in sorted({group[0]["kind"] for group in seen if group[0]["kind"]}):
        values[f"accuracy/{kind}"] = np.where(
            [group[0]["kind"] == kind for group in seen], values["accuracy"], np.nan
        )
    if all(("degraded", problem) in groups for problem in ids):
        blind = [groups["degraded", problem] for problem in ids]
        values["accuracy_pixelated"] = _each(blind, lambda row: row["is_correct"])
        values["answer_change_rate"] = _each(blind, lambda row: row["is_changed"])
    return ids, {name: v for name, v in values.items() if not np.isnan(v).all()}


def _each(groups: list[list[Row]], number: Callable[[Row], float]) -> np.ndarray:
    """Return the mean over the samples of each problem."""
    return np.array([fmean(number(row) for row in group) for group in groups])


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


def _measured(
    arm: Arm, table: StudyTable, output: Path, cache: dict[tuple[str, bool], MeasuredRun]
) -> dict[int, MeasuredRun]:
    found = {}
    for seed, planned in arm.runs.items():
        choices = _same_start(planned, table, seed) if arm.is_untrained else [planned]
        run = next((run for run in choices if is_finished(output, run)), None)
        if run is not None:
            key = (run.name, arm.is_untrained)
            if key not in cache:
                cache[key] = measure(run_folder(output, run), is_untrained=arm.is_untrained)
            found[seed] = cache[key]
    return found


def _same_start(planned: PlannedRun, table: StudyTable, seed: int) -> list[PlannedRun]:
    """Return the table's runs of a seed with the same first student and the same validation."""

    def start(run: PlannedRun) -> tuple:
        config = run.config
        return config.student, config.view, config.teacher.model, _protocol(config)

    runs = [arm.runs[seed] for arm in table.arms.values()]
    return [run for run in runs if start(run) == start(planned)]


def _metrics(by_seed: dict[int, MeasuredRun]) -> list[str]:
    """Return the metrics that every finished seed of an arm has."""
    names = [[*measured.by_problem, *measured.by_run] for measured in by_seed.values()]
    return [name for name in names[0] if all(name in other for other in names)] if names else []


def _values(measured: MeasuredRun, metric: str) -> np.ndarray:
    if metric in measured.by_run:
        return np.array([measured.by_run[metric]])
    values = measured.by_problem[metric]
    # Only accuracy by kind has problems without a number, and they are the same in all runs.
    return values


def _seed_rows(table: str, arm: str, by_seed: dict[int, MeasuredRun]) -> list[Row]:
    return [
        {
            "table": table,
            "arm": arm,
            "seed": seed,
            "metric": metric,
            "value": float(np.nanmean(_values(measured, metric))),
        }
        for metric in _metrics(by_seed)
        for seed, measured in by_seed.items()
    ]


def _means(table: str, arm: str, by_seed: dict[int, MeasuredRun]) -> list[Mean]:
    means = []
    for metric in _metrics(by_seed):
        _check_same_problems(table, list(by_seed.values()))
        values = np.stack([_values(measured, metric) for measured in by_seed.values()])
        complete = values[:, ~np.isnan(values).any(0)]
        if complete.size:
            interval = _possible(mean_interval(complete), *_range(metric))
            means.append(Mean(table, arm, metric, interval, list(by_seed)))
    return means


def _range(metric: str) -> tuple[float, float]:
    """Return the smallest and the largest possible value of a metric."""
    return RANGES.get(metric.partition("/")[0], (0.0, float("inf")))


def _possible(interval: Interval, lowest: float, highest: float) -> Interval:
    """Return the part of an interval that is possible; Student's t knows no limits."""
    if interval.low is None or interval.high is None:
        return interval
    return Interval(interval.mean, max(lowest, interval.low), min(highest, interval.high))


def _comparisons(
    table: StudyTable, arm: str, arms: dict[str, dict[int, MeasuredRun]]
) -> list[ArmComparison]:
    baseline = table.settings.baseline
    seeds = [seed for seed in arms[arm] if seed in arms[baseline]]
    ours = {seed: arms[arm][seed] for seed in seeds}
    theirs = {seed: arms[baseline][seed] for seed in seeds}
    shared = [metric for metric in _metrics(ours) if metric in _metrics(theirs)]
    comparisons = []
    if _protocol_of(table.arms[arm]) == _protocol_of(table.arms[baseline]):
        _check_same_problems(table.name, [*ours.values(), *theirs.values()])
    for metric in shared:
        if not _is_comparable(metric, table.arms[arm], table.arms[baseline]):
            continue
        first, second = (
            np.stack([_values(by_seed[seed], metric) for seed in seeds])
            for by_seed in (ours, theirs)
        )
        complete = ~np.isnan(first - second).any(0)
        if complete.any():
            lowest, highest = _range(metric)
            reach = highest - lowest
            gap = paired_difference(first[:, complete], second[:, complete])
            interval = _possible(gap, -reach, reach)
            comparisons.append(ArmComparison(table.name, arm, baseline, metric, interval, seeds))
    return comparisons


def _check_same_problems(table: str, runs: Sequence[MeasuredRun]) -> None:
    if len({run.problem_ids for run in runs}) > 1:
        raise StudyError(
            f"table {table}: its runs were validated on different problems, so they cannot be "
            "paired; the data was changed between runs, begin another study in another --output"
        )


def _protocol_of(arm: Arm) -> tuple:
    return _protocol(next(iter(arm.runs.values())).config)


def _is_comparable(metric: str, arm: Arm, baseline: Arm) -> bool:
    """Return whether the metric was measured in the same way in both arms."""
    first, second = (next(iter(a.runs.values())).config for a in (arm, baseline))
    if _protocol(first) != _protocol(second):
        return False
    if metric in NEEDS_SAME_VIEW and first.view != second.view:
        return False
    same_tokens = first.teacher.model == second.teacher.model and high_fraction(
        first.method
    ) == high_fraction(second.method)
    return metric not in NEEDS_SAME_TEACHER or same_tokens


def _protocol(config: RunConfig) -> tuple:
    """Return the settings that decide the validation problems and how they are answered."""
    options = config.validation.model_copy(update={"load_teacher": False})
    return config.data.validation, options, config.sampling.max_new_tokens


def failed_arms(plan: Plan, failures: dict[str, str]) -> list[Row]:
    """Return a row for each table, trained arm and seed whose run failed, with its message."""
    return [
        {
            "table": table.name,
            "arm": name,
            "seed": seed,
            "run": run.name,
            "message": failures[run.name],
        }
        for table in plan.tables
        for name, arm in table.arms.items()
        for seed, run in arm.runs.items()
        if run.name in failures and not arm.is_untrained
    ]
