"""Texts and grades of the responses of a step: for rewards, metrics and records."""

from collections.abc import Sequence
from functools import cached_property

from vaopd.evaluation.validation import response_text
from vaopd.grading.grades import Grade, grade
from vaopd.models.model import VisionLanguageModel
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout


class GradedResponses:
    """The responses of a step, each decoded and graded once, when that is first needed."""

    def __init__(
        self, rollouts: Sequence[Rollout], problems: Sequence[Problem], student: VisionLanguageModel
    ) -> None:
        self.rollouts = rollouts
        self.problems = {problem.id: problem for problem in problems}
        self.student = student

    @cached_property
    def texts(self) -> list[str]:
        """Each response without special tokens."""
        return [response_text(self.student, rollout) for rollout in self.rollouts]

    @cached_property
    def grades(self) -> list[Grade | None]:
        """The grade of each response; None where its problem has no answer."""
        return [
            None
            if (answer := self.problems[rollout.problem_id].answer) is None
            else grade(text, answer, is_truncated=rollout.finish_reason == "length")
            for rollout, text in zip(self.rollouts, self.texts, strict=True)
        ]
