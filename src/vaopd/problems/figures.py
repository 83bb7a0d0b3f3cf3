"""Figures of drawn problems: small printed numbers inside large shapes, with their answers.

Pixelation of a figure of 96 x 96 pixels keeps the layout and removes the numbers, so the degraded
view shows *what* is asked, but not the value.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

SIDE_PIXELS = 96
CELL_PIXELS = 16
"""Distance of the lattice that labels are near to, so that small vision towers learn to read."""

FONT_PIXELS = 14

VARIED_FONT_PIXELS = (11, 12, 13, 15, 16)
"""Other sizes of print, for models that have learned to read at ``FONT_PIXELS``."""

Draw = ImageDraw.ImageDraw


@cache
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


@dataclass(frozen=True)
class Figure:
    """The figure, question and arithmetic of a problem, before they are put into words."""

    question: str
    readings: tuple[str, ...]
    """Names of the quantities printed in the figure that the answer needs, in reading order."""

    values: tuple[int, ...]
    """The printed number of each reading."""

    solve: Callable[..., tuple[str, int]]
    """The arithmetic that follows from these numbers, symbols only, and the answer it ends in."""

    @property
    def answer(self) -> int:
        """The right answer, from the printed numbers."""
        return self.solve(*self.values)[1]


class Canvas:
    """A figure being drawn: shapes in one ink, labels snapped to the lattice with jitter.

    Args:
        rng: Source of all random choices.
        variety: Share of labels, in [0, 1], whose print varies in size, place and ink.
    """

    def __init__(self, rng: random.Random, variety: int | float = 0) -> None:
        self.rng = rng
        self.variety = variety
        self.prints_numbers = True
        self.paper = (rng.randint(236, 255),) * 3
        self.resize(SIDE_PIXELS)
        tints = [rng.randint(90, 150), rng.randint(120, 190), rng.randint(150, 210)]
        rng.shuffle(tints)
        self.ink = (tints[0], tints[1], tints[2])
        self.label_ink = (rng.randint(0, 45),) * 3
        self.font = _font(FONT_PIXELS)

    def resize(self, side: int) -> None:
        """Replace the figure by a blank square sheet with this side in pixels."""
        self.image = Image.new("RGB", (side, side), self.paper)
        self.draw = ImageDraw.Draw(self.image)

    def label(self, number: int, column: int | float, row: int | float) -> None:
        """Print a number at a lattice cell, moved by at most one pixel each way.

        Half cells are allowed: they still start on the 8-pixel lattice of vision patches.
        """
        left = int(column * CELL_PIXELS) + self.rng.randint(-1, 1)
        top = int(row * CELL_PIXELS) + self.rng.randint(-1, 1)
        if not self.prints_numbers:
            return
        font, ink = self.font, self.label_ink
        if self.variety and self.rng.random() < self.variety:
            font = _font(self.rng.choice(VARIED_FONT_PIXELS))
            _, _, width, height = font.getbbox(str(number))
            left = min(max(1, self.wobble(left, 2)), self.image.width - 2 - int(width))
            top = min(max(0, self.wobble(top, 2)), self.image.height - 1 - int(height))
            ink = (self.rng.randint(0, 110),) * 3
        self.draw.text((left, top), str(number), font=font, fill=ink)

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
    return Figure(
        "The triangle shows two of its angles in degrees. Find the third angle.",
        ("left angle", "right angle"),
        (left, right),
        _solve_triangle,
    )


def _solve_triangle(left: int, right: int) -> tuple[str, int]:
    total = left + right
    return f"{left} + {right} = {total}, 180 - {total} = {180 - total}", 180 - total


def _rectangle(canvas: Canvas) -> Figure:
    width, height = _two_digits(canvas.rng), _two_digits(canvas.rng)
    box = [canvas.wobble(21), canvas.wobble(22), canvas.wobble(90), canvas.wobble(84)]
    canvas.draw.rectangle(box, outline=canvas.ink, width=2)
    canvas.label(width, 3, 0)
    canvas.label(height, 0, 3)
    return Figure(
        "The rectangle is labelled with its sides. Find its perimeter.",
        ("width", "height"),
        (width, height),
        _solve_rectangle,
    )


def _solve_rectangle(width: int, height: int) -> tuple[str, int]:
    total = width + height
    return f"{width} + {height} = {total}, {total} + {total} = {2 * total}", 2 * total


def _add(left: int, right: int) -> tuple[str, int]:
    return f"{left} + {right} = {left + right}", left + right


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
        lambda radius: _add(radius, radius),
    )


def _bars(canvas: Canvas) -> Figure:
    rng = canvas.rng
    values = [_two_digits(rng) for _ in range(3)]
    for column, value in zip((0, 2, 4), values, strict=True):
        # Heights do not depend on the values, so only the printed number shows the value.
        row = rng.randint(0, 3)
        left, top = column * CELL_PIXELS + 2, (row + 1) * CELL_PIXELS + 2
        canvas.draw.rectangle([left, top, left + 15, 92], fill=canvas.ink)
        canvas.label(value, column, row)
    canvas.draw.line([0, 93, 95, 93], fill=canvas.ink, width=1)
    first, second = sorted(rng.sample(range(3), 2))
    names = ("left bar", "middle bar", "right bar")
    return Figure(
        f"Each bar carries its value. Add the {names[first]} and the {names[second]}.",
        (names[first], names[second]),
        (values[first], values[second]),
        _add,
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
        lambda reading: _add(reading, step),
    )


def _number(canvas: Canvas) -> Figure:
    """One number on a small card of few visual tokens: the first step of learning to read."""
    canvas.resize(2 * CELL_PIXELS)
    value = _two_digits(canvas.rng)
    canvas.label(value, canvas.rng.choice((0, 0.5, 1)), canvas.rng.choice((0, 0.5, 1)))
    return Figure("Read the number.", (), (), lambda: (str(value), value))


def _sum(canvas: Canvas) -> Figure:
    """Arithmetic only, on a blank card: a model must add to show which numbers it reads."""
    canvas.resize(2 * CELL_PIXELS)
    rng = canvas.rng
    left, right = _two_digits(rng), _two_digits(rng)
    task, answer = rng.choice(
        (
            (f"{left} + {right}", left + right),
            (f"{left + right} + {left + right}", 2 * (left + right)),
            (f"180 - {30 + left}", 150 - left),
        )
    )
    return Figure(f"What is {task}?", (), (), lambda: (f"{task} = {answer}", answer))


def _numbers(canvas: Canvas) -> Figure:
    """A table whose numbers are all read: the second step of learning to read."""
    upper, lower = _draw_table(canvas)
    values = (*upper, *lower)
    return Figure(
        "Read the table row by row. What is the last number?",
        (),
        (),
        lambda: (" ".join(str(value) for value in values), values[-1]),
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
        _add,
    )


KINDS: dict[str, Callable[[Canvas], Figure]] = {
    "triangle": _triangle,
    "rectangle": _rectangle,
    "circle": _circle,
    "bars": _bars,
    "dial": _dial,
    "table": _table,
    "number": _number,
    "sum": _sum,
    "numbers": _numbers,
}

PROBLEM_KINDS = ("triangle", "rectangle", "circle", "bars", "dial", "table")
"""Kinds of a source that names none; the other kinds only teach reading."""
