"""The labelled texts: at most 2 % wrong either way, of each kind of answer."""

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from labelled import TEXTS, Labelled, read

from vaopd.grading.grades import grade
from vaopd.grading.letters import read_choice
from vaopd.grading.yes_no import read_yes_no

FREE, CHOICES, YES_NO = (
    read(*sorted(path.stem for path in TEXTS.glob(f"{kind}_*.txt")))
    for kind in ("free", "choice", "yes_no")
)
ALLOWED = 0.02


def free_label(case: Labelled) -> str:
    graded = grade(case.text, case.reference, is_truncated=case.is_cut)
    if graded.extracted is None:
        return "none"
    return "right" if graded.is_correct else "wrong"


def choice_label(case: Labelled) -> str:
    return read_choice(case.text, case.options, is_truncated=case.is_cut).text or "none"


def yes_no_label(case: Labelled) -> str:
    return read_yes_no(case.text, is_truncated=case.is_cut).text or "none"


def share(wrong: Sequence[str], cases: Sequence[Labelled]) -> str:
    return "" if len(wrong) <= ALLOWED * len(cases) else f"{len(wrong)} of {len(cases)}: {wrong}"


def test_there_are_more_than_3200_texts_in_all_classes():
    assert len(FREE) + len(CHOICES) + len(YES_NO) >= 3200
    for cases in (FREE, CHOICES):
        kinds = Counter(case.kind for case in cases)
        assert kinds.keys() >= {
            "prose",
            "words",
            "retracted",
            "think",
            "chinese",
            "structured",
            "cut",
        }
        labels = Counter(case.label for case in cases)
        assert labels["none"] >= 20


def test_right_free_answers_are_accepted():
    cases = [case for case in FREE if case.label == "right"]
    assert share([case.name for case in cases if free_label(case) != "right"], cases) == ""


def test_wrong_and_missing_free_answers_are_not_accepted():
    cases = [case for case in FREE if case.label != "right"]
    assert share([case.name for case in cases if free_label(case) == "right"], cases) == ""


def test_a_response_without_a_free_answer_is_unparsed():
    cases = [case for case in FREE if case.label == "none"]
    assert share([case.name for case in cases if free_label(case) != "none"], cases) == ""


@pytest.mark.parametrize(
    ("cases", "label"), [(CHOICES, choice_label), (YES_NO, yes_no_label)], ids=["choice", "yes-no"]
)
def test_chosen_options_are_found(cases: list[Labelled], label: Callable[[Labelled], str]):
    given = [case for case in cases if case.label != "none"]
    assert share([case.name for case in given if label(case) != case.label], given) == ""


@pytest.mark.parametrize(
    ("cases", "label"), [(CHOICES, choice_label), (YES_NO, yes_no_label)], ids=["choice", "yes-no"]
)
def test_no_option_is_made_out_of_nothing(cases: list[Labelled], label: Callable[[Labelled], str]):
    without = [case for case in cases if case.label == "none"]
    assert share([case.name for case in without if label(case) != "none"], without) == ""
