"""Inputs that an earlier reader got wrong, each by itself."""

import pytest

from vaopd.evaluation.registry import BENCHMARKS
from vaopd.grading.equality import is_equal
from vaopd.grading.grades import grade
from vaopd.grading.letters import read_choice
from vaopd.grading.reading import read_answer
from vaopd.grading.transcription import read_transcription

OPTIONS = {letter: f"number {index}" for index, letter in enumerate("ABCDEFGHIJ")}


@pytest.mark.parametrize(
    ("response", "gold", "later"),
    [
        ("The answer is 5. This makes sense because the hypotenuse is 13.", "5", "13"),
        ("The final answer is $60$. Note that the other angle is $120$.", "60", "120"),
        ("The answer is 4. Check: 4*6=24", "4", "24"),
        ("**Answer:** 5 cm (rounded from 4.97)", "5 cm", "4.97"),
        ("The answer is approximately 5.0 cm.", "5", "50"),
        ("There are 2 bars with values larger than 4.", "2", "4"),
    ],
)
def test_a_later_number_of_the_line_never_wins(response: str, gold: str, later: str):
    assert grade(response, gold).is_correct
    assert not grade(response, later).is_correct


@pytest.mark.parametrize(
    "response", ["5", "x = 5", "**Answer:**\n\n5", "### Final Answer\n\n**5**"]
)
def test_a_bare_answer_and_one_below_its_marker_are_read(response: str):
    assert grade(response, "5").is_correct


@pytest.mark.parametrize("word", ["May", "B"])
def test_a_bare_word_is_an_answer(word: str):
    assert read_answer(word).text == word


def test_what_the_reasoning_says_of_the_answer_is_no_commitment():
    first = "First, the answer is not obvious. We look at the sides. \\boxed{C}"
    assert read_choice(first, OPTIONS).text == "C"
    assert read_choice("the answer is closest to:\n\n**Answer: J**", OPTIONS).text == "J"


def test_reasoning_in_tags_is_left_out():
    assert read_choice("<think>maybe the answer is B? no</think>\nC", OPTIONS).text == "C"
    assert read_choice("<think>maybe the answer is B", OPTIONS).text is None


@pytest.mark.parametrize(
    "response",
    [
        "Option B is wrong because it is too long.",
        "It could be A or D.",
        "**Answer: A and D**",
        "The right angle is at C and the point D lies on AB",
    ],
)
def test_no_letter_comes_out_of_nothing(response: str):
    assert read_choice(response, OPTIONS).text is None


def test_a_truncated_response_without_a_commitment_has_no_letter():
    text = "Option A is too small. Option B is correct, but let me also look at (C"
    reading = read_choice(text, OPTIONS, is_truncated=True)
    assert (reading.text, reading.confidence, reading.is_truncated) == (None, "none", True)


@pytest.mark.parametrize("response", ["The best choice is A, as shown.", "选项A是正确答案。"])
def test_the_letter_a_is_read_where_others_are(response: str):
    assert read_choice(response, OPTIONS).text == "A"


def test_mmmu_reads_letters_where_they_are_and_nowhere_else():
    item = BENCHMARKS["mmmu"].item(
        {"id": "validation_Art_1", "question": "?", "answer": "C", "image": b"",
         "options": "['mitosis', 'meiosis', 'osmosis']", "question_type": "multiple-choice"}
    )  # fmt: skip
    assert item is not None
    grader = BENCHMARKS["mmmu"].grade
    assert grader("The form of DNA will change", item, "last_committed").extracted is None
    for response in (
        "Therefore, the correct option is **C**.",
        "\\[ \\text{Answer: C} \\]",
        "Answer: c",
    ):
        assert grader(response, item, "last_committed").extracted == "C"


@pytest.mark.parametrize(
    ("response", "gold", "is_right"),
    [("\\boxed{\\sqrt{3}}", "3", False), ("\\boxed{10^3}", "10", False), ("\\boxed{10^3}", "1000", True),
     ("There are 2 bars with values larger than 4.", "4", False)],
)  # fmt: skip
def test_mathvista_takes_the_value_of_a_formula(response: str, gold: str, is_right: bool):
    item = BENCHMARKS["mathvista"].item(
        {"pid": "1", "question": "?", "answer": gold, "answer_type": "integer", "image": b"",
         "question_type": "free_form", "choices": None}
    )  # fmt: skip
    assert item is not None
    assert BENCHMARKS["mathvista"].grade(response, item, "last_committed").is_correct == is_right


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("12 m", "12 cm"), ("80°", "80 %"), ("1 1", "11"), ("1,2", "(1,2)"), ("2:1", "2")],
)
def test_values_that_differ_are_not_equal(answer: str, reference: str):
    assert not is_equal(answer, reference)


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("Answer: 2 1/2", "2.5"),
        ("Answer: 1e3", "1000"),
        ("\\boxed5", "5"),
        ("Final Answer: The length of AB is $\\boxed{5}$.", "5"),
    ],
)
def test_values_in_other_forms_are_equal(response: str, gold: str):
    assert grade(response, gold).is_correct


def test_a_box_with_letter_and_text_names_its_option():
    assert read_choice("\\boxed{\\text{(A) } 5}", {"A": "5", "B": "6"}).text == "A"


def test_a_friendly_last_line_is_no_transcription():
    response = (
        "The sign reads:\n\n**CENTRE**\n\nIt is written in red.\nLet me know if you need more!"
    )
    assert "CENTRE" in (read_transcription(response).text or "")
