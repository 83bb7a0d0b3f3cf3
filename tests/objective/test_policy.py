"""Policy gradients: advantages by reward, clipped losses, and the KL at sampled tokens."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vaopd.config import parse_config
from vaopd.errors import AlignmentError
from vaopd.methods import make_method
from vaopd.methods.base import StepRollouts, StudentStates
from vaopd.objective.policy import (
    clipped_surrogate,
    group_advantage,
    sampled_kl,
    weighted_token_loss,
)


def close(found: Tensor, expected: list[float], tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(
        found.double(), torch.tensor(expected).double(), atol=tolerance, rtol=0.0
    )


def test_the_advantages_of_two_problems_are_as_worked_out_by_hand():
    # Problem 0: rewards 1, 0, 0, 0 have the mean 1/4 and the sample deviation 1/2, so A is
    # .75 / .5001 and -.25 / .5001. Problem 1: rewards 1, 0 have 1/2 and sqrt(1/2).
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    problem_ids = torch.tensor([0, 0, 1, 0, 1, 0])
    found = group_advantage(rewards, problem_ids)
    close(found, [1.4997, -0.4999, 0.7070, -0.4999, -0.7070, -0.4999])


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_siblings_of_one_reward_have_no_advantage(reward: float):
    found = group_advantage(torch.full((5,), reward), torch.tensor([0, 0, 0, 1, 1]))
    assert found.tolist() == [0] * 5


def test_a_response_without_siblings_has_no_advantage():
    assert group_advantage(torch.tensor([1.0]), torch.tensor([0])).tolist() == [0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),
        # Above 1.2 a better response gains no more, and has no gradient.
        (1.5, 2.0, -2.4, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        # Below 0.8 a worse response loses no more.
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_the_clipped_loss_and_its_slope_are_as_worked_out_by_hand(
    ratio: float, advantage: float, expected: float, slope: float
):
    logprobs = torch.tensor([math.log(ratio) - 1], dtype=torch.float64, requires_grad=True)
    old, gain = (torch.tensor([x], dtype=torch.float64) for x in (-1.0, advantage))
    loss = clipped_surrogate(logprobs, old, gain, clip=0.2)
    loss.sum().backward()
    close(loss.detach(), [expected])
    assert logprobs.grad is not None
    # d (r A) / d log p = r A.
    close(logprobs.grad, [slope])


def test_the_estimate_of_the_kl_is_as_worked_out_by_hand():
    # d = ln 2: 2 - ln 2 - 1; d = -ln 2: 1/2 + ln 2 - 1; d = 0: 0.
    other = torch.tensor([math.log(2), -math.log(2), 0.0]) - 3
    close(sampled_kl(torch.full((3,), -3.0), other), [0.306853, 0.193147, 0.0])


def test_the_mean_of_the_estimate_over_a_distribution_is_its_kl():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    torch.testing.assert_close((p * sampled_kl(p.log(), q.log())).sum(), (p * (p / q).log()).sum())


def plain_loss(hidden: Tensor, head: Tensor, ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return a loss of the log-probs that is no mean, and the log-probs, by torch's own softmax."""
    logprobs = (hidden @ head.T)[:, :vocab_size].log_softmax(-1)
    chosen = logprobs.gather(-1, ids[:, None])[:, 0]
    return odd_loss(chosen, slice(0, len(ids))), chosen


def odd_loss(logprobs: Tensor, tokens: slice) -> Tensor:
    """Return a loss that differs from token to token."""
    return (torch.arange(tokens.start, tokens.stop) % 3 - 1) * logprobs.exp() + logprobs**2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9), st.integers(1, 6), st.integers(0, 3), st.integers(0, 99))
def test_value_and_gradients_equal_those_of_torch_in_chunks_of_any_size(
    num_tokens: int, chunk_size: int, padding: int, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, 4, generator=generator, dtype=torch.float64)
    head = torch.randn(7 + padding, 4, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 7, (num_tokens,), generator=generator)
    weights = torch.rand(num_tokens, generator=generator, dtype=torch.float64)
    ours = [t.clone().requires_grad_() for t in (hidden, head)]
    theirs = [t.clone().requires_grad_() for t in (hidden, head)]
    loss, nll = weighted_token_loss(
        *ours, ids, weights, odd_loss, vocab_size=7, chunk_size=chunk_size
    )
    values, chosen = plain_loss(*theirs, ids, 7)
    expected = (weights * values).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, -chosen.detach())
    (3 * loss).backward()
    (3 * expected).backward()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_an_id_outside_the_vocabulary_is_refused():
    with pytest.raises(AlignmentError, match="token 1 has id 7"):
        weighted_token_loss(
            torch.zeros(2, 3), torch.zeros(9, 3), torch.tensor([0, 7]), torch.ones(2),
            lambda logprobs, tokens: logprobs, vocab_size=7,
        )  # fmt: skip


