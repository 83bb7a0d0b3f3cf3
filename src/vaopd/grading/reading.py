"""The answer of a response, the rule that found it, and its confidence."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vaopd.grading.clauses import main_clause
from vaopd.grading.commitments import Commitment, commitments
from vaopd.grading.heads import head_value, is_number
from vaopd.grading.markup import boxes_of, plain
from vaopd.grading.narrowing import after_verb, narrowed, only_number
from vaopd.grading.phrases import (
    HEDGE,
    REFUSAL,
    is_remark,
    sentences,
    taken_back_at,
    undressed,
    without_pleasantries,
)
from vaopd.grading.thinking import split_reasoning

Rule = Literal["last_committed", "first_committed", "last_boxed"]
"""``last_committed``: the default; ``first_committed``: the paper's; ``last_boxed``: boxes only."""

Confidence = Literal["committed", "bare", "guessed", "none"]

MAX_BARE_WORDS = 8
"""Most words of a bare answer; a longer line without a marker is prose."""

MAX_SENTENCE_WORDS = 16
"""Most words of a clause that is an answer without a verb that states it."""

MAX_LISTED = 6
_LIST_LINE = re.compile(r"\s*(?:[-*•]|\d{1,2}[.)])\s+")
_CONCLUDES = re.compile(
    r"^\W*(?:step \d{1,2}\b\W*|"
    r"therefore|thus|hence|so\b|consequently|in conclusion|as a result|finally|"
    r"in summary|overall|accordingly|this (?:means|gives|yields)|we (?:get|have|find|obtain)|"
    r"因此|所以|故|综上|∴)",
    re.IGNORECASE,
)
_REASONS = re.compile(
    r"^\W*(?:to\b|we\b|let\b|first|given\b|since\b|using\b|from\b|in\b|according|looking|"
    r"based|step\b|the (?:image|figure|diagram|picture|question|problem) (?:shows|asks|is|"
    r"depicts)|i\b|if\b|by\b|because\b|as\b|here|this\b|note\b|there (?:is|are)\b.{60})",
    re.IGNORECASE,
)

_EXPLAINS = re.compile(
    r"^\W*(?:here(?:'s| is) (?:why|how|the reason)|(?:explanation|reason(?:ing)?|justification|"
    r"solution)\b|because\b|since\b|this is because|to see (?:why|this)|解析|解释|理由|因为)",
    re.IGNORECASE,
)
_ROUNDS = re.compile(
    r"\W*(?:round(?:ed|ing)|numerically|approximately|as a decimal|in decimal|"
    r"(?:this|which|that) is (?:about|approximately|roughly))\b",
    re.IGNORECASE,
)
_COUNTERFACTUAL = re.compile(r"\bwould\b.*\bif\b|\bif\b.*\bwould\b", re.IGNORECASE)
_PLANS = re.compile(
    r"\W*(?:next|now)?,?\s*(?:we|let's|let us|i) (?:still |now )?"
    r"(?:would )?(?:need|must|have to|will|should|know|are given|can use|see a)\b|"
    r"\W*to [^,]{1,80}, (?:let|we (?:need|can|must|use|will|have to))[^=]*$|"
    r"\W*to [^,]{1,80}, (?:we )?(?:first |simply |just )?(?:multiply|divide|add|subtract|apply|use|"
    r"write|set up|compare|calculate|compute|look|consider|start)\b[^=\d]*$|"
    r"\W*let(?: me|'s| us) (?!know)[^=\d]*$|"
    r"\W*(?:the problem|the question) (?:asks|states)\b|\W*(?:it is )?given\b[^,]*$",
    re.IGNORECASE,
)
_CHECKS = re.compile(
    r"\W*(?:(?:let(?:'s| us| me)|to|we can) (?:verify|check|confirm)\b|"
    r"(?:verification|check|reason|explanation|justification|(?:here(?:'s| is) )?why)\b\W*(?:$|:)|"
    r"解析|解释|理由)",
    re.IGNORECASE,
)
_ALSO = re.compile(r"\s(?:or|as well)\s")
_COULD_BE = re.compile(r"\W*(?:it|this|that|the \w+) (?:could|might|may) be\b", re.IGNORECASE)
_CONTINUES = re.compile(
    r"\W*(?:so|thus|hence|therefore|consequently|then|this|that|it|which|"
    r"the (?:answer|result))\b|(?:since|because|as)\b[^,]*,|∴",
    re.IGNORECASE,
)
"""Words after a semicolon that lead to a result; other words add something."""

