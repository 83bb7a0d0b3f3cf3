"""Rows that end make place for other prompts, and no response changes by that."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.rollouts.cache import ROOM, RoomyLayer
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler

SETTINGS = SamplingSettings(
    num_rollouts=2, temperature=0.8, top_p=0.95, max_new_tokens=120, seed=3, stream="step 1"
)
SIZES = ((32, 32), (96, 96), (64, 32), (48, 48), (32, 96))
LONGEST = 90
"""More than the tokens of any prompt here."""


@pytest.fixture(scope="module")
def model(model: VisionLanguageModel) -> VisionLanguageModel:
    """A model whose responses are longer."""
    model.model.generation_config.eos_token_id = list(range(0, 600, 24))
    return model


@pytest.fixture(scope="module")
def prompts(model: VisionLanguageModel) -> list[EncodedPrompt]:
    """Twelve prompts of several lengths."""
    problems = DrawnProblems(num_problems=12, kinds=("bars", "triangle", "circle"))
    found = [
        model.family.encode(problem, [problem.load_images()[0].resize(SIZES[n % len(SIZES)])])
        for n, problem in enumerate(problems)
    ]
    assert max(map(len, found)) < LONGEST
    assert len({len(prompt) for prompt in found}) > 3
    return found


@pytest.fixture(scope="module")
def expected(model: VisionLanguageModel, prompts: list[EncodedPrompt]) -> list[list[Rollout]]:
    """All prompts in one batch, which is never refilled."""
    return TransformersSampler(model).sample(prompts, SETTINGS)


class Watch:
    """Counts the forwards, their rows, and the columns of the cache."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.rows: list[int] = []
        self.prefills: list[int] = []
        self.columns: list[int] = []
        self.hook = model.base.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, module: torch.nn.Module, arguments: tuple, options: dict) -> None:
        del module, arguments
        rows, width = options["input_ids"].shape
        if width == 1:
            self.rows.append(rows)
            self.columns.append(options["attention_mask"].shape[1])
        else:
            self.prefills.append(rows)


@pytest.fixture
def watch(model: VisionLanguageModel) -> Iterator[Watch]:
    made = Watch(model)
    yield made
    made.hook.remove()


def budget(prompts: int) -> int:
    """Return the tokens that this many prompts need, if they and their responses are longest."""
    return prompts * SETTINGS.num_rollouts * (LONGEST + SETTINGS.max_new_tokens)


def flat(groups: list[list[Rollout]]) -> list[tuple]:
    return [
        (r.problem_id, r.sibling, r.response_ids, r.finish_reason)
        for group in groups
        for r in group
    ]


@pytest.mark.parametrize("together", [1, 2, 5])
@pytest.mark.parametrize("check_every", [1, 16])
def test_responses_do_not_depend_on_how_many_rows_are_decoded_together(
    model, prompts, expected, together, check_every
):
    sampler = TransformersSampler(model, batch_tokens=budget(together))
    sampler.check_every = check_every
    assert flat(sampler.sample(prompts, SETTINGS)) == flat(expected)
    lengths = [len(rollout.response_ids) for group in expected for rollout in group]
    assert min(lengths) < 5 < 40 < max(lengths)


def test_other_prompts_begin_before_the_longest_response_ends(model, prompts, expected, watch):
    sampler = TransformersSampler(model, batch_tokens=budget(4))
    sampler.sample(prompts, SETTINGS)
    # Batches that wait for their longest response.
    lengths = [max(len(rollout.response_ids) for rollout in group) for group in expected]
    waiting = sum(max(lengths[n : n + 4]) - 1 for n in range(0, 12, 4))
    assert len(watch.rows) < waiting
    assert len(watch.prefills) > 3
    assert sum(watch.prefills) == len(prompts)


def test_the_rows_never_need_more_than_the_budget(model, prompts, watch):
    TransformersSampler(model, batch_tokens=budget(4)).sample(prompts, SETTINGS)
    assert max(watch.rows) <= 4 * SETTINGS.num_rollouts + SETTINGS.num_rollouts
    widest = LONGEST + SETTINGS.max_new_tokens
    assert max(watch.columns) <= widest + max(ROOM, widest // 4)


def test_columns_that_no_row_uses_are_dropped(model, prompts, expected, watch, monkeypatch):
    dropped, limits = [], []
    drop, add = RoomyLayer.drop_columns, RoomyLayer.add_rows

    def spy(layer: RoomyLayer, count: int) -> None:
        dropped.append(count)
        drop(layer, count)

    def spy_on_limit(layer: RoomyLayer, other: RoomyLayer, limit: int) -> None:
        limits.append(limit)
        add(layer, other, limit)

    monkeypatch.setattr(RoomyLayer, "add_rows", spy_on_limit)
    monkeypatch.setattr(RoomyLayer, "drop_columns", spy)
    # Two prompts at a time, many times: all columns together would be far wider.
    sampler = TransformersSampler(model, batch_tokens=budget(2))
    assert flat(sampler.sample(prompts * 2, SETTINGS)) == flat(expected) * 2
    assert sum(dropped) > 0
    assert max(watch.columns) < len(watch.rows)
    widest = LONGEST + SETTINGS.max_new_tokens
    assert max(limits) <= widest + max(ROOM, widest // 4)


def test_complete_prompts_are_handed_out_before_all_have_ended(model, prompts, expected):
    sampler = TransformersSampler(model, batch_tokens=budget(2))
    parts = list(sampler.stream(iter(prompts), SETTINGS))
    assert len(parts) > 3
    assert all(len(group) == SETTINGS.num_rollouts for part in parts for group in part)
    found = [group for part in parts for group in part]
    assert sorted(flat(found)) == sorted(flat(expected))


def test_a_prompt_is_taken_only_when_there_is_place_for_it(model, prompts):
    taken = []

    def given() -> Iterator[EncodedPrompt]:
        for prompt in prompts:
            taken.append(prompt.problem_id)
            yield prompt

    first = next(TransformersSampler(model, batch_tokens=budget(2)).stream(given(), SETTINGS))
    assert len(first) < len(taken) < len(prompts)


def test_a_prompt_that_is_too_long_for_the_budget_is_decoded_alone(model, prompts, expected, watch):
    sampler = TransformersSampler(model, batch_tokens=1)
    assert flat(sampler.sample(prompts[:3], SETTINGS)) == flat(expected[:3])
    assert watch.prefills == [1, 1, 1]


def test_two_prompts_of_one_problem_keep_their_places(model, prompts, expected):
    short = dataclasses.replace(SETTINGS, max_new_tokens=7)
    once = TransformersSampler(model).sample(prompts[:2], short)
    sampler = TransformersSampler(model, batch_tokens=budget(1))
    assert flat(sampler.sample([*prompts[:2], *prompts[:2]], short)) == flat(once) * 2


def test_a_model_without_an_end_fills_every_response(model, prompts, monkeypatch):
    monkeypatch.setattr(VisionLanguageModel, "eos_token_ids", property(lambda _: []))
    short = dataclasses.replace(SETTINGS, max_new_tokens=3)
    groups = TransformersSampler(model, batch_tokens=budget(2)).sample(prompts, short)
    assert {(len(ids), reason) for _, _, ids, reason in flat(groups)} == {(3, "length")}
