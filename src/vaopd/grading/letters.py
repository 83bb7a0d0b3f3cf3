"""The option that a response chooses: by its letter, by its letter and text, or by its text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from vaopd.grading.commitments import Commitment, commitments
from vaopd.grading.equality import is_equal, words
from vaopd.grading.markup import boxes_of, plain
from vaopd.grading.narrowing import narrowed
from vaopd.grading.phrases import (
    REFUSAL,
    is_hypothetical,
    sentences,
    taken_back_at,
    undressed,
    without_pleasantries,
)
from vaopd.grading.reading import Reading, Rule, no_answer, usable
from vaopd.grading.thinking import split_reasoning

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SEVERAL = "several"
"""Stands for a commitment to more than one option, or to none of them: no answer."""

MAX_LINE = 1000
"""A longer line is no bare answer."""

_EDGE = r"(?![A-Za-z0-9'’_=^+/*(\[]|-[A-Za-z0-9]|\s?=|\s[+*/^]\s)"
_HEAD = re.compile(
    r"(?:(?:definitely|probably|likely|most likely|clearly|therefore|either|simply|thus|only|"
    r"just|surely|indeed|the)\s+)*(?:(?:option|choice|answer|letter|选项|选择|选)s?\s*[:：]?\s*)?"
    rf"[(\[{{<\"'「【（]*\s?([A-Z])\s?(?P<close>[)\]}}>\"'」】）]*){_EDGE}",
    re.IGNORECASE,
)
_ALSO = re.compile(
    r"\s*(?:[,、]?\s*(?:and|or|&|\bor also\b|and/or|as well as|和|或|与|以及|及)\s*(?:also\s+|"
    r"possibly\s+|maybe\s+|even\s+)?(?:option\s+|choice\s+)?|"
    r"[/,、]\s*(?:option\s+)?)[(\[]?([A-Z])[)\]]?(?![A-Za-z0-9'])(?P<rest>.{0,12})",
    re.IGNORECASE,
)
_STANDS_ALONE = re.compile(
    r"\s*(?:$|[.,:;!?)\]}。，、：；\u2014|<-]|(?:because|since|for|which|due|as|with|based|"
    r"according|from|given|in|on|who|where)\b|(?:is|was|seems|appears)\b|(?:因为|由于|是|项|选项|正确))",
    re.IGNORECASE,
)
_IS_WRONG = re.compile(
    r"\s*(?:\([^)]{0,60}\)\s*)?(?:is|was|are|seems|looks|can be|cannot be|can't be|does|"
    r"doesn't|would|isn't|must be)\s*(?:clearly |obviously |definitely |also |therefore )?"
    r"(?:not|n't|wrong|incorrect|false|ruled|eliminated|excluded|inconsistent|too|impossible|"
    r"unlikely|out\b|less|only partially|invalid|\bbe (?:correct|right|"
    r"true)(?<=not be correct))|\s*(?:isn't|cannot|can't|doesn't|不|错)",
    re.IGNORECASE,
)
_IS_OTHERWISE = re.compile(
    r"\s*(?:is|was|seems|looks|might|could|may|would)\s+(?!(?:therefore |thus |clearly |"
    r"indeed |definitely )?(?:the |our |my )?(?:only |most |best |correct|right|answer|true|"
    r"closest|not))",
    re.IGNORECASE,
)
_NAMED = re.compile(
    rf"(?<![A-Za-z])(?:option|choice|answer|letter|选项|选择|"
    rf"选)\s{{0,3}}[:：]?\s{{0,2}}[(\[\"']{{0,2}}([A-Z])[)\]\"']{{0,2}}{_EDGE}",
    re.IGNORECASE,
)
_BRACKETED = re.compile(rf"(?<![A-Za-z0-9_'])[(\[（]\s?([A-Z])\s?[)\]）]{_EDGE}")
_CAPITAL = re.compile(
    r"(?<![A-Za-z0-9'\\_^{+*/=-])([A-Z])(?![A-Za-z0-9'_=^+/*(]|-[A-Za-z0-9]|\s?=)"
)
_NEGATING = re.compile(
    r"(?:\bnot|n't|\bnor|\bneither|rather than|instead of|unlike|\bthan|except|\bexclud\w*|"
    r"eliminat\w*|rul(?:e|ed|es|ing) out|\bwithout|not be|incorrect\w*|wrong\w*|reject\w*|"
    r"different from|opposed to|不是|而非|排除)\s*(?:the\s)?(?:\w+\s)?(?:options?\s|choices?\s|"
    r"选项)?[(\[\"']{0,2}$",
    re.IGNORECASE,
)
_GEOMETRY = re.compile(
    r"(?:\b(?:points?|angles?|lines?|at|vertex|vertices|segments?|arcs?|circles?|triangles?|"
    r"planes?|figures?|label(?:l?ed)?|node|set|matrix|side|edge|center|centre|group|column|"
    r"row|from|to|through|between|of|vector|team|city|town|station|object|gas|bar|curve|"
    r"region|area|stage|position|block|box|class|type|vitamin|hepatitis|plan|phase|car|man|"
    r"person|player|student|line segment)\s|[∠△])$",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:could|might|may) be|\beither\b|\bpossibly\b|\bperhaps\b|\bmaybe\b|not sure|hard to|可能",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    r"(?<![A-Za-z])(?P<name>option|choice|answer|statement|"
    r"选项)?\s{0,2}[(\[\"'「【]{0,2}(?P<letter>[A-Z])[)\]\"'」】]{0,2}(?:[:.]?\s(?:(?![A-Z]\b)"
    r"[^.\n]){1,80}?)??\s{0,2}(?:\([^()\n]{1,60}\)\s)?"
    r"(?:(?:is|must be|would be|should be|seems|appears to be)\s+(?:therefore |thus |"
    r"clearly |indeed |definitely |hence |also )?(?:the\s+)?(?:only\s+)?(?:(?:most|"
    r"best)\s+(?:appropriate|likely|suitable|accurate|reasonable)\s*|(?:correct|right|best|"
    r"true)\b\s*|answer\b)(?:answer|option|choice|one|match|description)?|"
    r"(?:best |most accurately |correctly |exactly )?(?:matches|fits|describes|represents|"
    r"shows)(?: (?:this|the|our|best|exactly|perfectly|it)\\b|(?=\\s*[.!\\n]|$))|(?:选项|"
    r"项)?(?:是)?(?:正确|对)的?(?:答案|选项)?)",
)
_POINTED = re.compile(
    r"(?<![A-Za-z])(?:(?:which|that|this|it|result|value|image|picture|figure|answer|"
    r"description|calculation|shape)[ \t](?:best[ \t])?(?:is|'s|matches|"
    r"corresponds[ \t](?:to|with)|fits|looks[ \t]like|seems[ \t]to[ \t]be|"
    r"appears[ \t]to[ \t]be|must[ \t]be|should[ \t]be|would[ \t]be|aligns[ \t]with|"
    r"agrees[ \t]with|points[ \t]to|matches[ \t]with|equals|describes|"
    r"leads[ \t](?:us[ \t])?to)|"
    r"(?:it|that|this)'s|i[ \t](?:think|believe|guess|suspect)(?:[ \t](?:that|it|it's|"
    r"it[ \t]is|the[ \t]answer[ \t]is))*|corresponds[ \t](?:to|with)|corresponding[ \t]to|"
    r"matches|matching|looks[ \t]like)[ \t]+(?:(?:clearly|best|exactly|definitely|likely|"
    r"most[ \t]likely|probably|certainly|indeed|therefore|just|simply)[ \t])?"
    rf"(?P<name>option[ \t]|choice[ \t]|answer[ \t]|"
    rf"选项)?[(\[\"']{{0,2}}(?P<letter>[A-Z])[)\]\"']{{0,2}}{_EDGE}",
    re.IGNORECASE,
)
_SO = re.compile(
    r"(?:^|[.!?。\n;,]\s{0,3})(?:therefore|thus|so|hence|consequently|accordingly|"
    r"in conclusion|overall|因此|所以|故)[,，:]?\s{0,3}(?:it is|it's|it must be|i choose|"
    r"we choose)?\s{0,3}(?:option|choice|answer|"
    r"选项)?\s{0,2}[(\[\"']{0,2}([A-Z])[)\]\"']{0,2}\s{0,2}(?=$|[.,:;!。\n]|"
    r"\bis (?:the )?(?:correct|right|best|answer))",
    re.IGNORECASE | re.MULTILINE,
)
_LIST_LINE = re.compile(r"^\W{0,10}(?:option\s|choice\s)?\(?([A-Z])[).:：](?!\w)", re.IGNORECASE)
_WHOLE = re.compile(
    r"\W{0,20}(?:(?:option|choice|answer|letter|选项|"
    r"选)\s{0,3}:?\s{0,3})?[(\[{\"'「【]{0,4}([A-Z])[)\]}\"'」】]{0,4}\W{0,20}",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Options:
    """Options by letter with their texts as words."""

    texts: Mapping[str, str]
    said: Mapping[str, str]


def read_choice(
    response: str,
    options: Mapping[str, str],
    *,
    rule: Rule = "last_committed",
    is_truncated: bool = False,
) -> Reading:
    """Return the letter of the option that a response chooses.

    Like `read_answer`: the last commitment that names an option and is not taken back; without
    one a bare letter or option text; without that what the response says is right. Several
    options, hedges, refusals and negations are no answer. A letter is told from an article, a
    pronoun and the name of a point.
    """
    parts = split_reasoning(response)
    if parts.is_open:
        return no_answer("reasoning never ends", is_truncated=is_truncated)
    text = plain(parts.answer)
    known = _Options(options, {letter: words(option) for letter, option in options.items()})
    if rule == "last_boxed":
        return _last_box(text, known, is_truncated)
    found = usable(commitments(text, is_choice=True), is_truncated=is_truncated)
    start = 0
    for one in found if rule == "first_committed" else reversed(found):
        letter = _committed(one, known)
        if letter is None:
            continue
        back = taken_back_at(text, one.end) if rule == "last_committed" else None
        if back is not None:
            start = back
            break
        if letter == SEVERAL:
            return no_answer("several options", is_truncated=is_truncated)
        return Reading(letter, one.rule, "committed", one.payload[:300], is_truncated)
    if is_truncated:
        return no_answer("cut before an answer", is_truncated=True)
    return _uncommitted(text[start:], known, has_commitment=bool(found) and start == 0)


def _last_box(text: str, options: _Options, is_truncated: bool) -> Reading:
    boxes = boxes_of(text)
    letter = named_option(boxes[-1][1], options.texts) if boxes else None
    if letter is None or letter == SEVERAL:
        return no_answer("no box", is_truncated=is_truncated)
    return Reading(letter, "box", "committed", boxes[-1][1], is_truncated)


def _committed(one: Commitment, options: _Options) -> str | None:
    if one.rule == "heading" and len(one.payload.split()) > 40:
        return None
    payload = one.payload
    if one.rule == "choosing" and not _HEAD.match(undressed(payload)):
        return None
    if one.rule in ("label", "statement", "choosing") and sentences(payload):
        if sentences(payload)[0].endswith(("?", "？")) and len(undressed(payload)) > 1:
            return None
    return _named(payload, options)


def named_option(span: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that a short answer names, ``SEVERAL``, or ``None`` where it names none."""
    return _named(plain(span), _Options(options, {k: words(v) for k, v in options.items()}))


