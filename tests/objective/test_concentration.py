"""Effective shares, and weights that are lifted or tempered."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vaopd.errors import ConfigError
from vaopd.objective.concentration import effective_share, lift, relative_share, temper
from vaopd.objective.weights import uniform_token_weights

SHARE = st.floats(0.05, 1.0)


def test_the_effective_share_of_tokens_is_as_worked_out_by_hand():
    # 8 tokens of 1/16 and 32 of 1/64: the squares add up to 5/128, of 40 tokens 25.6 are left.
    token = torch.where(torch.arange(40)[None] < 8, 1 / 16, 1 / 64)
    padded = torch.cat([token, torch.full((1, 3), 9.0)], 1)
    mask = torch.arange(43)[None] < 40
    assert effective_share(padded, mask) == pytest.approx(0.64)
    assert effective_share(torch.full((2, 3), 0.1), torch.ones(2, 3) > 0) == pytest.approx(1)


def test_the_relative_share_is_as_worked_out_by_hand():
    # c^2 / u = 1/16 / 1/8 = 1/2 twice, 1/4 / 1/2 = 1/2, 0: 1 / 1.5, and u adds up to 1.
    uniform = torch.tensor([[1 / 8, 1 / 8, 1 / 4], [1 / 2, 0.0, 0.0]])
    weights = torch.tensor([[1 / 4, 1 / 4, 0.0], [1 / 2, 0.0, 0.0]])
    assert relative_share(weights, uniform) == pytest.approx(2 / 3)
    # Different lengths lower Kish's share of tokens and not this one.
    assert effective_share(uniform, uniform > 0) == pytest.approx(1 / (4 * 0.34375))
    assert relative_share(uniform, uniform) == pytest.approx(1)


def test_lifted_weights_are_as_worked_out_by_hand():
    # Uniform 1/4 each: 1/2, 1/4, 1/4, 1/4 after the lift, 5/4 in all, so 4/5 of each is left.
    uniform = torch.full((1, 4), 0.25)
    weights = torch.tensor([[0.5, 0.25, 0.2, 0.05]])
    lifted = lift(weights, uniform, torch.tensor([0]))
    torch.testing.assert_close(lifted, torch.tensor([[0.4, 0.2, 0.2, 0.2]]))


def test_tempered_weights_are_as_worked_out_by_hand():
    # c / u = 9/5 and 1/5, whose square roots are as 3 to 1: with 3/4 and 1/4 the share is
    # 1 / (2 (9/16 + 1/16)) = 4/5.
    weights, uniform = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    tempered = temper(weights, uniform, torch.tensor([0]), share=0.8)
    torch.testing.assert_close(tempered, torch.tensor([[0.75, 0.25]]))


def test_weights_can_be_sharpened_to_a_lower_share_as_well():
    # Squares are as 81 to 1.
    weights, uniform = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    share = 82**2 / (2 * (81**2 + 1))
    tempered = temper(weights, uniform, torch.tensor([0]), share=share)
    torch.testing.assert_close(tempered, torch.tensor([[81 / 82, 1 / 82]]), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_a_share_outside_its_range_is_an_error(share: float):
    one = torch.ones(1, 1)
    with pytest.raises(ConfigError, match="share is"):
        temper(one, one, torch.tensor([0]), share=share)


LENGTHS = st.lists(st.integers(0, 6), min_size=2, max_size=6).filter(any)
SEEDS = st.integers(0, 2**31)


def ragged_step(lengths: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, uniform weights and problem numbers of a step; siblings come in pairs."""
    problems = torch.tensor([i // 2 for i in range(len(lengths))])
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    uniform = uniform_token_weights(mask, problems)
    raw = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) ** 3
    raw = (raw + 1e-3) * mask
    sums = torch.zeros(len(lengths)).index_add(0, problems, raw.sum(-1))[problems, None]
    return raw / sums.clamp(min=1e-9), uniform, problems


def sums_of(weights: Tensor, problems: Tensor) -> Tensor:
    return torch.zeros(len(weights)).index_add(0, problems, weights.sum(-1))


@settings(max_examples=30)
@given(LENGTHS, SEEDS, SHARE)
def test_both_changes_keep_each_problems_share_of_the_loss(
    lengths: list[int], seed: int, share: float
):
    weights, uniform, problems = ragged_step(lengths, seed)
    before = sums_of(weights, problems)
    for after in (
        lift(weights, uniform, problems),
        temper(weights, uniform, problems, share=share),
    ):
        torch.testing.assert_close(sums_of(after, problems), before)
        assert (after >= 0).all()
        assert (after[uniform == 0] == 0).all()


@settings(max_examples=30)
@given(LENGTHS, SEEDS, SHARE)
def test_a_tempered_step_has_the_wanted_share_or_the_nearest_that_can_be_had(
    lengths: list[int], seed: int, share: float
):
    weights, uniform, problems = ragged_step(lengths, seed)
    found = relative_share(temper(weights, uniform, problems, share=share), uniform)
    sharpest = relative_share(temper(weights, uniform, problems, share=1e-9), uniform)
    assert found == pytest.approx(max(share, sharpest), rel=1e-3)


@settings(max_examples=30)
@given(LENGTHS, SEEDS)
def test_the_order_of_tokens_stays(lengths: list[int], seed: int):
    weights, uniform, problems = ragged_step(lengths, seed)
    tempered = temper(weights, uniform, problems, share=0.9)
    for row in range(len(weights)):
        ranks = weights[row].argsort(stable=True)
        assert (tempered[row][ranks].diff() >= -1e-7).all()


@settings(max_examples=30)
@given(LENGTHS, SEEDS)
def test_a_lifted_token_weighs_more_than_another_only_if_it_did_before(
    lengths: list[int], seed: int
):
    weights, uniform, problems = ragged_step(lengths, seed)
    lifted = lift(weights, uniform, problems)
    raised = weights <= uniform
    for problem in problems.unique():
        here = raised & (problems == problem)[:, None] & (uniform > 0)
        ratios = (lifted / uniform.clamp(min=1e-9))[here]
        if len(ratios):
            # All tokens that weighed less than uniformly now weigh uniformly against each other.
            torch.testing.assert_close(ratios, ratios[0].expand_as(ratios))


def test_tokens_without_weight_keep_none():
    weights, uniform = torch.tensor([[0.6, 0.4, 0.0, 0.0]]), torch.full((1, 4), 0.25)
    tempered = temper(weights, uniform, torch.tensor([0]), share=0.5)
    torch.testing.assert_close(tempered, torch.tensor([[0.5, 0.5, 0.0, 0.0]]), atol=1e-4, rtol=0.0)