# --- against TRL ------------------------------------------------------------------------------


class Counting:
    """Stands in for accelerate's class: one process."""

    num_processes = 1

    def gather(self, values: Tensor) -> Tensor:
        return values

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return values


def trl_loss(logprobs: Tensor, given: dict[str, Tensor], mask: Tensor, **options: float) -> Tensor:
    """Return the loss of TRL's GRPO trainer for these log-probs, B x T, by its own function."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    args = SimpleNamespace(use_bias_correction_kl=False, delta=None)
    stand_in: Any = SimpleNamespace(
        args=args, accelerator=Counting(), model=SimpleNamespace(training=True),
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, torch.zeros_like(mask), None),
        _metrics={"train": defaultdict(list)}, loss_type="grpo", beta=options["beta"],
        epsilon_low=options["clip"], epsilon_high=options["clip"],
        importance_sampling_level="token", top_entropy_quantile=1.0, use_vllm=False,
        off_policy_mask_threshold=None, aux_loss_enabled=False, _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
    )  # fmt: skip
    empty = torch.zeros(len(mask), 0, dtype=torch.long)
    inputs = {
        "prompt_ids": empty, "prompt_mask": empty, "completion_ids": mask.long(),
        "completion_mask": mask, **given,
    }  # fmt: skip
    return vars(trainer)["_compute_loss"](stand_in, None, inputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("is_sampled_elsewhere", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_the_loss_and_its_gradient_are_those_of_trl(is_sampled_elsewhere: bool, beta: float):
    generator = torch.Generator().manual_seed(5)
    lengths, vocabulary = [3, 5, 2, 4], 11
    responses = [torch.randint(0, vocabulary, (n,), generator=generator) for n in lengths]
    near = [torch.randn(n, generator=generator) / 3 for n in lengths]
    hidden = torch.randn(sum(lengths), 6, generator=generator)
    head = torch.randn(vocabulary, 6, generator=generator)
    ids = torch.cat(responses)
    logprobs = (hidden @ head.T).log_softmax(-1).gather(-1, ids[:, None])[:, 0].split(lengths)
    moved = [one + gap for one, gap in zip(logprobs, near, strict=True)]
    batch = StepRollouts(
        responses=[responses[:2], responses[2:]],
        keys=["a", "b", "c", "d"],
        rewards=torch.tensor([1.0, 0.0, 0.0, 1.0]),
        sampled_logprobs=moved if is_sampled_elsewhere else None,
        reference_logprobs=[one - gap for one, gap in zip(logprobs, near, strict=True)],
    )
    recipe = {
        "student": {"model": "s"}, "data": {"train": "t"},
        "sampling": {"temperature": 1.0, "top_p": 1.0},
        "method": {"name": "grpo", "reference_coefficient": beta},
    }  # fmt: skip
    method = make_method(parse_config(recipe).method)
    weights = method.weigh(batch, None)
    assert beta or method.needs.reference_logprobs is False
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    states = StudentStates(
        hidden=ours,
        head=head,
        targets=ids,
        vocab_size=vocabulary,
        constants={name: values[batch.mask] for name, values in weights.constants.items()},
    )
    loss, _ = method.loss(states, None, weights.token[batch.mask] / 2)

    mask = batch.mask.float()
    own = torch.zeros(mask.shape).masked_scatter(
        batch.mask, (theirs @ head.T).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    )
    given = {
        "advantages": group_advantage(torch.tensor([1.0, 0.0, 0.0, 1.0]), batch.problem_ids),
        "ref_per_token_logps": batch.pad(batch.reference_logprobs or ()),
        **({"old_per_token_logps": batch.pad(moved)} if is_sampled_elsewhere else {}),
    }
    expected = trl_loss(own, given, mask, beta=beta, clip=0.2)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