def _named(payload: str, options: _Options) -> str | None:
    body = undressed(payload)
    if not body:
        return None
    if re.match(r"(?:not|neither|none)\b", body, re.IGNORECASE) and (
        but := re.search(r"\bbut\s+(?:rather\s+)?", body)
    ):
        body = body[but.end() :]
    first = undressed(sentences(body)[0]) if sentences(body) else body
    if (exact := _by_text(first, options)) is not None and len(words(first)) > 1:
        return exact
    head = _by_head(body, options)
    if head is not None:
        return head
    if exact is not None:
        return exact
    if re.match(r"(?:not|neither|unclear|unknown|none)\b", first, re.IGNORECASE):
        return None
    return _by_name(first, options) or _by_value(first, options) or _by_mention(first, options)


def _by_head(body: str, options: _Options) -> str | None:
    """Return the letter that a payload begins with, told from an article and a variable."""
    head = _HEAD.match(body)
    if head is None or head[1].upper() not in options.texts:
        return None
    letter, after = head[1].upper(), body[head.end(1) :].lstrip(")]}>\"'」】） ")
    is_lower = head[1].islower()
    if is_lower and not re.match(r"\s*(?:$|[.,:;)\n])", after) and not head["close"]:
        return None
    also = _ALSO.match(body, head.end())
    if (
        also
        and also[1].upper() in options.texts
        and also[1].upper() != letter
        and _is_option(also, is_lower)
    ):
        return SEVERAL
    if _IS_OTHERWISE.match(after):
        return None
    if _IS_WRONG.match(after):
        return SEVERAL if re.match(r"\s*is not the only", after) else None
    if head["close"] or _STANDS_ALONE.match(after) or re.match(r"\s*\(", body[head.end() :]):
        return letter
    told = options.said[letter]
    if told and words(after).startswith(told):
        return letter
    if "option" in head[0].lower() or "choice" in head[0].lower() or "选" in head[0]:
        return letter
    # "A red car" begins with an article, "I think" with a pronoun.
    return None if letter in "AI" or is_lower else letter


