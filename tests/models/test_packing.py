from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import micro_batches, response_hidden_states, split_by_rollout
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.divergence import weighted_reverse_kl

LENGTHS = [(5, 1, 0), (3, 7, 2), (1, 4, 6), (0, 0, 0)]
"""Of the siblings of four problems: ragged, with one-token and empty responses."""

PATHS = {
    "packed": {"budget_tokens": 10_000},
    "packed, one problem a forward": {"budget_tokens": 1},
    "plain": {"budget_tokens": 10_000, "share_prefix": False},
    "plain, one row a forward": {"budget_tokens": 1, "share_prefix": False},
}


@dataclass
class Step:
    """Prompts and responses of a step, and a random teacher for its loss."""

    prompts: list[EncodedPrompt]
    responses: list[list[Tensor]]
    teacher_hidden: Tensor
    teacher_head: Tensor
    weights: Tensor

    @property
    def lengths(self) -> list[int]:
        return [len(response) for siblings in self.responses for response in siblings]


@pytest.fixture
def make_step(draw_problem: Callable, draw_response: Callable) -> Callable:
    def make(model: VisionLanguageModel) -> Step:
        # The images are 2 x 4, 3 x 3 + 4 x 2, 6 x 2 and 2 x 2 visual tokens.
        problems = [
            draw_problem("wide", (64, 32)),
            draw_problem("two images", (48, 48), (32, 64), text="Compare them."),
            draw_problem("tall", (32, 96), text="Find the length of the longest side."),
            draw_problem("small", (32, 32)),
        ]
        prompts = [model.family.encode(p, p.load_images()) for p in problems]
        responses = [
            [draw_response(length, 10 * number + k) for k, length in enumerate(lengths)]
            for number, lengths in enumerate(LENGTHS)
        ]
        total = sum(map(sum, LENGTHS))
        generator = torch.Generator().manual_seed(7)
        return Step(
            prompts,
            responses,
            torch.randn(total, 24, generator=generator),
            torch.randn(700, 24, generator=generator) * 0.3,
            torch.rand(total, generator=generator),
        )

    return make


def hidden_states(
    model: VisionLanguageModel,
    prompts: Sequence[EncodedPrompt],
    responses: Sequence[Sequence[Tensor]],
    **options: Any,
) -> Tensor:
    """Return the hidden states of all response tokens, in the order of the rollouts."""
    lengths = [len(response) for siblings in responses for response in siblings]
    found: dict[int, Tensor] = {}
    for micro in micro_batches(model, prompts, responses, **options):
        states = response_hidden_states(model, micro.batch)
        found |= dict(split_by_rollout(states, micro, lengths))
    return torch.cat([found[number] for number in sorted(found)])


def plain_hidden_states_and_logits(model: VisionLanguageModel, step: Step) -> tuple[Tensor, Tensor]:
    """Return what the model's own forward gives, one row a rollout, its positions its own."""
    kept: list[Tensor] = []
    hook = model.model.lm_head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    hidden, logits = [], []
    for prompt, siblings in zip(step.prompts, step.responses, strict=True):
        for response in siblings:
            if not len(response):
                continue
            ids = torch.cat([prompt.input_ids, response])[None]
            is_image = ids == model.model.config.image_token_id
            output = model.model(
                input_ids=ids, mm_token_type_ids=is_image.int(), **prompt.image_inputs
            )
            predictors = slice(len(prompt) - 1, -1)
            hidden.append(kept[-1][0, predictors])
            logits.append(output.logits[0, predictors])
    hook.remove()
    return torch.cat(hidden), torch.cat(logits)


def loss_and_gradients(
    model: VisionLanguageModel, step: Step, hidden: Tensor
) -> tuple[float, dict[str, Tensor]]:
    model.model.zero_grad()
    loss, _ = weighted_reverse_kl(
        hidden,
        model.head,
        step.teacher_hidden,
        step.teacher_head,
        step.weights,
        vocab_size=model.vocab_size,
    )
    loss.backward()
    return loss.item(), gradients(model)


def plain_loss_and_gradients(
    model: VisionLanguageModel, step: Step
) -> tuple[float, dict[str, Tensor]]:
    """Return the reverse KL written out over whole logits of plain forwards."""
    model.model.zero_grad()
    _, logits = plain_hidden_states_and_logits(model, step)
    student = logits[:, : model.vocab_size].log_softmax(-1)
    teacher = step.teacher_hidden @ step.teacher_head.T
    teacher = teacher[:, : model.vocab_size].log_softmax(-1)
    loss = (step.weights * (student.exp() * (student - teacher)).sum(-1)).sum()
    loss.backward()
    return loss.item(), gradients(model)


