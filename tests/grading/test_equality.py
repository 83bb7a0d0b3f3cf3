import threading

import pytest

from vaopd.grading.arithmetic import number_of
from vaopd.grading.equality import is_equal
from vaopd.grading.units import unit_of


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("80", "80"), (r"80^\circ", "80"), ("80°", "80"), ("80 degrees", "80"), ("12.50", "12.5"),
        (r"5\sqrt{3}", r"5 \sqrt { 3 }"), (r"5\sqrt3", r"5 \sqrt { 3 }"), (r"\sqrt{75}", r"5 \sqrt { 3 }"),
        (r"5\sqrt{3} \text{ units}", r"5 \sqrt { 3 }"),
        (r"\dfrac{2\sqrt2}{5}", r"\frac { 2 \sqrt { 2 } } { 5 }"), ("1,234", "1234"), ("12 500", "12,500"),
        (r"\frac{1}{2}", "0.5"), ("1/2", "0.5"), ("2½", "5/2"), ("−3", "-3"), ("x = 5", "5"), ("BC = 10", "10"),
        (r"12 \text{ cm}", "12"), (r"\text{B}", "B"), ("(B)", "B"), ("b", "B"), (r"20\pi", r"20 \pi"),
        ("1 + x^2", "x^2 + 1"), ("x^2+2x+1", "(x+1)^2"), ("y = 2x + 1", "y=1+2x"), ("2x+1", "y=2x+1"),
        (r"\{2, 1\}", r"\{1, 2\}"), ("( 1 , 2 ]", "(1, 2]"), ("3 and -3", "{-3, 3}"), ("x=3 or x=-3", r"\pm 3"),
        ("Red  Square", "red square"), ("a square", "square"), ("May 5, 2020", "May 5 2020"),
        ("5", r"\boxed{5}"), ("5 cm", "50 mm"), ("0.6 m", "60 cm"), ("24 square centimeters", "24 cm^2"),
        ("60 km/h", "60 kilometers per hour"), ("2.5 hours", "2 hours 30 minutes"), ("180°", r"\pi rad"),
        ("80%", "0.8"), ("80%", "80"), ("$5.00", "5 dollars"), ("1.2 million", "1,200,000"),
        ("2:1", "4:2"), ("3 to 1", "3:1"), (r"5\sqrt3 \approx 8.66", "8.66"), (r"5\sqrt3 \approx 8.66", r"5\sqrt{3}"),
        ("12 apples", "12"), ("twenty-one", "21"), ("half", "0.5"), (r"1.2 \times 10^3", "1200"), ("4*6=24", "24"),
        # Less than a millionth apart.
        ("0.5", "0.5000009"), ("1/3", "0.333333"),
        (r"(-\infty, 3]", r"(-\infty,3]"), ("36 平方厘米", "36 cm²"), ("two hundred and five", "205"), ("三分之一", "1/3"),
        ("0.333...", "1/3"), (r"0.1\overline{6}", "1/6"), ("$0.8 million", "0.8"), ("10:00 AM", "10 a.m."), ("12:30 PM", "12:30"),
        ("red and blue", "red, blue"), ("25 degrees Celsius", "25 °C"), ("one and a half hours", "90 min"), ("0.25, or 25%", "1/4"),
        ("54 g / 20 cm³ = 2.7 g/cm³", "2.7"), ("(x, y) = (5, 2)", "(5, 2)"), (r"\overline{AC}", "AC"), ("~15 cm", "15"),
    ],
)  # fmt: skip
def test_equal_values_are_equal(answer: str, reference: str):
    assert is_equal(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("81", "80"), ("8.66", r"5 \sqrt { 3 }"), (r"5\sqrt{2}", r"5 \sqrt { 3 }"), ("12", "B"), ("3 or 4", "3"),
        ("3x", "3"), ("[1, 2]", "(1, 2)"), ("(2, 1)", "(1, 2)"), ("0.5", "0.51"), ("0.5", "0.500001"), ("1/0", "0"), ("5", ""),
        # Algebra would read both as the same product of letters.
        ("rat", "tar"), ("book red", "red book"), ("-5", "5"), ("12 cm^2", "12 cm"), ("0.0000001", "0.0000002"),
        ("$5", "€5"), ("x=5", "y=5"), ("5.1", "51"), ("5, 6", "5"), ("x-1", "x+1"), ("(1,2)", "12"), ("1.2", "1,2"),
        ("3:30", "3:03"), ("5 hours", "5 minutes"), ("50", "0.5"), ("not similar", "similar"), ("2^3", "6"),
        ("0.8 million", "0.8 billion"), ("10 AM", "10 PM"), ("x = -1 and x = 4", "4"), (r"\pm 5", "5"), ("2x = 10", "10"),
        ("12 boys", "12 girls"), ("5 m", "5 cm"), ("1000", "1e4"), (r"\frac{1}{2}", "2"),
    ],
)  # fmt: skip
def test_unequal_values_are_not_equal(answer: str, reference: str):
    assert not is_equal(answer, reference)


def test_one_of_several_accepted_answers_is_enough():
    assert is_equal("6", ["six", "6"])
    assert is_equal("six", ["six", "6"])
    assert not is_equal("7", ["six", "6"])


def test_a_tolerance_is_absolute_and_includes_its_edge():
    assert is_equal("8.25", "8.2", tolerance=0.05)
    assert not is_equal("8.26", "8.2", tolerance=0.05)
    assert is_equal(r"5\sqrt{3}", "8.66", tolerance=0.01)
    assert not is_equal("8.25", "8.2")


@pytest.mark.parametrize(
    "text", ["1 1", "", "x", "5x", "(1, 2)", "9^9^9", "9^{9^{9^9}}", "99999999!", "1/0", "(" * 300]
)
def test_what_is_no_number_has_no_value(text: str):
    assert number_of(text) is None


def test_units_are_products_of_powers():
    speed, rate = unit_of("km/h"), unit_of("kilometers per hour")
    assert speed == rate
    assert unit_of("L") == unit_of("dm³")
    assert unit_of("apples") is None


def test_formulas_are_compared_outside_the_main_thread():
    found: list[bool] = []

    def work() -> None:
        found.append(is_equal("(x+1)(x-1)", "x^2-1"))
        found.append(is_equal("(x+1)(x-1)", "x^2-2"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, False]