def _is_option(also: re.Match[str], is_lower: bool) -> bool:
    """Whether a second letter is an option: not the article of "B, a triangle"."""
    if also[1].islower() and not is_lower:
        return False
    rest = also["rest"]
    if "," in also[0][: also.start(1) - also.start()] and not re.search(
        r"and|or|&", also[0][: also.start(1) - also.start()]
    ):
        return re.match(r"\s*(?:$|[.,;)]|and\b|or\b)", rest) is not None
    return (
        also[1].upper() not in "AI"
        or re.match(r"\s*(?:$|[.,;:)]|\bare\b|\bis\b|can|both)", rest) is not None
    )


def _by_text(span: str, options: _Options) -> str | None:
    said = words(
        re.sub(r"^(?:it is|it's|this is|that is|they are)\s+", "", span, flags=re.IGNORECASE)
    )
    equal = [letter for letter, text in options.said.items() if text and text == said]
    return equal[0] if len(equal) == 1 else None


def _by_name(sentence: str, options: _Options) -> str | None:
    """Return the only letter that a sentence names as an option, in brackets, or alone."""
    for pattern in (_NAMED, _BRACKETED, _CAPITAL):
        found = dict.fromkeys(
            match[1].upper()
            for match in pattern.finditer(sentence)
            if match[1].upper() in options.texts and _is_chosen(sentence, match, pattern)
        )
        if found:
            return next(iter(found)) if len(found) == 1 else SEVERAL
    return None


