"""Procedural problems whose evidence is fine detail: small printed numbers inside large shapes.

A figure of 96 x 96 pixels keeps its layout when it is pixelated, but loses its numbers, so the
degraded view still shows *what* is asked and never the value. Every problem comes with reference
responses that reason in words before they box the answer. They are written in one of two
dialects: ``wording`` is the share of the second one. A teacher and a student trained on different
shares agree on what the picture says and differ in how to say it, as real models do, so the
scaffolding words carry part of the reverse KL.

A problem is a function of (split, seed, index) alone. The split is part of that key, so training
and held-out problems never share a random stream.
"""

import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

from PIL import Image, ImageDraw, ImageFont

from vaopd.errors import ConfigError
from vaopd.problems.problem import Problem
from vaopd.problems.scaffolding import FILLERS, filler_sentences

SIDE_PIXELS = 96
CELL_PIXELS = 16
"""Labels sit near the corners of a 16-pixel lattice, which small vision towers learn to read."""

FONT_PIXELS = 14

Draw = ImageDraw.ImageDraw


@dataclass(frozen=True)
class Figure:
    """What one problem shows and asks, before it is put into words."""

    question: str
    readings: tuple[str, ...]
    """Names of the quantities printed in the figure that the answer needs, in reading order."""

    values: tuple[int, ...]
    """The printed number of each reading."""

    working: str
    """The arithmetic, symbols only, ending in the answer."""

    answer: int


