import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from plain_forward import double, plain_logprobs

from vaopd.config import RunConfig, parse_config
from vaopd.errors import ConfigError
from vaopd.evaluation import teacher_divergence, validation, visual_reliance
from vaopd.evaluation.validation import ValidationResult, Validator
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.teacher import local
from vaopd.teacher.local import LocalTeacher, score_view


@pytest.fixture(scope="module")
def student() -> VisionLanguageModel:
    """A random student of unit gain, which looks at its image."""
    cpu = torch.device("cpu")
    model = load_model(
        "tiny:new-student", device=cpu, dtype=torch.float32, compute_dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return list(DrawnProblems(split="validation", num_problems=3, kinds=("circle", "rectangle")))


def config(**options: Any) -> RunConfig:
    options = {"num_samples": 2, "pixelated": True, **options}
    return parse_config(
        {
            "student": {"model": "tiny:new-student"},
            "data": {"train": "drawn:train", "min_pixels": 1024, "max_pixels": 1048576},
            "sampling": {"max_new_tokens": 8},
            "validation": options,
        }
    )


def copied_teacher(student: VisionLanguageModel) -> LocalTeacher:
    return LocalTeacher(copy.deepcopy(student), batch_tokens=16384)


class Script:
    """Stands in for the sampler: says these texts, and remembers what it was asked."""

    def __init__(self, *answers: list[list[str]]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[list[EncodedPrompt], SamplingSettings]] = []

    def __call__(self, model: VisionLanguageModel, **_: Any) -> "Script":
        self.model = model
        return self

    def sample(
        self, prompts: Sequence[EncodedPrompt], settings: SamplingSettings, progress: Any
    ) -> list[list[Rollout]]:
        self.asked.append((list(prompts), settings))
        texts = self.answers[len(self.asked) - 1]
        return [
            [self.rollout(prompt, k, text) for k, text in enumerate(group)]
            for prompt, group in zip(prompts, texts, strict=True)
        ]

    def rollout(self, prompt: EncodedPrompt, sibling: int, text: str) -> Rollout:
        ids = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        is_cut = text.endswith("..")
        end = [] if is_cut else [self.model.tokenizer.eos_token_id]
        return Rollout(prompt.problem_id, sibling, (*ids, *end), "length" if is_cut else "stop")


@pytest.fixture
def scripted(
    student: VisionLanguageModel, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> tuple[Script, ValidationResult]:
    right = [f"so \\boxed{{{problem.answer}}}" for problem in problems]
    script = Script(
        # circle, rectangle, circle
        [[right[0], "no idea"], [right[1], right[1]], ["\\boxed{-1}", "it is .."]],
        [["\\boxed{-1}", right[0]], ["?", "?"], ["?", "?"]],
    )
    monkeypatch.setattr(validation, "TransformersSampler", script)
    return script, Validator(config(), problems).run(student)


def test_accuracy_is_the_mean_over_samples(scripted: tuple[Script, ValidationResult]):
    # 1 + 2 + 0 of 6.
    assert scripted[1].accuracy == 0.5


def test_accuracy_is_split_by_kind(scripted: tuple[Script, ValidationResult]):
    # Problems 0 and 2 are circles: 1 of 4.
    assert scripted[1].accuracy_by_kind == {"circle": 0.25, "rectangle": 1.0}


def test_wrong_answers_and_missing_ones_are_told_apart(scripted: tuple[Script, ValidationResult]):
    # "no idea" and "it is .." commit to nothing; only the second was cut.
    assert scripted[1].unparsed == pytest.approx(2 / 6)
    assert scripted[1].truncated == pytest.approx(1 / 6)


def test_the_pixelated_accuracy_is_of_answers_to_the_degraded_image(
    scripted: tuple[Script, ValidationResult],
):
    script, result = scripted
    assert result.accuracy_pixelated == pytest.approx(1 / 6)
    (originals, first), (degraded, second) = script.asked
    assert first == second
    for original, other in zip(originals, degraded, strict=True):
        assert original.input_ids.equal(other.input_ids)
        assert not original.image_inputs["pixel_values"].equal(other.image_inputs["pixel_values"])


def test_without_a_teacher_there_is_no_advantage_to_report(
    scripted: tuple[Script, ValidationResult],
):
    assert scripted[1].teacher_va is None
    assert scripted[1].student_va is None


def test_the_protocol_is_that_of_the_recipe(
    student: VisionLanguageModel, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    script = Script([["?"] * 3] * 3)
    monkeypatch.setattr(validation, "TransformersSampler", script)
    options = config(num_samples=3, temperature=0.25, top_p=0.5, pixelated=False)
    result = Validator(options, problems).run(student)
    ((_, settings),) = script.asked
    assert settings == SamplingSettings(
        num_rollouts=3, temperature=0.25, top_p=0.5, max_new_tokens=8, seed=42, stream="validation"
    )
    assert result.accuracy_pixelated is None


def test_problems_without_an_answer_are_left_out(
    student: VisionLanguageModel, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    script = Script([[f"\\boxed{{{p.answer}}}"] for p in problems[1:]])
    monkeypatch.setattr(validation, "TransformersSampler", script)
    bare = dataclasses.replace(problems[0], answer=None)
    options = config(num_samples=1, pixelated=False)
    assert Validator(options, [bare, *problems[1:]]).run(student).accuracy == 1
    assert [p.problem_id for p in script.asked[0][0]] == [p.id for p in problems[1:]]


def test_problems_that_all_lack_an_answer_are_refused(problems: list[Problem]):
    bare = [dataclasses.replace(problem, answer=None) for problem in problems]
    with pytest.raises(ConfigError, match="has an answer, so there is no accuracy"):
        Validator(config(), bare)


@pytest.fixture(scope="module")
def copy_result(student: VisionLanguageModel, problems: list[Problem]) -> ValidationResult:
    return Validator(config(), problems, copied_teacher(student)).run(student)


def test_a_student_that_is_its_teacher_has_the_teachers_advantage(copy_result: ValidationResult):
    assert copy_result.teacher_va is not None
    assert copy_result.teacher_va > 0.01
    assert copy_result.student_va == copy_result.teacher_va


def test_validating_twice_gives_the_same_result(
    student: VisionLanguageModel, problems: list[Problem], copy_result: ValidationResult
):
    torch.manual_seed(99)
    assert Validator(config(), problems, copied_teacher(student)).run(student) == copy_result


def test_validating_leaves_weights_and_gradients_alone(
    student: VisionLanguageModel, problems: list[Problem]
):
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    student.model.train()
    Validator(config(), problems[:1], copied_teacher(student)).run(student)
    assert student.model.training
    assert all(torch.equal(v, before[k]) for k, v in student.model.state_dict().items())
    assert all(parameter.grad is None for parameter in student.model.parameters())


def test_both_advantages_are_means_over_the_teachers_high_tokens(
    student: VisionLanguageModel, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    # One response of five tokens, so |H| = 1. The teacher gains 3 nats on its third token and
    # loses on the last, the student 7 on its first and 0.25 on the third.
    gains = {"teacher": [0.0, 1.0, 3.0, 2.0, -9.0], "student": [7.0, 0.0, 0.25, 0.0, 0.0]}
    views = {"teacher": 0, "student": 0}

    def fake(model: VisionLanguageModel, *_: Any, **__: Any) -> tuple[list, list]:
        name = "student" if model is student else "teacher"
        views[name] += 1
        # The original view is scored first.
        gain = torch.tensor(gains[name]) if views[name] == 1 else torch.zeros(5)
        return [], [gain - 10]

    monkeypatch.setattr(visual_reliance, "score_view", fake)
    monkeypatch.setattr(local, "score_view", fake)
    script = Script([["Find the"]], [["?"]])
    monkeypatch.setattr(validation, "TransformersSampler", script)
    monkeypatch.setattr(
        Script, "rollout", lambda self, p, k, text: Rollout(p.problem_id, k, (1,) * 5, "length")
    )
    result = Validator(config(num_samples=1), problems[:1], copied_teacher(student)).run(student)
    assert (result.teacher_va, result.student_va) == (3.0, 0.25)
    assert views == {"teacher": 2, "student": 2}


def test_the_advantages_are_those_of_plain_scoring(
    student: VisionLanguageModel, problems: list[Problem], copy_result: ValidationResult
):
    # The same rollouts scored one by one, without any packing, through the teacher's interface.
    from vaopd.models.prompt_encoder import PromptEncoder
    from vaopd.rollouts.transformers import TransformersSampler

    options = config()
    encoder = PromptEncoder(student, options.data, options.view)
    settings = SamplingSettings(
        num_rollouts=2, temperature=1.0, top_p=1.0, max_new_tokens=8, seed=42, stream="validation"
    )
    high = []
    for problem in problems:
        views = encoder.both(problem)
        (group,) = TransformersSampler(student).sample([views[0]], settings)
        for rollout in group:
            ids = torch.tensor(rollout.response_ids)
            original, degraded = (
                score_view(student, [view], [[ids]], budget_tokens=1, share_prefix=False)[1][0]
                for view in views
            )
            gains = sorted((original - degraded).clamp(min=0).tolist(), reverse=True)
            high += gains[: -(-len(ids) // 5)]
    assert copy_result.teacher_va == pytest.approx(sum(high) / len(high), rel=1e-4)


def test_without_a_high_group_there_is_no_advantage_to_report(
    student: VisionLanguageModel, problems: list[Problem]
):
    options = config(num_samples=1)
    method = options.method.model_copy(update={"high_fraction": 0.0})
    options = options.model_copy(update={"method": method})
    result = Validator(options, problems[:1], copied_teacher(student)).run(student)
    assert result.teacher_va is None
    assert result.student_va is None


def test_the_noise_does_not_depend_on_the_seed_of_training(
    student: VisionLanguageModel, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    script = Script(*[[["?"] * 2] * 3] * 2)
    monkeypatch.setattr(validation, "TransformersSampler", script)
    options = config(pixelated=False)
    training = options.training.model_copy(update={"seed": 7})
    for settings in (options, options.model_copy(update={"training": training})):
        Validator(settings, problems).run(student)
    assert script.asked[0][1] == script.asked[1][1]
    assert config(seed=5).validation.seed == 5


def test_the_answer_change_rate_compares_siblings_of_the_two_views(
    student: VisionLanguageModel, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    script = Script(
        [
            ["\\boxed{1}", "\\boxed{2}"],
            ["I do not know", "\\boxed{4}"],
            ["\\boxed{5}", "\\boxed{6}"],
        ],
        [
            ["\\boxed{1.0}", "\\boxed{3}"],
            ["I cannot tell", "No idea"],
            ["\\boxed{6}", "\\boxed{5}"],
        ],
    )
    monkeypatch.setattr(validation, "TransformersSampler", script)
    found = Validator(config(), problems).examine(student)
    # 2 became 3, 4 became nothing, 5 and 6 changed places; two without an answer agree.
    assert found.result.answer_change_rate == pytest.approx(4 / 6)
    assert [row["is_changed"] for row in found.rows[6:]] == [False, True, False, True, True, True]


def test_rows_say_what_was_answered_and_what_was_right(
    student: VisionLanguageModel, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    script = Script([["\\boxed{-1}"], [f"so \\boxed{{{problems[1].answer}}}"], ["no .."]])
    monkeypatch.setattr(validation, "TransformersSampler", script)
    options = config(num_samples=1, pixelated=False)
    rows = Validator(options, problems).examine(student).rows
    assert [row["extracted"] for row in rows] == ["-1", problems[1].answer, None]
    assert [row["is_correct"] for row in rows] == [False, True, False]
    assert [row["is_unparsed"] for row in rows] == [False, False, True]
    assert [row["finish_reason"] for row in rows] == ["stop", "stop", "length"]
    assert [row["kind"] for row in rows] == ["circle", "rectangle", "circle"]
    assert {row["view"] for row in rows} == {"original"}


def test_sampled_answers_are_drawn_at_temperature_1_beside_greedy_ones(
    student: VisionLanguageModel, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    right = [f"\\boxed{{{problem.answer}}}" for problem in problems]
    script = Script([["?"]] * 3, [[right[0], right[0], "?"], ["?", right[1], "?"], ["?", "?", "?"]])
    monkeypatch.setattr(validation, "TransformersSampler", script)
    options = config(num_samples=1, temperature=0, pixelated=False, sampled_answers=3)
    found = Validator(options, problems).examine(student)
    assert (found.result.accuracy, found.result.accuracy_sampled) == (0, pytest.approx(3 / 9))
    (_, greedy), (_, sampled) = script.asked
    assert (greedy.temperature, greedy.num_rollouts) == (0, 1)
    assert (sampled.temperature, sampled.top_p, sampled.num_rollouts) == (1, 1, 3)
    assert sampled.stream != greedy.stream
    assert [row["view"] for row in found.rows] == ["original"] * 3 + ["sampled"] * 9


@pytest.mark.parametrize("pixelated", [False, True])
def test_the_kl_to_the_teacher_is_that_of_plain_forwards(
    student: VisionLanguageModel,
    problems: list[Problem],
    monkeypatch: pytest.MonkeyPatch,
    pixelated: bool,
):
    teacher = copied_teacher(student)
    with torch.no_grad():
        for weight in teacher.model.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(teacher_divergence, "PROBLEMS", 2)
    options = config(load_teacher=True, pixelated=pixelated)
    found = Validator(options, problems, teacher).examine(student)
    own, other = double(student), double(teacher.model)
    encoder = PromptEncoder(student, options.data, options.view)
    by_id = {problem.id: encoder.original(problem) for problem in problems}
    values: list[float] = []
    for row in found.rows:
        if row["view"] != "original":
            assert "teacher_kl" not in row
            continue
        ids = torch.tensor(row["token_ids"])
        with torch.no_grad():
            p, q = (plain_logprobs(model, by_id[row["problem_id"]], ids) for model in (own, other))
        expected = (p.exp() * (p - q)).sum(-1).tolist()
        assert row["teacher_kl"] == pytest.approx(expected, abs=1e-4, rel=1e-3)
        values += expected
    assert len(values) > 20
    assert min(values) > 1e-3
    assert found.result.teacher_kl == pytest.approx(sum(values) / len(values), rel=1e-3)


def test_a_student_that_is_its_teacher_has_no_kl_and_none_is_measured_unasked(
    student: VisionLanguageModel, problems: list[Problem]
):
    teacher = copied_teacher(student)
    same = Validator(config(load_teacher=True, pixelated=False), problems, teacher).run(student)
    assert same.teacher_kl == pytest.approx(0, abs=1e-6)
    unasked = Validator(config(pixelated=False), problems, teacher).run(student)
    assert unasked.teacher_kl is None