def gradients(model: VisionLanguageModel) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in model.model.named_parameters()}
    assert [name for name, gradient in found.items() if gradient is None] == []
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def assert_same_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (ours[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-4, f"{name} differs by {difference:.1e}"


@pytest.mark.parametrize("path", PATHS)
def test_hidden_states_are_those_of_the_models_own_forward(qwen, make_step, path):
    step = make_step(qwen)
    with torch.no_grad():
        expected, _ = plain_hidden_states_and_logits(qwen, step)
        ours = hidden_states(qwen, step.prompts, step.responses, **PATHS[path])
    # 29 response tokens of width 32.
    assert ours.shape == (29, 32)
    torch.testing.assert_close(ours, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_loss_and_every_gradient_are_those_of_the_models_own_forward(qwen, make_step, path):
    step = make_step(qwen)
    expected_loss, expected = plain_loss_and_gradients(qwen, step)
    hidden = hidden_states(qwen, step.prompts, step.responses, **PATHS[path])
    loss, ours = loss_and_gradients(qwen, step, hidden)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_same_gradients(ours, expected)


def test_no_part_of_the_model_is_left_without_gradient(qwen, make_step):
    step = make_step(qwen)
    _, found = loss_and_gradients(
        qwen, step, hidden_states(qwen, step.prompts, step.responses, **PATHS["packed"])
    )
    assert [name for name, gradient in found.items() if not gradient.abs().max() > 0] == []
    assert any("visual" in name for name in found)
    assert not found["model.language_model.embed_tokens.weight"].isnan().any()


def test_the_gradient_does_not_depend_on_the_budget(qwen3, make_step):
    step = make_step(qwen3)
    results = [
        loss_and_gradients(
            qwen3,
            step,
            hidden_states(qwen3, step.prompts, step.responses, budget_tokens=budget),
        )
        for budget in (1, 90, 10_000)
    ]
    for loss, found in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        assert_same_gradients(found, results[0][1])


def test_accumulated_micro_batches_give_the_gradient_of_one(qwen3, make_step):
    step = make_step(qwen3)
    whole = hidden_states(qwen3, step.prompts, step.responses, budget_tokens=10_000)
    expected_loss, expected = loss_and_gradients(qwen3, step, whole)
    qwen3.model.zero_grad()
    lengths = step.lengths
    total = 0.0
    for micro in micro_batches(qwen3, step.prompts, step.responses, budget_tokens=1):
        picked = torch.cat(
            [torch.arange(sum(lengths[:n]), sum(lengths[: n + 1])) for n in micro.rollouts]
        )
        loss, _ = weighted_reverse_kl(
            response_hidden_states(qwen3, micro.batch),
            qwen3.head,
            step.teacher_hidden[picked],
            step.teacher_head,
            step.weights[picked],
            vocab_size=qwen3.vocab_size,
        )
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(expected_loss, rel=1e-5)
    assert_same_gradients(gradients(qwen3), expected)


def test_a_sibling_changes_nothing_for_the_others(qwen, make_step, draw_response):
    step = make_step(qwen)
    changed = [list(siblings) for siblings in step.responses]
    changed[1][1] = draw_response(7, 999)
    with torch.no_grad():
        before = hidden_states(qwen, step.prompts, step.responses, budget_tokens=10_000)
        after = hidden_states(qwen, step.prompts, changed, budget_tokens=10_000)
    moved = (before - after).abs().amax(-1) > 1e-5
    # Rollout 4 holds tokens 9 to 15; its first token is predicted by the prompt alone.
    assert moved.nonzero()[:, 0].tolist() == [10, 11, 12, 13, 14, 15]


def test_what_the_model_did_before_changes_nothing(qwen, make_step, draw_problem):
    step = make_step(qwen)
    other = draw_problem("other", (96, 96))
    prompt = qwen.family.encode(other, other.load_images())
    with torch.no_grad():
        before = hidden_states(qwen, step.prompts, step.responses, budget_tokens=10_000)
        qwen.model.generate(
            input_ids=prompt.input_ids[None],
            mm_token_type_ids=(prompt.input_ids == qwen.model.config.image_token_id).int()[None],
            attention_mask=torch.ones_like(prompt.input_ids[None]),
            max_new_tokens=2,
            pad_token_id=0,
            **prompt.image_inputs,
        )
        after = hidden_states(qwen, step.prompts, step.responses, budget_tokens=10_000)
    assert after.equal(before)


@pytest.mark.parametrize(("share_prefix", "images"), [(True, 4), (False, 2 + 2 * 3 + 3)])
def test_siblings_share_one_pass_of_the_vision_tower(qwen3, make_step, share_prefix, images):
    # Two images in problem 1, one in 0 and 2; problem 3 has no response. Rollouts: 2, 3, 3.
    step = make_step(qwen3)
    seen = []
    hook = qwen3.base.visual.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    with torch.no_grad():
        hidden_states(
            qwen3, step.prompts, step.responses, budget_tokens=10_000, share_prefix=share_prefix
        )
    hook.remove()
    assert seen == [images]


def test_a_shared_prompt_costs_its_tokens_once(qwen3, make_step):
    step = make_step(qwen3)
    (packed,) = micro_batches(qwen3, step.prompts[:1], step.responses[:1], budget_tokens=10_000)
    assert packed.batch.inputs["input_ids"].shape == (1, len(step.prompts[0]) + 5 + 1)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=4),
    budget=st.integers(1, 400),
    share_prefix=st.booleans(),
)
def test_every_response_that_is_not_empty_travels_once(
    qwen3, make_step, lengths, budget, share_prefix
):
    prompts = make_step(qwen3).prompts[: len(lengths)]
    responses = [[torch.arange(n) + 7 * k for k, n in enumerate(group)] for group in lengths]
    flat = [response for group in responses for response in group]
    covered = []
    for micro in micro_batches(
        qwen3, prompts, responses, budget_tokens=budget, share_prefix=share_prefix
    ):
        covered += micro.rollouts
        rows, width = micro.batch.inputs["input_ids"].shape
        assert rows == 1 or rows * width <= budget
        expected = [flat[number] for number in micro.rollouts]
        assert micro.batch.targets.equal(torch.cat(expected))
        pieces = split_by_rollout(micro.batch.targets, micro, [len(r) for r in flat])
        assert [number for number, _ in pieces] == list(micro.rollouts)
    assert sorted(covered) == [number for number, response in enumerate(flat) if len(response)]
