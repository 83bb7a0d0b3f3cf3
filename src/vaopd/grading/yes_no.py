"""The answer of a response to a yes-no question."""

import re

from vaopd.grading.commitments import commitments
from vaopd.grading.markup import plain
from vaopd.grading.phrases import REFUSAL, sentences, taken_back_at, undressed
from vaopd.grading.reading import Reading, Rule, no_answer, usable
from vaopd.grading.thinking import split_reasoning

_WORD = re.compile(
    r"(?<![A-Za-z])(?:(yes|yeah|yep)|(no|nope))(?![A-Za-z])(?!\.\s?\d)|(?:^|[,。:\s])(?:(是的|是(?=$|[。.])|对|"
    r"有)|(不是的?|没有|否|不对|不正确|错误|不))",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"\W*(?:(?:well|so|ok|okay|hmm|sure|short answer|actually|indeed|based on (?:the|"
    r"this) (?:image|figure|picture|chart|map|diagram|table|information)(?: provided|"
    r" shown)?|"
    r"according to (?:the|this) \w+|in (?:the|this) (?:image|figure|picture|chart)|"
    r"looking at (?:the|this) \w+|therefore|thus|hence|the answer is|i would say|i'd say|"
    r"i think|i believe)[\s,:.!-]+)*(?:(yes|yeah|yep)|(no|nope))(?![A-Za-z'])(?!\s+(?:other|"
    r"one|such|matter|need|doubt|more|longer|clear|information|evidence|way)\b)",
    re.IGNORECASE,
)
_TRUE = re.compile(
    r"(?:statement|claim|that|this|it|description|assertion|answer|assumption|caption|"
    r"premise|you|what you (?:say|describe|claim))"
    r"(?: (?:that|in|about|of|made) [^.\n]{1,80}?)?(?:'s| is| are)"
    r"(?: indeed| therefore| thus|"
    r" actually)? (?:(not (?:correct|true|right|accurate)|incorrect|false|wrong|inaccurate|"
    r"untrue)|(correct|true|right|accurate))\b",
    re.IGNORECASE,
)
_BOTH = re.compile(r"\byes (?:and|or) no\b|\bno (?:and|or) yes\b", re.IGNORECASE)
_ONLY = re.compile(
    r"\W*(?:(correct|true|right|indeed|absolutely|certainly|of course)|(incorrect|false|"
    r"wrong|not (?:correct|true|really|exactly|quite|at all)))(?![A-Za-z])\s*(?:[.,!;:]|$)",
    re.IGNORECASE,
)


def read_yes_no(
    response: str, *, rule: Rule = "last_committed", is_truncated: bool = False
) -> Reading:
    """Return ``yes`` or ``no``: by commitment, by the first word of the reply, or by a verdict.

    Without a commitment the first word of the reply counts if it is one of the two; "no other" and
    "no doubt" do not count. Otherwise the last sentence with exactly one of the two words counts.
    Without such a sentence, a verdict that the statement is true or false counts.
    """
    parts = split_reasoning(response)
    if parts.is_open:
        return no_answer("reasoning never ends", is_truncated=is_truncated)
    text = plain(parts.answer)
    found = usable(commitments(text), is_truncated=is_truncated)
    if rule == "last_boxed":
        found = [one for one in found if one.rule in ("box", "boxes")]
    for one in found if rule == "first_committed" else reversed(found):
        said = _word(one.payload)
        if said and (rule != "last_committed" or _taken_back_at(text, one.end) is None):
            return Reading(said, one.rule, "committed", one.payload[:300], is_truncated)
    if rule == "last_boxed":
        return no_answer("no box", is_truncated=is_truncated)
    opening = _OPENING.match(text)
    if opening and not _is_retracted(text, opening):
        said = "yes" if opening[1] else "no"
        return Reading(said, "opening word", "bare", text[:300], is_truncated)
    return no_answer("cut", is_truncated=True) if is_truncated else _from_sentences(text)


def _is_retracted(text: str, opening: re.Match[str]) -> bool:
    return (
        _taken_back_at(text, opening.end()) is not None
        or re.match(r"\s*(?:and|or|/)\s*(?:no|yes)\b", text[opening.end() :], re.IGNORECASE)
        is not None
    )


def _taken_back_at(text: str, start: int) -> int | None:
    return taken_back_at(text, start, is_yes_no=True)


def _word(payload: str) -> str | None:
    """Return the ``yes`` or ``no`` in the first sentence of a commitment."""
    said = sentences(payload)
    first = said[0] if said else ""
    opening = _OPENING.match(first)
    if opening and not re.match(
        r"\s*(?:and|or|/)\s*(?:no|yes)\b", first[opening.end() :], re.IGNORECASE
    ):
        return "yes" if opening[1] else "no"
    return _only(first) or _verdict(first)


def _only(text: str) -> str | None:
    """Return the one of the two words that occurs; ``None`` if both or none do."""
    found = {"yes" if match[1] or match[3] else "no" for match in _WORD.finditer(text)}
    return found.pop() if len(found) == 1 else None


def _verdict(sentence: str) -> str | None:
    found = _ONLY.match(undressed(sentence))
    if found:
        return "yes" if found[1] else "no"
    said = list(_TRUE.finditer(sentence))
    return None if not said else "no" if said[-1][1] else "yes"


def _from_sentences(text: str) -> Reading:
    said = sentences(text)
    for sentence in reversed(said):
        if REFUSAL.search(sentence) or sentence.endswith("?"):
            continue
        word = _plain_word(sentence) or _verdict(sentence)
        if word:
            return Reading(word, "said in a sentence", "guessed", sentence[:300])
    return no_answer("neither yes nor no")


def _plain_word(sentence: str) -> str | None:
    """Return a word that is an answer, unlike the "no" in "no line is longer"."""
    if _BOTH.search(sentence):
        return None
    found = {
        "yes" if match[1] or match[3] else "no"
        for match in _WORD.finditer(sentence)
        if match[1] or match[3] or re.match(r"\W*(?:$|[.,;:!])", sentence[match.end() :])
    }
    return found.pop() if len(found) == 1 else None
