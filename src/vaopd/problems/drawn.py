"""Procedural problems whose evidence is fine detail, drawn on demand.

Every problem comes with reference responses that reason in words before they box the answer; see
``figures`` for what is drawn and ``dialects`` for what is written. A problem is a function of
(split, seed, index) alone. The split is part of that key, so training and held-out problems never
share a random stream.
"""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from vaopd.errors import ConfigError
from vaopd.problems.dialects import write_response
from vaopd.problems.figures import KINDS, PROBLEM_KINDS, Canvas
from vaopd.problems.problem import Problem

SHARES = ("wording", "variety", "told", "misread")
"""Options of drawn problems that are shares or probabilities."""


@dataclass(frozen=True)
class DrawnProblems(Sequence[Problem]):
    """A reproducible sequence of drawn problems, each drawn on demand."""

    split: str = "train"
    """``train``, ``validation`` or ``test``; each has its own random streams."""

    num_problems: int = 1024
    seed: int = 0
    wording: int | float = 0.0
    """Probability that a reference is written in the second dialect, in [0, 1]."""

    scaffolding: int | float = 1.0
    """Words around the evidence: below 1 it is the share of introductions and rules that are kept,
    above 1 there are ``scaffolding - 1`` sentences without any value for each reading."""

    variety: int | float = 0.0
    """Share of printed numbers whose size, place and ink vary, in [0, 1]."""

    told: int | float = 0.0
    """Probability that the numbers are in the question and not in the figure, in [0, 1].

    Such problems teach wording, copying and arithmetic, but not reading.
    """

    misread: int | float = 0.0
    """Probability that a reference misreads a number and continues with it, in [0, 1].

    A teacher trained on such references follows the given text, also where a student misread,
    and is not fully certain of a digit. Without them it prefers the number in the image in the
    middle of a sum, and so teaches a student not to copy.
    """

    references: int = 1
    """Number of reference responses for each problem, each with its own wording."""

    kinds: tuple[str, ...] = PROBLEM_KINDS
    # Not in the repr, of which the manifest of a run keeps a hash: they are keys of its recipe.
    system_prompt: str = field(default="", repr=False)
    prompt_suffix: str = field(default="", repr=False)
    """Text after every question, on a line of its own."""

    def __post_init__(self) -> None:
        if self.split not in ("train", "validation", "test"):
            raise ConfigError(
                f"drawn problems have no split {self.split!r}; use train, validation or test"
            )
        if self.num_problems < 1 or self.references < 1:
            raise ConfigError(
                f"drawn problems got count={self.num_problems} and references={self.references}; "
                "both must be at least 1"
            )
        for name in SHARES:
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ConfigError(f"drawn problems got {name}={share}; it must be in [0, 1]")
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

    def has_id(self, id: str) -> bool:
        """Return whether a problem of that id would be drawn, without drawing any."""
        prefix = f"drawn:{self.split}:{self.seed}:"
        number = id.removeprefix(prefix)
        return id.startswith(prefix) and number.isdecimal() and int(number) < self.num_problems

    def _draw(self, index: int) -> Problem:
        rng = random.Random(f"vaopd drawn {self.split} {self.seed} {index}")
        kind = self.kinds[index % len(self.kinds)]
        canvas = Canvas(rng, self.variety)
        # A separate stream, so that the figures are the same for every share.
        teller = random.Random(f"vaopd told {self.split} {self.seed} {index}")
        canvas.prints_numbers = kind not in PROBLEM_KINDS or teller.random() >= self.told
        figure = KINDS[kind](canvas)
        question = figure.question
        if not canvas.prints_numbers:
            given = zip(figure.readings, figure.values, strict=True)
            question += f" Given: {', '.join(f'{name} {value}' for name, value in given)}."
        if self.prompt_suffix:
            question += f"\n{self.prompt_suffix}"
        png = io.BytesIO()
        canvas.image.save(png, "PNG")
        return Problem(
            id=f"drawn:{self.split}:{self.seed}:{index}",
            prompt=f"<image>{question}",
            images=(png.getvalue(),),
            answer=str(figure.answer),
            source="drawn",
            split=self.split,
            references=tuple(
                write_response(
                    figure,
                    kind,
                    rng,
                    wording=self.wording,
                    scaffolding=self.scaffolding,
                    misread=self.misread,
                )
                for _ in range(self.references)
            ),
            kind=kind,
            system_prompt=self.system_prompt,
        )


def parse_source(split: str, options: dict[str, str]) -> DrawnProblems:
    """Return the problems of ``drawn:SPLIT?count=..&seed=..&wording=..&kinds=bars+dial``.

    Raises:
        ConfigError: An option is unknown or its value does not parse.
    """
    readers = {"count": int, "seed": int, "references": int} | dict.fromkeys(
        ("scaffolding", *SHARES), float
    )
    values: dict = {}
    for name, text in options.items():
        if name == "kinds":
            # A plus sign in a query string means a space.
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
