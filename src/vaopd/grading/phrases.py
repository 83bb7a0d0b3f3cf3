"""Sentences, and the phrases that state an answer or take it back."""

import re

_ABBREVIATIONS = frozenset(
    [
        "approx",
        "e.g",
        "i.e",
        "vs",
        "fig",
        "dr",
        "mr",
        "mrs",
        "ms",
        "eq",
        "ca",
        "cf",
        "a.m",
        "p.m",
        "sq",
        "cu",
        "prob",
        "ex",
    ]
)
_SENTENCE_END = re.compile(r"[.?!](?=[\"')]?(?:\s|$))(?!\s?[=+*/])|[。！？；\n⇒\u2014]|;(?=\s)")
_DRESS = " \t\n:=>→*_`\"'—•#|∴⇒✓"
_BULLET = re.compile(r"^(?:[-+>]+\s+[*_`\"'#|\s]*)+")
PLEASANTRY = re.compile(
    r"^\W*(?:(?:i\s)?hope (?:this|that|it)|let me know|feel free|if you (?:have|need|want|"
    r"would)|please (?:let|feel|share|provide|upload)|"
    r"happy to|glad to|i(?:'d| would| will) be (?:glad|happy)|is there anything|would you like|"
    r"do you (?:want|need)|thank(?:s| you)|"
    r"you're welcome|"
    r"good luck|great question|have a (?:nice|great)|don't hesitate|i can also|"
    r"如果|希望|请告诉|如有)",
    re.IGNORECASE,
)
"""A friendly closing line, which is not an answer."""

_REMARK = re.compile(
    r"^\W*$|^\((?:using|by|since|because|note|from|as|rounded|where|we|here)\b|"
    r"^\W*(?:(?:let(?:'s| us| me)|to|we can) (?:verify|check|confirm)\b|in an?\b.*\bwould\b|"
    r"this (?:is because|makes sense|is consistent|can be|follows|confirms|agrees|matches)|"
    r"note\b|check\b|verif\w+|(?:for|in|by) (?:comparison|contrast|example)|"
    r"(?:you|we) can (?:check|verify|see)|as a check|keep in mind|the (?:other|remaining|rest)\b)|"
    r"\b(?:slightly|somewhat|a (?:bit|little)) (?:\w+er|more|less)\b(?! than)|\bnext \w+est\b|"
    r"\bis (?:the )?(?:second|third|fourth|next)\W*$|"
    r"^(?!.*(?:\b(?:since|because|as)\b|\d)).*\b(?:it|them|its)\W*$",
    re.IGNORECASE,
)


def is_remark(sentence: str) -> bool:
    """Return whether a sentence is friendly, or explains an answer that was given before it."""
    return PLEASANTRY.match(sentence) is not None or _REMARK.search(sentence) is not None


