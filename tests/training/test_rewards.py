"""Steps by rewards: equal to plain ones, without a teacher, resumed, refused where they must be."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plain_forward import double, plain_logprobs
from rich.console import Console
from torch import Tensor

from vaopd.config import RunConfig
from vaopd.distributed.world import World
from vaopd.errors import ConfigError, ProblemError
from vaopd.grading.grades import Grade, grade
from vaopd.methods import make_method
from vaopd.methods.base import seed_of
from vaopd.models import adapters
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.problem import Problem
from vaopd.records import read_json, read_rows, write_rows
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.teacher.local import LocalTeacher
from vaopd.training import grading
from vaopd.training.metrics import policy_summary
from vaopd.training.pipeline import Pipeline
from vaopd.training.reference import Reference, load_reference
from vaopd.training.run import train
from vaopd.training.step import Step
from vaopd.training.step_result import StepResult
from vaopd.training.student import make_optimizer
from vaopd.views import black_patches

REWARDED = ("sampling.temperature=1", "sampling.top_p=1")
GRPO = ("method.name=grpo", *REWARDED)
PAPO = ("method.name=papo", *REWARDED)


class Speaking:
    """A sampler that gives a right, a wrong and a right answer to every problem."""

    def __init__(self, model: VisionLanguageModel, problems: list[Problem]) -> None:
        self.model = model
        self.answers = {problem.id: problem.answer for problem in problems}

    def take_weights(self, version: int) -> None:
        """Nothing: no weights are asked."""

    def sleep(self) -> None:
        """Nothing: it holds nothing."""

    def sample(
        self, prompts: list[EncodedPrompt], settings: SamplingSettings
    ) -> list[list[Rollout]]:
        assert settings.with_logprobs
        return [
            [self.rollout(prompt.problem_id, sibling) for sibling in range(3)] for prompt in prompts
        ]

    def rollout(self, problem: str, sibling: int) -> Rollout:
        answer = "none" if sibling == 1 else self.answers[problem]
        text = f"The answer is \\boxed{{{answer}}}" + "." * sibling
        ids = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Rollout(problem, sibling, (*ids, self.model.tokenizer.eos_token_id), "stop")


@pytest.fixture
def make_rewarded(
    sharp_student: VisionLanguageModel, make_config: Callable[..., RunConfig], problems
) -> Callable[..., Step]:
    """Return a step whose siblings are right, wrong and right."""

    def make(*overrides: str, reference: VisionLanguageModel | None = None) -> Step:
        config = make_config(*overrides)
        fresh = copy.deepcopy(sharp_student)
        adapters.choose_trainable(fresh.model, config.student, 0)
        sampler = Speaking(fresh, problems)
        pipeline = Pipeline(config, make_method(config.method), fresh, None, sampler, World())
        kept = Reference(fresh, reference) if reference else load_reference(config, fresh, World())
        return Step(pipeline, make_optimizer(config, fresh), kept)

    return make


def advantages() -> tuple[float, float]:
    """Return those of right and wrong siblings: 1, 0, 1 have mean 2/3 and deviation 3^-0.5."""
    return (1 / 3) / (3**-0.5 + 1e-4), (-2 / 3) / (3**-0.5 + 1e-4)


def chosen(model: VisionLanguageModel, prompt: EncodedPrompt, response: Tensor) -> Tensor:
    """Return the log-probs of a response's tokens by a plain forward."""
    return plain_logprobs(model, prompt, response).gather(-1, response[:, None])[:, 0]


