import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from vaopd.config import DataConfig, ViewConfig, parse_config
from vaopd.errors import AlignmentError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.advantage import visual_advantage
from vaopd.problems.drawn import DrawnProblems
from vaopd.problems.problem import Problem
from vaopd.teacher.local import LocalTeacher, TeacherScores, load_teacher, score_view

RESPONSES = [
    [torch.tensor(ids, dtype=torch.long) for ids in group]
    for group in (
        [[5, 6, 7, 8], [9], []],
        [[10, 11], [12, 13, 14], [15, 16, 17, 18, 19]],
        [[], [20], [21, 22]],
    )
]
LENGTHS = [4, 1, 0, 2, 3, 5, 0, 1, 2]


def sharp(dtype: torch.dtype = torch.float32) -> VisionLanguageModel:
    model = load_model(
        "tiny:new-teacher-s", device=torch.device("cpu"), dtype=dtype, compute_dtype=dtype
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.model.parameters():
            if weight.ndim > 1:
                drawn = torch.randn(weight.shape, generator=generator)
                weight.copy_(drawn * weight[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def teacher() -> LocalTeacher:
    return LocalTeacher(sharp(), batch_tokens=10_000)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return list(DrawnProblems(num_problems=3))


def encoder(teacher: LocalTeacher, ratio: float = 0.1) -> PromptEncoder:
    data = DataConfig(train="drawn:train", min_pixels=1, max_pixels=96 * 96)
    return PromptEncoder(teacher.model, data, ViewConfig(ratio=ratio))


def views(
    teacher: LocalTeacher, problems: list[Problem], ratio: float = 0.1
) -> tuple[list[EncodedPrompt], list[EncodedPrompt]]:
    both = [encoder(teacher, ratio).both(problem) for problem in problems]
    return [original for original, _ in both], [degraded for _, degraded in both]


def advantages(scores: TeacherScores) -> list[torch.Tensor]:
    assert scores.degraded_logprobs is not None
    pairs = zip(scores.original_logprobs, scores.degraded_logprobs, strict=True)
    return [
        visual_advantage(one[None], two[None], torch.ones(1, len(one), dtype=torch.bool))[0]
        for one, two in pairs
    ]


def plain_logprobs(model: VisionLanguageModel, prompt: EncodedPrompt, response: torch.Tensor):
    """Return the log-softmax over real ids of the model's own forward on a row of its own."""
    ids = torch.cat([prompt.input_ids, response])[None]
    is_image = ids == model.model.config.image_token_id
    with torch.no_grad():
        logits = model.model(
            input_ids=ids, mm_token_type_ids=is_image.int(), **prompt.image_inputs
        ).logits
    scores = logits[0, len(prompt) - 1 : -1, : model.vocab_size].float().log_softmax(-1)
    return scores.gather(-1, response[:, None])[:, 0]


def test_scores_are_the_log_softmax_of_the_models_own_forward(teacher, problems):
    originals, degraded = views(teacher, problems)
    scores = teacher.score(originals, degraded, RESPONSES)
    assert scores.degraded_logprobs is not None
    flat = [(n, response) for n, group in enumerate(RESPONSES) for response in group]
    for (n, response), one, two in zip(
        flat, scores.original_logprobs, scores.degraded_logprobs, strict=True
    ):
        for prompt, scored in ((originals[n], one), (degraded[n], two)):
            expected = plain_logprobs(teacher.model, prompt, response)
            torch.testing.assert_close(scored, expected, atol=1e-5, rtol=1e-5)
    gaps = torch.cat(scores.original_logprobs) - torch.cat(scores.degraded_logprobs)
    # Some tokens are likelier with the detail and some without.
    assert gaps.min() < -0.01 < 0.01 < gaps.max()


def test_hidden_states_with_the_head_give_the_scores(teacher, problems):
    originals, _ = views(teacher, problems)
    scores = teacher.score(originals, None, RESPONSES)
    assert scores.degraded_logprobs is None
    assert [tuple(rows.shape) for rows in scores.hidden] == [(n, 112) for n in LENGTHS]
    for number, response in enumerate(r for group in RESPONSES for r in group):
        logits = scores.hidden[number] @ teacher.model.head.T
        logprobs = logits[:, : teacher.model.vocab_size].log_softmax(-1)
        expected = logprobs.gather(-1, response[:, None])[:, 0]
        torch.testing.assert_close(scores.original_logprobs[number], expected)


@pytest.mark.parametrize(
    "options", [{"batch_tokens": 1}, {"batch_tokens": 150}, {"share_prefix": False}]
)
def test_scores_do_not_depend_on_how_rollouts_travel(teacher, problems, options):
    expected = teacher.score(*views(teacher, problems), RESPONSES)
    other = LocalTeacher(teacher.model, **{"batch_tokens": 10_000, **options})
    scores = other.score(*views(teacher, problems), RESPONSES)
    for ours, theirs in (
        (scores.hidden, expected.hidden),
        (scores.original_logprobs, expected.original_logprobs),
        (scores.degraded_logprobs, expected.degraded_logprobs),
    ):
        torch.testing.assert_close(torch.cat(ours), torch.cat(theirs), atol=2e-5, rtol=0)


def test_the_teacher_is_frozen(teacher, problems):
    teacher.model.model.train()
    frozen = LocalTeacher(teacher.model, batch_tokens=10_000)
    assert not frozen.model.model.training
    assert not any(weight.requires_grad for weight in frozen.model.model.parameters())
    scores = frozen.score(*views(teacher, problems), RESPONSES)
    assert scores.degraded_logprobs is not None
    results = [*scores.hidden, *scores.original_logprobs, *scores.degraded_logprobs]
    assert not any(result.requires_grad for result in results)


def test_scoring_keeps_no_graph_even_of_a_model_that_trains(problems):
    model = sharp()
    assert all(weight.requires_grad for weight in model.model.parameters())
    prompts = [
        encoder(LocalTeacher(sharp(), batch_tokens=1)).original(problem) for problem in problems
    ]
    hidden, logprobs = score_view(model, prompts, RESPONSES, budget_tokens=10_000, hidden="kept")
    assert not any(result.requires_grad for result in [*hidden, *logprobs])
    assert score_view(model, prompts, RESPONSES, budget_tokens=10_000)[0] == []


def test_a_degradation_of_ratio_1_has_no_visual_advantage(teacher, problems):
    scores = teacher.score(*views(teacher, problems, ratio=1.0), RESPONSES)
    assert [len(advantage) for advantage in advantages(scores)] == LENGTHS
    assert torch.cat(advantages(scores)).eq(0).all()
    changed = teacher.score(*views(teacher, problems), RESPONSES)
    assert torch.cat(advantages(changed)).max() > 0.01


def test_an_image_of_one_colour_has_no_visual_advantage(teacher, problems):
    encoded = io.BytesIO()
    Image.new("RGB", (96, 96), (120, 130, 140)).save(encoded, "PNG")
    plain = [dataclasses.replace(p, images=(encoded.getvalue(),)) for p in problems]
    assert torch.cat(advantages(teacher.score(*views(teacher, plain), RESPONSES))).eq(0).all()


def test_another_image_changes_the_scores_of_its_own_siblings_only(teacher, problems):
    before = teacher.score(*views(teacher, problems), RESPONSES)
    swapped = list(problems)
    swapped[1] = dataclasses.replace(problems[1], images=DrawnProblems(seed=9)[1].images)
    after = teacher.score(*views(teacher, swapped), RESPONSES)
    moved = [
        (one - two).abs().max().item() if len(one) else 0.0
        for one, two in zip(advantages(before), advantages(after), strict=True)
    ]
    # Rollouts 3, 4 and 5 belong to problem 1.
    assert max(moved[:3] + moved[6:]) < 1e-5
    assert max(moved[3:6]) > 1e-3


def test_other_siblings_change_no_score(teacher, problems):
    prompts = views(teacher, problems)
    together = teacher.score(*prompts, RESPONSES).original_logprobs
    alone = teacher.score(*prompts, [[group[1]] for group in RESPONSES]).original_logprobs
    for number in range(3):
        torch.testing.assert_close(together[3 * number + 1], alone[number], atol=1e-5, rtol=0)


def test_a_teacher_of_half_precision_scores(problems):
    teacher = LocalTeacher(sharp(torch.bfloat16), batch_tokens=10_000)
    full = LocalTeacher(sharp(), batch_tokens=10_000)
    scores = teacher.score(*views(teacher, problems), RESPONSES)
    expected = full.score(*views(full, problems), RESPONSES)
    assert {rows.dtype for rows in scores.hidden} == {torch.bfloat16}
    assert {row.dtype for row in scores.original_logprobs} == {torch.float32}
    error = torch.cat(scores.original_logprobs) - torch.cat(expected.original_logprobs)
    assert 0 < error.abs().mean() < 0.1


def test_a_response_with_an_image_placeholder_names_its_problem(teacher, problems):
    placeholder = teacher.model.model.config.image_token_id
    originals, degraded = views(teacher, problems[:1])
    with pytest.raises(AlignmentError, match=r"drawn:train:0:0; responses must not contain"):
        teacher.score(originals, degraded, [[torch.tensor([5, placeholder])]])


def test_an_id_beyond_the_tokenizer_is_an_error(teacher, problems):
    originals, _ = views(teacher, problems[:1])
    with pytest.raises(AlignmentError, match=r"id 641, expected 0 to 640|id 640, expected 0 to"):
        teacher.score(originals, None, [[torch.tensor([5, teacher.model.vocab_size])]])


def test_a_score_that_is_not_finite_names_the_problem(problems):
    model = sharp()
    with torch.no_grad():
        model.base.language_model.norm.weight[0] = torch.nan
    teacher = LocalTeacher(model, batch_tokens=1)
    originals, _ = views(teacher, problems[1:2])
    with pytest.raises(AlignmentError, match=r"drawn:train:0:1.*not finite.*dtype float32"):
        teacher.score(originals, None, RESPONSES[:1])


def test_no_problems_give_no_scores(teacher):
    scores = teacher.score([], [], [])
    assert (scores.hidden, scores.original_logprobs, scores.degraded_logprobs) == ([], [], [])


def test_the_recipe_sets_precision_budget_and_packing():
    config = parse_config(
        {
            "student": {"model": "tiny:new-student"},
            "teacher": {"model": "tiny:new-teacher-s", "dtype": "bfloat16", "batch_tokens": 77},
            "data": {"train": "drawn:train"},
            "training": {"share_prefix": False},
        }
    )
    teacher = load_teacher(config, torch.device("cpu"))
    assert {weight.dtype for weight in teacher.model.model.parameters()} == {torch.bfloat16}
    assert (teacher.batch_tokens, teacher.share_prefix) == (77, False)
    assert not any(weight.requires_grad for weight in teacher.model.model.parameters())


def test_the_two_views_of_a_drawn_problem_differ_to_the_teacher_in_pixels_only(teacher, problems):
    originals, degraded = views(teacher, problems)
    for one, two in zip(originals, degraded, strict=True):
        assert np.array_equal(one.input_ids, two.input_ids)
        assert not one.image_inputs["pixel_values"].equal(two.image_inputs["pixel_values"])


def test_the_view_divergence_compares_whole_distributions_of_the_two_views(
    teacher: LocalTeacher, problems: list[Problem]
):
    originals, degraded = views(teacher, problems)
    scores = teacher.score(originals, degraded, RESPONSES, with_divergence=True)
    assert scores.view_divergence is not None
    assert [len(row) for row in scores.view_divergence] == LENGTHS
    head = teacher.model.head[: teacher.model.vocab_size].double()
    blind = score_view(teacher.model, degraded, RESPONSES, budget_tokens=1, hidden="kept")[0]
    for found, one, two in zip(scores.view_divergence, scores.hidden, blind, strict=True):
        p, q = ((hidden.double() @ head.T).log_softmax(-1) for hidden in (one, two))
        expected = (p.exp() * (p - q)).sum(-1).float()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert max(row.max().item() for row in scores.view_divergence if len(row)) > 0.01


def test_the_view_divergence_is_only_made_where_it_is_asked_for(
    teacher: LocalTeacher, problems: list[Problem]
):
    originals, degraded = views(teacher, problems)
    assert teacher.score(originals, degraded, RESPONSES).view_divergence is None
    assert teacher.score(originals, None, RESPONSES, with_divergence=True).view_divergence is None


def test_the_hidden_states_of_the_degraded_view_are_those_of_its_own_prompts(
    teacher: LocalTeacher, problems: list[Problem]
):
    originals, degraded = views(teacher, problems)
    scores = teacher.score(originals, degraded, RESPONSES, with_degraded_hidden=True)
    alone = teacher.score(degraded, None, RESPONSES, with_degraded_hidden=True)
    assert alone.degraded_hidden is None
    assert scores.degraded_hidden is not None
    for found, seen, other in zip(scores.degraded_hidden, alone.hidden, scores.hidden, strict=True):
        assert found.equal(seen)
        assert not len(found) or not found.equal(other)
