"""Examines a source of problems for ``vaopd data check``: rows, images, lengths of prompts."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console

from vaopd.config import DataConfig
from vaopd.display import with_bar
from vaopd.problems.bad_rows import NAMED, BadRow
from vaopd.problems.checks import damaged_images
from vaopd.problems.problem import Problem
from vaopd.problems.reading import reading_rules
from vaopd.problems.sources import Source, read_source

BINS = 10
"""Number of bars of a histogram."""

BAR_WIDTH = 40
NO_MODEL = "lengths of prompts in tokens; name a model with --model or --recipe"

VARYING = re.compile(r"^\S+ (?:row|line) \d+:? |(?<=problem )\S+|(?<=the image )\S+|\d+")
"""What tells one bad row from another of the same kind."""


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of some whole numbers, and how they are distributed."""

    smallest: int
    median: float
    largest: int
    histogram: list[tuple[int, int, int]]
    """Lower end, upper end (included) and number of the values of each bar."""


@dataclass(frozen=True)
class Refused:
    """Bad rows of one kind."""

    reason: str
    """Of the first one."""

    count: int


@dataclass(frozen=True)
class DataReport:
    """What a source holds."""

    source: str
    rows: int
    good: int
    refused: list[Refused]
    """Kinds of bad rows, the most frequent first."""

    with_answer: int
    with_references: int
    with_teacher_images: int
    text_only: int
    images: int
    width: Spread | None
    height: Spread | None
    prompt_tokens: Spread | None
    """With the image tokens; None if no model was named."""

    image_tokens: Spread | None
    skipped: list[str]
    """What was not examined, with the reason."""

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        found = [
            f"{self.source}: {self.rows} rows, {self.good} can be used",
            f"answers: {self.with_answer}; references: {self.with_references}",
            f"images: {self.images}",
        ]
        if self.text_only:
            found.append(f"problems without an image: {self.text_only}")
        if self.with_teacher_images:
            found.append(f"problems with teacher_images: {self.with_teacher_images}")
        for name in ("width", "height", "prompt_tokens", "image_tokens"):
            spread: Spread | None = getattr(self, name)
            if spread is not None:
                title = name.replace("_", " ")
                found.append(
                    f"{title}: {spread.smallest} to {spread.largest}, {spread.median:g} in the "
                    "median"
                )
                found += bars(spread) if name.endswith("tokens") else ()
        found += [f"not examined: {one}" for one in self.skipped]
        if self.refused:
            found.append(f"refused: {self.rows - self.good} of {self.rows} rows")
            found += [f"  {one.count} x {one.reason}" for one in self.refused[:NAMED]]
            if len(self.refused) > NAMED:
                found.append(f"  and {len(self.refused) - NAMED} other reasons")
        return found


def survey(source: Source, data: DataConfig, model: str | None, console: Console) -> DataReport:
    """Return what a source holds and which of its rows a training would refuse.

    Args:
        source: What is examined.
        data: How it is read, and the limits of images and prompts.
        model: Whose tokenizer and image processor count tokens; its weights are not loaded.
        console: Where progress is shown.

    Raises:
        ConfigError: The source or a mapped column does not exist.
        ModelError: Tokenizer or image processor cannot be loaded.
        ProblemError: The source cannot be read.
    """
    problems, bad = read_source(source, rules=reading_rules(data))
    rows = len(problems) + len(bad)
    damaged = with_bar(
        console, "checking images", len(problems), lambda bar: damaged_images(problems, bar)
    )
    problems, bad = _without(problems, damaged), bad + damaged
    measured: Sequence[Any] = ()
    if model is not None:
        measured, too_long = _prompt_sizes(problems, data, model, console)
        problems, bad = _without(problems, too_long), bad + too_long
    sizes = [size for one in problems for size in one.image_sizes()]
    return DataReport(
        source=source if isinstance(source, str) else "the data set",
        rows=rows,
        good=len(problems),
        refused=kinds_of(bad),
        with_answer=sum(one.answer is not None for one in problems),
        with_references=sum(bool(one.references) for one in problems),
        text_only=sum(one.is_text_only for one in problems),
        with_teacher_images=sum(bool(one.teacher_images) for one in problems),
        images=len(sizes),
        width=spread([width for width, _ in sizes]),
        height=spread([height for _, height in sizes]),
        prompt_tokens=spread([one.prompt.tokens for one in measured]),
        image_tokens=spread([one.prompt.visual_tokens for one in measured]),
        skipped=[] if model else [NO_MODEL],
    )


def _prompt_sizes(
    problems: Sequence[Problem], data: DataConfig, model: str, console: Console
) -> tuple[list[Any], list[BadRow]]:
    # Imported here, because it imports torch.
    from vaopd.models.loading import load_family
    from vaopd.models.measuring import measure

    family = load_family(model)
    return with_bar(
        console,
        "measuring prompts",
        len(problems),
        lambda bar: measure(problems, family, data, bar),
    )


def _without(problems: Sequence[Problem], bad: Sequence[BadRow]) -> Sequence[Problem]:
    ids = {row.id for row in bad}
    return [one for one in problems if one.id not in ids] if bad else problems


def kinds_of(bad: Sequence[BadRow]) -> list[Refused]:
    """Return the kinds of bad rows with their numbers, the most frequent first.

    Reasons are of one kind if they differ only in the row, the problem, the image or numbers.
    """
    kinds = [VARYING.sub("", row.reason) for row in bad]
    first = {kind: row.reason for kind, row in reversed(list(zip(kinds, bad, strict=True)))}
    return [Refused(first[kind], count) for kind, count in Counter(kinds).most_common()]


def spread(values: Sequence[int]) -> Spread | None:
    """Return how whole numbers are distributed; None for no numbers."""
    if not values:
        return None
    low, high = min(values), max(values)
    width = (high - low) // BINS + 1
    counts = Counter((value - low) // width for value in values)
    histogram = [
        (low + number * width, low + (number + 1) * width - 1, counts[number])
        for number in range((high - low) // width + 1)
    ]
    return Spread(low, float(median(values)), high, histogram)


def bars(spread: Spread) -> list[str]:
    """Return the lines of a histogram."""
    digits = len(str(spread.histogram[-1][1]))
    most = max(count for _, _, count in spread.histogram)
    return [
        f"  {low:{digits}}-{high:{digits}} {'#' * round(BAR_WIDTH * count / most):{BAR_WIDTH}} "
        f"{count}".rstrip()
        for low, high, count in spread.histogram
    ]
