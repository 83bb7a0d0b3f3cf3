import dataclasses

import pytest
import torch

from vaopd.evaluation.visual_reliance import TokenAdvantage, answer_changes
from vaopd.grading.grades import Grade

# Two rollouts of three and two tokens. Ranks of the teacher's 0, 1, 4, 0, 2: 1.5, 3, 5, 1.5, 4; of
# the student's 0, 2, 3, 1, 0: 1.5, 4, 5, 3, 1.5.
ADVANTAGE = TokenAdvantage(
    teacher=torch.tensor([[0.0, 1.0, 4.0], [0.0, 2.0, 9.0]]),
    student=torch.tensor([[0.0, 2.0, 3.0], [1.0, 0.0, 9.0]]),
    mask=torch.tensor([[True, True, True], [True, True, False]]),
    high=torch.tensor([[False, False, True], [False, True, False]]),
)


def test_both_advantages_are_means_over_the_teachers_high_group():
    assert ADVANTAGE.teacher_va == 3.0
    assert ADVANTAGE.student_va == 1.5


def test_the_correlation_is_spearmans_with_mean_ranks_for_ties_and_without_padding():
    # Deviations from rank 3: (-1.5, 0, 2, -1.5, 1) and (-1.5, 1, 2, 0, -1.5); products add up to
    # 2.25 + 4 - 1.5 = 4.75, squares to 9.5 each.
    assert ADVANTAGE.correlation == pytest.approx(0.5)


def test_a_student_that_ranks_tokens_the_other_way_round_has_minus_one():
    opposite = dataclasses.replace(ADVANTAGE, student=10 - ADVANTAGE.teacher)
    assert opposite.correlation == pytest.approx(-1)


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_an_advantage_that_is_the_same_everywhere_correlates_with_nothing(side: str):
    constant = dataclasses.replace(ADVANTAGE, **{side: torch.zeros(2, 3)})
    assert constant.correlation is None


def test_without_a_high_group_there_is_no_mean():
    empty = dataclasses.replace(ADVANTAGE, high=torch.zeros(2, 3, dtype=torch.bool))
    assert empty.teacher_va is None
    assert empty.student_va is None


def test_a_row_holds_the_tokens_of_its_rollout_without_padding():
    assert ADVANTAGE.row(1) == {
        "visual_advantage": [0.0, 2.0],
        "student_visual_advantage": [1.0, 0.0],
        "is_high": [False, True],
    }


@pytest.mark.parametrize(
    ("original", "degraded", "is_changed"),
    [
        ("12", "12", False),
        ("12", "12.0", False),
        ("12", "21", True),
        ("12", None, True),
        (None, "12", True),
        (None, None, False),
    ],
)
def test_an_answer_changes_when_it_means_something_else(
    original: str | None, degraded: str | None, is_changed: bool
):
    # Whether either of them is right does not matter.
    assert answer_changes([Grade(original, True)], [Grade(degraded, True)]) == [is_changed]