NEGATION = re.compile(r"\b(?:not|no|never|neither|nor|none|without)\b|n't\b", re.IGNORECASE)
REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able|afraid)|i can(?:'t|not| not)|i (?:do not|"
    r"don't) (?:know|see|have)|"
    r"unable to|cannot (?:be )?(?:determine|answer|see|read|tell|identify|provide|help|say|"
    r"conclude)\w*|"
    r"can't (?:be )?(?:determine|answer|see|read|tell|identify|provide|help|say)\w*|"
    r"(?:impossible|not possible|hard|difficult) to (?:determine|say|tell|know|answer|"
    r"give|find|calculate|compute|read|identify)|"
    r"(?:not enough|insufficient|(?:isn't|not) sufficient|"
    r"without (?:more|further|additional)|more) information|"
    r"no (?:image|figure|picture) (?:is |was |has been )?(?:provided|attached|visible)|"
    r"(?:have not|haven't|didn't|did not) (?:yet )?(?:upload|provid|attach|shar|includ|sen[dt])\w*|"
    r"none of the (?:(?:given |listed |provided |above )?(?:options|choices|answers)|above)|"
    r"not sure|"
    r"not (?:give|contain|provide|have|show) enough|no idea|uncertain|sorry|illegible|unreadable|"
    r"could not (?:determine|find|see)|"
    r"(?:is|are) not (?:visible|legible|readable|available)|too (?:blurry|small|dark) to|"
    r"(?:is|are) (?:missing|blank)|(?:details|data) (?:is|are) needed|would need to know|"
    r"need (?:more|to see)|(?:answer|result|it|this) depends on|not enough|as an ai)\b|"
    r"n't enough|"
    r"无法|不能确定|不确定|不清楚|看不清|不知道|抱歉",
    re.IGNORECASE,
)
HEDGE = re.compile(
    r"\b(?:might|could|may) (?:just )?as well|"
    r"\b(?:could|might|may)(?: (?:also|well|still|equally))? be|"
    r"\beither\b|\bpossibly\b|\bperhaps\b|\bmaybe\b|not sure|hard to|可能",
    re.IGNORECASE,
)
_HYPOTHESIS = re.compile(
    r"\b(?:if|whether|(?<!\bi )(?:might|may|could|would|can|some|one|you) (?:\w+ )?(?:think|"
    r"say|guess|expect|believe|assume)|suppos\w*|assum\w*|unless|would mean|let's say|"
    r"imagine|maybe|perhaps|might be|why|"
    r"how|not (?:sure|certain|clear|obvious|say|think|believe|mean)|doubt|guess(?:ing)? that|"
    r"to (?:find|determine|get|check|verify|see|give|provide|reach|write|present)|"
    r"(?:checking|finding|verifying|determining|giving))\b[^.!?,\n]{0,40}$|(?:如果|假设|"
    r"是否)[^，。\n]{0,10}$",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"(?:^|[.!?。！？\n\u2014…])\W{0,6}(?:(?:but|oh|hmm+|um|uh|ah|well|and|okay|ok|"
    r"then),?\W{1,3}){0,3}"
    r"(?:wait\b|hold on\b|hang on\b|hmm+\b|oops\b|scratch that|no[,.]|no wait|nope\b|sorry,|"
    r"correction\b|"
    r"actually,? (?:no|wait|let|that|this|it)\b|my (?:mistake|bad)\b|on (?:second|further) thought|"
    r"(?:that|this|it|which)(?:'s| is| was| can't be| cannot be| isn't| doesn't (?:seem|"
    r"look)| does not (?:seem|look)) "
    r"?(?:not )?(?:a mistake|wrong|incorrect|right|correct|mistaken)\b|"
    r"i (?:made|have made|see i made) an? (?:mistake|error|slip)|i was wrong|i mis\w+|"
    r"there(?:'s| is) (?:a|an) (?:mistake|error)|the (?:above|previous) (?:answer|"
    r"result) is (?:wrong|incorrect)|"
    r"let me (?:re-?(?:check|comput|calculat|consider|do|think|evaluat|examin|visit|count|"
    r"read|solv|work|vis|start|try)\w*|"
    r"start over|try again|think again|look again|correct|double[- ]check|check again)|"
    r"等等|不对|等一下|我错了|让我重新)",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(r"(?:that|this|it|which)(?:'s| is| was) (?:right|correct)\b", re.IGNORECASE)
_CONFIRMED = re.compile(
    r"\b(?:(?:answer|result|it|this|that|which|everything|calculation)(?: above)? (?:is|was|"
    r"seems|looks) "
    r"(?:indeed |still |also |therefore )?(?:correct|right|confirmed|consistent|fine)|stands\b|"
    r"confirms?\b|verifies|checks? out|agrees|yes[,. !]|same (?:answer|result)|"
    r"still (?:gets?|gives?|holds|have|the same)|(?:is|was) correct)|没错|正确无误",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; a full stop in a number or an abbreviation is not an end."""
    found, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        if end[0] == "." and not _ends(text, start, end.start()):
            continue
        if undressed(text[start : end.start()]):
            found.append(text[start : end.end()].strip())
        start = end.end()
    return [*found, text[start:].strip()] if undressed(text[start:]) else found


def _ends(text: str, start: int, stop: int) -> bool:
    """Whether a full stop ends a sentence; not in "B. red" and not after an abbreviation."""
    before = text[max(start, stop - 20) : stop].strip(_DRESS + "([")
    following = text[stop + 1 : stop + 4].lstrip(" ")
    if len(before) == 1 and before.isalpha():
        return not following.strip()
    word = before.rsplit(None, 1)[-1].lower() if before else ""
    return not (word in _ABBREVIATIONS and (following[:1].islower() or following[:1].isdigit()))


def is_hypothetical(before: str) -> bool:
    """Return whether a marker after these words is hypothetical, as in "if the answer is ..."."""
    sentence = re.split(r"[.!?\n。]\s", before[-80:])[-1]
    return _HYPOTHESIS.search(sentence) is not None


def taken_back_at(text: str, start: int, *, is_yes_no: bool = False) -> int | None:
    """Return the place where a commitment that ends at ``start`` is taken back, or ``None``.

    A later "yes" confirms the commitment, unless it may be the answer itself.
    """
    for found in _TAKEN_BACK.finditer(text, max(start - 1, 0)):
        if _IS_RIGHT.search(found[0]):
            continue
        rest = text[found.end() :]
        return None if _CONFIRMED.search(rest) and not is_yes_no else found.end()
    return None


def without_pleasantries(lines: list[str]) -> list[str]:
    """Return the lines without friendly phrases at the end; at least one line stays."""
    while len(lines) > 1 and PLEASANTRY.match(lines[-1]):
        lines = lines[:-1]
    return lines


def undressed(text: str) -> str:
    """Return a text without outer markers of lists, headings and emphasis."""
    text = text.strip().strip(_DRESS).strip()
    # A dash before a space begins a list item; other dashes are signs of numbers.
    return (
        _BULLET.sub("", text).rstrip("-").strip(_DRESS)
        if text[:1] in "-+>" or text[-1:] == "-"
        else text
    )
