"""The verdict on a response: its answer, and whether the answer is right."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vaopd.grading.clauses import main_clause
from vaopd.grading.equality import is_equal, words
from vaopd.grading.heads import is_number
from vaopd.grading.letters import read_choice
from vaopd.grading.narrowing import only_number
from vaopd.grading.phrases import NEGATION, undressed
from vaopd.grading.reading import Confidence, Reading, Rule, read_answer
from vaopd.grading.symbolic import is_formula

MIN_SENTENCE_WORDS = 4
"""Fewest words of a committed answer that may be a sentence with the reference in it."""

_OPENING = re.compile(r"\W*(?:on|in|at|during)\s[^,]{1,40}(?=,)", re.IGNORECASE)
_ANOTHER = re.compile(
    r"(?:\s(?:and|or)|\b(?:than|nor|versus|vs|that of|above|below|behind|after|before|until|unlike|"
    r"against|compared (?:to|with)|between)\b(?:\s\w+){0,2})(?:\s(?:an?|the))?\s$"
)
_IN_YEAR = re.compile(r"\bin\s+((?:1[5-9]|20)\d\d)(?:,?\s+(?:with|at)\b|$)")
"""Of "sales peaked in 2008 with 340 units"; "in 2008 sales were 340" does not answer "when"."""

_AND_ANOTHER = re.compile(r"\s(?:and|or|than)\s")


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
    """Whether the last sentence says a reference of another kind than the answer that was read.

    The answer in "the gear rotates clockwise" is the last word, in "Brazil led in 2018 with 3.5
    tonnes" the first word or the year; in "the bus is late by 5 minutes" it is the only number. A
    clause with a negation does not count.
    """
    is_guess, text = reading.confidence == "guessed", reading.text or ""
    if not is_guess and len(text.split()) < MIN_SENTENCE_WORDS:
        return False
    span = reading.span if is_guess else text
    clause = main_clause(undressed(span).rstrip(".。!"))
    is_other = is_guess and not is_number(text)
    number = (only_number(clause) or only_number(span)) if is_other else None
    year = _IN_YEAR.search(clause) if is_guess else None
    if year and is_number(text) and year.end() == len(clause):
        year = None
    numbers = [one for one in (number, year and year[1]) if one]
    opening = _OPENING.match(span)
    said = [words(opening[0]), words(clause)] if opening else [words(clause)]
    golds = [answer] if isinstance(answer, str) else answer
    return any(
        any(is_equal(one, gold) for one in numbers)
        if is_number(gold)
        else (len(gold) == 1 or not is_formula(gold))
        and any(_mentions(one, words(gold)) for one in said)
        for gold in golds
    )


def _mentions(clause: str, gold: str) -> bool:
    """Whether a clause has a reference in words that it does not deny, compare or join."""
    if len(gold) == 1 and gold.isascii():
        return re.match(rf"\w{{3,}} {re.escape(gold)}\s", clause) is not None
    found = re.search(
        rf"(?:^|\s|(?<=[\u4e00-\u9fff])){re.escape(gold)}(?=\s|$|[\u4e00-\u9fff])", clause
    )
    if found is None or not re.search(r"[^\W\d_]{2}|[\u4e00-\u9fff]", gold):
        return False
    before, after = clause[: found.start()] + " ", clause[found.end() :]
    return not (NEGATION.search(before) or _ANOTHER.search(before) or _AND_ANOTHER.match(after))


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
