import pytest

from vaopd.problems.boxed import outer_boxes, without_boxes


def contents(text: str) -> list[str]:
    return [text[box.content_start : box.content_end] for box in outer_boxes(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{5}.", ["5"]),
        (r"\boxed {5} or \fbox{6}", ["5", "6"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{\}}", [r"\}"]),
        (r"\boxed{x \\}", [r"x \\"]),
        (r"\boxed{\boxed{5}}", [r"\boxed{5}"]),
        (r"the set { holds \boxed{5}", ["5"]),
        (r"\boxed{cut off \frac{1}{2}", []),
        (r"\boxed{cut off, then \boxed{5}", ["5"]),
        (r"\\boxed{5}", ["5"]),
        (r"\boxed5 \boxedx{5}", []),
    ],
)
def test_balanced_boxes_are_found(text: str, expected: list[str]):
    assert contents(text) == expected


def test_boxes_are_replaced_by_their_contents():
    assert without_boxes(r" x = \boxed{\boxed{5} + \frac{1}{2}} cm") == r"x = 5 + \frac{1}{2} cm"


def test_a_response_that_only_opens_boxes_is_read_in_one_pass():
    # 100,000 openings: minutes if each were searched to the end of the text.
    assert outer_boxes(r"\boxed{" * 100_000) == []
