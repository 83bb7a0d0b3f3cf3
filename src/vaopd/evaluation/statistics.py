"""How sure a mean or a difference is: every interval and test of the package, without torch.

Studies give tables of seeds and problems, benchmarks clusters of items; what both resample and
read off is here. Letters in shapes: S seeds, P problems, R resamples, N things that are
resampled. A quantity that exists once a run has P = 1.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
"""Of every interval."""

TAIL = 0.025
"""Share of resampled values on either side of an interval."""

Z = 1.959963984540054
"""Quantile of the normal distribution with ``TAIL`` beyond it."""

RESAMPLES = 2000
"""Bootstrap samples; the ends of an interval then wander by about a fiftieth of its width."""

BLOCK_CELLS = 2_000_000
"""Cells of resampled tables in memory at a time."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; no interval where one run cannot tell."""

    mean: float
    low: float | None
    high: float | None

    @property
    def is_none(self) -> bool:
        """Whether 0 lies in the interval, or there is none: no difference is established."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def mean_interval(values: Float[np.ndarray, "S P"], *, seed: int = 0) -> Interval:
    """Return the mean of one arm with its interval.

    With several problems the interval is the percentile bootstrap over both axes: seeds and
    problems are drawn with replacement, each on its own, and the mean of the drawn table is taken
    (Owen 2007). That is on the safe side where noise belongs to single answers, and too narrow
    where few seeds differ by more than their problems do.

    With one number a run there is nothing to resample but a handful of seeds, for which
    percentiles are far too narrow; there it is Student's t over the seeds, and none for one seed.

    Args:
        values: A number for each seed and problem.
        seed: Of the resampling.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape[1] == 1:
        return _over_seeds(values[:, 0])
    if (values == values[0, 0]).all():
        # Exactly: the mean of equal decimals may differ from them in the last bit.
        mean = float(values[0, 0])
        return Interval(mean, mean, mean)
    means = _resampled_means(values, np.random.default_rng(seed))
    # Not TAIL: this is the last bit more, with which the intervals of earlier studies were made.
    low, high = percentile_ends(means, tail=(1 - LEVEL) / 2)
    return Interval(float(values.mean()), low, high)


def paired_difference(
    arm: Float[np.ndarray, "S P"], baseline: Float[np.ndarray, "S P"], *, seed: int = 0
) -> Interval:
    """Return by how much an arm exceeds its baseline, with an interval for the paired difference.

    Both tables hold the same seeds and problems in the same order, so what makes a problem hard
    or a seed lucky for both arms cancels::

        D[s,p] = arm[s,p] - baseline[s,p],   effect = mean of D

    The interval is that of `mean_interval` for D. Where it contains 0 the effect is called none.
    One seed says nothing about how seeds differ, so there it has no interval.
    """
    difference = np.asarray(arm) - np.asarray(baseline)
    if len(difference) < 2:
        return Interval(float(difference.mean()), None, None)
    return mean_interval(difference, seed=seed)


def resample_counts(
    number: int, resamples: int, generator: np.random.Generator
) -> Int[np.ndarray, "R N"]:
    """Return how often each of ``number`` things is drawn in each resample with replacement."""
    return generator.multinomial(number, np.full(number, 1 / number), resamples)


def percentile_ends(values: Float[np.ndarray, " R"], *, tail: float = TAIL) -> tuple[float, float]:
    """Return the ends of the percentile interval of resampled values that are finite.

    A resample may leave a rate without cases, which says nothing. Without any finite value the
    ends are not numbers.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def bounded_ends(
    share: float, resampled: Float[np.ndarray, " R"], num_clusters: int, num_responses: int
) -> tuple[float, float]:
    """Return the 95 % interval of a share in [0, 1], which holds near 0 and 1 too.

    Percentiles of resamples are too narrow there: where all are right they have no width. This is
    Wilson's interval with the number of independent responses that the resampled variance tells::

        n = p (1 - p) / Var(resampled),   (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n)

    Without any variance n is the number of clusters; n never exceeds the number of responses.

    Args:
        share: p, of all clusters.
        resampled: The share of each resample of clusters.
        num_clusters: Of the share.
        num_responses: Of the share, all samples of all items.
    """
    finite = resampled[np.isfinite(resampled)]
    if not len(finite) or not np.isfinite(share):
        return float("nan"), float("nan")
    variance, spread = float(finite.var()), share * (1 - share)
    number = min(spread / variance, num_responses) if variance > 0 and spread > 0 else num_clusters
    number = max(number, 1.0)
    z2 = Z * Z / number
    middle = (share + z2 / 2) / (1 + z2)
    reach = Z * (spread / number + z2 / (4 * number)) ** 0.5 / (1 + z2)
    return max(0.0, min(middle - reach, share)), min(1.0, max(middle + reach, share))


def two_sided_p(differences: Float[np.ndarray, " R"]) -> float:
    """Return twice the smaller tail beyond zero, never 0: one more resample could have crossed."""
    finite = differences[np.isfinite(differences)]
    tail = min((finite <= 0).sum(), (finite >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(finite) + 1)))


def mcnemar_p(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p of McNemar's test on discordant pairs."""
    # Imported here: it takes most of a second, which a scoring without comparison need not pay.
    from scipy.stats import binomtest

    total = first_only + second_only
    return 1.0 if total == 0 else float(binomtest(first_only, total).pvalue)


def _resampled_means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    num_seeds, num_problems = values.shape
    block = max(1, BLOCK_CELLS // num_problems)
    means = []
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        seeds = resample_counts(num_seeds, size, generator)
        problems = resample_counts(num_problems, size, generator)
        means.append(((seeds @ values) * problems).sum(-1) / values.size)
    return np.concatenate(means)


def _over_seeds(values: np.ndarray) -> Interval:
    from scipy.stats import t as student_t

    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, None, None)
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    reach = float(student_t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)
