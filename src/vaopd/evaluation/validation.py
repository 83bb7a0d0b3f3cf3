"""Accuracy on held-out problems with the original and the degraded image; reliance on it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from vaopd.config import RunConfig
from vaopd.config.methods import high_fraction
from vaopd.distributed.world import World
from vaopd.errors import ConfigError
from vaopd.evaluation.teacher_divergence import teacher_divergence
from vaopd.evaluation.visual_reliance import (
    Pair,
    TokenAdvantage,
    answer_changes,
    score_advantage,
)
from vaopd.grading.grades import Grade, grade
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt, check_same_prompt
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout, Sampler, SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """Means over held-out problems and their samples."""

    accuracy: float
    unparsed: float
    """Share of responses without a recognisable answer."""

    truncated: float
    """Share of responses that the length limit ended."""

    response_length: float
    accuracy_by_kind: dict[str, float]
    accuracy_sampled: float | None = None
    """Accuracy of ``validation.sampled_answers`` at temperature 1 (avg@k)."""

    teacher_kl: float | None = None
    """Mean over response tokens of KL(student || teacher), nats."""

    accuracy_pixelated: float | None = None
    """Accuracy with the degraded image, for every ``view.name``."""

    answer_change_rate: float | None = None
    """Share of samples whose answer differs between the original and the degraded view."""

    teacher_va: float | None = None
    """Mean teacher advantage of the high group of the student's own responses, nats."""

    student_va: float | None = None
    """Mean advantage of the student on the same tokens, nats."""

    va_correlation: float | None = None
    """Spearman correlation of the teacher's and the student's advantage over response tokens."""


@dataclass(frozen=True)
class Validation:
    """The numbers of one validation and its responses."""

    result: ValidationResult
    rows: list[dict[str, Any]]
    """One row per response and view, as in ``validation/step_NNNNNN.jsonl``."""


@dataclass(frozen=True)
class Answers:
    """Responses of all problems to one view, with their grades."""

    view: str
    """``original``; ``degraded``; or ``sampled``: the original at temperature 1."""

    problems: Sequence[Problem]
    rollouts: list[list[Rollout]]
    texts: list[str]
    """Texts of all rollouts, problem by problem; grades have the same order."""

    grades: list[Grade]

    @property
    def accuracy(self) -> float:
        """Mean over problems and samples."""
        return fmean(verdict.is_correct for verdict in self.grades)

    @property
    def flat(self) -> list[tuple[Problem, Rollout]]:
        """Every rollout with its problem."""
        pairs = zip(self.problems, self.rollouts, strict=True)
        return [(problem, rollout) for problem, group in pairs for rollout in group]


