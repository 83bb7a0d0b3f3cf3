"""How much the student uses the image: its visual advantage, and its answers to both views.

B rollouts, T response tokens (padded).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from vaopd.distributed.world import World
from vaopd.grading.grades import Grade, is_same_answer
from vaopd.models.loading import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.advantage import visual_advantage
from vaopd.objective.weights import high_group
from vaopd.rollouts.sampler import Rollout
from vaopd.teacher.local import score_view
from vaopd.teacher.teacher import Teacher, TeacherScores

Pair = tuple[Sequence[EncodedPrompt], Sequence[EncodedPrompt]]
"""Prompts with the original and with the degraded images."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenAdvantage:
    """Visual advantage of the same tokens under the teacher and under the student."""

    teacher: Float[Tensor, "B T"]
    """Advantage of the teacher, nats: Eq. 2 of the paper for every ``method.advantage``."""

    student: Float[Tensor, "B T"]
    """Advantage of the student, nats: the same equation with the student instead of the teacher."""

    mask: Bool[Tensor, "B T"]
    high: Bool[Tensor, "B T"]
    """Whether a token is in the teacher's high group."""

    @property
    def teacher_va(self) -> float | None:
        """Mean advantage of the teacher over its high group, nats; ``None`` without a group."""
        return self.teacher[self.high].mean().item() if self.high.any() else None

    @property
    def student_va(self) -> float | None:
        """Mean advantage of the student over the teacher's high group, nats."""
        return self.student[self.high].mean().item() if self.high.any() else None

    @property
    def correlation(self) -> float | None:
        """Spearman correlation over all response tokens; ``None`` if an advantage is constant.

        It uses ranks, because a few tokens have most of the advantage; equal values (many are 0)
        get their mean rank.
        """
        values = self.teacher[self.mask], self.student[self.mask]
        if any(len(v) < 2 or bool((v == v[0]).all()) for v in values):
            return None
        ranks = [rankdata(v.double().numpy()) for v in values]
        return float(np.corrcoef(*ranks)[0, 1])

    def row(self, index: int) -> dict[str, Any]:
        """Return the token columns of a rollout's row in a validation file."""
        tokens = self.mask[index]
        return {
            "visual_advantage": _rounded(self.teacher[index][tokens]),
            "student_visual_advantage": _rounded(self.student[index][tokens]),
            "is_high": self.high[index][tokens].tolist(),
        }


def score_advantage(
    student: VisionLanguageModel,
    teacher: Teacher,
    views: tuple[Pair, Pair],
    rollouts: Sequence[Sequence[Rollout]],
    *,
    high_fraction: float,
    world: World | None = None,
) -> TokenAdvantage:
    """Return both models' visual advantage of every token of the student's responses.

    Args:
        student: The model that wrote the responses.
        teacher: Its advantage decides which tokens need the image.
        views: Of the student and of the teacher, for this process's share of the problems.
        rollouts: Responses by problem and sibling, of all problems.
        high_fraction: Share of a response's tokens in the teacher's high group.
        world: The processes that score together; by default only this one.

    Raises:
        AlignmentError: A log-prob is not finite.
        EngineError: A teacher on a server does not answer, or refuses.
    """
    world = world or World()
    own_rollouts = world.my_slice(rollouts)
    responses = [[torch.tensor(r.response_ids) for r in group] for group in own_rollouts]

    def everybodys(rows: Sequence[Tensor]) -> list[Tensor]:
        # By problem, because processes share problems; on the CPU, because processes exchange them.
        numbered = iter([row.float().cpu() for row in rows])
        by_problem = [[next(numbered) for _ in group] for group in responses]
        return [row for group in world.in_order(by_problem) for row in group]

    def score() -> tuple[TeacherScores, list[list[Tensor]]]:
        own = [
            score_view(
                student,
                prompts,
                responses,
                budget_tokens=teacher.batch_tokens,
                share_prefix=teacher.share_prefix,
            )[1]
            for prompts in views[0]
        ]
        return teacher.score(*views[1], responses, with_hidden=False), own

    scores, own = world.agree_unless_sharded(score)
    assert scores.degraded_logprobs is not None
    of_teacher, mask = _advantage(
        everybodys(scores.original_logprobs), everybodys(scores.degraded_logprobs)
    )
    of_student, _ = _advantage(*(everybodys(rows) for rows in own))
    return TokenAdvantage(
        teacher=of_teacher,
        student=of_student,
        mask=mask,
        high=high_group(of_teacher, mask, high_fraction=high_fraction),
    )


def answer_changes(original: Sequence[Grade], degraded: Sequence[Grade]) -> list[bool]:
    """Return for each pair of samples whether the degraded image led to another answer.

    Two responses without an answer agree. Both were drawn with the same noise, so a student that
    does not use the detail gives the same answers.
    """
    return [
        not is_same_answer(first.extracted, second.extracted)
        for first, second in zip(original, degraded, strict=True)
    ]


def _advantage(original: list[Tensor], degraded: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return padded advantages and their mask."""
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones(len(row), dtype=torch.bool) for row in original], batch_first=True)
    first, second = (pad(rows, batch_first=True) for rows in (original, degraded))
    return visual_advantage(first, second, mask), mask


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