def _is_chosen(sentence: str, match: re.Match[str], pattern: re.Pattern[str]) -> bool:
    before, after = sentence[: match.start(1)], sentence[match.end(1) :]
    if _NEGATING.search(before[-40:]) or _IS_WRONG.match(after.lstrip(")]\"' ")):
        return False
    if pattern is _NAMED:
        return match[1].isupper() or len(match[1]) == 0
    if pattern is _BRACKETED:
        return not _GEOMETRY.search(before.rstrip("([（ ")[-25:] + " ")
    if _GEOMETRY.search(before[-25:]):
        return False
    # Alone, a letter counts where it closes its clause.
    return (
        re.match(r"\s*(?:$|[.,;:!)。，])", after) is not None
        and re.search(r"(?:is|be|,|:|are|with|choose|select|为|是)\s*$", before) is not None
    )


def _by_value(sentence: str, options: _Options) -> str | None:
    """Return the only option that equals the value which a sentence states."""
    value = narrowed(sentence)
    if value is None:
        return None
    equal = [
        letter for letter, text in options.texts.items() if text.strip() and _is_same(value, text)
    ]
    return equal[0] if len(equal) == 1 else None


@lru_cache(maxsize=65536)
def _is_same(value: str, option: str) -> bool:
    return is_equal(value, option)


def _by_mention(sentence: str, options: _Options) -> str | None:
    """Return the only option whose text stands in a sentence as whole words, not negated.

    A number inside a formula is not a mention: "5" is not in "5\\sqrt{3}". Of texts that hold one
    another the longest is meant.
    """
    said = " " + words(sentence) + " "
    at = {
        k: said.find(f" {text} ")
        for k, text in options.said.items()
        if text and not re.fullmatch(r"[\W\d]*|\w", text)
    }
    found = [
        letter
        for letter, place in at.items()
        if place >= 0 and not _NEGATING.search(said[: place + 1][-40:])
    ]
    meant = [
        one
        for one in found
        if not any(
            options.said[one] != options.said[o] and options.said[one] in options.said[o]
            for o in found
        )
    ]
    if len(meant) > 1:
        return SEVERAL
    return meant[0] if meant else None


def _uncommitted(text: str, options: _Options, *, has_commitment: bool) -> Reading:
    """Return the option of a response that commits to none by a marker or a box."""
    lines = without_pleasantries([line for line in text.split("\n") if undressed(line)])
    if not lines:
        return no_answer("empty")
    listed = {m[1].upper() for line in lines if (m := _LIST_LINE.match(line))}
    is_list = len(listed & options.texts.keys()) > 1
    for line in dict.fromkeys((lines[-1], lines[0])):
        letter = _bare(line, options, is_alone=len(lines) == 1, is_list=is_list)
        if letter == SEVERAL:
            return no_answer("several options")
        if letter:
            return Reading(
                letter, "bare reply" if len(lines) == 1 else "bare line", "bare", line[:300]
            )
    whole = "\n".join(lines)
    letter = _last_named(whole, options)
    if letter:
        return Reading(letter, "said to be right", "guessed", whole[-300:])
    if has_commitment:
        return no_answer("no option named")
    return _from_words(lines, options)


