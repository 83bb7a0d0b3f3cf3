"""Statements that an option is right, or that the result is this option."""

import re
from collections.abc import Callable

from vaopd.grading.naming import EDGE, GEOMETRY, IS_WRONG, NEGATING, Options
from vaopd.grading.phrases import HEDGE, is_hypothetical

_VERDICT = re.compile(
    r"(?<![A-Za-z])(?P<name>[Oo]ption|OPTION|[Cc]hoice|[Aa]nswer|[Ss]tatement|"
    r"选项)?\s{0,2}[(\[\"'「【]{0,2}(?P<letter>[A-Z])[)\]\"'」】]{0,2}(?:[:.]?\s(?:(?![A-Z]\b)"
    r"[^.\n]){1,80}?)??\s{0,2}(?:\((?![A-Z]\))[^()\n]{1,60}\)\s)?"
    r"(?:(?:is|must be|would be|should be|seems(?: to be)?|appears(?: to be)?)\s+"
    r"(?:therefore |thus |clearly |indeed |definitely |hence |also )?(?:the\s+)?"
    r"(?:only\s+)?(?:(?:most|best)\s+(?:appropriate|likely|suitable|accurate|reasonable)\s*|(?:correct|right|best|"
    r"true)\b\s*|answer\b)(?:answer|option|choice|one|match|description)?|"
    r"(?:best |most accurately |correctly |exactly )?(?:matches|fits|describes|represents|"
    r"shows)(?: (?:this|the|our|best|exactly|perfectly|it)\b|(?=\s*[.!\n]|$))|(?:选项|"
    r"项)?(?:是)?(?:正确|对)的?(?:答案|选项)?|(?:选项|项)?符合(?:题意|要求|条件))",
)
_POINTED = re.compile(
    r"(?<![A-Za-z])(?:(?:which|that|this|it|result|value|image|picture|figure|answer|"
    r"description|calculation|shape|solution|choice|option|conclusion)[ \t]"
    r"(?:best[ \t])?(?:is|'s|matches|corresponds[ \t](?:to|with)|fits|"
    r"looks[ \t]like|seems[ \t]to[ \t]be|appears[ \t]to[ \t]be|must[ \t]be|should[ \t]be|"
    r"has[ \t]to[ \t]be|can[ \t]only[ \t]be|"
    r"would[ \t]be|aligns[ \t]with|agrees[ \t]with|points[ \t]to|matches[ \t]with|equals|describes|"
    r"leads[ \t](?:us[ \t])?to)|"
    r"(?:it|that|this)'s|i[ \t](?:think|believe|guess|suspect|meant)(?:[ \t](?:that|it|it's|"
    r"it[ \t]is|the[ \t]answer[ \t]is))*|corresponds[ \t](?:to|with)|corresponding[ \t]to|"
    r"matches|matching|looks[ \t]like)[ \t]+(?:(?:clearly|best|exactly|definitely|likely|"
    r"most[ \t]likely|probably|certainly|indeed|therefore|just|simply)[ \t])?"
    rf"(?P<name>option[ \t]|choice[ \t]|answer[ \t]|"
    rf"选项)?[(\[\"']{{0,2}}(?P<letter>[A-Z])[)\]\"']{{0,2}}{EDGE}",
    re.IGNORECASE,
)
_SO = re.compile(
    r"(?:^|[.!?。\n;,]\s{0,3})(?:therefore|thus|so|hence|consequently|accordingly|"
    r"in conclusion|overall|因此|所以|故)[,，:]?\s{0,3}(?:it is|it's|it must be|i choose|"
    r"we choose)?\s{0,3}(?:option|choice|answer|"
    r"选项)?\s{0,2}[(\[\"']{0,2}(?P<letter>[A-Z])[)\]\"']{0,2}\s{0,2}(?=$|[.,:;!。\n]|"
    r"\bis (?:the )?(?:correct|right|best|answer))",
    re.IGNORECASE | re.MULTILINE,
)
_ONLY = re.compile(
    r"\b[Oo]nly\s(?:option\s|choice\s|answer\s)?\(?(?P<letter>[A-Z])\)?\s"
    r"(?:satisf|work|fit|match|make|meet|remain|agree|can\b|contain|show|describe|[a-z]+s\b)"
)
_MADE = re.compile(
    r"\bmak(?:es|ing)\s(?:option\s|choice\s)?\(?(?P<letter>[A-Z])\)?\s(?:the|our)\s(?:only\s)?"
    r"(?:correct|right|best|answer)"
)
_LEFT = re.compile(
    r"\bleav(?:es|ing)\s(?:us\s)?(?:with\s)?(?:only\s)?"
    r"(?:option\s|choice\s)?\(?(?P<letter>[A-Z])\)?(?=[\s,]*(?:$|[.!\n]|as\b))"
)
_MARKED = re.compile(
    r"^\W{0,10}(?:[Oo]ption\s|[Cc]hoice\s)?\(?(?P<letter>[A-Z])[).:][^\n]{0,80}?(?:\s?[:\u2014-]\s*"
    r"(?:this is |it is |is )?(?:correct|right|true)\b|\s?(?:\(correct\)|✓)\s*$)|"
    r"^\W{0,10}(?:option\s|choice\s)?\(?(?P<named>[A-Z])[).:]\s*(?:correct|right|true)\s*(?:$|[.,;(])",
    re.MULTILINE | re.IGNORECASE,
)
"""A line of a list of options that calls its option right."""

