import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vaopd.evaluation.statistics import (
    Interval,
    mcnemar_p,
    mean_interval,
    paired_difference,
    paired_ends,
    percentile_ends,
    resample_counts,
)

TABLES = arrays(np.float64, (3, 7), elements=st.integers(0, 8).map(lambda n: n / 8))


def test_the_mean_of_a_table_is_the_mean_of_its_cells():
    table = np.array([[1.0, 0.0], [1.0, 1.0]])
    assert mean_interval(table).mean == 0.75


def test_an_arm_that_always_gains_the_same_has_an_interval_of_no_width():
    # 3 seeds, 5 problems, 0.25 more everywhere: every resample has the same mean.
    baseline = np.random.default_rng(0).integers(0, 2, (3, 5)) / 1.0
    assert paired_difference(baseline + 0.25, baseline) == Interval(0.25, 0.25, 0.25)


def test_pairing_removes_what_makes_problems_hard():
    # Problems differ by 0 to 100, arms by 1 plus or minus a little.
    generator = np.random.default_rng(0)
    hardness = np.linspace(0, 100, 40) + np.zeros((4, 1))
    arm = hardness + 1 + generator.normal(0, 0.1, hardness.shape)
    difference = paired_difference(arm, hardness)
    assert difference.low is not None and difference.high is not None
    assert 0.9 < difference.low < 1 < difference.high < 1.1
    assert not difference.is_none
    alone = mean_interval(arm)
    assert alone.low is not None and alone.high is not None and alone.high - alone.low > 10


def test_the_bootstrap_of_one_seed_is_that_of_its_problems():
    # 100 problems, half of them right: the error of a share is 0.05, its interval 0.5 -+ 0.098.
    interval = mean_interval(np.array([[0.0, 1.0] * 50]))
    assert (interval.low, interval.high) == pytest.approx((0.402, 0.598), abs=0.012)


def test_a_difference_of_one_seed_has_no_interval():
    # However clear over problems: seeds may differ by as much.
    arm = np.array([[1.0] * 50])
    assert paired_difference(arm, np.zeros_like(arm)) == Interval(1.0, None, None)


def test_seeds_are_resampled_as_well():
    # All problems of a seed agree, so only the draw of 2 seeds matters: the means of resamples are
    # 0, 0.5 and 1 with 1/4, 1/2, 1/4.
    interval = mean_interval(np.array([[0.0] * 30, [1.0] * 30]))
    assert (interval.low, interval.high) == (0, 1)


def test_one_number_a_run_gets_students_interval_over_seeds():
    # 1, 2, 3: deviation 1, error 1 / sqrt(3); t of 2 degrees of freedom at 97.5 % is 4.302653.
    interval = mean_interval(np.array([[1.0], [2.0], [3.0]]))
    reach = 4.302653 / math.sqrt(3)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2, 2 - reach, 2 + reach))


def test_one_number_of_one_run_has_no_interval_and_shows_no_difference():
    interval = paired_difference(np.array([[5.0]]), np.array([[1.0]]))
    assert interval == Interval(4.0, None, None)
    assert interval.is_none


@pytest.mark.parametrize(
    ("interval", "is_none"),
    [
        (Interval(1.0, -0.1, 2.0), True),
        (Interval(1.0, 0.0, 2.0), True),
        (Interval(1.0, 0.1, 2.0), False),
        (Interval(-1.0, -2.0, -0.1), False),
    ],
)
def test_a_difference_whose_interval_contains_zero_is_none(interval: Interval, is_none: bool):
    assert interval.is_none == is_none


def test_intervals_of_normal_noise_contain_the_truth_about_as_often_as_they_say():
    # 200 tables of 5 seeds x 40 problems around 0.3, deviations 0.3 by problem, 0.3 by answer. The
    # bootstrap over two axes counts the answers' noise more than once, so it is on the safe side.
    generator = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        problems, answers = generator.normal(0, 0.3, (1, 40)), generator.normal(0, 0.3, (5, 40))
        interval = mean_interval(0.3 + problems + answers, seed=trial)
        assert interval.low is not None and interval.high is not None
        hits += interval.low <= 0.3 <= interval.high
    # Three standard deviations of 200 draws at 95 % are 4.6 points.
    assert hits >= 181


