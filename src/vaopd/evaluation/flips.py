"""Items that one of two evaluations answers and the other does not, with both responses."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vaopd.evaluation.benchmark import Item, Verdict
from vaopd.evaluation.comparison import common_items, graded_runs
from vaopd.evaluation.predictions import PREDICTIONS, read_predictions

MOST_CHARACTERS = 4000
"""Longest response on a page; a longer one is cut in the middle, because it ends in its answer."""


@dataclass(frozen=True)
class FlipSide:
    """One evaluation's answers to an item."""

    num_right: int
    num_samples: int
    extracted: str | None
    """Answer of the sample that is shown."""

    is_correct: bool
    response: str | None
    """Its text; ``None`` if the folder does not hold the responses."""


@dataclass(frozen=True)
class Flip:
    """An item of which two evaluations have different shares of right samples."""

    id: str
    prompt: str
    reference: str
    first: FlipSide
    second: FlipSide

    @property
    def is_gain(self) -> bool:
        """Whether the second evaluation has the larger share."""
        return self.second.num_right * self.first.num_samples > (
            self.first.num_right * self.second.num_samples
        )


def flips(name: str, first: Path, second: Path) -> list[Flip]:
    """Return the flipped items of a benchmark, those that only the first answers before the others.

    Args:
        name: Name of the benchmark.
        first: Its folder in the first evaluation.
        second: Its folder in the second one.
    """
    items = common_items(name, first, second)
    verdicts = [_by_item(folder, items) for folder in (first, second)]
    responses = [_responses(folder) for folder in (first, second)]
    found = []
    for item in items:
        a, b = (side[item.id] for side in verdicts)
        if _share(a) != _share(b):
            shown = _first_difference(a, b)
            sides = (
                _side(item, of, shown, texts) for of, texts in zip((a, b), responses, strict=True)
            )
            found.append(
                Flip(item.id, item.prompt.replace("<image>", "").strip(), _reference(item), *sides)
            )
    return sorted(found, key=lambda flip: flip.is_gain)


def _by_item(folder: Path, items: list[Item]) -> dict[str, list[Verdict]]:
    runs = graded_runs(folder, items)
    return {item.id: [run[place].verdict for run in runs] for place, item in enumerate(items)}


def _share(verdicts: list[Verdict]) -> float:
    return sum(verdict.is_correct for verdict in verdicts) / len(verdicts)


def _first_difference(a: list[Verdict], b: list[Verdict]) -> int:
    pairs = zip(a, b, strict=False)
    return next((n for n, (one, two) in enumerate(pairs) if one.is_correct != two.is_correct), 0)


def _side(
    item: Item, verdicts: list[Verdict], shown: int, texts: Mapping[tuple[str, int], str]
) -> FlipSide:
    verdict = verdicts[shown]
    return FlipSide(
        num_right=sum(verdict.is_correct for verdict in verdicts),
        num_samples=len(verdicts),
        extracted=verdict.extracted,
        is_correct=verdict.is_correct,
        response=texts.get((item.id, shown)),
    )


def _responses(folder: Path) -> dict[tuple[str, int], str]:
    path = folder / PREDICTIONS
    if not path.is_file():
        return {}
    return {(one.id, one.sample): _cut(one.response) for one in read_predictions(path)}


def _cut(text: str) -> str:
    extra = len(text) - MOST_CHARACTERS
    if extra <= 0:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n[{extra} characters left out]\n{text[-half:]}"


def _reference(item: Item) -> str:
    """Return the reference answer as text; benchmarks name it in different ways."""
    answer = item.reference.get("answer")
    return json.dumps(dict(item.reference), ensure_ascii=False) if answer is None else str(answer)
