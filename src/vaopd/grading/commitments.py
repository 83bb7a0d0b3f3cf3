r"""Commitments of a response to an answer: tags, boxes, and words such as "the answer is".

The grammar, on text without markup::

    commitment = tag | box | label | statement | verdict
    tag        = "<answer>" value "</answer>"
    box        = "\boxed{" value "}"                    neighbours joined by "and" are one
    label      = [quality] "answer" ":" value            also on the lines below
    statement  = ["the"] [quality] ("answer" | quality "option") ("is" | "must be" ..) value
    verdict    = value "is the" quality ("answer" | "option")
    choosing   = "I" ("choose" | "go with" ..) value     for options only
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from vaopd.grading.markup import boxes_of
from vaopd.grading.phrases import is_hypothetical, sentences, undressed

MAX_PAYLOAD = 600
_MAX_MARKERS = 200
"""Limit on markers: of a repetitive response only the first and the last ones are read."""

_QUALITY = (
    r"(?:(?:final|correct|right|best|most\s{1,2}(?:appropriate|likely|suitable|accurate|"
    r"plausible|reasonable|logical)|closest|"
    r"overall|proper|exact|approximate|numerical|only\s{1,2}(?:correct|possible|valid|"
    r"reasonable)|accurate|appropriate|required|desired|ultimate|remaining|chosen|"
    r"selected)[ \t]{1,3})"
)
_ANSWER = r"(?:answers?|ans)"
_OPTION = (
    r"(?:option|choice|letter|one|solution|result|value|statement|response|selection|match|"
    r"description|interpretation)"
)
_OF_QUESTION = (
    r"(?:[ \t]{1,3}(?:to|for|of)[ \t]{1,3}(?:the|this|that|your|"
    r"our)[ \t]{1,3}(?:\w{1,12}[ \t]{1,3})?(?:question|problem|exercise|task))?"
    r"(?:[ \t]{1,3}(?:that[ \t](?:\w{1,12}[ \t]){0,3}\w{1,12}|choice|option|letter|here|then|"
    r"therefore|thus|in this case|among the (?:options|choices)|from the (?:options|"
    r"choices)))?"
)
_IS = (
    r"(?:is|was|are|would[ \t]be|should[ \t]be|must[ \t]be|will[ \t]be|has[ \t]to[ \t]be|"
    r"becomes|comes[ \t]out[ \t](?:to[ \t]be|as)|"
    r"works[ \t]out[ \t]to(?:[ \t]be)?|turns[ \t]out[ \t]to[ \t]be|remains)"
)
_ADVERB = (
    r"(?:,?[ \t]{1,3}(?:therefore|thus|then|hence|indeed|clearly|simply|definitely|still|"
    r"actually|most[ \t]likely|probably|likely),?(?![A-Za-z]))?"
)
_LABEL = (
    rf"(?<![A-Za-z]){_QUALITY}{{0,2}}{_ANSWER}{_OF_QUESTION}[\"'>\]]?[ \t]{{0,3}}(?:\([^()"
    rf"\n]{{0,40}}\)[ \t]{{0,3}})?(?:[:：=≈→]|-(?=[ \t])|(?<=ns)\.(?=[ \t]))"
)
_OPTION_LABEL = (
    rf"(?<![A-Za-z])(?:{_QUALITY}{{1,2}}{_OPTION}|(?:(?<=\n)|"
    rf"^)[ \t#>-]{{0,6}}(?:(?:my[ \t])?(?:option|choice|letter|pick|selection)|correct|"
    rf"right|conclusion|result))[\"']?[ \t]{{0,3}}[:：=]"
)
_STATEMENT = (
    rf"(?<![A-Za-z])(?:{_QUALITY}{{0,2}}{_ANSWER}{_OF_QUESTION}|"
    rf"{_QUALITY}{{1,2}}{_OPTION}){_ADVERB}[ \t\n]{{1,3}}{_IS}{_ADVERB}"
    r"(?![A-Za-z'-])[ \t]{0,3}[:：=]?"
)
_HEADING = (
    rf"(?:(?<=\n)|^)[ \t#>*-]{{0,8}}(?:\d{{1,2}}[.)][ \t]{{0,3}})?(?:the[ \t]{{1,3}})"
    rf"?{_QUALITY}{{0,2}}{_ANSWER}[ \t]{{0,4}}[.:：]?[ \t]{{0,4}}(?=\n)"
)
_CHINESE = (
    r"(?:(?:最终|正确|最后|标准|本题|参考|因此|所以)?(?:的)?答案(?:选项)?|正确(?:的)?(?:选项|结果|选择|说法)(?:的)?(?:应该|应|就)?|正确的(?=是|为))"
    r"[ \t\"】]{0,4}(?:[:：】]|(?<=】)|(?:应该|应当|应|就|便)?(?:是|为|选)[ \t]{0,4}[:：]?)|"
    r"(?:故|应|因此|所以|本题|"
    r"应该|综上)[，,]?(?:应)?(?:选择?|答案(?:是|为|选)?)[ \t]{0,3}[:：]?|"
    r"(?:(?<=\n)|^)(?:答[:：]|(?:我)?选择?)"
)
_MARKER = re.compile(
    rf"(?P<label>{_LABEL}|{_OPTION_LABEL})|(?P<statement>{_STATEMENT})|"
    rf"(?P<heading>{_HEADING})|(?P<chinese>{_CHINESE})",
    re.IGNORECASE,
)
_MARKER_STARTS = re.compile(
    r"(?:^|(?<=\n))|(?<![A-Za-z])(?:ans|final|correct|right|best|most|closest|overall|proper|exact|"
    r"approximate|numerical|only|accurate|appropriate|required|desired|ultimate|remaining|"
    r"chosen|selected)|[最正标本参因所的答故应综我选]",
    re.IGNORECASE,
)
"""Every place where a marker can begin; the full pattern is too slow to try everywhere."""

_TAG = re.compile(
    r"<(answer|final_answer|finalanswer)>|</(?:answer|final_answer|finalanswer)>|"
    r"<\|begin_of_box\|>|<\|end_of_box\|>",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    rf"(?<![A-Za-z])(?:is|are|must be|would be|should be)[ \t]{{1,3}}(?:therefore |thus |"
    rf"clearly |indeed |hence )?(?:the|our|my)[ \t]{{1,3}}{_QUALITY}{{0,2}}(?:{_ANSWER}|"
    rf"(?<=correct )(?:option|choice|one)|(?<=right )(?:option|choice|one)|"
    rf"(?<=best )(?:option|choice|one)|(?<=appropriate )(?:option|choice|"
    rf"one)|only (?:one|option|choice|value|answer)(?= that ))(?![A-Za-z])"
    rf"(?!\s{{0,3}}(?:to|choice|option)\s{{1,3}}(?!the|this))|"
    r"(?:就)?是(?:本题|原?方程|所求|最终|正确)的?(?:唯一)?(?:的)?(?:解|答案|结果)(?=[。,.;\s]|$)",
    re.IGNORECASE,
)
_CHOOSING = re.compile(
    r"(?<![A-Za-z])(?:(?:I|we|let's|let us)(?:'d|'ll|[ \t]would|[ \t]will|[ \t]should|"
    r"[ \t]must|[ \t]can)?(?:[ \t](?:therefore|thus|confidently|then|also|have to|need to))?"
    r"[ \t]{1,3}(?:choose|chose|pick|select|go[ \t]with|opt[ \t]for|answer|"
    r"guess|conclude[ \t](?:that[ \t])?(?:it[ \t]is|with)|settle[ \t]on|say)|"
    r"my[ \t](?:best[ \t])?(?:choice|pick|selection|guess|vote)[ \t](?:is|would[ \t]be)|"
    r"(?:^|(?<=\n)|(?<=[.,:;][ \t]))(?:so[ \t]|"
    r"thus[ \t]|therefore,?[ \t])?(?:choose|select|pick)(?=[ \t]))[ \t]{0,3}[:：]?",
    re.IGNORECASE,
)
_CONTRASTS = re.compile(r",\s(?:but|however|so|hence|thus|therefore|whereas|while),?\s")
_AMONG = re.compile(
    r"^(?:among|of|from) (?:all )?(?:the|these|those)\b[^,]{0,40},\s", re.IGNORECASE
)
_BETWEEN_BOXES = re.compile(
    r"\s{0,4}(?:,|;|and|or|、|和|或|,\s?and|,\s?or)?\s{0,4}(?:[A-Za-z]{1,3}\s?=)?\s{0,4}",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Commitment:
    """One place in a response that states its answer."""

    start: int
    end: int
    """End in the text; words after it may take the commitment back."""

    payload: str
    """The stated text: the content of a box, or the rest of a marker's sentence and line."""

    rule: str
    """``tag``, ``box``, ``label``, ``statement``, ``heading``, ``verdict`` or ``choosing``."""

    is_closed: bool = True
    """Whether text follows, so that the length limit did not cut the answer."""


