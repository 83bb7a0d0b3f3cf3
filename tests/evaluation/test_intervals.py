"""Intervals near 0 and 100 per cent, by simulation."""

import numpy as np
import pytest

from vaopd.evaluation.benchmark import Graded, Item, Verdict
from vaopd.evaluation.benchmarks.problems import problem_benchmark
from vaopd.evaluation.scoring import agreement_metrics, metrics_of, tables_of

BENCHMARK = problem_benchmark("own", "own", source="")
TRIALS = 400


def graded(right: np.ndarray) -> list[list[Graded]]:
    """Verdicts of [samples, items]; what is extracted is whether it is right."""
    items = [Item(str(n), "", (), {}) for n in range(right.shape[1])]
    return [
        [Graded(item, Verdict(str(bool(one)), bool(one))) for item, one in zip(items, run, strict=True)]
        for run in right
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("share", "items", "samples"), [(0.98, 100, 1), (0.95, 30, 1), (0.5, 50, 1), (0.95, 40, 4)]
)
def test_intervals_hold_the_truth_in_93_percent_of_simulations(
    share: float, items: int, samples: int
):
    # Percentiles of the bootstrap held it in 84 % at 98 % of 100 and in 72 % at 95 % of 30. Items
    # differ in hardness where they have several samples: a beta distribution around the share.
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(TRIALS):
        hardness = generator.beta(6 * share, 6 * (1 - share), items) if samples > 1 else share
        right = generator.random((samples, items)) < hardness
        table = tables_of(BENCHMARK, graded(right))
        metric = metrics_of(BENCHMARK, table, seed=trial, resamples=300)["accuracy"]
        assert 0 <= metric.low <= metric.value <= metric.high <= 100
        held += metric.low <= 100 * share <= metric.high
    assert held / TRIALS >= 0.93


def test_all_wrong_has_an_interval_with_a_width():
    # Wilson at 0 of 20: the upper end is z² / (20 + z²) with z² = 3.8415, so 16.11 %.
    metric = metrics_of(BENCHMARK, tables_of(BENCHMARK, graded(np.zeros((2, 20)))))["accuracy"]
    assert (metric.low, metric.value) == (0, 0)
    assert metric.high == pytest.approx(16.113, abs=0.001)


def test_one_sample_has_the_interval_of_wilson():
    # 15 of 20: z² / n = 0.19207; middle 0.71007, reach 0.17860 (by hand).
    right = np.array([[1] * 15 + [0] * 5])
    metric = metrics_of(BENCHMARK, tables_of(BENCHMARK, graded(right)), resamples=20_000)[
        "accuracy"
    ]
    assert (metric.low, metric.high) == pytest.approx((53.13, 88.81), abs=0.3)


def test_the_majority_and_any_right_sample_are_counted_by_item():
    # Items: 3 of 3 right, 2 of 3, 1 of 3, none. maj@3: two of four; pass@3: three of four.
    right = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    metrics = agreement_metrics(BENCHMARK, graded(right))
    assert {name: metric.value for name, metric in metrics.items()} == {"maj@3": 50, "pass@3": 75}
    assert agreement_metrics(BENCHMARK, graded(right[:1])) == {}
