import pytest

from vaopd.grading.clauses import main_clause
from vaopd.grading.grades import grade
from vaopd.grading.letters import read_choice
from vaopd.grading.narrowing import only_number


@pytest.mark.parametrize(
    ("sentence", "clause"),
    [
        ("Since AB is 5, BC is 7", "BC is 7"),
        ("As can be seen, the blue team won 13 games", "the blue team won 13 games"),
        ("The line peaks in 2014, when sales hit 350", "The line peaks in 2014"),
        ("The tissue, which carries water, is the xylem", "The tissue is the xylem"),
        ("We add 3 and 4, so the sum is 7", "the sum is 7"),
        ("It costs 24 dollars instead of 30", "It costs 24 dollars"),
        ("There are four dogs: two here and two there", "There are four dogs"),
        ("So x is 54, which makes sense because it is acute", "So x is 54"),
        ("It's 16, since 12 is the area", "It is 16"),
        ("4x = 8 and x = 2", "x = 2"),
    ],
)
def test_the_main_clause_has_no_opening_reason_or_aside(sentence: str, clause: str):
    assert main_clause(sentence) == clause


@pytest.mark.parametrize(
    ("sentence", "number"),
    [
        ("Of the 40 seats, 25 were occupied", "25"),
        ("3 of the 8 slices are eaten", "3"),
        ("The bus at platform 4 left after 20 minutes", "20 minutes"),
        ("Only one person wears glasses", "one"),
        ("I see 3 red and 2 blue balls", None),
        ("The lines meet at (3, 5)", "(3, 5)"),
        ("The two lines cross in 1990", "1990"),
        ("It rained in 5 of the 12 months", "5"),
    ],
)
def test_a_number_after_a_preposition_only_describes(sentence: str, number: str | None):
    assert only_number(sentence) == number


@pytest.mark.parametrize(
    ("response", "said", "not_said"),
    [
        ("Brazil led in 2018 with 3.5 tonnes.", "Brazil", "Vietnam"),
        ("John ran faster than Emma.", "John", "Emma"),
        ("They are playing soccer, not tennis.", "soccer", "tennis"),
        ("The flags are red and blue.", "red and blue", "red"),
        ("It is a rhombus; a square would have right angles.", "rhombus", "square"),
    ],
)
def test_a_sentence_says_a_word_that_it_does_not_deny_compare_or_join(
    response: str, said: str, not_said: str
):
    assert grade(response, said).is_correct
    assert not grade(response, not_said).is_correct


@pytest.mark.parametrize(
    "response",
    [
        "x = 8\n\nLet's verify: 3 * 8 - 4 = 20.",
        "∠B = 8°\n\nReason: it is 20° less than 28°.",
        "8\n\nIt has 20 sides.",
    ],
)
def test_a_check_or_reason_after_the_answer_is_left_out(response: str):
    assert grade(response, "8").is_correct
    assert not grade(response, "20").is_correct


def test_a_denied_word_is_not_said():
    assert not grade("The animal on the sofa does not look like a cat.", "cat").is_correct


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("The area is 12 with a length of 4 and a width of 3.", "12"),
        ("The sequence goes 2, 5, 8. The next number in the sequence is 11.", "11"),
        ("Two thirds of the circle is shaded.", "2/3"),
        ("Sales increased by 4 between 2010 and 2012.", "4"),
        ("Sales peaked in 2008 with 340 units.", "2008"),
        ("Angle x is 45° (half of the right angle of 90°).", "45"),
    ],
)
def test_a_value_after_the_main_verb_counts_before_a_described_one(response: str, value: str):
    assert grade(response, value).is_correct
    assert not grade(response, "3").is_correct


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("It isn't a red line.", None),
        ("It isn't a red line but a blue line.", "B"),
        ("The line grows, so it could be the red line, but it could also be the blue line.", None),
        ("It is either a red line or a blue line.", None),
        ("The steepest one is blue.", "B"),
        ("Only B goes through the origin.", "B"),
        ("Options A and C can be eliminated, leaving B.", "B"),
    ],
)
def test_an_option_is_chosen_only_if_it_is_not_denied(response: str, letter: str | None):
    options = {"A": "red line", "B": "blue line", "C": "green line"}
    assert read_choice(response, options).text == letter
