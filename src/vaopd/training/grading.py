"""Grades the responses of a step: for the metrics, and as rewards."""

from collections.abc import Sequence

from vaopd.evaluation.validation import response_text
from vaopd.grading.grades import Grade, grade
from vaopd.models.model import VisionLanguageModel
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout


def grades_of(
    rollouts: Sequence[Rollout], problems: Sequence[Problem], student: VisionLanguageModel
) -> list[Grade | None]:
    """Return the grade of each response; None where its problem has no answer."""
    answers = {problem.id: problem.answer for problem in problems}
    return [
        None
        if (answer := answers[rollout.problem_id]) is None
        else grade(
            response_text(student, rollout),
            answer,
            is_truncated=rollout.finish_reason == "length",
        )
        for rollout in rollouts
    ]
