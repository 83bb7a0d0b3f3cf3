"""Tests of paired differences over seeds and problems, and what a table could have seen.

Letters in shapes: S seeds, P problems.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student_t

LEVEL = 0.05
POWER = 0.8


@dataclass(frozen=True)
class PairedTest:
    """The mean of paired differences, with both seeds and problems as clusters."""

    mean: float
    standard_error: float
    degrees: int
    """Degrees of freedom of Student's t: seeds - 1."""

    @property
    def p_value(self) -> float:
        """Two-sided probability of a mean so far from 0 if there is no difference."""
        if self.standard_error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * student_t.sf(abs(self.mean) / self.standard_error, self.degrees))

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval."""
        half = float(student_t.isf(LEVEL / 2, self.degrees)) * self.standard_error
        return self.mean - half, self.mean + half


def paired_test(difference: Float[np.ndarray, "S P"]) -> PairedTest | None:
    """Return the test of the mean of ``difference``; none with one seed.

    The variance is the two-way cluster-robust one (Cameron, Gelbach & Miller 2011): answers to one
    problem are alike over seeds, and answers of one seed are alike over problems. With
    e[s,p] = d[s,p] - mean d and N = S P::

        V = S/(S-1) sum_s (sum_p e)^2 / N^2 + P/(P-1) sum_p (sum_s e)^2 / N^2 - sum e^2 / N^2

    but never less than either of the first two terms alone, which is possible by chance.

    Args:
        difference: Arm minus baseline, of the same seeds and problems.
    """
    num_seeds, num_problems = difference.shape
    if num_seeds < 2:
        return None
    mean = float(difference.mean())
    rest = difference - mean
    by_seed = num_seeds / (num_seeds - 1) * (rest.sum(1) ** 2).sum()
    by_problem = num_problems / max(1, num_problems - 1) * (rest.sum(0) ** 2).sum()
    variance = max(by_seed, by_problem, by_seed + by_problem - (rest**2).sum())
    error = float(np.sqrt(variance)) / difference.size
    return PairedTest(mean, error, num_seeds - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method (1979), in the same order.

    The k-th smallest of m, counted from 0, is multiplied by m - k and made no smaller than the one
    before it. Rejecting those below 5 % has at most 5 % chance of any false rejection.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for k, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - k) * p_values[index]))
        corrected[index] = largest
    return corrected


def smallest_visible(test: PairedTest, comparisons: int) -> float:
    """Return the true difference that such a test finds with a chance of 80 %.

    It is (t[1 - level / 2] + t[power]) times the standard error, where the level of 5 % is divided
    by the number of comparisons: the first step of Holm's method (`holm`), the strictest.
    """
    critical = student_t.isf(LEVEL / comparisons / 2, test.degrees)
    return float((critical + student_t.isf(1 - POWER, test.degrees)) * test.standard_error)