def _bare(line: str, options: _Options, *, is_alone: bool, is_list: bool) -> str | None:
    """Return the option that a line is, or begins with as an answer does."""
    if len(line) > MAX_LINE:
        return None
    if is_list and _LIST_LINE.match(line):
        return None
    if is_alone and re.match(r"\W*not\b.{1,20}\bbut\b|\W*不是.{1,20}而是", line, re.IGNORECASE):
        return _named(line, options)
    whole = _WHOLE.fullmatch(line)
    if whole and whole[1].upper() in options.texts:
        return (
            whole[1].upper()
            if whole[1].isupper() or is_alone or ")" in line or "." in line
            else None
        )
    body = undressed(line)
    if (exact := _by_text(body.rstrip(".。!"), options)) is not None:
        return exact
    if is_list or body.endswith(("?", "？")):
        return None
    head = _HEAD.match(body)
    if head is None:
        return None
    marked = (
        bool(head["close"] and not head["close"].startswith(('"', "'")))
        or re.match(r"\s*[.:：、。]\s", body[head.end() :] + " ") is not None
    )
    letter = _by_head(body, options)
    if letter == SEVERAL and is_alone and len(body.split()) <= 8:
        return SEVERAL
    if letter is None or letter == SEVERAL:
        return None
    if (
        marked
        and not re.match(r"[(\[]", body)
        and re.search(r"[.:]", body[head.end(1) : head.end(1) + 3])
    ):
        return letter
    reasons = re.match(
        r"[)\]\"'}]*\s*(?:$|,?\s*(?:because|since|as|due|is (?:the )?(?:correct|right|"
        r"best))\b|[,;\u2014-]\s)",
        body[head.end(1) :],
    )
    if head["close"] or "option" in head[0].lower():
        return letter if is_alone or len(body.split()) <= 12 or reasons else None
    return (
        letter
        if reasons
        and (letter not in "AI" or not re.match(r"\s+as\b", body[head.end(1) :]) or is_alone)
        else None
    )


def _last_named(text: str, options: _Options) -> str | None:
    """Return the option of the last statement such as "option B is correct" or "so it is B"."""
    found: list[tuple[int, str]] = []
    for pattern in (_VERDICT, _POINTED, _SO):
        for match in pattern.finditer(text):
            name = (
                match.groupdict().get("letter") or match[1] if pattern is _SO else match["letter"]
            )
            letter = (name or "").upper()
            if letter not in options.texts or not (name or "").isupper():
                continue
            before = text[max(0, match.start() - 80) : match.start()]
            after = text[match.end() : match.end() + 60]
            if is_hypothetical(before) or _NEGATING.search(
                text[
                    max(0, match.start() - 20) : match.start("letter")
                    if pattern is not _SO
                    else match.start(1)
                ]
            ):
                continue
            if (
                pattern is _VERDICT
                and not match["name"]
                and (
                    (
                        letter in "AI"
                        and not re.search(r"\b(?:correct|right|best|answer)|正确|对", match[0])
                    )
                    or _GEOMETRY.search(before[-25:])
                )
            ):
                continue
            if pattern is _VERDICT and re.match(r"\s*(?:not|n't)", after):
                continue
            if pattern is _POINTED and (
                _IS_WRONG.match(after)
                or _HEDGE.search(match[0])
                or (
                    letter in "AI"
                    and not re.match(r"\s*(?:$|[.,;:!)]|to me\b)", after)
                    and not match["name"]
                )
                or re.match(r"\s*(?:or|and|/)\s*(?:option\s)?\(?[A-Z]\b", after)
            ):
                continue
            found.append((match.start(), letter))
    return max(found)[1] if found else None


def _offers_refusal(options: _Options) -> bool:
    """Whether an option is itself a refusal, such as "cannot be determined"."""
    return any(REFUSAL.search(text) for text in options.texts.values())


def _from_words(lines: list[str], options: _Options) -> Reading:
    """Return the option whose text the last sentence, or a short reply, says."""
    said = sentences("\n".join(lines))
    candidates = [said[-1]] if len(said) > 2 else [*reversed(said)]
    for sentence in candidates:
        is_unsure = bool(REFUSAL.search(sentence) or _HEDGE.search(sentence))
        if sentence.endswith(("?", "？")) or (is_unsure and not _offers_refusal(options)):
            return no_answer("refusal or hedge")
        letter = _by_mention(sentence, options) or _by_value(sentence, options)
        if letter == SEVERAL:
            return no_answer("several options")
        if letter:
            return Reading(letter, "option text", "guessed", sentence[:300])
    return no_answer("no commitment")
