import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaopd.errors import AlignmentError
from vaopd.objective.advantage import (
    absolute_advantage,
    rollout_advantage,
    signed_advantage,
    view_divergence,
    visual_advantage,
)


def va(original: list[float], pixelated: list[float], mask: list[bool]) -> torch.Tensor:
    return visual_advantage(
        torch.tensor([original]), torch.tensor([pixelated]), torch.tensor([mask])
    )


def test_is_the_log_ratio_of_the_two_views():
    # The teacher gives the token 1/2 with the detail and 1/8 without: log 4 nats.
    result = va([math.log(1 / 2)], [math.log(1 / 8)], [True])
    torch.testing.assert_close(result, torch.tensor([[math.log(4)]]))


def test_clips_below_zero_and_ignores_padding_even_if_it_is_nan():
    # -1+2 = 1; -3+2 = -1 is clipped; -2+2 = 0; the last token is padding.
    nan = math.nan
    result = va([-1, -3, -2, nan], [-2, -2, -2, nan], [True, True, True, False])
    torch.testing.assert_close(result, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


def test_finite_padding_scores_nothing():
    assert va([-1.0, -1.0], [-2.0, -2.0], [True, False]).tolist() == [[1.0, 0.0]]


def test_has_no_gradient():
    original = torch.zeros(1, 2, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    result = visual_advantage(original, torch.full((1, 2), -1.0), mask)
    assert not result.requires_grad
    assert not rollout_advantage(original, mask).requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("view", ["original", "pixelated"])
def test_a_score_that_is_not_finite_names_its_token(bad, view):
    scores = {"original": torch.zeros(2, 3), "pixelated": torch.zeros(2, 3)}
    scores[view][1, 2] = bad
    with pytest.raises(AlignmentError, match="rollout 1, response token 2"):
        visual_advantage(
            scores["original"], scores["pixelated"], torch.ones(2, 3, dtype=torch.bool)
        )


def test_a_single_row_of_scores_does_not_spread_over_many_rollouts():
    with pytest.raises(Exception, match="B=1"):
        visual_advantage(torch.zeros(1, 4), torch.zeros(1, 4), torch.ones(3, 4, dtype=torch.bool))


def test_a_batch_without_tokens_has_no_advantage():
    empty = torch.zeros(2, 0)
    assert visual_advantage(empty, empty, empty.bool()).shape == (2, 0)
    assert rollout_advantage(empty, empty.bool()).tolist() == [0.0, 0.0]


def test_the_mean_counts_tokens_that_scored_zero():
    # Row 0: (0 + 2 + .1 + 0 + .4 + 0) / 6 = .416667, not 2.5 / 3. Row 1: .3 / 3 = .1, with padding.
    nan = math.nan
    advantage = torch.tensor([[0, 2, 0.1, 0, 0.4, 0], [0.3, 0, 0, nan, nan, 9]])
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    result = rollout_advantage(advantage, mask)
    torch.testing.assert_close(result, torch.tensor([2.5 / 6, 0.1]))


def test_the_mean_of_an_empty_response_is_zero():
    result = rollout_advantage(torch.full((1, 3), math.nan), torch.zeros(1, 3, dtype=torch.bool))
    assert result.tolist() == [0.0]


def test_the_mean_of_many_tokens_is_not_lost_to_rounding():
    # One token of 4096 nats and 4095 of 1e-4 each: (4096 + 0.4095) / 4096 = 1.0000999756.
    advantage = torch.full((1, 4096), 1e-4)
    advantage[0, 0] = 4096
    result = rollout_advantage(advantage, torch.ones(1, 4096, dtype=torch.bool))
    torch.testing.assert_close(result, torch.tensor([1.0000999756]), rtol=1e-7, atol=0)


@given(
    st.lists(
        st.tuples(st.floats(-30, 0, width=32), st.floats(-30, 0, width=32), st.booleans()),
        min_size=1,
        max_size=8,
    )
)
def test_equals_the_formula_token_by_token(tokens):
    original, pixelated, mask = (list(column) for column in zip(*tokens, strict=True))
    expected = [
        max(0.0, a - b) if real else 0.0
        for a, b, real in zip(original, pixelated, mask, strict=True)
    ]
    torch.testing.assert_close(va(original, pixelated, mask)[0], torch.tensor(expected))


def test_the_absolute_advantage_counts_losses_like_gains():
    nan = math.nan
    result = absolute_advantage(
        torch.tensor([[-1.0, -3.0, nan]]),
        torch.tensor([[-2.0, -1.0, nan]]),
        torch.tensor([[True, True, False]]),
    )
    torch.testing.assert_close(result, torch.tensor([[1.0, 2.0, 0.0]]))


def test_the_signed_advantage_keeps_what_the_detail_speaks_against():
    nan = math.nan
    result = signed_advantage(
        torch.tensor([[-1.0, -3.0, nan]]),
        torch.tensor([[-2.0, -1.0, nan]]),
        torch.tensor([[True, True, False]]),
    )
    torch.testing.assert_close(result, torch.tensor([[1.0, -2.0, 0.0]]))


def test_the_absolute_advantage_of_a_token_without_score_is_refused():
    with pytest.raises(AlignmentError, match="rollout 0, response token 1"):
        absolute_advantage(
            torch.tensor([[-1.0, math.inf]]), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
        )


def test_the_view_divergence_is_the_kl_from_the_original_to_the_pixelated_view():
    # p = (3/4, 1/4) with the detail, q = (1/2, 1/2) without: 3/4 log 3/2 + 1/4 log 1/2 = .130812.
    # The other way round it would be 1/2 log 2/3 + 1/2 log 2 = .143841.
    original, pixelated = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])
    result = view_divergence(original, pixelated, torch.eye(2))
    torch.testing.assert_close(result, torch.tensor([0.130812]), atol=1e-6, rtol=0)


