import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vaopd.evaluation.answers import Grade, extract_answer, grade


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"So $x = 3$. \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("Final Answer: 12", "12"),
        ("**Final Answer:** 12.", "12"),
        ("**Answer**: $12$", "12"),
        ("ANSWER: B", "B"),
        ("Hence THE ANSWER IS 7.5.", "7.5"),
        ("The final answer is 7", "7"),
        ("The correct answer is: C", "C"),
        ("最终答案：12", "12"),
        ("答案是 12。", "12"),
        ("答案为：$5\\sqrt{3}$", r"5\sqrt{3}"),
        ("答案: B", "B"),
        ("Answer: \\(x + 1\\)", "x + 1"),
        ("Answer: 5*3", "5*3"),
        ("The answer is x = \\boxed{5}.", "x = 5"),
    ],
)
def test_the_committed_answer_is_found(response: str, answer: str):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Answer: 3\nNo, \\boxed{4}", "3"),
        ("\\boxed{4}\nAnswer: 3", "4"),
        ("Answer: 3\nAnswer: 4", "3"),
        ("\\boxed{3} and \\boxed{4}", "3"),
    ],
)
def test_the_first_commitment_wins(response: str, answer: str):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    "response",
    [
        "The answer is $\\boxed{5}$ degrees",
        "Final answer: **\\boxed{5}**",
        "Answer: \\[ \\boxed{5} \\] as wanted",
        "Answer: \\boxed{\n5\n} done",
    ],
)
def test_a_box_right_behind_a_marker_is_the_answer(response: str):
    assert extract_answer(response) == "5"


@pytest.mark.parametrize(
    "response",
    [
        "",
        "I do not know.",
        "Answer:\n12",
        "Final answer: **\n12",
        "The answer is\n\n12",
        "\\boxed{}",
        "\\boxed{$ $}",
        "\\boxed{12",
        "Answer: \\boxed{\\frac{1}{2}",
        "canswer: 12",
        "the answer isotope 12",
    ],
)
def test_a_response_without_a_commitment_is_unparsed(response: str):
    assert extract_answer(response) is None
    assert grade(response, "12") == Grade(None, False)


def test_an_empty_marker_is_passed_over_for_a_later_commitment():
    assert extract_answer("Answer:\nWe compute. The answer is 12") == "12"
    assert extract_answer("Answer:\n\\boxed{7}") == "7"


def test_the_other_rule_takes_the_last_box_and_no_marker():
    response = "\\boxed{3} then \\boxed{4} and \\boxed{}. Answer: 5"
    assert extract_answer(response, rule="last_boxed") == "4"
    assert extract_answer("Answer: 5", rule="last_boxed") is None
    assert grade(response, "4", rule="last_boxed") == Grade("4", True)
    assert grade(response, "4") == Grade("3", False)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read(text: str):
    extracted = extract_answer(text)
    assert extracted is None or extracted.strip() == extracted != ""


@settings(deadline=None)
@given(st.text(alphabet="\\boxed{}answer: 5$*\n", max_size=80))
def test_any_text_made_of_markers_and_boxes_is_read(text: str):
    assert extract_answer(text) != ""