@lru_cache(maxsize=64)
def commitments(text: str, *, is_choice: bool = False) -> tuple[Commitment, ...]:
    """Return the commitments of a text without markup, in order.

    Args:
        text: The answer part of a response, as `plain` returns it.
        is_choice: Whether the question has options, so that "I choose B" is a commitment too.
    """
    boxes = _boxes(text)
    found = [*_tags(text), *boxes]
    for marker in _first_and_last(_markers(text)):
        one = _marked(text, marker, boxes)
        if one is not None:
            found.append(one)
    found += [_before(text, match) for match in _ends_of(_VERDICT, text)]
    if is_choice:
        found += [
            _after(text, match, "choosing")
            for match in _ends_of(_CHOOSING, text)
            if not is_hypothetical(text[max(0, match.start() - 80) : match.start()])
        ]
    return tuple(
        sorted((one for one in found if undressed(one.payload)), key=lambda one: one.start)
    )


def _markers(text: str) -> list[re.Match[str]]:
    """Return the matches of ``_MARKER.finditer``."""
    found: list[re.Match[str]] = []
    end = 0
    for start in _MARKER_STARTS.finditer(text):
        if start.start() >= end and (marker := _MARKER.match(text, start.start())):
            found.append(marker)
            end = marker.end()
    return found


