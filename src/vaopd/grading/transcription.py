"""The text in an image, as a response gives it."""

import re

from vaopd.grading.commitments import commitments
from vaopd.grading.markup import plain
from vaopd.grading.phrases import PLEASANTRY, sentences, undressed
from vaopd.grading.reading import Reading, Rule, no_answer, usable
from vaopd.grading.thinking import split_reasoning

SHORT_REPLY_LINES = 3
"""A longer reply without a commitment is reasoning, and its last line is the answer."""

_INTRODUCES = re.compile(
    r"\b(?:text|word|number|sign|it|image|label|formula|expression|says?|reads?|is|"
    r"answer)\b[^:\n]{0,60}:\s*$",
    re.IGNORECASE,
)


def read_transcription(
    response: str, *, rule: Rule = "last_committed", is_truncated: bool = False
) -> Reading:
    """Return the part of a reply that gives the text of the image; a short reply is returned whole.

    Friendly lines at the end are removed. The text does not change otherwise, because dots, signs
    and case are part of it.
    """
    parts = split_reasoning(response)
    if parts.is_open or not parts.answer.strip():
        return no_answer("empty", is_truncated=is_truncated)
    found = usable(commitments(plain(parts.answer)), is_truncated=is_truncated)
    if found:
        one = found[0] if rule == "first_committed" else found[-1]
        said = one.payload.strip()
        return Reading(said, one.rule, "committed", said[:300], is_truncated)
    lines = [line.strip() for line in parts.answer.splitlines() if line.strip()]
    kept = [line for line in lines if not PLEASANTRY.match(line)] or lines
    if len(kept) <= SHORT_REPLY_LINES:
        text = "\n".join(_without_offers(line) for line in kept)
        return Reading(text, "short reply", "bare", text[:300], is_truncated)
    introduced = [
        n for n, line in enumerate(kept[:-1]) if _INTRODUCES.search(line.replace("*", ""))
    ]
    text = "\n".join(kept[introduced[-1] + 1 :]) if introduced else kept[-1]
    return Reading(text, "last lines", "guessed", text[:300], is_truncated)


def _without_offers(line: str) -> str:
    """Return a line without a friendly sentence at its end."""
    said = sentences(line)
    if len(said) > 1 and PLEASANTRY.match(undressed(said[-1])):
        return line[: line.rfind(said[-1])].strip()
    return line
