"""Tests of paired differences, their correction, and what they can see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vaopd.study.inference import PairedTest, holm, paired_test, smallest_visible


def test_the_standard_error_is_as_worked_out_by_hand():
    # Mean 1/2; e = 1/2, -1/2 in both seeds: seeds add 0, problems 2 (1 + 1) = 4, single answers 1.
    # Seeds and problems less answers are 3, problems alone are 4: sqrt(4) / 4.
    found = paired_test(np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert found == PairedTest(mean=0.5, standard_error=0.5, degrees=1)
    # Mean 0; rows sum to 2 and -2: 2 (4 + 4) = 16 by seed, 0 by problem, 4 answers: sqrt(16) / 4.
    found = paired_test(np.array([[1.0, 1.0], [-1.0, -1.0]]))
    assert found == PairedTest(mean=0.0, standard_error=1.0, degrees=1)
    assert paired_test(np.ones((1, 5))) is None


def test_with_one_problem_it_is_students_t_over_the_seeds():
    values = np.array([[0.1], [0.4], [0.2], [0.35], [-0.1]])
    found = paired_test(values)
    assert found is not None
    expected = stats.ttest_1samp(values[:, 0], 0)
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert found.interval == pytest.approx((interval.low, interval.high))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(1, 9), st.integers(0, 2**31))
def test_it_agrees_with_sums_over_every_pair_of_cells(seeds: int, problems: int, number: int):
    d = np.random.default_rng(number).normal(size=(seeds, problems))
    e = d - d.mean()
    by_seed = by_problem = own = 0.0
    for i in range(seeds):
        for j in range(problems):
            own += e[i, j] ** 2
            by_seed += sum(e[i, j] * e[i, k] for k in range(problems))
            by_problem += sum(e[i, j] * e[k, j] for k in range(seeds))
    by_seed *= seeds / (seeds - 1)
    by_problem *= problems / max(1, problems - 1)
    variance = max(by_seed, by_problem, by_seed + by_problem - own) / d.size**2
    found = paired_test(d)
    assert found is not None
    assert found.standard_error == pytest.approx(variance**0.5, abs=1e-9)


def test_a_true_null_is_rejected_about_as_often_as_promised():
    # Seeds and problems differ by themselves, as runs and problems do; no difference on average.
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(1000):
        difference = (
            generator.normal(scale=0.02, size=(5, 1))
            + generator.normal(scale=0.1, size=(1, 200))
            + generator.normal(scale=0.4, size=(5, 200))
        )
        test = paired_test(difference)
        assert test is not None
        rejected += test.p_value < 0.05
    # Never more than promised, beside chance (three standard deviations of 1,000 draws).
    assert rejected / 1000 < 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5


def test_holms_correction_is_as_worked_out_by_hand():
    # 0.01 x 4; 0.02 x 3; 0.03 x 2 is no smaller than the one before; 0.5 x 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_smallest_visible_difference_is_found_four_times_in_five():
    generator = np.random.default_rng(1)
    error, degrees = 0.1, 4
    size = smallest_visible(PairedTest(0.0, error, degrees), 1)
    # A t statistic with a true difference of that size.
    means = generator.normal(size, error, 20_000)
    errors = error * np.sqrt(generator.chisquare(degrees, 20_000) / degrees)
    found = np.mean(np.abs(means / errors) > stats.t.isf(0.025, degrees))
    assert found == pytest.approx(0.8, abs=0.03)
    # More comparisons need a larger difference.
    assert smallest_visible(PairedTest(0.0, error, degrees), 5) > 1.3 * size
