import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vaopd.records import read_rows, write_rows
from vaopd.report.statistics import SHARES
from vaopd.study.measuring import MeasuredRun, RunMeasures, learning_curve, record_of, sparsity
from vaopd.study.plan import Plan
from vaopd.study.recipe import load_plan
from vaopd.study.results import (
    NEEDS_SAME_VIEW,
    collect,
)
from vaopd.study.run import write_study
from vaopd.study.runs import is_finished, run_folder
from vaopd.study.speed import speed_sentences, steps_to_baseline

WRONG, ONE, HALF, ALL = [False] * 4, [True] + [False] * 3, [True, True, False, False], [True] * 4


@pytest.fixture
def plan(recipe: Path, finish: Callable) -> Plan:
    """Two seeds of opd reach 1/4 and 1/2, of va_opd 1/2 and 1; the student began with 1/4."""
    plan = load_plan(recipe, tables=["methods"])
    arms = plan.tables[0].arms
    for seed, opd, va_opd in ((0, ONE, HALF), (1, HALF, ALL)):
        finish(arms["opd"].runs[seed], ONE, opd)
        finish(arms["va_opd"].runs[seed], ONE, va_opd, seconds=3.0)
    return plan


def values(plan: Plan, output: Path, metric: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in collect(plan, output).rows:
        if row["metric"] == metric:
            found.setdefault(row["arm"], []).append(row["value"])
    return found


@pytest.mark.parametrize(
    ("metric", "base", "opd", "va_opd"),
    [
        ("accuracy", [0.25, 0.25], [0.25, 0.5], [0.5, 1.0]),
        ("accuracy/bars", [0.5, 0.5], [0.5, 1.0], [1.0, 1.0]),
        ("accuracy/dial", [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]),
        ("accuracy_pixelated", [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
        ("answer_change_rate", [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
        ("student_va", [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]),
        ("va_correlation", [0.25, 0.25], [0.25, 0.25], [0.25, 0.25]),
        ("response_length", [2.0, 2.0], [2.0, 2.0], [2.0, 2.0]),
        ("truncated", [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
        # Two steps of 2 + 1 and of 3 + 1 seconds, with 10 and 20 tokens.
        ("seconds", None, [6.0, 6.0], [8.0, 8.0]),
        ("tokens_trained", None, [30.0, 30.0], [30.0, 30.0]),
    ],
)
def test_rows_hold_each_metric_of_each_seed(
    plan: Plan, tmp_path: Path, metric: str, base: list | None, opd: list, va_opd: list
):
    expected = {"opd": opd, "va_opd": va_opd} | ({"base": base} if base else {})
    assert values(plan, tmp_path / "out", metric) == expected


def test_differences_are_paired_with_the_baseline_over_the_same_seeds(plan: Plan, tmp_path: Path):
    rows = [comparison.row() for comparison in collect(plan, tmp_path / "out").comparisons]
    (gain,) = (row for row in rows if (row["arm"], row["metric"]) == ("va_opd", "accuracy"))
    assert set(gain) == {
        "table", "arm", "baseline", "metric", "difference", "low", "high", "seeds",
        "standard_error", "p", "p_holm", "smallest_visible",
    }  # fmt: skip
    # One trained arm beside the baseline: nothing to correct. The untrained student is not tested.
    assert gain["p_holm"] == gain["p"] > 0.05
    (base,) = (row for row in rows if (row["arm"], row["metric"]) == ("base", "accuracy"))
    assert base["p_holm"] is None
    # 1/2 - 1/4 and 1 - 1/2.
    assert (gain["baseline"], gain["difference"], gain["seeds"]) == ("opd", 0.375, [0, 1])
    assert gain["low"] < 0.375 < gain["high"]
    (seconds,) = (row for row in rows if (row["arm"], row["metric"]) == ("va_opd", "seconds"))
    assert (seconds["difference"], seconds["low"], seconds["high"]) == (2, 2, 2)
    assert not [row for row in rows if row["arm"] == row["baseline"]]


def test_a_seed_that_only_one_arm_has_finished_is_left_out(
    recipe: Path, finish: Callable, tmp_path: Path
):
    plan = load_plan(recipe, tables=["methods"])
    arms = plan.tables[0].arms
    finish(arms["opd"].runs[0], ONE, ONE)
    finish(arms["va_opd"].runs[0], ONE, HALF)
    finish(arms["va_opd"].runs[1], ONE, ALL)
    results = collect(plan, tmp_path / "out")
    gains = {c.arm: c for c in results.comparisons if c.metric == "accuracy"}
    assert gains["va_opd"].seeds == [0]
    assert gains["va_opd"].interval.mean == 0.25
    # The untrained student of seed 1 is read from the run of another arm.
    assert values(plan, tmp_path / "out", "accuracy")["base"] == [0.25, 0.25]


def test_arms_that_degrade_the_image_in_other_ways_are_compared_only_where_that_is_fair(
    recipe: Path, finish: Callable, tmp_path: Path
):
    plan = load_plan(recipe, tables=["views"])
    for arm in plan.tables[0].arms.values():
        for run in arm.runs.values():
            finish(run, ONE, HALF)
    compared = {comparison.metric for comparison in collect(plan, tmp_path / "out").comparisons}
    assert {"accuracy", "seconds", "response_length"} <= compared
    assert not compared & set(NEEDS_SAME_VIEW)
    assert len(NEEDS_SAME_VIEW) == 5


def test_a_learning_curve_adds_up_what_was_spent_until_each_validation(plan: Plan, tmp_path: Path):
    run = plan.tables[0].arms["opd"].runs[1]
    assert learning_curve(run_folder(tmp_path / "out", run)) == [
        {"steps": 0, "seconds": 0, "tokens": 0, "accuracy": 0.25},
        {"steps": 2, "seconds": 6.0, "tokens": 30, "accuracy": 0.5},
    ]


def test_sparsity_is_the_share_of_advantage_in_the_top_tokens():
    # 100 tokens: one holds 50, nine hold 5 each, ninety hold 5/90 each: 50, 95 and 100 of 100.
    advantage = [5 / 90] * 45 + [50.0] + [5.0] * 9 + [5 / 90] * 45
    rows = [{"visual_advantage": advantage[:30]}, {"visual_advantage": advantage[30:]}, {}]
    shares = sparsity(rows)
    assert shares[SHARES.index(1)] == pytest.approx(0.5)
    assert shares[SHARES.index(10)] == pytest.approx(0.95)
    assert shares[-1] == pytest.approx(1)
    assert (np.diff(shares) >= 0).all()


def test_without_advantage_there_is_no_sparsity():
    assert sparsity([{"visual_advantage": [0.0, 0.0]}, {}]) == []


def test_records_say_the_same_after_the_run_folders_are_gone(plan: Plan, tmp_path: Path):
    output = tmp_path / "out"
    before = collect(plan, output)
    shutil.rmtree(output / "runs")
    assert collect(plan, output) == before
    for run in plan.runs.values():
        assert record_of(output, run).curve[-1]["steps"] == 2
        assert is_finished(output, run)
    assert sum(path.stat().st_size for path in (output / "records").glob("*.json")) < 8000


def test_intervals_stay_inside_what_is_possible(plan: Plan, finish: Callable, tmp_path: Path):
    # Two steps of 1 s of scoring and 0 or 20 s of training: 2 and 42 s, so t reaches below 0.
    for seed, seconds in ((0, 0.0), (1, 20.0)):
        for arm in ("opd", "va_opd"):
            finish(plan.tables[0].arms[arm].runs[seed], WRONG, ALL, seconds=seconds)
    results = collect(plan, tmp_path / "out")
    (mean,) = [m for m in results.means if (m.arm, m.metric) == ("opd", "seconds")]
    assert mean.interval.mean == 22
    assert mean.interval.low == 0
    assert mean.interval.high is not None
    assert mean.interval.high > 200
    for mean in results.means:
        low, high = mean.interval.low, mean.interval.high
        assert low is not None
        assert high is not None
        assert low >= (-1 if mean.metric == "va_correlation" else 0)
        assert high <= 1 or mean.metric in ("seconds", "tokens_trained", "response_length")


def test_steps_to_the_baseline_are_the_first_that_reach_its_last_accuracy(
    plan: Plan, tmp_path: Path
):
    # By seed, opd ends at .25 and .5, va_opd at .5 and 1; every student began with .25.
    curves = {
        "opd": {0: [0.25, 0.5, 0.25], 1: [0.25, 0.25, 0.5]},
        "va_opd": {0: [0.2, 0.2, 0.5], 1: [0.25, 0.75, 1.0]},
    }
    for arm, by_seed in curves.items():
        for seed, accuracies in by_seed.items():
            folder = run_folder(tmp_path / "out", plan.tables[0].arms[arm].runs[seed])
            rows = [{"step": n, "accuracy": a} for n, a in enumerate(accuracies)]
            write_rows(folder / "validation.jsonl", rows)
    assert values(plan, tmp_path / "out", "steps_to_opd") == {"opd": [0, 2], "va_opd": [2, 1]}
    study = write_study(plan, tmp_path / "out", {}, ["vaopd"])
    assert any(row["metric"] == "steps_to_opd" for row in study["rows"])
    page = (tmp_path / "out" / "study.html").read_text("utf-8")
    assert "va_opd reaches the last accuracy of opd in 2 of 2 seeds at step 1.5 in the" in page


def test_a_seed_that_never_reaches_the_baseline_counts_and_has_no_step(plan: Plan):
    def record(*accuracies: float) -> RunMeasures:
        curve = [{"steps": n, "accuracy": a} for n, a in enumerate(accuracies)]
        nothing = MeasuredRun((), (), {}, {})
        return RunMeasures(nothing, nothing, curve, {})

    table = plan.tables[0]
    records = {
        "opd": {0: record(0.1, 0.2, 0.9), 1: record(0.1, 0.2, 0.3)},
        "va_opd": {0: record(0.1, 0.8, 0.8), 1: record(0.1, 0.4, 0.8)},
    }
    rows = steps_to_baseline(table, records)
    assert [(row["seed"], row["value"]) for row in rows if row["arm"] == "va_opd"] == [
        (0, None), (1, 1)
    ]  # fmt: skip
    (sentence,) = speed_sentences(table, rows)
    assert "in 1 of 2 seeds at step 1 in the median" in sentence
    short = {arm: {0: record(0.1, 0.9)} for arm in records}
    assert steps_to_baseline(table, short) == []


def test_sampled_accuracy_and_the_kl_to_the_teacher_are_metrics_where_they_were_measured(
    plan: Plan, tmp_path: Path
):
    for arm in ("opd", "va_opd"):
        for run in plan.tables[0].arms[arm].runs.values():
            for file in (run_folder(tmp_path / "out", run) / "validation").glob("*.jsonl"):
                rows = read_rows(file)
                drawn = [
                    {**row, "view": "sampled", "sibling": k, "is_correct": k == 0}
                    for row in rows
                    if row["view"] == "original"
                    for k in range(4)
                ]
                known = [
                    {**row, "teacher_kl": [0.1, 0.3]} if row["view"] == "original" else row
                    for row in rows
                ]
                write_rows(file, [*known, *drawn])
    assert values(plan, tmp_path / "out", "accuracy_sampled")["va_opd"] == [0.25, 0.25]
    assert values(plan, tmp_path / "out", "teacher_kl")["opd"] == pytest.approx([0.2, 0.2])
    write_study(plan, tmp_path / "out", {}, ["vaopd"])
    page = (tmp_path / "out" / "study.html").read_text("utf-8")
    assert "accuracy, sampled, %" in page
    assert "KL to teacher, nats" in page