_CHINESE = re.compile(
    r"(?:对应|符合|就是|即)(?:的)?(?:是)?(?:选项|答案)\s?(?P<letter>[A-Z])(?![A-Za-z])"
)
_CALLED_RIGHT = re.compile(r"\b(?:correct|right|best|answer|true)|正确|对|符合")
_ENDS = re.compile(r"\s*(?:$|[.,:;!)]|to me\b)")
_OR_ANOTHER = re.compile(r"\s*(?:or|and|/)\s*(?:option\s)?\(?[A-Z]\b")


def last_pointed_at(text: str, options: Options) -> str | None:
    """Return the option of the last statement such as "option B is correct" or "so it is B"."""
    found: list[tuple[int, str]] = []
    for pattern, holds in _STATEMENTS:
        for match in pattern.finditer(text):
            letter: str = match["letter"] or match.groupdict().get("named") or ""
            # The search ignores case, but a lower-case letter is a word or a variable.
            if letter in options.texts and not _is_denied(text, match) and holds(text, match):
                found.append((match.start(), letter))
    return max(found)[1] if found else None


def _is_denied(text: str, match: re.Match[str]) -> bool:
    before = text[max(0, match.start() - 80) : match.start()]
    negated = text[max(0, match.start() - 20) : match.start("letter")]
    return is_hypothetical(before) or NEGATING.search(negated) is not None


def _is_called_right(text: str, match: re.Match[str]) -> bool:
    """Whether "B is right" is about an option, and not about point B or an article."""
    if re.match(r"\s*(?:not|n't)", text[match.end() : match.end() + 10]):
        return False
    if match["name"]:
        return True
    is_point = GEOMETRY.search(text[max(0, match.start() - 25) : match.start()]) is not None
    return not is_point and (
        match["letter"] not in "AI" or _CALLED_RIGHT.search(match[0]) is not None
    )


def _is_pointed_at(text: str, match: re.Match[str]) -> bool:
    """Whether "which is B" means exactly one option."""
    after = text[match.end() : match.end() + 60]
    if IS_WRONG.match(after) or HEDGE.search(match[0]) or _OR_ANOTHER.match(after):
        return False
    return bool(match["name"]) or match["letter"] not in "AI" or _ENDS.match(after) is not None


def _always(text: str, match: re.Match[str]) -> bool:
    return True


_STATEMENTS: tuple[tuple[re.Pattern[str], Callable[[str, re.Match[str]], bool]], ...] = (
    (_VERDICT, _is_called_right),
    (_POINTED, _is_pointed_at),
    (_SO, _always),
    (_ONLY, _always),
    (_MADE, _always),
    (_LEFT, _always),
    (_MARKED, _always),
    (_CHINESE, _always),
)
