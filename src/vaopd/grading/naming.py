"""The option that a short span names: by letter, by letter and text, by text, or by value."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from vaopd.grading.clauses import main_clause
from vaopd.grading.equality import is_equal, words
from vaopd.grading.heads import whole_value
from vaopd.grading.markup import plain
from vaopd.grading.narrowing import after_verb, narrowed, only_number
from vaopd.grading.phrases import NEGATION, is_hypothetical, sentences, undressed

MIN_ORDERED = 3
"""Fewest words of an option that a sentence can have in order without being equal to it."""

_FILLERS = frozenset(["a", "an", "the", "is", "are", "was", "were", "it"])
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SEVERAL = "several"
"""More than one option, or a commitment to none of them; it does not count as an answer."""

EDGE = r"(?![A-Za-z0-9'’_=^+/*(\[]|-[A-Za-z0-9]|\s?=|\s[+*/^]\s)"
HEAD = re.compile(
    r"(?:(?:definitely|probably|likely|most likely|clearly|therefore|either|simply|thus|only|"
    r"just|surely|indeed|the)\s+)*(?:(?:option|choice|answer|letter|选项|选择|选)s?\s*[:：]?\s*)?"
    rf"[(\[{{<\"'「【（]*\s?([A-Z])\s?(?P<close>[)\]}}>\"'」】）]*){EDGE}",
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
IS_WRONG = re.compile(
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
    rf"选)\s{{0,3}}[:：]?\s{{0,2}}[(\[\"']{{0,2}}([A-Z])[)\]\"']{{0,2}}{EDGE}",
    re.IGNORECASE,
)
_BRACKETED = re.compile(rf"(?<![A-Za-z0-9_'])[(\[（]\s?([A-Z])\s?[)\]）]{EDGE}")
_CAPITAL = re.compile(
    r"(?<![A-Za-z0-9'\\_^{+*/=-])([A-Z])(?![A-Za-z0-9'_=^+/*(]|-[A-Za-z0-9]|\s?=)"
)
NEGATING = re.compile(
    r"(?:\bnot|n't|\bnor|\bneither|rather than|instead of|unlike|\bthan|except|\bexclud\w*|"
    r"eliminat\w*|rul(?:e|ed|es|ing) out|\bwithout|not be|incorrect\w*|wrong\w*|reject\w*|"
    r"differ\w* from|distinct from|"
    r"opposed to|in contrast (?:to|with)|compared (?:to|with)|"
    r"不是|而非|排除|不(?:能|应|应该|要|可)?选择?)\s*(?:the\s)?(?:\w+\s)?(?:options?\s|choices?\s|"
    r"选项)?[(\[\"']{0,2}$",
    re.IGNORECASE,
)
GEOMETRY = re.compile(
    r"(?:\b(?:points?|angles?|lines?|at|vertex|vertices|segments?|arcs?|circles?|triangles?|"
    r"planes?|figures?|label(?:l?ed)?|node|set|matrix|side|edge|center|centre|group|column|"
    r"row|from|to|through|between|of|vector|team|city|town|station|object|gas|bar|curve|"
    r"region|area|stage|position|block|box|class|type|vitamin|hepatitis|plan|phase|car|man|"
    r"person|player|student|line segment)\s|[∠△])$",
    re.IGNORECASE,
)
_DENIES = re.compile(r"(?:not|neither|unclear|unknown|none)\b|不是", re.IGNORECASE)
_OFFERS = re.compile(r"\W*(?:one|any|some) of\b", re.IGNORECASE)
_BUT = re.compile(r"\bbut\s+(?:rather\s+)?|而是")


@dataclass(frozen=True)
class Options:
    """Options by letter; their texts are stored as words too."""

    texts: Mapping[str, str]
    said: Mapping[str, str]


def options_of(texts: Mapping[str, str]) -> Options:
    """Return the options of a question, with their texts as words."""
    return Options(texts, {letter: words(text) for letter, text in texts.items()})


def named_option(span: str, options: Options) -> str | None:
    """Return the letter that a short answer names, ``SEVERAL``, or ``None`` without a name."""
    body = undressed(plain(span))
    if not body or _OFFERS.match(body):
        return None
    if _DENIES.match(body) and (but := _BUT.search(body)):
        body = body[but.end() :]
    first = undressed(sentences(body)[0]) if sentences(body) else body
    exact = by_text(first, options)
    if exact is not None and len(words(first)) > 1:
        return exact
    letter = by_head(body, options) or exact
    if letter or _DENIES.match(first):
        return letter
    return by_name(first, options) or by_value(first, options) or by_mention(first, options)


def by_head(body: str, options: Options) -> str | None:
    """Return the option letter at the beginning of a text; not an article and not a variable."""
    head = HEAD.match(body)
    if head is None or head[1].upper() not in options.texts:
        return None
    letter, after = head[1].upper(), body[head.end(1) :].lstrip(")]}>\"'」】） ")
    is_lower = head[1].islower()
    if is_lower and not head["close"] and not re.match(r"\s*(?:$|[.,:;)\n])", after):
        return None
    if _goes_on_with_another(body, head, options):
        return SEVERAL
    if _IS_OTHERWISE.match(after) or IS_WRONG.match(after):
        return None
    is_marked = head["close"] or re.search(r"option|choice|选", head[0], re.IGNORECASE)
    if is_marked or _STANDS_ALONE.match(after) or re.match(r"\s*\(", body[head.end() :]):
        return letter
    told = options.said[letter]
    if told and words(after).startswith(told):
        return letter
    # "A red car" begins with an article, "I think" with a pronoun.
    return None if letter in "AI" or is_lower else letter


def _goes_on_with_another(body: str, head: re.Match[str], options: Options) -> bool:
    """Whether a second option follows, as in "B or D", but not in "B, a triangle"."""
    also = _ALSO.match(body, head.end())
    if also is None or also[1].upper() not in options.texts or also[1].upper() == head[1].upper():
        return False
    if also[1].islower() and not head[1].islower():
        return False
    joint, rest = also[0][: also.start(1) - also.start()], also["rest"]
    if "," in joint and not re.search(r"and|or|&", joint):
        return re.match(r"\s*(?:$|[.,;)]|and\b|or\b)", rest) is not None
    is_plain = re.match(r"\s*(?:$|[.,;:)]|\bare\b|\bis\b|can|both)", rest) is not None
    return is_plain or also[1].upper() not in "AI"


def by_text(span: str, options: Options) -> str | None:
    """Return the only option with these words."""
    said = words(
        re.sub(r"^(?:it is|it's|this is|that is|they are)\s+", "", span, flags=re.IGNORECASE)
    )
    equal = [letter for letter, text in options.said.items() if text and text == said]
    return equal[0] if len(equal) == 1 else None


def by_name(sentence: str, options: Options) -> str | None:
    """Return the only letter that a sentence names as an option, in brackets, or alone.

    It returns ``SEVERAL`` if there is more than one, and ``None`` if there is none.
    """
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
    if (
        is_hypothetical(before)
        or NEGATING.search(before[-40:])
        or IS_WRONG.match(after.lstrip(")]\"' "))
    ):
        return False
    if pattern is _NAMED:
        return match[1].isupper()
    if pattern is _BRACKETED:
        return not GEOMETRY.search(before.rstrip("([（ ")[-25:] + " ")
    if GEOMETRY.search(before[-25:]):
        return False
    # A letter alone counts only at the end of its clause.
    return (
        re.match(r"\s*(?:$|[.,;:!)。，])", after) is not None
        and re.search(
            r"(?:is|be|,|:|are|with|choose|select|therefore|thus|hence|为|是)\s*$", before
        )
        is not None
    )


def by_value(sentence: str, options: Options, *, is_prose: bool = False) -> str | None:
    """Return the only option that equals the value in an answer or a sentence."""
    if is_prose:
        value = whole_value(sentence) or after_verb(sentence) or only_number(sentence)
    else:
        value = narrowed(sentence)
    if value is None or (is_prose and _has_values_of_several(sentence, options)):
        return None
    equal = [
        letter for letter, text in options.texts.items() if text.strip() and _is_same(value, text)
    ]
    return equal[0] if len(equal) == 1 else None


def _has_values_of_several(sentence: str, options: Options) -> bool:
    """Whether a clause that is not a calculation has the numbers of several options."""
    clause = main_clause(undressed(sentence))
    numbers = set(re.findall(r"\d+", clause)) if "=" not in clause else set[str]()
    return len(numbers.intersection(options.said.values())) > 1


@lru_cache(maxsize=65536)
def _is_same(value: str, option: str) -> bool:
    return is_equal(value, option)


def _is_denied(before: str) -> bool:
    """Whether a mention is negated, as in "not taken at sunset"; "but" ends the negation."""
    clause = re.split(r"\b(?:but|so|therefore|hence|thus|because|since|and|is|are)\b", before)[-1]
    return NEGATING.search(before[-40:]) is not None or NEGATION.search(clause) is not None


def by_order_of_words(sentence: str, options: Options) -> str | None:
    """Return the only option of three or more words that a sentence has in the same order.

    "The cat is sitting under the table" has the words of "the cat is under the table".
    """
    said = _content(sentence)
    found: list[str] = []
    for letter, text in options.said.items():
        wanted = _content(text)
        rest = iter(said)
        is_pair = wanted[:1] in (["both"], ["neither"]) and wanted[:1] == said[:1]
        if (len(wanted) >= MIN_ORDERED or is_pair) and all(word in rest for word in wanted):
            found.append(letter)
    if len(found) != 1:
        return None
    is_denied = NEGATION.search(words(sentence)) and not NEGATION.search(options.said[found[0]])
    return None if is_denied else found[0]


def _content(text: str) -> list[str]:
    """Return the words of a text without articles and forms of "to be"."""
    return [word for word in words(text).split() if word not in _FILLERS]


def distinct(options: Options) -> Options | None:
    """Return the options without the words that all share: "red" and "blue" of red and blue lines.

    It returns ``None`` if they share none, or if an option has no other words.
    """
    said = [text.split() for text in options.said.values()]
    shared = set(said[0]).intersection(*said[1:]) if len(said) > 1 else set[str]()
    short = {
        letter: " ".join(word for word in text.split() if word not in shared)
        for letter, text in options.said.items()
    }
    return Options(options.texts, short) if shared and all(short.values()) else None


def by_mention(sentence: str, options: Options) -> str | None:
    """Return the only option whose text occurs in a sentence as whole words, without negation.

    If one option text contains another, the longest counts.
    """
    said = " " + words(sentence) + " "
    # "2x + 1" and "-2x + 1" have the same words.
    is_double = {
        text: list(options.said.values()).count(text) > 1 for text in options.said.values()
    }
    at = {
        k: said.find(f" {text} ")
        for k, text in options.said.items()
        if text and not re.fullmatch(r"[\W\d]*|\w", text) and not is_double[text]
    }
    found = [
        letter for letter, place in at.items() if place >= 0 and not _is_denied(said[: place + 1])
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