_DENIED = re.compile(
    r"(?:\bnot|n't|\bcannot|\bnever)\s+(?:be\s+|equal\s+(?:to\s+)?)?$", re.IGNORECASE
)
_SAYS = re.compile(r"\b(?:is|are|was|were)\b|=|[是为有共]|等于", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """The answer of one response."""

    text: str | None
    """The answer in its shortest form; ``None`` if the response gives no answer."""

    rule: str
    """The rule of the grammar that found the answer, or the reason why there is none."""

    confidence: Confidence
    """``committed`` if the response states that this is its answer, ``bare`` if the reply is only
    an answer, ``guessed`` if the answer comes from the last sentence."""

    span: str = ""
    """The words that contain the answer."""

    is_truncated: bool = False


def no_answer(rule: str, *, is_truncated: bool = False) -> Reading:
    """Return the reading of a response without an answer."""
    return Reading(None, rule, "none", is_truncated=is_truncated)


def read_answer(
    response: str, *, rule: Rule = "last_committed", is_truncated: bool = False
) -> Reading:
    """Return the free answer of a response: a value, a formula or a few words.

    Reasoning is removed first. Then the last commitment counts that is not taken back; without
    one a bare reply; without that the conclusion of the last sentence. In a truncated response
    only commitments before the cut count.

    Args:
        response: The whole text of the model.
        rule: Which of several commitments counts.
        is_truncated: Whether the length limit ended the response.
    """
    parts = split_reasoning(response)
    if parts.is_open:
        return no_answer("reasoning never ends", is_truncated=is_truncated)
    text = plain(parts.answer)
    if rule == "last_boxed":
        boxes = boxes_of(text)
        if not boxes:
            return no_answer("no box", is_truncated=is_truncated)
        return Reading(undressed(boxes[-1][1]), "box", "committed", boxes[-1][1], is_truncated)
    found = usable(commitments(text), is_truncated=is_truncated)
    stated = _stated(text, found, rule)
    start = 0
    if stated is not None:
        one, answer = stated
        back = taken_back_at(text, one.end) if rule == "last_committed" else None
        if back is None:
            return Reading(answer.strip(), one.rule, "committed", one.payload[:300], is_truncated)
        start = back
    if is_truncated:
        return no_answer("cut before an answer", is_truncated=True)
    return _uncommitted(text[start:], is_rest=start > 0)


def rules_agree(response: str) -> bool:
    """Return whether the first and the last commitment certainly give the same reading.

    They do if there is at most one, and the response does not take it back. This fast test makes
    the second reading unnecessary for most responses.
    """
    text = plain(split_reasoning(response).answer)
    found = commitments(text, is_choice=True)
    return len(found) < 2 and all(taken_back_at(text, one.end) is None for one in found)


def usable(found: Sequence[Commitment], *, is_truncated: bool) -> list[Commitment]:
    """Return the commitments of a response; if it is truncated, only those before the cut."""
    return [one for one in found if one.is_closed or not is_truncated]


def _stated(text: str, found: list[Commitment], rule: Rule) -> tuple[Commitment, str] | None:
    """Return the first or the last commitment with an answer, and this answer."""
    for one in found if rule == "first_committed" else reversed(found):
        answer = _answer_of(one, text)
        if answer:
            return one, answer
    return None


def _answer_of(one: Commitment, text: str) -> str | None:
    if one.rule in ("box", "boxes", "tag"):
        content = undressed(one.payload).rstrip(".。")
        is_sentence = one.rule == "tag" or re.search(r"\s(?:is|are)\s", content)
        return (narrowed(content) if is_sentence else None) or content or None
    if one.rule == "verdict":
        return after_verb(f"it is {one.payload}") if not REFUSAL.search(one.payload) else None
    if one.rule == "heading":
        return _below_heading(one, text)
    return narrowed(one.payload)


def _below_heading(one: Commitment, text: str) -> str | None:
    """Return the answer in the line below "Answer:", unless reasoning begins there."""
    line = undressed(one.payload)
    value = head_value(line.rstrip(".。"))
    if value is not None and len(line.split()) <= MAX_BARE_WORDS + 4:
        return value
    is_last = not undressed(text[one.end :])
    if _REASONS.match(line) and not is_last:
        return None
    if len(line.split()) <= MAX_BARE_WORDS or is_last:
        return narrowed(line)
    return after_verb(sentences(line)[0], is_strict=True) if len(sentences(line)) == 1 else None


def _uncommitted(text: str, *, is_rest: bool) -> Reading:
    """Return the reading of a bare reply, or of the end of a response without commitment."""
    lines = without_pleasantries([line for line in text.split("\n") if undressed(line)])
    if not lines:
        return no_answer("empty")
    before = _without_checks(lines)
    if len(before) < len(lines) and (reading := _of_lines(before, is_rest=is_rest)).text:
        return reading
    return _of_lines(lines, is_rest=is_rest)


def _of_lines(lines: list[str], *, is_rest: bool) -> Reading:
    while len(lines) > 1 and all(map(is_remark, sentences(lines[-1]))):
        lines = lines[:-1]
    is_alone = len(lines) == 1 and not is_rest
    if is_alone and (answer := bare(lines[0])):
        return Reading(answer, "bare reply", "bare", lines[0][:300])
    last = lines[-1]
    if listed := _listed(lines):
        return Reading(listed, "list", "bare", listed[:300])
    if len(lines) > 1 and not _is_heading(last) and (answer := bare(last)):
        return Reading(answer, "bare last line", "bare", last[:300])
    reading = _from_sentences(lines, is_alone=is_alone)
    first = bare(lines[0]) if len(lines) > 1 and not is_rest else None
    is_explained = first and reading.text is None and _EXPLAINS.match(lines[1])
    is_value = first and is_number(first) and not any(map(_CONCLUDES.match, lines[1:]))
    if first and (is_explained or is_value):
        return Reading(first, "bare first line", "bare", lines[0][:300])
    return reading


def _from_sentences(lines: list[str], *, is_alone: bool) -> Reading:
    """Return the answer of the last sentence that has one, of the last two, or of the first."""
    said = [one for one in sentences(lines[-1]) if not is_remark(one)]
    said = [
        one
        for number, one in enumerate(said)
        if not (number and said[number - 1].endswith(";")) or _CONTINUES.match(one)
    ]
    last_two = [(one, "last sentence") for one in reversed(said[-2:])]
    first = [(one, "first sentence") for one in said[:1] if is_alone]
    for sentence, rule in [*last_two, *first]:
        if sentence.endswith(("?", "？")):
            continue
        if _PLANS.match(sentence):
            break
        if REFUSAL.search(sentence) or (
            HEDGE.search(sentence) and (_ALSO.search(sentence) or _COULD_BE.match(sentence))
        ):
            return no_answer("refusal or hedge")
        is_only = is_alone and (len(said) <= 2 or rule == "first sentence")
        if answer := _concluded(sentence, is_only=is_only):
            both = _with_exact(answer, sentence, lines)
            return Reading(both, rule, "guessed", sentence[:300])
    return no_answer("no commitment")


def _without_checks(lines: list[str]) -> list[str]:
    """Return the lines before a check of the result, if the check concludes nothing."""
    for number in range(len(lines) - 1, 0, -1):
        if _CONCLUDES.match(lines[number]):
            break
        if _CHECKS.match(lines[number]):
            return lines[:number]
    return lines


def bare(line: str) -> str | None:
    """Return the answer of a line that holds only an answer: a value, or a few words."""
    body = undressed(undressed(line).rstrip(".。!"))
    if not body or REFUSAL.search(body) or body.endswith(("?", "？", ":")):
        return None
    if "\\boxed" in body:
        return None
    if re.fullmatch(r"(yes|no)\b(?:[,.;:!].{0,60})?", body, re.IGNORECASE):
        return body[:3].strip(" ,.;:!")
    value = head_value(body)
    if value is not None:
        rest = body[body.find(value) + len(value) :].strip(" .,)") if value in body else ""
        if not rest or (len(rest.split()) <= 4 and not re.search(r"\d", rest)):
            return value
    # Three words with a full stop, as in "John ran fastest.", are a sentence.
    is_short = (
        len(body.split()) <= 4 - 2 * line.rstrip().endswith(".") and len(sentences(body)) == 1
    )
    if (
        is_short
        and not re.search(r"\d", body)
        and not _SAYS.search(body)
        and not re.search(r"[\u4e00-\u9fff]{9}", body)
        and not (line.rstrip().endswith("。") and len(body) > 4)
    ):
        return body
    return None


def _listed(lines: list[str]) -> str | None:
    """Return the values of a list at the end that a line with a colon announces."""
    heads = [n for n, line in enumerate(lines) if not _LIST_LINE.match(line)]
    items = lines[heads[-1] + 1 :] if heads else []
    if not 2 <= len(items) <= MAX_LISTED or not lines[heads[-1]].rstrip(" *_").endswith(
        (":", "：")
    ):
        return None
    if re.search(r"\d", lines[heads[-1]]):
        # "The total is 36:" and its parts.
        return _concluded(lines[heads[-1]].rstrip(" *_:："), is_only=False)
    values = [undressed(_LIST_LINE.sub("", line)).rstrip(".。,;") for line in items]
    return ", ".join(values) if all(head_value(value) == value for value in values) else None


def _is_heading(line: str) -> bool:
    return line.lstrip().startswith("#") or line.rstrip().endswith(":")


def _with_exact(answer: str, sentence: str, lines: list[str]) -> str:
    """Return an answer; if it rounds the value of the sentence before, the exact value too."""
    said = sentences("\n".join(lines[-2:]))
    earlier = said[said.index(sentence) - 1] if sentence in said[1:] else ""
    exact = _concluded(earlier, is_only=False) if _ROUNDS.match(sentence) and earlier else None
    return f"{exact} ≈ {answer}" if exact else answer


def _only_head(clause: str) -> str | None:
    """Return the value at the beginning of a clause without other numbers."""
    value = head_value(clause)
    return value if value and not re.search(r"\d", clause[len(value) :]) else None


def _concluded(sentence: str, *, is_only: bool) -> str | None:
    """Return the value at the end of a sentence that concludes or is the whole reply."""
    body = undressed(_CONCLUDES.sub("", sentence)).rstrip(".!。")
    if "\\boxed" in body or re.match(r"(?:suppose|assum\w+)\b|if\b[^,]*$", body, re.IGNORECASE):
        return None
    if _COUNTERFACTUAL.search(body):
        return None
    clause = main_clause(body)
    answer = after_verb(body) or only_number(clause) or _only_head(clause)
    if answer and _DENIED.search(body[: max(body.find(answer), 0)]):
        return None
    is_short = is_only and len(clause.split()) <= MAX_SENTENCE_WORDS
    return answer or (clause if is_short else None)
