"""Accuracy on held-out problems, with the image and with its degraded copy, and reliance on it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from vaopd.config import RunConfig
from vaopd.errors import ConfigError
from vaopd.evaluation.answers import grade
from vaopd.models.loading import PromptEncoder, VisionLanguageModel
from vaopd.models.prompts import check_same_prompt
from vaopd.objective.advantage import visual_advantage
from vaopd.objective.weights import high_group
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.local import LocalTeacher, score_view


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """Means over held-out problems and their samples."""

    accuracy: float
    unparsed: float
    """Share of responses without a recognisable answer."""

    truncated: float
    """Share of responses that hit the length limit."""

    response_length: float
    accuracy_by_kind: dict[str, float]
    accuracy_pixelated: float | None = None
    """Accuracy with the degraded image, whatever ``view.name`` is."""

    teacher_va: float | None = None
    """Mean teacher advantage of the high group of the student's own responses, nats."""

    student_va: float | None = None
    """Mean advantage that the student itself has on those same tokens, nats."""


@dataclass(frozen=True, eq=False)
class Validator:
    """Answers held-out problems by a fixed protocol; the same noise every time it is called."""

    config: RunConfig
    problems: Sequence[Problem]
    teacher: LocalTeacher | None = None

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
        problems = [problem for problem in self.problems if problem.answer is not None]
        encoder = PromptEncoder(student, self.config.data, self.config.view)
        sampler = TransformersSampler(student, batch_tokens=self.config.sampling.batch_tokens)
        options = self.config.validation
        settings = SamplingSettings(
            num_rollouts=options.num_samples,
            temperature=options.temperature,
            top_p=options.top_p,
            max_new_tokens=self.config.sampling.max_new_tokens,
            seed=self.config.training.seed,
            stream="validation",
        )
        originals = [encoder.original(problem) for problem in problems]
        rollouts = sampler.sample(originals, settings, progress)
        verdicts = _grade(problems, rollouts, student)
        pixelated = teacher_va = student_va = None
        if options.pixelated:
            degraded = [encoder.degraded(problem) for problem in problems]
            for prompts in zip(originals, degraded, strict=True):
                check_same_prompt(*prompts)
            blind = sampler.sample(degraded, settings, progress)
            pixelated = fmean(v.is_correct for v in _grade(problems, blind, student))
            if self.teacher is not None:
                teacher_va, student_va = self._reliance(student, originals, degraded, rollouts)
        flat = [rollout for group in rollouts for rollout in group]
        by_kind: dict[str, list[bool]] = defaultdict(list)
        for verdict in verdicts:
            by_kind[verdict.kind].append(verdict.is_correct)
        return ValidationResult(
            accuracy=fmean(v.is_correct for v in verdicts),
            unparsed=fmean(v.is_unparsed for v in verdicts),
            truncated=fmean(r.finish_reason == "length" for r in flat),
            response_length=fmean(len(r.response_ids) for r in flat),
            accuracy_by_kind={kind: fmean(values) for kind, values in sorted(by_kind.items())},
            accuracy_pixelated=pixelated,
            teacher_va=teacher_va,
            student_va=student_va,
        )

    def _reliance(
        self,
        student: VisionLanguageModel,
        originals: Sequence,
        degraded: Sequence,
        rollouts: list[list[Rollout]],
    ) -> tuple[float, float] | tuple[None, None]:
        """Return teacher and student advantage on the teacher's high group."""
        assert self.teacher is not None
        responses = [[torch.tensor(r.response_ids) for r in group] for group in rollouts]
        masses = []
        for model in (self.teacher.model, student):
            views = [
                score_view(
                    model,
                    prompts,
                    responses,
                    budget_tokens=self.teacher.batch_tokens,
                    share_prefix=self.teacher.share_prefix,
                )[1]
                for prompts in (originals, degraded)
            ]
            masses.append(_advantage(*views))
        (teacher_va, mask), (student_va, _) = masses
        high = high_group(teacher_va, mask, high_fraction=self.config.method.high_fraction)
        if not high.any():  # method.high_fraction=0
            return None, None
        return teacher_va[high].mean().item(), student_va[high].mean().item()


@dataclass(frozen=True)
class _Verdict:
    kind: str
    is_correct: bool
    is_unparsed: bool


def _grade(
    problems: Sequence[Problem], rollouts: list[list[Rollout]], model: VisionLanguageModel
) -> list[_Verdict]:
    verdicts = []
    for problem, group in zip(problems, rollouts, strict=True):
        for rollout in group:
            text = response_text(model, rollout)
            result = grade(text, problem.answer or "")
            verdicts.append(_Verdict(problem.kind, result.is_correct, result.extracted is None))
    return verdicts


def response_text(model: VisionLanguageModel, rollout: Rollout) -> str:
    """Return a rollout as text without special tokens."""
    return model.tokenizer.decode(list(rollout.response_ids), skip_special_tokens=True)


def _advantage(original: list[Tensor], degraded: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return padded advantages and their mask."""
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones(len(row), dtype=torch.bool) for row in original], batch_first=True)
    first, second = (
        pad([row.float().cpu() for row in rows], batch_first=True) for rows in (original, degraded)
    )
    return visual_advantage(first, second, mask), mask