@settings(max_examples=25, deadline=None)
@given(first=TABLES, second=TABLES)
def test_swapping_the_arms_turns_the_difference_around(first: np.ndarray, second: np.ndarray):
    forth, back = paired_difference(first, second), paired_difference(second, first)
    assert None not in (forth.low, forth.high, back.low, back.high)
    assert (forth.mean, forth.low, forth.high) == pytest.approx(
        (-back.mean, -(back.high or 0), -(back.low or 0)), abs=1e-12
    )
    assert forth.is_none == back.is_none


@settings(max_examples=25, deadline=None)
@given(table=TABLES)
def test_equal_arms_differ_by_exactly_zero(table: np.ndarray):
    assert paired_difference(table, table) == Interval(0.0, 0.0, 0.0)


@settings(max_examples=25, deadline=None)
@given(table=TABLES)
def test_the_mean_lies_in_its_interval_and_both_within_the_values(table: np.ndarray):
    interval = mean_interval(table)
    assert interval.low is not None and interval.high is not None
    assert table.min() - 1e-12 <= interval.low <= interval.mean + 1e-12
    assert interval.mean - 1e-12 <= interval.high <= table.max() + 1e-12


def test_the_same_seed_of_resampling_gives_the_same_interval():
    table = np.random.default_rng(1).random((3, 9))
    assert mean_interval(table, seed=4) == mean_interval(table, seed=4)
    assert mean_interval(table, seed=4) != mean_interval(table, seed=5)


def test_mcnemar_is_the_exact_binomial_of_discordant_pairs():
    # 1 against 7 of 8: 2 x (1 + 8) / 256.
    assert mcnemar_p(1, 7) == pytest.approx(18 / 256)
    assert mcnemar_p(0, 0) == 1.0


def test_a_resample_draws_as_many_as_there_are():
    counts = resample_counts(7, 100, np.random.default_rng(0))
    assert counts.shape == (100, 7)
    assert (counts.sum(-1) == 7).all()
    assert (counts != 1).any(-1).any()


def test_the_ends_of_an_interval_leave_a_fortieth_on_each_side_and_pass_over_what_is_no_number():
    # 0 to 1,000: 2.5 % is 25, 97.5 % is 975.
    values = np.append(np.arange(1001.0), [np.nan, np.inf])
    assert percentile_ends(values) == pytest.approx((25, 975))
    assert all(math.isnan(end) for end in percentile_ends(np.array([np.nan])))


def test_the_interval_of_a_paired_difference_is_that_of_bonett_and_price():
    # 20 pairs, 3 for the second, 1 for the first: d = 2/20, e = 4/20, so d' = 2/22, e' = 6/22;
    # error sqrt((0.272727 - 0.008264) / 22) = 0.109640, times 1.959964: 0.214891 (by hand).
    variance = (0.2 - 0.01) / 20
    low, high, p = paired_ends(0.1, 0.2, variance, num_clusters=20, num_pairs=20)
    assert (low, high) == pytest.approx((0.090909 - 0.214891, 0.090909 + 0.214891), abs=2e-6)
    # 0.090909 / 0.109640 = 0.8292 errors; 2 (1 - Phi(0.8292)) = 0.4070 in a table.
    assert p == pytest.approx(0.4070, abs=5e-4)


@settings(max_examples=50, deadline=None)
@given(arrays(np.int8, st.integers(3, 60), elements=st.integers(-1, 1)))
def test_it_is_the_plain_interval_of_pairs_with_one_more_for_each_side(pairs: np.ndarray):
    longer = np.append(pairs, [1, -1]).astype(float)
    reach = 1.959964 * longer.std() / len(longer) ** 0.5
    d, e, count = pairs.mean(), (pairs**2.0).mean(), len(pairs)
    low, high, p = paired_ends(
        float(d), float(e), float(e - d * d) / count, num_clusters=count, num_pairs=count
    )
    plain = max(-1, longer.mean() - reach), min(1, longer.mean() + reach)
    assert (low, high) == pytest.approx(plain, abs=1e-6)
    assert (p < 0.05) == (low > 0 or high < 0)
    back = paired_ends(
        -float(d), float(e), float(e - d * d) / count, num_clusters=count, num_pairs=count
    )
    assert back == pytest.approx((-high, -low, p))


def test_no_discordant_pair_has_an_interval_with_a_width():
    # d = e = 0 of 98: error sqrt(2 / 100 / 100), times z: 2.77 points.
    low, high, p = paired_ends(0.0, 0.0, 0.0, num_clusters=98, num_pairs=784)
    assert (low, high, p) == pytest.approx((-0.027718, 0.027718, 1.0), abs=1e-6)