def plain_step(
    twin: VisionLanguageModel,
    step: Step,
    result: StepResult,
    problems: list[Problem],
    extra: Callable[[Problem, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the loss of a step from plain forwards, whose gradient goes to the twin."""
    good, bad = advantages()
    total = torch.zeros((), dtype=torch.float64)
    for problem, siblings in zip(problems, result.responses.responses, strict=True):
        prompt = step.pipeline.encoder.original(problem)
        for response, advantage in zip(siblings, (good, bad, good), strict=True):
            own = chosen(twin, prompt, response)
            tokens = -(own - own.detach()).exp() * advantage + extra(problem, response, own)
            total = total + tokens.mean() / (3 * len(problems))
    return total


def check_gradients(step: Step, twin: VisionLanguageModel) -> None:
    pairs = zip(step.student.model.parameters(), twin.model.parameters(), strict=True)
    for ours, plain in pairs:
        if plain.grad is not None:
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad.double(), plain.grad, atol=1e-4, rtol=1e-3)


def test_a_step_has_the_loss_and_the_gradient_of_a_plain_one(
    make_rewarded: Callable[..., Step], teacher: LocalTeacher, problems: list[Problem]
):
    step = make_rewarded(*GRPO, "method.reference_coefficient=0.3", reference=teacher.model)
    twin, reference = double(step.student), double(teacher.model)
    result = step.accumulate_gradient(problems, 1)
    assert result.responses.rewards is not None
    assert result.responses.rewards.tolist() == [1, 0, 1, 1, 0, 1]

    def extra(problem: Problem, response: Tensor, own: Tensor) -> Tensor:
        with torch.no_grad():
            other = chosen(reference, step.pipeline.encoder.original(problem), response)
        return 0.3 * ((other - own).exp() - (other - own) - 1)

    total = plain_step(twin, step, result, problems, extra)
    assert result.loss == pytest.approx(total.item(), rel=1e-4)
    total.backward()
    check_gradients(step, twin)
    found = policy_summary(result)
    assert found["reward/equal_share"] == 0
    assert found["kl/reference"] > 0.01


def test_a_step_makes_right_responses_more_probable_than_wrong_ones(
    make_rewarded: Callable[..., Step], problems: list[Problem]
):
    step = make_rewarded(*GRPO, "method.reference_coefficient=0", "training.learning_rate=1e-5")
    before, after = (step.run(problems, number) for number in (1, 2))
    fall = [
        (then - now).mean().item()
        for then, now in zip(before.token_divergence, after.token_divergence, strict=True)
    ]
    # Of the negative log-likelihood; the siblings are right, wrong, right.
    for right, wrong, other in (fall[:3], fall[3:]):
        assert (right + other) / 2 > wrong


def test_adapters_switched_off_are_the_student_before_training(
    make_rewarded: Callable[..., Step], problems: list[Problem]
):
    step = make_rewarded(*GRPO, "student.lora.rank=2")
    assert step.reference is not None and step.reference.copy is None
    trained = [p.requires_grad for p in step.student.model.parameters()]
    first = step.run(problems, 1)
    with torch.no_grad():
        for name, weight in step.student.model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(generator=torch.Generator().manual_seed(1))
    second = step.run(problems, 2)
    assert [p.requires_grad for p in step.student.model.parameters()] == trained
    assert policy_summary(first)["kl/reference"] == 0
    assert policy_summary(second)["kl/reference"] > 0.01
    before, after = first.responses.reference_logprobs, second.responses.reference_logprobs
    for old, new in zip(before or (), after or (), strict=True):
        assert torch.equal(old, new)


def test_a_perception_step_has_the_loss_and_the_gradient_of_a_plain_one(
    make_rewarded: Callable[..., Step], problems: list[Problem]
):
    step = make_rewarded(
        *PAPO, "method.reference_coefficient=0", "method.perception_coefficient=0.4",
        "method.entropy_coefficient=0.2", "method.mask_fraction=0.5", "method.mask_pixels=16",
    )  # fmt: skip
    twin = double(step.student)
    result = step.accumulate_gradient(problems, 7)
    seen: list[float] = []

    def extra(problem: Problem, response: Tensor, own: Tensor) -> Tensor:
        # The seed of the patches is a text of seed, step and problem.
        seed = seed_of(f"mask\x00{step.config.training.seed}\x007\x00{problem.id}")
        (image,) = step.pipeline.encoder.original_images(problem)
        black = black_patches(image, 0.5, 16, seed)
        with torch.no_grad():
            prompt = step.student.family.encode(problem, [black])
            gap = chosen(twin, prompt, response) - own.detach()
        seen.extend((gap.exp() - gap - 1).clamp(max=10).tolist())
        gap = gap + own.detach() - own
        return -0.4 * (gap.exp() - gap - 1).clamp(max=10) - 0.2 * own

    total = plain_step(twin, step, result, problems, extra)
    assert result.loss == pytest.approx(total.item(), rel=1e-4)
    total.backward()
    check_gradients(step, twin)
    mean = sum(seen) / len(seen)
    assert policy_summary(result)["kl/masked"] == pytest.approx(mean, rel=1e-3)
    assert mean > 0.05


def test_without_its_own_terms_papo_is_grpo(
    make_rewarded: Callable[..., Step], problems: list[Problem]
):
    steps = (
        make_rewarded(*GRPO), make_rewarded(*PAPO, "method.perception_coefficient=0")
    )  # fmt: skip
    results = [step.run(problems, 1) for step in steps]
    assert results[0].loss == results[1].loss
    assert results[0].gradient_norm == results[1].gradient_norm
    assert results[1].responses.masked_logprobs is None


def test_a_perception_step_makes_the_kl_between_the_views_larger(
    make_rewarded: Callable[..., Step], problems: list[Problem]
):
    step = make_rewarded(
        *PAPO, "method.perception_coefficient=10", "method.mask_fraction=1",
        "training.learning_rate=1e-5",
    )  # fmt: skip
    first, second = (policy_summary(step.run(problems, number)) for number in (1, 2))
    assert second["kl/masked"] > first["kl/masked"]


def test_a_run_needs_no_teacher_and_is_resumed_with_the_same_bits(
    make_config: Callable[..., RunConfig], tmp_path: Path
):
    trained = ("student.model=tiny:student", "sampling.max_new_tokens=80")
    options = (*GRPO, *trained, "teacher.model=nowhere", "sampling.num_rollouts=6")
    quiet = Console(quiet=True)
    # The second step's KL is against the student before the first, also after a pause.
    whole = train(make_config(*options), tmp_path / "whole", console=quiet)
    train(make_config(*options, "training.max_steps=1"), tmp_path / "parts", console=quiet)
    parts = train(make_config(*options), tmp_path / "parts", console=quiet, resume=True)
    assert whole.steps == parts.steps == 2
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert rows[0]["kl/reference"] == 0
    assert rows[0]["reward/equal_share"] < 1
    assert rows[1]["kl/reference"] > 0
    ours, theirs = (read_rows(tmp_path / name / "metrics.jsonl")[1] for name in ("whole", "parts"))
    assert (ours["loss"], ours["kl/reference"]) == (theirs["loss"], theirs["kl/reference"])
    assert read_json(tmp_path / "whole" / "summary.json")["steps"] == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sampling.temperature=0.7", r"sampling.temperature is 0.7 .* set both to 1"),
        ("sampling.top_p=0.9", r"sampling.top_p 0.9, but .* set both to 1"),
        ("sampling.num_rollouts=1", "compares the rewards of siblings; set it to 2 or more"),
        ("method.clip=1.5", "method.clip"),
        ("method.high_mass=0.3", "method.high_mass"),
    ],
)
def test_a_recipe_that_rewards_cannot_use_is_refused(
    override: str, sentence: str, make_config: Callable[..., RunConfig]
):
    with pytest.raises(ConfigError, match=sentence):
        make_config(*GRPO, override)


def test_a_lag_needs_a_sampler_that_reports_its_log_probs(make_config: Callable[..., RunConfig]):
    lag = "training.rollout_lag=1"
    with pytest.raises(ConfigError, match="rollout_lag"):
        make_config(*GRPO, lag, "teacher.addresses=[http://127.0.0.1:1]")
    assert make_config(*GRPO, lag, "sampling.engine=vllm").training.rollout_lag == 1


def test_problems_without_an_answer_are_refused_before_a_model_is_loaded(
    make_config: Callable[..., RunConfig], problems: list[Problem], tmp_path: Path
):
    (tmp_path / "one.png").write_bytes(problems[0].images[0])
    rows = [{"images": ["one.png"], "problem": "<image>What is it?", "answer": None}]
    write_rows(tmp_path / "data.jsonl", rows)
    config = make_config(*GRPO, f"data.train={tmp_path / 'data.jsonl'}", "student.model=nowhere")
    with pytest.raises(ProblemError, match="no answer to reward responses by"):
        train(config, tmp_path / "run", console=Console(quiet=True))


def test_a_response_is_decoded_and_graded_once(
    make_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    graded: list[str] = []

    def spy(text: str, answer: str, **options: bool) -> Grade:
        graded.append(text)
        return grade(text, answer, **options)

    monkeypatch.setattr(grading, "grade", spy)
    options = (*GRPO, "training.log_rollouts_every=1", "training.validate_every=null")
    # For the rewards, the metrics and the records.
    train(make_config(*options), tmp_path / "run", console=Console(quiet=True))
    rows = [
        row
        for step in (1, 2)
        for row in read_rows(tmp_path / f"run/rollouts/step_{step:06d}.jsonl")
    ]
    assert sorted(graded) == sorted(row["response"] for row in rows)
    assert len(graded) == 2 * 2 * 3
