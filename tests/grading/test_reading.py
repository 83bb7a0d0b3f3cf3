import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaopd.grading.letters import read_choice
from vaopd.grading.reading import Rule, read_answer
from vaopd.grading.thinking import split_reasoning


@pytest.mark.parametrize(
    ("response", "confidence", "rule"),
    [
        ("The answer is 5.", "committed", "statement"),
        ("Answer: 5", "committed", "label"),
        ("\\boxed{5}", "committed", "box"),
        ("<answer>5</answer>", "committed", "tag"),
        ("### Answer\n5", "committed", "heading"),
        ("5 is the correct answer.", "committed", "verdict"),
        ("5 cm", "bare", "bare reply"),
        ("We add them.\n\n5", "bare", "bare last line"),
        ("We add 2 and 3. So the sum is 5.", "guessed", "last sentence"),
        ("I cannot tell.", "none", "refusal or hedge"),
        ("", "none", "empty"),
        ("<think>5", "none", "reasoning never ends"),
    ],
)
def test_a_reading_says_how_it_was_found(response: str, confidence: str, rule: str):
    reading = read_answer(response)
    assert (reading.confidence, reading.rule) == (confidence, rule)
    assert (reading.text is None) == (confidence == "none")


@pytest.mark.parametrize(
    ("rule", "text"), [("last_committed", "6"), ("first_committed", "5"), ("last_boxed", "4")]
)
def test_each_rule_takes_its_own_commitment(rule: Rule, text: str):
    assert read_answer("Answer: 5\n\\boxed{4}\nAnswer: 6", rule=rule).text == text


def test_each_rule_takes_its_own_option():
    options = {"A": "one", "B": "two", "C": "three"}
    response = "Answer: A\n\\boxed{B}\nAnswer: C"
    rules: tuple[Rule, ...] = ("first_committed", "last_boxed", "last_committed")
    assert [read_choice(response, options, rule=rule).text for rule in rules] == ["A", "B", "C"]


def test_reasoning_and_answer_are_kept_apart():
    parts = split_reasoning("<think>a</think>b<think>c</think>d")
    assert (parts.reasoning, parts.answer, parts.is_open) == ("ac", "bd", False)
    assert split_reasoning("a</think>b").reasoning == "a"
    assert split_reasoning("b<think>a").is_open


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read(text: str):
    reading = read_answer(text)
    assert reading.text is None or reading.text.strip() == reading.text != ""


@settings(deadline=None)
@given(st.text(alphabet="\\boxed{}answer is: 5$*\nA(B)?.", max_size=80), st.booleans())
def test_any_text_made_of_markers_and_boxes_is_read(text: str, is_truncated: bool):
    assert read_answer(text, is_truncated=is_truncated).text != ""
    letter = read_choice(text, {"A": "5", "B": "6"}, is_truncated=is_truncated).text
    assert letter in ("A", "B", None)
