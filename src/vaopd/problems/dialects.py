"""The words of drawn problems: reference responses in one of two dialects.

A teacher and a student trained on different shares of the dialects read the same values, but
word them differently, as real models do. So the scaffolding words cause a part of the reverse KL.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from vaopd.problems.figures import Figure


@dataclass(frozen=True)
class Dialect:
    """One way of writing a solution; ``{}`` slots are filled in by ``_write``."""

    intros: tuple[str, ...]
    reading: tuple[str, ...]
    """Templates over ``{name}`` and ``{value}``, one sentence part for each reading."""

    joint: str
    rules: dict[str, str]
    fillers: tuple[str, ...]
    """Sentences without any value: additional scaffolding."""

    bridges: tuple[str, ...]
    closings: tuple[str, ...]


DIALECTS = (
    Dialect(
        intros=(
            "Let me look at the figure before I compute anything.",
            "First I read what is written in the figure.",
            "I start with the numbers that the figure gives.",
        ),
        reading=("the {name} is {value}", "the {name} has the label {value}"),
        joint=" and ",
        rules={
            "triangle": "The three angles of a triangle always add up to 180 degrees.",
            "rectangle": "The perimeter is twice the sum of width and height.",
            "circle": "The diameter is twice as long as the radius.",
            "bars": "The question asks for the sum of these two bars.",
            "dial": "The question asks for a slightly larger number.",
            "table": "The question asks for the sum of this column.",
        },
        fillers=(
            "I keep these numbers in mind.",
            "The figure gives nothing more that I need.",
            "I look at the labels of the figure again.",
            "The rest of the figure says nothing about the answer.",
        ),
        bridges=("Now I can work it out:", "The rest is arithmetic:"),
        closings=("So the answer is", "Therefore the answer is"),
    ),
    Dialect(
        intros=(
            "Okay, what does this picture really contain? We go through it slowly.",
            "We want to be careful here, so we inspect the drawing at once.",
            "Right, everything needed should be printed in the drawing somewhere.",
        ),
        reading=("at the {name} there stands {value}", "the {name} carries the value {value}"),
        joint=", while ",
        rules={
            "triangle": "Recall that all corners together make a straight line, 180 in total.",
            "rectangle": "Walking around means passing both kinds of sides two times.",
            "circle": "Going straight across means passing the centre, two radii in total.",
            "bars": "Putting both bars on top of each other gives what we want.",
            "dial": "From there we only have to count on by the given amount.",
            "table": "Putting both cells of that column together gives what we want.",
        },
        fillers=(
            "Okay, this is everything that the drawing contains.",
            "We go through the drawing slowly to be careful here.",
            "Right, now we only have to use what is printed.",
            "Everything else in this picture is not needed.",
        ),
        bridges=("Doing the sums we get", "Step by step this becomes"),
        closings=("Hence our final result:", "We end up with"),
    ),
)


def _misread(figure: Figure, share: int | float, rng: random.Random) -> tuple[int, ...]:
    """Return the readings; with probability ``share`` a digit of each is wrong."""
    values = list(figure.values)
    for index, value in enumerate(values):
        if rng.random() < share:
            tens, units = divmod(value, 10)
            if rng.random() < 0.5:
                tens = rng.choice([digit for digit in range(1, 10) if digit != tens])
            else:
                units = rng.choice([digit for digit in range(10) if digit != units])
            values[index] = 10 * tens + units
    # Two angles of a triangle must stay below 180 degrees, also if they are misread.
    return tuple(values) if figure.solve(*values)[1] > 0 else figure.values


def _fill(
    fillers: Sequence[str], num_readings: int, scaffolding: int | float, rng: random.Random
) -> list[str]:
    """Return on average ``scaffolding - 1`` sentences for each reading; none if it is at most 1.

    Draws no random number in that case, so the usual scaffolding changes no other choice.
    """
    if scaffolding <= 1:
        return []
    whole, part = divmod((scaffolding - 1) * num_readings, 1)
    return rng.choices(fillers, k=int(whole) + (rng.random() < part))


def write_response(
    figure: Figure,
    kind: str,
    rng: random.Random,
    *,
    wording: int | float,
    scaffolding: int | float,
    misread: int | float,
) -> str:
    """Return one reference response; short ones leave out the introduction and the rule.

    If a figure has no readings, the calculation is the whole solution.
    ``DrawnProblems`` explains the three options.
    """
    values = _misread(figure, misread, rng) if misread else figure.values
    working, answer = figure.solve(*values)
    if not figure.readings:
        return f"{working}. \\boxed{{{answer}}}"
    dialect = DIALECTS[1] if rng.random() < wording else DIALECTS[0]
    template = rng.choice(dialect.reading)
    parts = [
        template.format(name=name, value=value)
        for name, value in zip(figure.readings, values, strict=True)
    ]
    reading = dialect.joint.join(parts) + "."
    sentences = [reading[0].upper() + reading[1:]]
    if rng.random() < 0.75 * min(1, scaffolding):
        sentences = [rng.choice(dialect.intros), *sentences, dialect.rules[kind]]
    sentences += _fill(dialect.fillers, len(figure.readings), scaffolding, rng)
    sentences += [f"{rng.choice(dialect.bridges)} {working}."]
    sentences += [f"{rng.choice(dialect.closings)} \\boxed{{{answer}}}"]
    return " ".join(sentences)
