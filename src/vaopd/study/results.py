"""Numbers of a study: rows, intervals of arms, paired comparisons.

Letters in shapes: S seeds, P problems.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from vaopd.config import RunConfig
from vaopd.config.methods import high_fraction
from vaopd.errors import StudyError
from vaopd.evaluation.statistics import Interval, mean_interval, paired_difference
from vaopd.study.inference import PairedTest, holm, paired_test, smallest_visible
from vaopd.study.measuring import MeasuredRun, Row, RunMeasures, record_of
from vaopd.study.plan import Arm, Plan, PlannedRun, StudyTable
from vaopd.study.runs import is_finished
from vaopd.study.speed import steps_to_baseline

NEEDS_SAME_TEACHER = ("student_va", "va_correlation", "va_mass_top_10")
"""Metrics over tokens that the teacher (and ``method.high_fraction``) choose: comparable only where
both arms have the same."""

NEEDS_SAME_MODEL = ("teacher_kl",)
"""Metrics that are comparable only where both arms have the same teacher."""

NEEDS_SAME_VIEW = ("accuracy_pixelated", "answer_change_rate", *NEEDS_SAME_TEACHER)
"""Metrics that mean the same in two arms only if both degrade the image in the same way."""


RANGES = {"va_correlation": (-1.0, 1.0)} | dict.fromkeys(
    (
        "accuracy",
        "accuracy_sampled",
        "accuracy_pixelated",
        "answer_change_rate",
        "truncated",
        "va_mass_top_10",
    ),
    (0.0, 1.0),
)
"""Smallest and largest possible value of a metric; the others have no largest one and are not
negative."""


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

    test: PairedTest | None = None
    """Of accuracy, with two seeds or more."""

    p_holm: float | None = None
    """The test's p-value, corrected for the number of arms of the table."""

    smallest_visible: float | None = None
    """The true difference that this comparison would have shown with a chance of 80 %."""

    def row(self) -> Row:
        """Return the comparison in the format of ``study.json``."""
        values = asdict(self)
        interval, test = values.pop("interval"), values.pop("test")
        difference = {"difference": interval["mean"], "low": interval["low"]}
        values |= difference | {"high": interval["high"], "seeds": self.seeds}
        if self.test is not None:
            values |= {"standard_error": test["standard_error"], "p": self.test.p_value}
        return values


@dataclass(frozen=True)
class Results:
    """All numbers of a study."""

    rows: list[Row]
    """One number of one seed per row: table, arm, seed, metric, value."""

    means: list[Mean]
    comparisons: list[ArmComparison]


def collect(plan: Plan, output: Path) -> Results:
    """Return the numbers of every finished run of the plan, by table and arm."""
    cache: dict[str, RunMeasures] = {}
    rows: list[Row] = []
    means: list[Mean] = []
    comparisons: list[ArmComparison] = []
    for table in plan.tables:
        arms = {name: _measured(arm, table, output, cache) for name, arm in table.arms.items()}
        found = []
        for name, by_seed in arms.items():
            rows += _seed_rows(table.name, name, by_seed)
            means += _means(table.name, name, by_seed)
            if name != table.settings.baseline:
                found += _comparisons(table, name, arms)
        comparisons += corrected(found, table)
        rows += steps_to_baseline(table, _records(table, cache))
    return Results(rows, means, comparisons)


def corrected(comparisons: list[ArmComparison], table: StudyTable) -> list[ArmComparison]:
    """Return a table's comparisons with p-values corrected over its trained arms."""
    tested = [
        (place, one.test)
        for place, one in enumerate(comparisons)
        if one.test is not None and not table.arms[one.arm].is_untrained
    ]
    p_values = holm([test.p_value for _, test in tested])
    done = list(comparisons)
    for (place, test), p_value in zip(tested, p_values, strict=True):
        visible = smallest_visible(test, len(tested))
        done[place] = replace(done[place], p_holm=p_value, smallest_visible=visible)
    return done


def _measured(
    arm: Arm, table: StudyTable, output: Path, cache: dict[str, RunMeasures]
) -> dict[int, MeasuredRun]:
    found = {}
    for seed, planned in arm.runs.items():
        choices = _same_start(planned, table, seed) if arm.is_untrained else [planned]
        run = next((run for run in choices if is_finished(output, run)), None)
        if run is not None:
            if run.name not in cache:
                cache[run.name] = record_of(output, run)
            found[seed] = cache[run.name].before if arm.is_untrained else cache[run.name].after
    return found


def _records(table: StudyTable, cache: dict[str, RunMeasures]) -> dict[str, dict[int, RunMeasures]]:
    """Return the records of finished runs by trained arm and seed."""
    return {
        name: {seed: cache[run.name] for seed, run in arm.runs.items() if run.name in cache}
        for name, arm in table.arms.items()
        if not arm.is_untrained
    }


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
            first, second = first[:, complete], second[:, complete]
            lowest, highest = _range(metric)
            reach = highest - lowest
            interval = _possible(paired_difference(first, second), -reach, reach)
            test = paired_test(first - second) if metric == "accuracy" else None
            comparisons.append(
                ArmComparison(table.name, arm, baseline, metric, interval, seeds, test)
            )
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
    if metric in NEEDS_SAME_MODEL and first.teacher.model != second.teacher.model:
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
