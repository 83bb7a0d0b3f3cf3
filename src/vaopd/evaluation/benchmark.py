"""The definition of a benchmark: rows to items, responses to verdicts, verdicts to metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vaopd.grading.grades import Grade
from vaopd.grading.reading import Confidence, Rule
from vaopd.problems.problem import IMAGE_PLACEHOLDER, Problem


@runtime_checkable
class StoredImage(Protocol):
    """An image that stays in its file until it is used."""

    def load(self) -> bytes | Path:
        """Return the encoded image or the path of an image file."""
        ...


ImageSource = bytes | Path | StoredImage


@dataclass(frozen=True)
class Item:
    """One question of a benchmark with everything that scoring needs."""

    id: str
    prompt: str
    """The text for the model, with one literal ``<image>`` at the place of each image."""

    images: tuple[ImageSource, ...]
    reference: Mapping[str, Any]
    """Reference data for the benchmark's rules: JSON values only, saved with predictions."""

    cluster: str = ""
    """Name of a group of items that are resampled together, such as questions on one figure."""

    place: str = ""
    """File and row number, for errors."""

    def problem(self, benchmark: str) -> Problem:
        """Return the item as a problem for a model; reads its images.

        Raises:
            ProblemError: Images and placeholders differ in number.
        """
        images = tuple(i if isinstance(i, bytes | Path) else i.load() for i in self.images)
        return Problem(self.id, self.prompt, images, None, source=benchmark, split="")


@dataclass(frozen=True)
class Verdict:
    """The answer of one response, and whether it is right by the benchmark's rule."""

    extracted: str | None
    """The answer; ``None`` if no answer was recognised (unparsed), which is wrong."""

    is_correct: bool

    variants: Mapping[str, bool] = field(default_factory=dict)
    """Verdicts of other published rules, by name."""

    confidence: Confidence = "none"
    rule: str = ""
    """The rule of the grammar that found the answer, or the reason why there is none."""


def verdict_of(grade: Grade, variants: Mapping[str, bool] | None = None) -> Verdict:
    """Return a grade as the verdict of a benchmark."""
    return Verdict(grade.extracted, grade.is_correct, variants or {}, grade.confidence, grade.rule)


OFFICIAL = "official"
"""Name of the verdict by the owners' rule, if that differs from the rule of vaopd."""


@dataclass(frozen=True)
class Graded:
    """One response of one sample run with its verdict."""

    item: Item
    verdict: Verdict


@dataclass(frozen=True)
class Measurement:
    """One value that a metric is the mean of.

    The score of a part in a sample run is the mean of its values; scores of runs are averaged.
    """

    part: str
    cluster: str
    value: float


@runtime_checkable
class Grader(Protocol):
    """A rule that gives the verdict on one response."""

    def __call__(
        self, response: str, item: Item, rule: Rule, *, is_truncated: bool = False
    ) -> Verdict:
        """Return the answer of a response and whether it is right."""
        ...


Row = Mapping[str, Any]
"""Cells of one row by column; image cells may be ``StoredImage``."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark: where its data are, how its questions are asked, how responses are scored."""

    name: str
    """Name on the command line."""

    title: str
    hub_id: str | None
    configs: tuple[str, ...] = ()
    """Configurations of the hub data set, read one after the other."""

    split: str
    revision: str | None = None
    """Commit of the hub data set; ``None`` reads the newest."""

    columns: tuple[str, ...]
    """Columns of the hub layout that are read."""

    files: tuple[str, ...] = ()
    """Names of local files, in search order."""

    problems: str | None = None
    """Source for ``load_problems`` if the rows have the layout of training problems."""

    size: int | None
    """Published number of items; ``None`` if the user chooses it."""

    licence: str
    citation: str
    item: Callable[[Row], Item | None]
    """Returns the item of a row; ``None`` for rows of another split or version."""

    grade: Grader
    measure: Callable[[Sequence[Graded]], Iterable[Measurement]]
    """Returns the measurements of one sample run."""

    combinations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metrics that are weighted sums of the scores of parts."""

    headline: str = "accuracy"
    """The metric of the paper's Table 1."""

    judge_question: Callable[[Item], str] | None = None
    """Returns the question for a judge; ``None`` if the official score uses rules."""


def image_first(text: str, count: int = 1) -> str:
    """Return a prompt with its images before the text."""
    return IMAGE_PLACEHOLDER * count + text


def by_category(
    run: Sequence[Graded], category: Callable[[Item], str] | None = None
) -> Iterable[Measurement]:
    """Yield plain accuracy, and accuracy by category as ``accuracy/CATEGORY``."""
    for graded in run:
        item, value = graded.item, float(graded.verdict.is_correct)
        yield Measurement("accuracy", item.cluster or item.id, value)
        for name, is_right in graded.verdict.variants.items():
            yield Measurement(name, item.cluster or item.id, float(is_right))
        if category is not None and (name := category(item)):
            yield Measurement(f"accuracy/{name}", item.cluster or item.id, value)


def by_reference_category(run: Sequence[Graded]) -> Iterable[Measurement]:
    """Yield accuracy overall and by the ``category`` of the reference."""
    return by_category(run, lambda item: str(item.reference.get("category") or ""))
