"""The verdict on a response: its answer, and whether the answer is right."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vaopd.grading.equality import is_equal, words
from vaopd.grading.letters import read_choice
from vaopd.grading.phrases import NEGATION
from vaopd.grading.reading import Confidence, Reading, Rule, read_answer

_SAYS = re.compile(r"\b(?:is|are|was|were|has|have|had)\b")


@dataclass(frozen=True)
class Grade:
    """The answer of a response, and whether it is right."""

    extracted: str | None
    """The answer; ``None`` if the response gives no answer (unparsed)."""

    is_correct: bool
    confidence: Confidence = "none"
    rule: str = ""
    """The rule of the grammar that found the answer, or the reason why there is none."""


def grade(
    response: str,
    answer: str | Sequence[str],
    *,
    rule: Rule = "last_committed",
    is_truncated: bool = False,
    tolerance: float = 0.0,
) -> Grade:
    """Return the free answer of a response and whether it equals a reference.

    Args:
        response: The whole response.
        answer: The reference, or all accepted references.
        rule: As in `read_answer`.
        is_truncated: Whether the length limit ended the response.
        tolerance: Largest absolute difference of equal numbers.
    """
    reading = read_answer(response, rule=rule, is_truncated=is_truncated)
    is_correct = reading.text is not None and (
        is_equal(reading.text, answer, tolerance=tolerance) or _says(reading, answer)
    )
    return graded(reading, is_correct)


def _says(reading: Reading, answer: str | Sequence[str]) -> bool:
    """Whether a short sentence begins or ends with a reference in words.

    The answer in "the gear rotates clockwise" is the last word, in "Sunday had the most visitors"
    the first word; a sentence with a negation does not count.
    """
    if reading.confidence != "guessed" or NEGATION.search(reading.span):
        return False
    text = reading.text or ""
    clauses = text.rsplit(", ", 1)
    said = words(text if _SAYS.search(clauses[-1]) else clauses[0])
    golds = [answer] if isinstance(answer, str) else answer
    return any(
        gold
        and not re.search(r"\d", gold)
        and (said == gold or said.startswith(f"{gold} ") or said.endswith(f" {gold}"))
        for gold in map(words, golds)
    )


def grade_choice(
    response: str,
    letter: str,
    options: Mapping[str, str],
    *,
    rule: Rule = "last_committed",
    is_truncated: bool = False,
) -> Grade:
    """Return the option that a response chooses and whether its letter is ``letter``."""
    reading = read_choice(response, options, rule=rule, is_truncated=is_truncated)
    return graded(reading, reading.text == letter)


def graded(reading: Reading, is_correct: bool) -> Grade:
    """Return the grade of a reading."""
    return Grade(
        reading.text, is_correct and reading.text is not None, reading.confidence, reading.rule
    )


def is_same_answer(first: str | None, second: str | None) -> bool:
    """Return whether two extracted answers are equal; two responses without an answer agree."""
    if first is None or second is None:
        return first is second
    return is_equal(first, second)