def test_the_view_divergence_sees_what_the_sampled_token_does_not():
    # The detail decides between the first two of three tokens, and the student wrote the third,
    # equally unlikely in both views: its log-ratio is 0.
    original, pixelated = torch.tensor([[4.0, 0.0, -9.0]]), torch.tensor([[0.0, 4.0, -9.0]])
    logprobs = [view.log_softmax(-1)[:, 2:] for view in (original, pixelated)]
    assert visual_advantage(*logprobs, torch.ones(1, 1, dtype=torch.bool)).item() < 1e-6
    # (p1 - p2) x 4 with p1 = e^4 / (e^4 + 1) = .982014 up to the third token: 3.856.
    assert view_divergence(original, pixelated, torch.eye(3)).item() == pytest.approx(3.856, 1e-3)


def views(seed: int, num_tokens: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((num_tokens, 5), (num_tokens, 5), (13, 5))
    first, second, head = (torch.randn(shape, generator=generator) for shape in shapes)
    return first, second, head


@given(seed=st.integers(0, 10**6), vocab_size=st.sampled_from([None, 11]))
def test_the_view_divergence_is_that_of_plain_float64_softmaxes(seed: int, vocab_size: int | None):
    first, second, head = views(seed)
    p, q = ((h.double() @ head.double().T)[:, :vocab_size].log_softmax(-1) for h in (first, second))
    expected = (p.exp() * (p - q)).sum(-1).float()
    result = view_divergence(first, second, head, vocab_size=vocab_size)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)
    assert (result >= 0).all()


@given(seed=st.integers(0, 10**6), chunk_size=st.integers(1, 9))
def test_the_chunk_size_never_matters_to_the_view_divergence(seed: int, chunk_size: int):
    first, second, head = views(seed)
    torch.testing.assert_close(
        view_divergence(first, second, head, chunk_size=chunk_size),
        view_divergence(first, second, head),
        atol=1e-5,
        rtol=1e-5,
    )


@given(seed=st.integers(0, 10**6))
def test_equal_views_diverge_by_exactly_zero(seed: int):
    first, _, head = views(seed)
    assert view_divergence(first, first.clone(), head).eq(0).all()


def test_the_view_divergence_has_no_gradient():
    first, second, head = (tensor.requires_grad_() for tensor in views(0))
    assert not view_divergence(first, second, head).requires_grad