class Canvas:
    """A figure being drawn: shapes in one ink, labels snapped to the lattice with jitter."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.paper = (rng.randint(236, 255),) * 3
        self.resize(SIDE_PIXELS)
        tints = [rng.randint(90, 150), rng.randint(120, 190), rng.randint(150, 210)]
        rng.shuffle(tints)
        self.ink = (tints[0], tints[1], tints[2])
        self.label_ink = (rng.randint(0, 45),) * 3
        self.font = ImageFont.load_default(FONT_PIXELS)

    def resize(self, side: int) -> None:
        """Start over on a blank square sheet of this side in pixels."""
        self.image = Image.new("RGB", (side, side), self.paper)
        self.draw = ImageDraw.Draw(self.image)

    def label(self, number: int, column: int | float, row: int | float) -> None:
        """Print a number at a lattice cell, moved by at most one pixel each way.

        Half cells are allowed: they still start on the 8-pixel lattice of vision patches.
        """
        left = int(column * CELL_PIXELS) + self.rng.randint(-1, 1)
        top = int(row * CELL_PIXELS) + self.rng.randint(-1, 1)
        self.draw.text((left, top), str(number), font=self.font, fill=self.label_ink)

    def wobble(self, coordinate: int, by: int = 3) -> int:
        """Return a coordinate moved by up to ``by`` pixels."""
        return coordinate + self.rng.randint(-by, by)


def _two_digits(rng: random.Random) -> int:
    return rng.randint(10, 99)


def _triangle(canvas: Canvas) -> Figure:
    rng = canvas.rng
    left, right = rng.randint(15, 84), rng.randint(15, 84)
    apex = (canvas.wobble(48, 10), canvas.wobble(10))
    corners = [apex, (canvas.wobble(7), canvas.wobble(88)), (canvas.wobble(88), canvas.wobble(88))]
    canvas.draw.polygon(corners, outline=canvas.ink, width=2)
    canvas.label(left, 1.5, 4)
    canvas.label(right, 3.5, 4)
    total = left + right
    return Figure(
        "The triangle shows two of its angles in degrees. Find the third angle.",
        ("left angle", "right angle"),
        (left, right),
        f"{left} + {right} = {total}, 180 - {total} = {180 - total}",
        180 - total,
    )


def _rectangle(canvas: Canvas) -> Figure:
    width, height = _two_digits(canvas.rng), _two_digits(canvas.rng)
    box = [canvas.wobble(21), canvas.wobble(22), canvas.wobble(90), canvas.wobble(84)]
    canvas.draw.rectangle(box, outline=canvas.ink, width=2)
    canvas.label(width, 3, 0)
    canvas.label(height, 0, 3)
    total = width + height
    return Figure(
        "The rectangle is labelled with its sides. Find its perimeter.",
        ("width", "height"),
        (width, height),
        f"{width} + {height} = {total}, {total} + {total} = {2 * total}",
        2 * total,
    )


def _circle(canvas: Canvas) -> Figure:
    radius = _two_digits(canvas.rng)
    x, y, r = canvas.wobble(48), canvas.wobble(50), canvas.rng.randint(36, 42)
    canvas.draw.ellipse([x - r, y - r, x + r, y + r], outline=canvas.ink, width=2)
    canvas.draw.line([x, y, x + r, y], fill=canvas.ink, width=1)
    canvas.label(radius, 4, 2)
    return Figure(
        "The circle is labelled with its radius. Find its diameter.",
        ("radius",),
        (radius,),
        f"{radius} + {radius} = {2 * radius}",
        2 * radius,
    )


def _bars(canvas: Canvas) -> Figure:
    rng = canvas.rng
    values = [_two_digits(rng) for _ in range(3)]
    for column, value in zip((0, 2, 4), values, strict=True):
        # Heights are drawn apart from the values: only the printed number tells the value.
        row = rng.randint(0, 3)
        left, top = column * CELL_PIXELS + 2, (row + 1) * CELL_PIXELS + 2
        canvas.draw.rectangle([left, top, left + 15, 92], fill=canvas.ink)
        canvas.label(value, column, row)
    canvas.draw.line([0, 93, 95, 93], fill=canvas.ink, width=1)
    first, second = sorted(rng.sample(range(3), 2))
    names = ("left bar", "middle bar", "right bar")
    total = values[first] + values[second]
    return Figure(
        f"Each bar carries its value. Add the {names[first]} and the {names[second]}.",
        (names[first], names[second]),
        (values[first], values[second]),
        f"{values[first]} + {values[second]} = {total}",
        total,
    )


def _dial(canvas: Canvas) -> Figure:
    rng = canvas.rng
    reading, step = _two_digits(rng), rng.randint(1, 9)
    side = rng.randrange(4)
    column, row = ((2.5, 0), (5, 2.5), (2.5, 5), (0, 2.5))[side]
    canvas.draw.ellipse([18, 18, 78, 78], outline=canvas.ink, width=2)
    angle = side * math.pi / 2 + math.radians(rng.randint(-12, 12))
    tip = (48 + 26 * math.sin(angle), 48 - 26 * math.cos(angle))
    canvas.draw.line([48, 48, *tip], fill=canvas.ink, width=5)
    canvas.label(reading, column, row)
    return Figure(
        f"The hand of the dial points at a number. What is {step} more than it?",
        ("number at the hand",),
        (reading,),
        f"{reading} + {step} = {reading + step}",
        reading + step,
    )


def _number(canvas: Canvas) -> Figure:
    """One number on a small card of few visual tokens: where learning to read begins."""
    canvas.resize(2 * CELL_PIXELS)
    value = _two_digits(canvas.rng)
    canvas.label(value, canvas.rng.choice((0, 0.5, 1)), canvas.rng.choice((0, 0.5, 1)))
    return Figure("Read the number.", (), (), str(value), value)


def _numbers(canvas: Canvas) -> Figure:
    """A table read aloud: the second step of learning to read."""
    upper, lower = _draw_table(canvas)
    values = (*upper, *lower)
    return Figure(
        "Read the table row by row. What is the last number?",
        (),
        (),
        " ".join(str(value) for value in values),
        values[-1],
    )


def _draw_table(canvas: Canvas) -> list[list[int]]:
    rng = canvas.rng
    values = [[_two_digits(rng) for _ in range(3)] for _ in range(2)]
    top, bottom = canvas.wobble(12), canvas.wobble(84)
    middle = canvas.wobble(46, 2)
    canvas.draw.rectangle([2, top, 93, bottom], outline=canvas.ink, width=1)
    canvas.draw.line([2, middle, 93, middle], fill=canvas.ink, width=1)
    for x in (30, 62):
        canvas.draw.line([x, top, x, bottom], fill=canvas.ink, width=1)
    for row, numbers in zip((1, 4), values, strict=True):
        for column, value in zip((0.5, 2.5, 4.5), numbers, strict=True):
            canvas.label(value, column, row)
    return values


def _table(canvas: Canvas) -> Figure:
    values = _draw_table(canvas)
    column = canvas.rng.randrange(3)
    name = ("left", "middle", "right")[column]
    upper, lower = values[0][column], values[1][column]
    return Figure(
        f"The table holds six numbers. Add the two in the {name} column.",
        ("upper number", "lower number"),
        (upper, lower),
        f"{upper} + {lower} = {upper + lower}",
        upper + lower,
    )


KINDS: dict[str, Callable[[Canvas], Figure]] = {
    "triangle": _triangle,
    "rectangle": _rectangle,
    "circle": _circle,
    "bars": _bars,
    "dial": _dial,
    "table": _table,
    "number": _number,
    "numbers": _numbers,
}

PROBLEM_KINDS = ("triangle", "rectangle", "circle", "bars", "dial", "table")
"""What is asked unless a source names its kinds; the others only teach reading."""


@dataclass(frozen=True)
class Dialect:
    """One way of writing a solution; ``{}`` slots are filled in by ``_write``."""

    intros: tuple[str, ...]
    reading: tuple[str, ...]
    """Templates over ``{name}`` and ``{value}``, one sentence part for each reading."""

    joint: str
    rules: dict[str, str]
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
        bridges=("Now I can work it out:", "The rest is arithmetic:"),
        closings=("So the answer is", "Therefore the answer is"),
    ),
    Dialect(
        intros=(
            "Okay, what does this picture really contain? We go through it slowly.",
            "We want to be careful here, so we inspect the drawing at once.",
            "Right, everything needed should be printed in the drawing somewhere.",
        ),
        reading=("{value} stands at the {name}", "{value} belongs to the {name}"),
        joint=", while ",
        rules={
            "triangle": "Recall that all corners together make a straight line, 180 in total.",
            "rectangle": "Walking around means passing both kinds of sides two times.",
            "circle": "Going straight across means passing the centre, two radii in total.",
            "bars": "Putting both bars on top of each other gives what we want.",
            "dial": "From there we only have to count on by the given amount.",
            "table": "Putting both cells of that column together gives what we want.",
        },
        bridges=("Doing the sums we get", "Step by step this becomes"),
        closings=("Hence our final result:", "We end up with"),
    ),
)


def _write(
    figure: Figure, kind: str, wording: int | float, scaffolding: int | float, rng: random.Random
) -> str:
    """Return one reference response; short ones leave out the introduction and the rule.

    A figure without readings is plain reading aloud: its working is the whole solution.
    """
    if not figure.readings:
        return f"{figure.working}. \\boxed{{{figure.answer}}}"
    dialect = DIALECTS[1] if rng.random() < wording else DIALECTS[0]
    template = rng.choice(dialect.reading)
    parts = [
        template.format(name=name, value=value)
        for name, value in zip(figure.readings, figure.values, strict=True)
    ]
    reading = dialect.joint.join(parts) + "."
    sentences = [reading[0].upper() + reading[1:]]
    if rng.random() < 0.75 * min(1, scaffolding):
        sentences = [rng.choice(dialect.intros), *sentences, dialect.rules[kind]]
    fillers = FILLERS[DIALECTS.index(dialect)]
    sentences += filler_sentences(fillers, len(figure.readings), scaffolding, rng)
    sentences += [f"{rng.choice(dialect.bridges)} {figure.working}."]
    sentences += [f"{rng.choice(dialect.closings)} \\boxed{{{figure.answer}}}"]
    return " ".join(sentences)


@dataclass(frozen=True)
class DrawnProblems(Sequence[Problem]):
    """A reproducible sequence of drawn problems, each made when it is asked for."""

    split: str = "train"
    """``train``, ``validation`` or ``test``: each has random streams of its own."""

    num_problems: int = 1024
    seed: int = 0
    wording: int | float = 0.0
    """Probability that a reference is written in the second dialect, in [0, 1]."""

    scaffolding: int | float = 1.0
    """Words around the evidence: below 1 the introduction and the rule come that much less often,
    above 1 there are ``scaffolding - 1`` sentences without any value for each reading."""

    references: int = 1
    """Reference responses for each problem, each with wording of its own."""

    kinds: tuple[str, ...] = PROBLEM_KINDS

    def __post_init__(self) -> None:
        if self.split not in ("train", "validation", "test"):
            raise ConfigError(
                f"drawn problems have no split {self.split!r}; use train, validation or test"
            )
        if self.num_problems < 1 or self.references < 1 or not 0 <= self.wording <= 1:
            raise ConfigError(
                f"drawn problems got count={self.num_problems}, references={self.references}, "
                f"wording={self.wording}; counts must be at least 1 and wording in [0, 1]"
            )
        if not 0 <= self.scaffolding <= 100:
            raise ConfigError(
                f"drawn problems got scaffolding={self.scaffolding}; it must be in [0, 100], and "
                "1 is the usual amount"
            )
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ConfigError(f"unknown drawn kinds {unknown}; choose from {'+'.join(KINDS)}")

    def __len__(self) -> int:
        return self.num_problems

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self._draw(i) for i in range(*index.indices(self.num_problems))]
        if not -self.num_problems <= index < self.num_problems:
            raise IndexError(index)
        return self._draw(index % self.num_problems)

    def _draw(self, index: int) -> Problem:
        rng = random.Random(f"vaopd drawn {self.split} {self.seed} {index}")
        kind = self.kinds[index % len(self.kinds)]
        canvas = Canvas(rng)
        figure = KINDS[kind](canvas)
        png = io.BytesIO()
        canvas.image.save(png, "PNG")
        return Problem(
            id=f"drawn:{self.split}:{self.seed}:{index}",
            prompt=f"<image>{figure.question}",
            images=(png.getvalue(),),
            answer=str(figure.answer),
            source="drawn",
            split=self.split,
            references=tuple(
                _write(figure, kind, self.wording, self.scaffolding, rng)
                for _ in range(self.references)
            ),
            kind=kind,
        )


def parse_source(split: str, options: dict[str, str]) -> DrawnProblems:
    """Return the problems of ``drawn:SPLIT?count=..&seed=..&wording=..&kinds=bars+dial``.

    The other options are ``references`` and ``scaffolding``.

    Raises:
        ConfigError: An option is unknown or its value does not parse.
    """
    readers = {
        "count": int,
        "seed": int,
        "references": int,
        "wording": float,
        "scaffolding": float,
    }
    values: dict = {}
    for name, text in options.items():
        if name == "kinds":
            # A plus sign in a query string reads as a space.
            values[name] = tuple(text.replace("+", " ").split())
            continue
        if name not in readers:
            raise ConfigError(
                f"drawn problems have no option {name!r}; use {', '.join([*readers, 'kinds'])}"
            )
        try:
            values["num_problems" if name == "count" else name] = readers[name](text)
        except ValueError:
            raise ConfigError(
                f"option {name}={text!r} of drawn problems must be a number, as in {name}=4"
            ) from None
    return DrawnProblems(split=split, **values)
