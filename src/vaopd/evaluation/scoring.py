"""Metrics with intervals from verdicts; without a model and without torch."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from vaopd.evaluation.benchmark import Benchmark, Graded, Item, Verdict
from vaopd.evaluation.predictions import Prediction
from vaopd.evaluation.statistics import bounded_ends, percentile_ends, resample_counts
from vaopd.grading.reading import Rule, rules_agree

RESAMPLES = 1000
_CHUNK = 100


@dataclass(frozen=True)
class Metric:
    """A mean over sample runs with its 95 % interval, in percent."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """Return the metric as JSON values; NaN becomes null."""
        numbers = [x if math.isfinite(x) else None for x in (self.value, self.low, self.high)]
        return {"value": numbers[0], "interval": numbers[1:]}


@dataclass(frozen=True, kw_only=True)
class Score:
    """The results of one benchmark."""

    benchmark: str
    headline: str
    metrics: dict[str, Metric]
    num_items: int
    num_samples: int
    unparsed: float
    """Share of responses without a recognised answer."""

    truncated: float
    """Share of responses that the length limit ended."""

    rules_differ: float
    """Share of responses whose first and last committed answers are different."""

    response_tokens: float | None
    """Mean number of tokens of a response; ``None`` if not counted."""

    judge: float | None = None
    """The headline metric by a judge's verdicts, in percent; ``None`` without a judge."""

    @property
    def main(self) -> Metric:
        """The metric of Table 1; NaN if too few items define it."""
        return self.metrics.get(self.headline, Metric(math.nan, math.nan, math.nan))

    def as_json(self) -> dict[str, Any]:
        """Return the score as JSON values."""
        return {
            "benchmark": self.benchmark,
            "headline": self.headline,
            **self.main.as_json(),
            "items": self.num_items,
            "samples": self.num_samples,
            "unparsed": self.unparsed,
            "truncated": self.truncated,
            "rules_differ": self.rules_differ,
            "response_tokens": self.response_tokens,
            "judge_score": self.judge,
            "metrics": {name: metric.as_json() for name, metric in self.metrics.items()},
        }


def grade_runs(
    benchmark: Benchmark, items: Sequence[Item], runs: Sequence[Sequence[Prediction]], rule: Rule
) -> tuple[list[list[Graded]], float]:
    """Return verdicts by sample run and item, and the share where first and last rule differ.

    The share counts responses whose first and last committed answers are different; for
    ``last_boxed`` it counts those whose last box and last committed answer are different.
    """
    other: Rule = "first_committed" if rule == "last_committed" else "last_committed"
    graded: list[list[Graded]] = []
    differing: list[bool] = []
    for run in runs:
        graded.append([])
        for item, prediction in zip(items, run, strict=True):
            mine = _verdict(benchmark, item, prediction, rule)
            graded[-1].append(Graded(item, mine))
            if rule != "last_boxed" and rules_agree(prediction.response):
                differing.append(False)
                continue
            theirs = _verdict(benchmark, item, prediction, other)
            differing.append(mine.extracted != theirs.extracted)
    return graded, fmean(differing)


def _verdict(benchmark: Benchmark, item: Item, prediction: Prediction, rule: Rule) -> Verdict:
    is_truncated = prediction.finish_reason == "length"
    return benchmark.grade(prediction.response, item, rule, is_truncated=is_truncated)


def score_runs(
    benchmark: Benchmark,
    graded: Sequence[Sequence[Graded]],
    runs: Sequence[Sequence[Prediction]],
    *,
    seed: int = 0,
    rules_differ: float = 0.0,
) -> Score:
    """Return all metrics of a benchmark.

    Structured metrics are computed for each sample run over the complete set and then averaged.
    The mean of an item's verdicts, taken first, would give another number.
    """
    flat = [prediction for run in runs for prediction in run]
    tokens = [one.response_tokens for one in flat if one.response_tokens is not None]
    return Score(
        benchmark=benchmark.name,
        headline=benchmark.headline,
        metrics=metrics_of(benchmark, tables_of(benchmark, graded), seed=seed)
        | agreement_metrics(benchmark, graded, seed=seed),
        num_items=len(runs[0]),
        num_samples=len(runs),
        unparsed=fmean(one.verdict.extracted is None for run in graded for one in run),
        truncated=fmean(one.finish_reason == "length" for one in flat),
        rules_differ=rules_differ,
        response_tokens=fmean(tokens) if tokens else None,
    )


@dataclass(frozen=True)
class ClusterTable:
    """Sums and counts of every part by sample run and cluster, as resampling needs them."""

    parts: tuple[str, ...]
    clusters: tuple[str, ...]
    sums: np.ndarray
    """[runs, clusters, parts]"""

    counts: np.ndarray


def tables_of(benchmark: Benchmark, graded: Sequence[Sequence[Graded]]) -> ClusterTable:
    """Return the measurements of all runs, summed by cluster."""
    measured = [list(benchmark.measure(run)) for run in graded]
    parts = {m.part: None for run in measured for m in run}
    clusters = {m.cluster: None for run in measured for m in run}
    part_index = {name: index for index, name in enumerate(parts)}
    cluster_index = {name: index for index, name in enumerate(clusters)}
    sums = np.zeros((len(measured), len(clusters), len(parts)))
    counts = np.zeros_like(sums)
    for number, run in enumerate(measured):
        for m in run:
            at = number, cluster_index[m.cluster], part_index[m.part]
            sums[at] += m.value
            counts[at] += 1
    return ClusterTable(tuple(parts), tuple(clusters), sums, counts)


