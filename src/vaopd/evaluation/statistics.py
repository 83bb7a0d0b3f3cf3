"""Intervals and tests of means and differences, for the whole package; without torch.

Studies have tables of seeds and problems, benchmarks have clusters of items; this module holds
the resampling of both. Letters in shapes: S seeds, P problems, R resamples, N units that are
resampled. A quantity with one value per run has P = 1.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
"""Confidence level of every interval."""

TAIL = 0.025
"""Share of resampled values on either side of an interval."""

Z = 1.959963984540054
"""Quantile of the normal distribution with ``TAIL`` beyond it."""

RESAMPLES = 2000
"""Number of bootstrap samples; the ends of an interval vary by about 1/50 of its width."""

ROUNDING = 1e-15
"""A smaller variance of shares is 0 with rounding errors."""

BLOCK_CELLS = 2_000_000
"""Most cells of resampled tables in memory at the same time."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; without an interval if there is one run only."""

    mean: float
    low: float | None
    high: float | None

    @property
    def is_none(self) -> bool:
        """Whether no difference is shown: 0 lies in the interval, or there is no interval."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def mean_interval(values: Float[np.ndarray, "S P"], *, seed: int = 0) -> Interval:
    """Return the mean of one arm with its interval.

    With several problems the interval is the percentile bootstrap over both axes: seeds and
    problems are drawn with replacement, independently, and the mean of the drawn table is taken
    (Owen 2007). This interval is conservative if the noise belongs to single answers, and too
    narrow if there are few seeds and they differ more than the problems do.

    With one number per run only a few seeds could be resampled, and percentiles would be far too
    narrow. Then the interval is Student's t over the seeds; one seed has no interval.

    Args:
        values: A number for each seed and problem.
        seed: Seed of the resampling.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape[1] == 1:
        return _over_seeds(values[:, 0])
    if (values == values[0, 0]).all():
        # Equal values are returned exactly: their computed mean may differ in the last bit.
        mean = float(values[0, 0])
        return Interval(mean, mean, mean)
    means = _resampled_means(values, np.random.default_rng(seed))
    # Not TAIL: this value differs in the last bit, and earlier studies used it.
    low, high = percentile_ends(means, tail=(1 - LEVEL) / 2)
    return Interval(float(values.mean()), low, high)


def paired_difference(
    arm: Float[np.ndarray, "S P"], baseline: Float[np.ndarray, "S P"], *, seed: int = 0
) -> Interval:
    """Return the paired difference of an arm and its baseline, with its interval.

    Both tables hold the same seeds and problems in the same order, so effects of a problem or a
    seed that both arms share cancel::

        D[s,p] = arm[s,p] - baseline[s,p],   effect = mean of D

    The interval is that of `mean_interval` for D. If it contains 0, the effect is called none.
    One seed does not show how seeds differ, so it has no interval.
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

    A rate without cases in a resample is NaN and is ignored. Without any finite value both ends
    are NaN.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def bounded_ends(
    share: float, resampled: Float[np.ndarray, " R"], num_clusters: int, num_responses: int
) -> tuple[float, float]:
    """Return the 95 % interval of a share in [0, 1], which is valid near 0 and 1 too.

    There percentiles of resamples are too narrow: if all responses are right, they have no width.
    This is Wilson's interval with n independent responses, computed from the resampled variance::

        n = p (1 - p) / Var(resampled),   (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n)

    If the variance is 0, n is the number of clusters; n never exceeds the number of responses.

    Args:
        share: p, over all clusters.
        resampled: The share in each resample of clusters.
        num_clusters: Number of clusters of the share.
        num_responses: Number of responses of the share: all samples of all items.
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


def share_interval(
    values: Float[np.ndarray, " N"], num_responses: int, *, seed: int = 0
) -> Interval:
    """Return the mean of the items' shares of right responses with its `bounded_ends`.

    Args:
        values: The share of right responses of each item, in [0, 1].
        num_responses: Number of responses of all items.
        seed: Seed of the resampling of items.
    """
    counts = resample_counts(len(values), RESAMPLES, np.random.default_rng(seed))
    mean = float(values.mean())
    low, high = bounded_ends(mean, counts @ values / len(values), len(values), num_responses)
    return Interval(mean, low, high)


def paired_ends(
    difference: float, discordance: float, variance: float, *, num_clusters: int, num_pairs: int
) -> tuple[float, float, float]:
    """Return the 95 % interval of the difference of two paired shares, and its two-sided p-value.

    Percentiles of resamples are too narrow near 0 and 1, and have no width if no pair differs.
    This is the interval of Bonett and Price (2012, J. Educ. Behav. Stat. 37, 479-488), who add
    one pair in favour of each side::

        d' = n d / (n + 2),   e' = (n e + 2) / (n + 2),   d' ± z sqrt((e' - d'²) / (n + 2))

    For n independent pairs of verdicts, n d and n e are the difference and the sum of the two
    numbers of discordant pairs. Pairs of one cluster are not independent, so n is the number of
    independent pairs whose difference would have the variance of the resamples::

        n = (e - d²) / variance

    If the variance is 0, n is the number of clusters; n never exceeds the number of pairs. The
    p-value is that of d' / sqrt((e' - d'²) / (n + 2)) in the normal distribution, so it is below
    5 % where 0 is outside the interval.

    Args:
        difference: d, the second share minus the first, in [-1, 1].
        discordance: e, the mean of (second - first)² over pairs of responses; for verdicts, the
            share of pairs that differ.
        variance: Of the difference over resamples of clusters.
        num_clusters: Number of clusters.
        num_pairs: Number of pairs of responses: all samples of all items.
    """
    d, spread = difference, discordance - difference**2
    number = float(num_clusters)
    if variance > ROUNDING and spread > ROUNDING:
        number = max(1.0, min(spread / variance, num_pairs))
    middle = number * d / (number + 2)
    error = (((number * discordance + 2) / (number + 2) - middle**2) / (number + 2)) ** 0.5
    low, high = middle - Z * error, middle + Z * error
    p = math.erfc(abs(middle) / error / 2**0.5)
    return max(-1.0, min(low, d)), min(1.0, max(high, d)), p


def mcnemar_p(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p-value of McNemar's test on discordant pairs."""
    # Imported here: it takes most of a second, and scoring without comparison does not need it.
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
