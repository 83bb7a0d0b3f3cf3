"""Comparison of two evaluations, item by item."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vaopd.errors import ConfigError, did_you_mean
from vaopd.evaluation.benchmark import Benchmark, Graded, Item, Verdict
from vaopd.evaluation.benchmarks.problems import problem_benchmark
from vaopd.evaluation.predictions import ITEMS, read_items
from vaopd.evaluation.protocol import protocol_in
from vaopd.evaluation.registry import BENCHMARKS, PAPER
from vaopd.evaluation.runner import VERDICTS
from vaopd.evaluation.scoring import cluster_weights, metric_sizes, metric_values, tables_of
from vaopd.evaluation.statistics import mcnemar_p, paired_ends
from vaopd.evaluation.tables import number, title_of
from vaopd.records import read_rows

RESAMPLES = 5000
COLUMNS = (
    "benchmark", "metric", "items", "A", "B", "B - A", "95 % interval", "p",
    "A only / B only", "p McNemar", "unparsed A / B", "left out A / B",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The differences of two evaluations on one benchmark; all scores in percent."""

    benchmark: str
    metric: str
    num_items: int
    first: float
    second: float
    difference: float
    """Second score minus first score."""

    low: float
    high: float
    p_difference: float
    """Two-sided p-value under the hypothesis of no difference."""

    first_only: int
    """Items where the first has the larger share of right samples, as in `discordant`."""

    second_only: int
    p_mcnemar: float
    """Exact two-sided p-value of McNemar's test."""

    unparsed: tuple[float, float]
    left_out: tuple[int, int]
    """Number of items of each evaluation that the other did not answer in every sample."""

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return asdict(self)


MAY_DIFFER = {"model", "weights", "engine", "base_url"}
"""Settings that may differ between two compared protocols."""


def compare_folders(first: Path, second: Path) -> list[Comparison]:
    """Return the comparison of every benchmark that both folders hold.

    Raises:
        ConfigError: A folder is not an evaluation, or the two share no benchmark or no items.
    """
    _check_same_protocol(first, second)
    names = _benchmarks_in(first) & _benchmarks_in(second)
    if not names:
        raise ConfigError(
            f"{first} and {second} have no benchmark in common; evaluate the same one"
        )
    order = [*(name for name in (*PAPER, *BENCHMARKS) if name in names), *sorted(names)]
    return [_compare(name, first / name, second / name) for name in dict.fromkeys(order)]


def _check_same_protocol(first: Path, second: Path) -> None:
    """Check that both evaluations have the same protocol; responses of other tools have none."""
    protocols = protocol_in(first), protocol_in(second)
    if None in protocols:
        return
    a, b = (dict(protocol or {}) for protocol in protocols)
    for name in sorted(a.keys() - MAY_DIFFER):
        if a[name] != b.get(name):
            raise ConfigError(
                f"{first} has {name}={a[name]!r} and {second} {b.get(name)!r}, so a difference "
                "says nothing about the models; evaluate both by the same protocol"
            )


def _benchmarks_in(folder: Path) -> set[str]:
    found = {file.parent.name for file in folder.glob(f"*/{VERDICTS}")}
    if not found:
        remedy = "" if folder.exists() else did_you_mean(folder)
        raise ConfigError(
            f"{folder} holds no NAME/{VERDICTS}"
            f"{remedy or '; name the output folder of vaopd evaluate'}"
        )
    return found


def _compare(name: str, first: Path, second: Path) -> Comparison:
    benchmark = BENCHMARKS.get(name) or problem_benchmark(name, name, source="")
    items = common_items(name, first, second)
    runs = [graded_runs(folder, items) for folder in (first, second)]
    found = paired_scores(benchmark, *runs)
    wins = discordant(*runs)
    shares = [_unparsed(one) for one in runs]
    return Comparison(
        benchmark=name,
        metric=benchmark.headline,
        num_items=len(items),
        first=found.first,
        second=found.second,
        difference=found.second - found.first,
        low=found.low,
        high=found.high,
        p_difference=found.p,
        first_only=wins[0],
        second_only=wins[1],
        p_mcnemar=mcnemar_p(*wins),
        unparsed=(shares[0], shares[1]),
        left_out=(
            len(read_items(first / ITEMS)) - len(items),
            len(read_items(second / ITEMS)) - len(items),
        ),
    )


def common_items(name: str, first: Path, second: Path) -> list[Item]:
    """Return the items that both evaluations of a benchmark answered in every sample.

    Raises:
        ConfigError: An id has different questions in the two, or there is no common id.
    """
    theirs = {item.id: item for item in read_items(second / ITEMS)}
    graded = _fully_graded(first) & _fully_graded(second)
    common = [item for item in read_items(first / ITEMS) if item.id in theirs and item.id in graded]
    for item in common:
        if theirs[item.id].reference != item.reference:
            raise ConfigError(
                f"{name}: item {item.id} is another question in {second} than in {first}; "
                "evaluate both on the same data"
            )
    if not common:
        raise ConfigError(f"{name}: {first} and {second} share no item; evaluate the same data")
    return common


