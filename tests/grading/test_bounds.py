"""Hostile and looping responses end: the work grows with the length and not with its square."""

import sys
from collections.abc import Callable
from types import FrameType

import pytest

from vaopd.grading.grades import grade
from vaopd.grading.letters import read_choice
from vaopd.grading.transcription import read_transcription
from vaopd.grading.yes_no import read_yes_no

UNITS = [
    "\\boxed{", "answer:\n", "answer ", " ", "*", "\\(", "{", "Answer: \\boxed{", "the ", "\\[", "$",
    "$$", "\\boxed{1} ", "The answer is B. ", "Wait, ", "so it is ", "<think>", "</think>", "(A) ",
    "is ", "= ", "1, ", "A or ", "not ", "option A ", "\n", "- ", "# ", "答案", "1 1 ", "\\text{", "_a_ ",
    "it's ", "if ", "**", "a" , "9", ", so ", "12 cm ", "A. ", "because ", "<answer>", "5 is the answer ",
]  # fmt: skip
HOSTILE = [
    "9^{9^{9^9}}", "9^9^9", "9**9**9", "10^{1000000000}", "((9^{999})^{999})^{999}", "99999999!",
    "((9!)!)!", "(9+x)^{900}", "(x+y+z+w)^{99}", r"\sum_{i=1}^{1000000000} i", "{" * 200, "(" * 200,
    "(" * 100 + "9" + ")" * 100, r"\sqrt{" * 30 + "9" + "}" * 30, "9" * 5000, "9/" + "9" * 5000,
    "x^{x^{x^{x}}}", "1e999999999", "1" + "0" * 300 + " cm", ", ".join("x" * 1 for _ in range(300)),
]  # fmt: skip
READERS: list[Callable[[str], object]] = [
    lambda text: grade(text, "9"),
    lambda text: read_choice(text, {"A": "9", "B": "the water cycle"}),
    read_yes_no,
    read_transcription,
]


def lines_run(work: Callable[[], object]) -> int:
    """Return how many lines of this package the work runs: a measure of work that no clock disturbs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> object:
        nonlocal count
        if "vaopd" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("unit", UNITS)
def test_twice_the_looping_text_is_about_twice_the_work(unit: str):
    for reader in READERS:
        short, long = (
            lines_run(lambda size=size, reader=reader: reader(unit * (size // len(unit))))
            for size in (1_500, 3_000)
        )
        assert long <= 3 * short + 2_000


@pytest.mark.parametrize("reader", READERS)
def test_a_looping_response_of_100_kilobytes_is_read(reader: Callable[[str], object]):
    # What loops in patterns runs no lines of Python: with its square this would take an hour.
    for unit in UNITS[::6]:
        assert reader(unit * (100_000 // len(unit))) is not None


@pytest.mark.parametrize("hostile", HOSTILE)
def test_an_answer_that_would_hang_algebra_is_wrong(hostile: str):
    assert not grade(f"Answer: {hostile}", "10").is_correct
    assert not grade(f"\\boxed{{{hostile}}}", r"5 \sqrt { 3 }").is_correct