@pytest.mark.parametrize(
    ("boxed", "reference"),
    [
        ("80", "80"),
        (r"80^\circ", "80"),
        ("80°", "80"),
        ("80 degrees", "80"),
        (r"5\sqrt{3}", r"5 \sqrt { 3 }"),
        (r"5\sqrt3", r"5 \sqrt { 3 }"),
        (r"\sqrt{75}", r"5 \sqrt { 3 }"),
        (r"5\sqrt{3} \text{ units}", r"5 \sqrt { 3 }"),
        (r"\dfrac{2\sqrt2}{5}", r"\frac { 2 \sqrt { 2 } } { 5 }"),
        (r"\frac{2\sqrt{2}}{5}", r"\frac { 2 \sqrt { 2 } } { 5 }"),
        ("12.50", "12.5"),
        ("1,234", "1234"),
        (r"\frac{1}{2}", "0.5"),
        ("1/2", "0.5"),
        ("−3", "-3"),
        ("x = 5", "5"),
        ("BC = 10", "10"),
        (r"12 \text{ cm}", "12"),
        (r"\text{B}", "B"),
        ("(B)", "B"),
        ("b", "B"),
        (r"20\pi", r"20 \pi"),
        ("1 + x^2", "x^2 + 1"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        ("( 1 , 2 ]", "(1, 2]"),
        ("Red  Square", "red square"),
        ("5", r"\boxed{5}"),
        # Less than a millionth apart.
        ("0.5", "0.5000009"),
        ("1/3", "0.333333"),
    ],
)
def test_equal_answers_are_correct(boxed: str, reference: str):
    assert grade(rf"\boxed{{{boxed}}}", reference).is_correct


@pytest.mark.parametrize(
    ("boxed", "reference"),
    [
        ("81", "80"),
        ("8.66", r"5 \sqrt { 3 }"),
        (r"5\sqrt{2}", r"5 \sqrt { 3 }"),
        ("12", "B"),
        ("3 or 4", "3"),
        ("3x", "3"),
        ("[1, 2]", "(1, 2)"),
        ("0.5", "0.51"),
        ("0.5", "0.500001"),
        ("1/0", "0"),
        # Algebra would read both as the same product of letters.
        ("rat", "tar"),
        ("book red", "red book"),
        ("12 because it fits", "12.1"),
        ("5", ""),
    ],
)
def test_unequal_answers_are_wrong(boxed: str, reference: str):
    graded = grade(rf"\boxed{{{boxed}}}", reference)
    assert graded == Grade(boxed, False)


def test_every_geometry3k_answer_equals_itself_without_its_odd_spacing():
    answers = ["80", "13", r"5 \sqrt { 3 }", r"\frac { 2 \sqrt { 2 } } { 5 }", r"6 \sqrt { 2 } + 1"]
    for answer in answers:
        assert grade(f"Answer: {answer.replace(' ', '')}", answer).is_correct


def test_grading_works_outside_the_main_thread():
    graded: list[Grade] = []

    def work() -> None:
        graded.append(grade(r"\boxed{\sqrt{75}}", r"5 \sqrt { 3 }"))
        graded.append(grade(r"\boxed{\sqrt{76}}", r"5 \sqrt { 3 }"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [one.is_correct for one in graded] == [True, False]


SECONDS = 5
"""Generous for a busy machine: what is ruled out takes minutes or never ends."""

HOSTILE = [
    "9^{9^{9^9}}",
    "9^9^9",
    "9**9**9",
    "10^{1000000000}",
    "((9^{999})^{999})^{999}",
    "99999999!",
    "((9!)!)!",
    "(9+x)^{900}",
    "(x+y+z+w)^{99}",
    r"\sum_{i=1}^{1000000000} i",
    "{" * 200,
    "(" * 200,
    "(" * 100 + "9" + ")" * 100,
    r"\sqrt{" * 30 + "9" + "}" * 30,
    "9" * 5000,
    "9/" + "9" * 5000,
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_an_answer_that_would_hang_algebra_is_wrong_at_once(hostile: str):
    grade(r"\boxed{\sqrt{75}}", r"5 \sqrt { 3 }")  # the slow import is not what is timed
    graded: list[Grade] = []
    start = time.monotonic()
    # In a thread, where no alarm can save us.
    thread = threading.Thread(target=lambda: graded.append(grade(f"Answer: {hostile}", "9")))
    thread.start()
    thread.join()
    assert not graded[0].is_correct
    assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "answer:\n", "answer ", " ", "*", "\\(", "{", "Answer: \\boxed{", "the "]
)
def test_a_looping_response_is_read_at_once(unit: str):
    start = time.monotonic()
    grade(unit * 10_000, "9")
    assert time.monotonic() - start < SECONDS