def _fully_graded(folder: Path) -> set[str]:
    """Return the ids with a verdict on every sample; an interrupted evaluation lacks some."""
    samples: dict[int, set[str]] = {}
    for row in read_rows(folder / VERDICTS):
        samples.setdefault(row["sample"], set()).add(row["id"])
    return set.intersection(*samples.values()) if samples else set()


def graded_runs(folder: Path, items: Sequence[Item]) -> list[list[Graded]]:
    """Return the verdicts of a benchmark's folder by sample, each in the order of the items."""
    by_sample: dict[int, dict[str, Verdict]] = {}
    for row in read_rows(folder / VERDICTS):
        prefix = "is_correct_"
        variants = {k.removeprefix(prefix): bool(v) for k, v in row.items() if k.startswith(prefix)}
        verdict = Verdict(row["extracted"], row["is_correct"], variants)
        by_sample.setdefault(row["sample"], {})[row["id"]] = verdict
    return [
        [Graded(item, verdicts[item.id]) for item in items]
        for _, verdicts in sorted(by_sample.items())
    ]


@dataclass(frozen=True)
class ScoreDifference:
    """Both scores and their paired difference with its 95 % interval, in percent."""

    first: float
    second: float
    low: float
    high: float
    p: float


def paired_scores(
    benchmark: Benchmark,
    first: Sequence[Sequence[Graded]],
    second: Sequence[Sequence[Graded]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ScoreDifference:
    """Return both headline scores and the interval of their difference; see ``paired_ends``.

    Each resample draws clusters of items once and uses them for both evaluations, so the
    difficulty of an item cancels in the difference.

    Raises:
        ConfigError: The headline score is not defined for these items.
    """
    name = benchmark.headline
    tables = [tables_of(benchmark, runs) for runs in (first, second)]
    assert tables[0].clusters == tables[1].clusters, "items come in one order"
    ones = np.ones((1, len(tables[0].clusters)))
    weights = cluster_weights(ones.size, resamples, seed)
    points: list[float] = []
    draws: list[np.ndarray] = []
    for table in tables:
        value = metric_values(benchmark, table, ones).get(name)
        if value is None:
            raise ConfigError(
                f"{benchmark.name}: too few items for {name}; evaluate the complete set"
            )
        points.append(float(value[0]))
        draws.append(metric_values(benchmark, table, weights)[name])
    resampled = (draws[1] - draws[0]) / 100
    resampled = resampled[np.isfinite(resampled)]
    num_clusters, num_pairs = metric_sizes(benchmark, tables[0])[name]
    low, high, p = paired_ends(
        (points[1] - points[0]) / 100,
        mean_squared_difference(benchmark, first, second),
        float(resampled.var()) if len(resampled) else 0.0,
        num_clusters=num_clusters,
        num_pairs=num_pairs,
    )
    return ScoreDifference(points[0], points[1], 100 * low, 100 * high, p)


def mean_squared_difference(
    benchmark: Benchmark,
    first: Sequence[Sequence[Graded]],
    second: Sequence[Sequence[Graded]],
) -> float:
    """Return the mean of (second - first)² over pairs of measurements of the headline score.

    A pair is the same sample of the same item. Of a combined score it is the weighted mean of the
    parts.
    """
    weights = benchmark.combinations.get(benchmark.headline, {benchmark.headline: 1.0})
    squares: dict[str, list[float]] = {part: [] for part in weights}
    # Evaluations without a protocol may have different numbers of samples.
    for pair in zip(first, second, strict=False):
        a, b = ([m for m in benchmark.measure(run) if m.part in weights] for run in pair)
        for one, other in zip(a, b, strict=True):
            assert (one.part, one.cluster) == (other.part, other.cluster), "items come in one order"
            squares[one.part].append((other.value - one.value) ** 2)
    return sum(weight * float(np.mean(squares[part])) for part, weight in weights.items())


def discordant(
    first: Sequence[Sequence[Graded]], second: Sequence[Sequence[Graded]]
) -> tuple[int, int]:
    """Return the number of items on which each evaluation has the larger share of right samples.

    With one sample these are McNemar's discordant pairs. Samples of an item are not independent,
    so with several samples an item also counts once.
    """
    shares = []
    for runs in (first, second):
        right = np.array([[one.verdict.is_correct for one in run] for run in runs])
        shares.append(right.mean(0))
    return int((shares[0] > shares[1]).sum()), int((shares[1] > shares[0]).sum())


def _unparsed(runs: Sequence[Sequence[Graded]]) -> float:
    flat = [one.verdict.extracted is None for run in runs for one in run]
    return sum(flat) / len(flat)


def comparison_row(one: Comparison) -> tuple[str, ...]:
    """Return one row of ``COLUMNS``."""
    return (
        title_of(one.benchmark),
        one.metric,
        str(one.num_items),
        number(one.first),
        number(one.second),
        f"{one.difference:+.2f}",
        f"{one.low:+.2f} to {one.high:+.2f}",
        f"{one.p_difference:.4f}",
        f"{one.first_only} / {one.second_only}",
        f"{one.p_mcnemar:.4f}",
        f"{one.unparsed[0]:.1%} / {one.unparsed[1]:.1%}",
        f"{one.left_out[0]} / {one.left_out[1]}",
    )