def _ends_of(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    return _first_and_last(list(pattern.finditer(text)))


def _first_and_last(matches: list[re.Match[str]]) -> list[re.Match[str]]:
    half = _MAX_MARKERS // 2
    return matches if len(matches) <= _MAX_MARKERS else [*matches[:half], *matches[-half:]]


def _tags(text: str) -> list[Commitment]:
    found: list[Commitment] = []
    opening = None
    for tag in _TAG.finditer(text):
        if not tag[0].startswith("</") and "end_of" not in tag[0]:
            opening = tag
        elif opening is not None:
            payload = text[opening.end() : tag.start()].strip()
            if len(payload) <= MAX_PAYLOAD and not boxes_of(payload):
                found.append(Commitment(opening.start(), tag.end(), payload, "tag"))
            opening = None
    return found


def _boxes(text: str) -> list[Commitment]:
    r"""Return the boxes; those joined as in ``\boxed{3} and \boxed{4}`` are one answer."""
    found: list[Commitment] = []
    for box, content in boxes_of(text):
        last = found[-1] if found else None
        between = text[last.end : box.start] if last else ""
        if (
            last
            and len(between) < 20
            and _BETWEEN_BOXES.fullmatch(between)
            and (between.strip() or last.rule == "boxes")
        ):
            word = " or " if "or" in between else ", "
            if undressed(last.payload.rpartition(word)[2]) != undressed(content):
                found[-1] = Commitment(last.start, box.end, last.payload + word + content, "boxes")
                continue
        found.append(Commitment(box.start, box.end, content, "box"))
    return found


def _marked(text: str, marker: re.Match[str], boxes: list[Commitment]) -> Commitment | None:
    """Return the commitment of a marker; ``None`` without an answer or if a box gives it."""
    kind = marker.lastgroup or ""
    if kind != "heading" and is_hypothetical(text[max(0, marker.start() - 80) : marker.start()]):
        return None
    if kind == "heading":
        return _below(text, marker)
    one = _after(text, marker, "statement" if kind == "chinese" else kind)
    if not undressed(one.payload):
        return _below(text, marker)
    first = sentences(one.payload)[:1] or [""]
    end = marker.end() + one.payload.find(first[0]) + len(first[0])
    if first[0].endswith(("?", "？")) or any(marker.end() <= box.start < end for box in boxes):
        return None
    return one


def _after(text: str, marker: re.Match[str], rule: str) -> Commitment:
    """Return the rest of the line after a marker."""
    stop = text.find("\n", marker.end())
    stop = len(text) if stop < 0 else stop
    stop = min(stop, marker.end() + MAX_PAYLOAD)
    payload = text[marker.end() : stop]
    end = marker.end() + payload.find(".") + 1 if "." in payload else stop
    is_closed = re.search(r"[.。!]\s|,\s[a-z]{2,}\s", payload) is not None or (
        bool(text[stop:].strip())
        or len(sentences(payload)) > 1
        or payload.rstrip().endswith((".", "。", "!"))
    )
    return Commitment(marker.start(), end, payload, rule, is_closed)


def _below(text: str, marker: re.Match[str]) -> Commitment | None:
    """Return the first line with text below a marker that has no text after it in its line."""
    start = marker.end()
    while start < len(text) and not undressed(text[start : _line_end(text, start)]):
        if _line_end(text, start) == len(text):
            return None
        start = _line_end(text, start) + 1
    stop = _line_end(text, start)
    line = text[start:stop][:MAX_PAYLOAD]
    if "\\boxed" in line or "\\fbox" in line or not undressed(line):
        return None
    return Commitment(marker.start(), stop, line, "heading", bool(text[stop:].strip()))


def _line_end(text: str, start: int) -> int:
    found = text.find("\n", start)
    return len(text) if found < 0 else found


def _before(text: str, verdict: re.Match[str]) -> Commitment:
    """Return the part of a sentence before "is the correct answer"."""
    start = max(text.rfind("\n", 0, verdict.start()) + 1, verdict.start() - 200)
    said = sentences(text[start : verdict.start()])
    payload = _AMONG.sub("", _CONTRASTS.split(said[-1])[-1]) if said else ""
    return Commitment(verdict.start() - len(payload), verdict.end(), payload, "verdict")