@dataclass(frozen=True, eq=False)
class Validator:
    """Answers held-out problems by a fixed protocol, with the same noise in every validation."""

    config: RunConfig
    problems: Sequence[Problem]
    teacher: Teacher | None = None
    world: World = field(default_factory=World)
    on_token: Callable[[int, int], None] = lambda rows, tokens: None
    """Called with the number of responses decoded together, and of tokens of each until now."""

    sampler: Sampler | None = None
    """vLLM, which gets the student's weights first; None = the student is sampled in process."""

    def __post_init__(self) -> None:
        if all(problem.answer is None for problem in self.problems):
            raise ConfigError(
                f"no problem of data.validation={self.config.data.validation!r} has an answer, so "
                "there is no accuracy to measure; add answers or set data.validation=null"
            )

    def run(
        self, student: VisionLanguageModel, progress: Callable[[int], None] = lambda rows: None
    ) -> ValidationResult:
        """Return accuracies and advantages of the student as it is now."""
        return self.examine(student, progress).result

    def examine(
        self,
        student: VisionLanguageModel,
        progress: Callable[[int], None] = lambda rows: None,
        version: int = 0,
    ) -> Validation:
        """Return accuracies and advantages of the student as it is now, and its responses.

        Every process answers its share of the problems and returns the numbers of all problems.

        Args:
            student: The model that answers.
            progress: Called with the number of responses that were finished.
            version: Number of updates of the student's weights, for a sampler with a copy of them.
        """
        if self.sampler is not None:
            self.sampler.take_weights(version)
        problems = [problem for problem in self.problems if problem.answer is not None]
        turn = self.world.my_slice(problems)
        encoder = PromptEncoder(student, self.config.data, self.config.view)
        originals = self.world.agree(lambda: [encoder.original(problem) for problem in turn])
        sample = partial(self._sample, student, progress)
        settings = self._settings(version)
        seen = self._answers("original", student, problems, sample(originals, settings))
        options, degraded = self.config.validation, []
        drawn = blind = divergence = None
        if options.sampled_answers:
            responses = sample(originals, self._settings(version, is_sampled=True))
            drawn = self._answers("sampled", student, problems, responses)
        if options.pixelated:
            degraded = self.world.agree(lambda: _degraded(encoder, turn, originals))
            blind = self._answers("degraded", student, problems, sample(degraded, settings))
        self._sleep()  # before the teacher needs the memory
        if self.teacher is not None and options.load_teacher:
            both = originals, self._seen_by_teacher(encoder.original, seen, originals)
            divergence = teacher_divergence(student, self.teacher, both, seen.rollouts, self.world)
        more = _rows(student, drawn) if drawn else []
        if blind is None:
            rows = [*_rows(student, seen, divergence=divergence), *more]
            return Validation(_result(seen, drawn, divergence), rows)
        advantage = self._advantage(student, encoder, (originals, degraded), seen)
        changes = answer_changes(seen.grades, blind.grades)
        rows = _rows(student, seen, advantage, divergence) + [
            {**row, "is_changed": is_changed}
            for row, is_changed in zip(_rows(student, blind), changes, strict=True)
        ]
        result = replace(
            _result(seen, drawn, divergence),
            accuracy_pixelated=blind.accuracy,
            answer_change_rate=fmean(changes),
            teacher_va=advantage.teacher_va if advantage else None,
            student_va=advantage.student_va if advantage else None,
            va_correlation=advantage.correlation if advantage else None,
        )
        return Validation(result, [*rows, *more])

    def _seen_by_teacher(
        self,
        encode: Callable[[Problem], EncodedPrompt],
        seen: Answers,
        prompts: Sequence[EncodedPrompt],
    ) -> list[EncodedPrompt]:
        """Return the teacher's prompts: the student's, except for problems with its own images."""
        turn = self.world.my_slice(seen.problems)
        return self.world.agree(
            lambda: [
                encode(problem.for_teacher()) if problem.teacher_images else prompt
                for problem, prompt in zip(turn, prompts, strict=True)
            ]
        )

    def _advantage(
        self,
        student: VisionLanguageModel,
        encoder: PromptEncoder,
        views: Pair,
        seen: Answers,
    ) -> TokenAdvantage | None:
        if self.teacher is None:
            return None
        original = self._seen_by_teacher(encoder.original, seen, views[0])
        degraded = self._seen_by_teacher(encoder.degraded, seen, views[1])
        for pair in zip(original, degraded, strict=True):
            check_same_prompt(*pair)
        return score_advantage(
            student,
            self.teacher,
            (views, (original, degraded)),
            seen.rollouts,
            high_fraction=high_fraction(self.config.method),
            world=self.world,
        )

    def _settings(self, version: int, *, is_sampled: bool = False) -> SamplingSettings:
        """Return how problems are answered: by the protocol, or sampled at temperature 1."""
        options = self.config.validation
        return SamplingSettings(
            num_rollouts=options.sampled_answers if is_sampled else options.num_samples,
            temperature=1.0 if is_sampled else options.temperature,
            top_p=1.0 if is_sampled else options.top_p,
            max_new_tokens=self.config.sampling.max_new_tokens,
            seed=options.seed,
            stream="validation sampled" if is_sampled else "validation",
            weights_version=version,
        )

    def _sample(
        self,
        student: VisionLanguageModel,
        progress: Callable[[int], None],
        prompts: Sequence[EncodedPrompt],
        settings: SamplingSettings,
    ) -> list[list[Rollout]]:
        """Return the responses to the prompts of this process."""
        if (vllm := self.sampler) is not None:
            own = self.world.agree(lambda: vllm.sample(prompts, settings))
            progress(len(prompts) * settings.num_rollouts)
            return own
        sampler = TransformersSampler(
            student, batch_tokens=self.config.sampling.batch_tokens, on_token=self.on_token
        )
        return self.world.agree_unless_sharded(lambda: sampler.sample(prompts, settings, progress))

    def _sleep(self) -> None:
        if self.sampler is not None:
            self.sampler.sleep()

    def _answers(
        self,
        view: str,
        student: VisionLanguageModel,
        problems: Sequence[Problem],
        own: list[list[Rollout]],
    ) -> Answers:
        rollouts = self.world.in_order(own)
        texts = [response_text(student, rollout) for group in rollouts for rollout in group]
        references = [
            problem.answer or ""
            for problem, group in zip(problems, rollouts, strict=True)
            for _ in group
        ]
        cut = [rollout.finish_reason == "length" for group in rollouts for rollout in group]
        grades = [
            grade(text, answer, is_truncated=is_cut)
            for text, answer, is_cut in zip(texts, references, cut, strict=True)
        ]
        return Answers(view, problems, rollouts, texts, grades)


