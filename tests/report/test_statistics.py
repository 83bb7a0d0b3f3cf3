import pytest

from vaopd.report.statistics import (
    SHARES,
    concentration,
    even_edges,
    first_mention,
    high_positions,
    histogram,
    quantile,
)


def at(shares: list[float], share: float) -> float:
    return shares[SHARES.index(share)]


def test_concentration_is_the_share_of_mass_in_the_top_tokens():
    # Ten tokens with 10 nats in all: the top one has 6, the next 3, then 1.
    shares = concentration([0, 6, 0, 0, 3, 0, 1, 0, 0, 0])
    assert at(shares, 10) == pytest.approx(0.6)
    assert at(shares, 20) == pytest.approx(0.9)
    assert at(shares, 30) == pytest.approx(1.0)
    # 15 % is one and a half tokens: 6 + 3 / 2.
    assert at(shares, 15) == pytest.approx(0.75)
    assert at(shares, 100) == 1


def test_equal_tokens_are_not_concentrated():
    assert concentration([2.0] * 200) == pytest.approx([share / 100 for share in SHARES])


def test_nothing_is_shared_where_no_token_has_advantage():
    assert concentration([0.0, 0.0]) == []
    assert concentration([]) == []


def test_the_first_mention_is_the_first_high_token_with_advantage():
    # Token 1 is high by a tie at zero and token 2 is not high: token 3 of 5 counts.
    assert first_mention([0, 0, 9, 1, 2], [False, True, False, True, True]) == 3 / 5
    assert first_mention([0, 0], [True, False]) is None


def test_a_mention_needs_a_tenth_of_the_largest_advantage():
    assert first_mention([0.4, 0.5, 5], [True, True, True]) == 1 / 3


def test_positions_of_high_tokens_are_fractions_of_the_response():
    assert high_positions([True, False, False, True]) == [0, 0.75]


def test_a_histogram_closes_its_last_bin_and_counts_an_edge_to_the_right():
    assert even_edges(0, 2, 4) == [0, 0.5, 1, 1.5, 2]
    assert histogram([0, 0.49, 0.5, 2, 3], [0, 0.5, 1, 1.5, 2]) == [2, 1, 0, 1]


def test_a_quantile_is_the_value_at_its_rank():
    assert quantile([5, 1, 3, 2, 4], 0.5) == 3
    assert quantile([1, 2], 1.0) == 2
    assert quantile([], 0.5) == 0