def metrics_of(
    benchmark: Benchmark, table: ClusterTable, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Metric]:
    """Return every metric with its interval; see ``bounded_ends``.

    A metric that may be outside 0 to 100 has the percentile interval of resampled clusters.
    """
    weights = cluster_weights(len(table.clusters), resamples, seed)
    point = metric_values(benchmark, table, np.ones((1, len(table.clusters))))
    resampled = metric_values(benchmark, table, weights)
    metrics = {}
    sizes = metric_sizes(benchmark, table)
    for name, values in resampled.items():
        share = float(point[name][0]) / 100
        if np.isfinite(share) and not 0 <= share <= 1:
            ends = percentile_ends(values)
        else:
            ends = tuple(100 * e for e in bounded_ends(share, values / 100, *sizes[name]))
        metrics[name] = Metric(*(round(float(v), 4) for v in (100 * share, *ends)))
    return metrics


def metric_sizes(benchmark: Benchmark, table: ClusterTable) -> dict[str, tuple[int, int]]:
    """Return the numbers of clusters and of responses by metric.

    A combined metric has the clusters of its smallest part and the responses of all its parts.
    """
    clusters = (table.counts.sum(0) > 0).sum(0)
    responses = table.counts.sum((0, 1))
    sizes = {
        name: (int(clusters[index]), int(responses[index]))
        for index, name in enumerate(table.parts)
    }
    for name, shares in benchmark.combinations.items():
        if shares.keys() <= sizes.keys():
            own = [sizes[part] for part in shares]
            sizes[name] = min(one for one, _ in own), sum(many for _, many in own)
    return sizes


def agreement_metrics(
    benchmark: Benchmark, graded: Sequence[Sequence[Graded]], *, seed: int = 0
) -> dict[str, Metric]:
    """Return ``maj@k`` and ``pass@k`` of k samples; an empty dict for one sample.

    maj@k: the most frequent answer of an item's samples is right; of equally frequent answers
    the earliest counts. pass@k: at least one sample is right.
    """
    k = len(graded)
    if k < 2:
        return {}
    items = [run_items for run_items in zip(*graded, strict=True)]
    clusters = {one[0].item.cluster or one[0].item.id: None for one in items}
    index = {name: number for number, name in enumerate(clusters)}
    sums = np.zeros((1, len(clusters), 2))
    counts = np.zeros_like(sums)
    for one in items:
        at = index[one[0].item.cluster or one[0].item.id]
        sums[0, at] += (_majority_is_right(one), any(s.verdict.is_correct for s in one))
        counts[0, at] += 1
    table = ClusterTable((f"maj@{k}", f"pass@{k}"), tuple(clusters), sums, counts)
    return metrics_of(benchmark, table, seed=seed)


def _majority_is_right(samples: Sequence[Graded]) -> bool:
    said = Counter(s.verdict.extracted for s in samples if s.verdict.extracted is not None)
    if not said:
        return False
    answer = said.most_common(1)[0][0]
    return any(s.verdict.is_correct for s in samples if s.verdict.extracted == answer)


def cluster_weights(num_clusters: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each cluster is drawn in each resample: [resamples, clusters]."""
    counts = resample_counts(num_clusters, resamples, np.random.default_rng(seed))
    return counts.astype(float)


def metric_values(
    benchmark: Benchmark, table: ClusterTable, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return every metric in percent, one value for each row of cluster weights."""
    means = np.concatenate(
        [_part_means(table, weights[at : at + _CHUNK]) for at in range(0, len(weights), _CHUNK)]
    )
    values = {name: means[:, index] for index, name in enumerate(table.parts)}
    for name, shares in benchmark.combinations.items():
        # In a small sample a part may have no item; then the sum is not defined.
        if shares.keys() <= values.keys():
            values[name] = sum(
                (share * values[part] for part, share in shares.items()),
                start=np.zeros(len(weights)),
            )
    return values


def _part_means(table: ClusterTable, weights: np.ndarray) -> np.ndarray:
    """Return the scores of parts in percent: the mean in each run, then the mean over runs."""
    # [resamples, clusters] x [runs, clusters, parts] -> [runs, resamples, parts]
    sums, counts = weights @ table.sums, weights @ table.counts
    with np.errstate(invalid="ignore", divide="ignore"):
        by_run = sums / counts
    # A rate without cases in a run is not defined for that run.
    valid = np.isfinite(by_run)
    total = np.where(valid, by_run, 0.0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * total / valid.sum(0)


def verdict_rows(
    graded: Sequence[Sequence[Graded]],
    runs: Sequence[Sequence[Prediction]],
    judged: Mapping[tuple[str, int], bool | None] | None = None,
) -> list[dict[str, Any]]:
    """Return one row for each response with its extracted answer and every verdict."""
    rows = []
    for run, verdicts in zip(runs, graded, strict=True):
        for prediction, one in zip(run, verdicts, strict=True):
            verdict: Verdict = one.verdict
            row: dict[str, Any] = {
                "id": prediction.id,
                "sample": prediction.sample,
                "extracted": verdict.extracted,
                "is_correct": verdict.is_correct,
                "confidence": verdict.confidence,
                "rule": verdict.rule,
            }
            row |= {f"is_correct_{name}": value for name, value in verdict.variants.items()}
            if judged is not None:
                row["is_correct_judge"] = judged.get((prediction.id, prediction.sample))
            rows.append(row)
    return rows