def response_text(model: VisionLanguageModel, rollout: Rollout) -> str:
    """Return a rollout as text without special tokens."""
    return model.tokenizer.decode(list(rollout.response_ids), skip_special_tokens=True)


def token_texts(model: VisionLanguageModel, rollouts: Sequence[Rollout]) -> dict[int, str]:
    """Return the text of each id in the rollouts; an id that occurs often is decoded once."""
    ids = {i for rollout in rollouts for i in rollout.response_ids}
    return {i: model.tokenizer.decode([i]) for i in ids}


def _degraded(
    encoder: PromptEncoder, problems: Sequence[Problem], originals: Sequence[EncodedPrompt]
) -> list[EncodedPrompt]:
    prompts = [encoder.degraded(problem) for problem in problems]
    for pair in zip(originals, prompts, strict=True):
        check_same_prompt(*pair)
    return prompts


def _result(
    seen: Answers, drawn: Answers | None, divergence: list[Tensor] | None
) -> ValidationResult:
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for (problem, _), verdict in zip(seen.flat, seen.grades, strict=True):
        by_kind[problem.kind].append(verdict.is_correct)
    rollouts = [rollout for _, rollout in seen.flat]
    return ValidationResult(
        accuracy=seen.accuracy,
        unparsed=fmean(verdict.extracted is None for verdict in seen.grades),
        truncated=fmean(rollout.finish_reason == "length" for rollout in rollouts),
        response_length=fmean(len(rollout.response_ids) for rollout in rollouts),
        accuracy_by_kind={kind: fmean(values) for kind, values in sorted(by_kind.items())},
        accuracy_sampled=drawn.accuracy if drawn else None,
        teacher_kl=torch.cat(divergence).mean().item() if divergence else None,
    )


def _rows(
    student: VisionLanguageModel,
    answers: Answers,
    advantage: TokenAdvantage | None = None,
    divergence: list[Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each response, with what was measured at its tokens."""
    rows, texts = [], token_texts(student, [rollout for _, rollout in answers.flat])
    for index, (problem, rollout) in enumerate(answers.flat):
        verdict = answers.grades[index]
        rows.append(
            {
                "view": answers.view,
                "problem_id": problem.id,
                "sibling": rollout.sibling,
                "kind": problem.kind,
                "prompt": problem.prompt,
                "answer": problem.answer,
                "response": answers.texts[index],
                "extracted": verdict.extracted,
                "is_correct": verdict.is_correct,
                "is_unparsed": verdict.extracted is None,
                "finish_reason": rollout.finish_reason,
                "token_ids": list(rollout.response_ids),
                "tokens": [texts[i] for i in rollout.response_ids],
                **(advantage.row(index) if advantage else {}),
                **({"teacher_kl": _rounded(divergence[index])} if divergence else {}),
            }
        )
    return rows


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
