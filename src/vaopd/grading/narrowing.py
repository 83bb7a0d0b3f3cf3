"""The answer that a sentence states: the value after its verb, or a few words."""

import re

from vaopd.grading.clauses import COPULA, DEPENDENT, STRONG_COPULA, SUBORDINATE, main_clause
from vaopd.grading.heads import head_value, whole_value, without_lead_ins
from vaopd.grading.markup import boxes_of
from vaopd.grading.phrases import REFUSAL, sentences, undressed
from vaopd.grading.spoken import WORD, spoken
from vaopd.grading.units import unit_of

MAX_WORDS = 12
"""Most words of a short answer; longer clauses are prose."""
MAX_SENTENCE = 1000
_NO_ANSWER = re.compile(
    r"(?:not\b(?!\s+(?:enough|defined|possible|drawn|visible|listed|parallel|equal|"
    r"congruent|similar|a\b|an\b))|unclear|unknown to|obvious\b|straightforward|as follows|"
    r"below|above\b|in the (?:form|box|range|following)|based on|obtained|"
    r"found (?:by|in|using)|derived|determined by|given (?:in|below|above|as follows)|what\b|"
    r"how\b|why\b|a matter of|to be (?:determined|found)|"
    r"correct\b|incorrect\b|wrong\b|right\b(?!\s+(?:angle|triangle|side|hand|prism|tri))|"
    r"(?:a )?single|one of the|hidden|here\b|shown (?:in|below|above)|required\b|expected\b|"
    r"supposed to|likely to|going to|already\b|there\b(?! are| is)|to\b|consistent|"
    r"reasonable|verified|confirmed)",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(r"not\b[^,;.]{1,60}?,?\s+but\s+(?:rather\s+)?", re.IGNORECASE)
_FIRST_DIGIT = re.compile(
    rf"(?<![\d.,:/^A-Za-z-])[-+¤€£¥]?\d|\b(?:{WORD})\b|"
    r"\b(?:(?<=only )|(?<=just )|(?<=exactly )|(?<=is )|(?<=are ))one(?= [a-z]|\W*$)"
    r"(?! of| more| less)|"
    r"\bone and a half(?: [a-z]+)?|\bzero(?= [a-z])|"
    r"(?<=[有是为])[一二两三四五六七八九十]{1,3}(?=\w)",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"(?:the|it|he|she|they|there|we|each|every)\s+\w+\s+\w", re.IGNORECASE)
_QUOTED = re.compile(r"\s*:?\s*\"([^\"]{1,80})$")
_RESTATED = re.compile(
    r"(?:,?\s+(?:or(?=\s+(?:about|approx|roughly))|i\.e\.,?|that is,?|namely|"
    r"which (?:is|equals|corresponds to|matches|simplifies to|reduces to)(?: equal to)?)\s+|"
    r"\s\(\s?(?:approximately|approx\.?|about|≈|or|i\.e\.|that is|which is|equivalent(?:ly| to)?)"
    r"(?![A-Za-z]),?\s*)(?P<value>[^(),;]{1,60}?)\s*\)?$",
    re.IGNORECASE,
)
"""A second form of the value at the end of a sentence: "or about 8.7", "(≈ 8.7)"."""
_ASIDE = re.compile(
    r"(?<=\w)\s\([^()]{1,80}=[^()]{1,80}\)|(?<=[\d°%])\s\([a-z]{3,}\s[^()]{1,80}\)$"
)
"""A calculation, or words after a value, as in "60° (half of the angle of 120°)"."""
_POINT = re.compile(r"\([^()]{0,40}\d[^()]{0,40},[^()]{0,40}\)")
_LABELS = re.compile(
    r"\b(?:platform|figure|step|page|room|question|part|case|row|column|chapter|grade|gate)\s$",
    re.IGNORECASE,
)
"""Nouns before a number that is a name."""

_SHARE = re.compile(
    rf"\b(\d+|{WORD}) (?:out )?of (?:the |these |those |all )?(?:\d+|{WORD})\b", re.I
)
"""Of "3 of the 8 slices": the part that a sentence counts."""

_DEFINITE = re.compile(r"\b(?:the|these|those|its|their|both)\s$", re.IGNORECASE)
"""Before a number that belongs to the question, as in "the two lines cross in 1990"."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_PREPOSITION = re.compile(r"of\b|about\b|as\b|approximately\b", re.IGNORECASE)
_SEVERAL = re.compile(r"\b(?:and|or)\b|,\s")
_DESCRIBES = re.compile(
    r"\b(?:of|than|from|to|in|by|at|on|after|before|per|each|every|with|for|between|"
    r"above|below|over|under|until|since|within)"
    r"(?: (?:the|these|those|all|only|about))?\s$",
    re.IGNORECASE,
)
_COMMAND = re.compile(r"\\(?:frac|sqrt)\s?(?=[\[{\d]).{0,60}?\d|√\s?[\d(]")
_YES_NO = re.compile(r"(yes|no|true|false)(?=\s*(?:[,.;:!\u2014]|$)|\s+because)", re.IGNORECASE)


def narrowed(payload: str) -> str | None:
    """Return the short answer in a statement of a response; ``None`` without one.

    The answer is a box in the first sentence; or the value at the beginning of the sentence; or
    the value after its verb; or its first clause as words. A later number never counts.
    """
    said = sentences(payload)
    if not said:
        return None
    first = said[0][:MAX_SENTENCE]
    if boxes := boxes_of(first):
        return boxes[-1][1]
    body = without_lead_ins(first.rstrip("! "))
    if but := _NOT_BUT.match(body):
        body = body[but.end() :]
    if not body or _NO_ANSWER.match(body):
        return None
    if word := _YES_NO.match(body):
        return word[1]
    value = head_value(body)
    if value is not None:
        second = _second_form(body)
        return f"{value} ≈ {second}" if second else value
    if REFUSAL.match(body):
        return _clause(body)
    cut = None if DEPENDENT.match(body) else SUBORDINATE.search(body)
    clause = body[: cut.start()] if cut and cut.start() else body
    said_of = only_number(clause) if _SUBJECT.match(clause) else None
    return after_verb(clause) or said_of or _clause(body)


def after_verb(sentence: str, *, is_strict: bool = False) -> str | None:
    """Return the value after the verb of a sentence, as in "the length is 5 cm"."""
    body = undressed(sentence[:MAX_SENTENCE]).rstrip(".。!")
    if second := _second_form(body):
        # "36π cm (about 113 cm)" has two forms of one answer.
        first = after_verb(_RESTATED.split(body)[0], is_strict=is_strict)
        return f"{first} ≈ {second}" if _is_one(first) else second
    body = main_clause(_ASIDE.sub("", body))
    return (
        _counted_subject(body)
        or _after_verb(body, is_strict=is_strict)
        or _result_of(body, sentence)
    )


def _is_one(value: str | None) -> bool:
    return bool(value) and head_value(value) is not None and not _SEVERAL.search(value)


def _second_form(body: str) -> str | None:
    again = _RESTATED.search(body)
    return whole_value(without_lead_ins(again["value"])) if again else None


def _result_of(body: str, sentence: str) -> str | None:
    """Return the value that ends a sentence, as in "4 rows of 4 dots, which makes 16"."""
    return whole_value(body) if len(body) < len(undressed(sentence).rstrip(".。!")) else None


def _after_verb(body: str, *, is_strict: bool) -> str | None:
    verbs = list((STRONG_COPULA if is_strict else COPULA).finditer(body))
    if len(verbs) > 1:
        # "5√3 ≈ 8.66" has two forms of one answer.
        verbs = [verb for verb in verbs if not verb[0].startswith("≈")] or verbs
    if verbs and (quoted := _QUOTED.match(body, verbs[-1].end())):
        return quoted[1]
    # "The area is 12 with a width of 3": a value after "is" counts before one after "of".
    firm = [verb for verb in verbs if not _PREPOSITION.match(verb[0])]
    return _value_after(firm, body) or _value_or_words_after(verbs, body, is_strict=is_strict)


def _value_after(verbs: list[re.Match[str]], body: str) -> str | None:
    """Return the value that is all that follows a verb, or that follows the last verb."""
    tails = [without_lead_ins(body[verb.end() :]) for verb in verbs[-6:]]
    tails = [tail for tail in tails if tail and not _NO_ANSWER.match(tail)]
    values = [head_value(tail) for tail in tails]
    whole = [
        value for value, tail in zip(values, tails, strict=True) if value == tail.rstrip(" .。,;")
    ]
    return next(iter(whole), None) or next((value for value in reversed(values) if value), None)


def _value_or_words_after(verbs: list[re.Match[str]], body: str, *, is_strict: bool) -> str | None:
    if value := _value_after(verbs, body):
        return value
    for verb in reversed(verbs[-6:]):
        tail = without_lead_ins(body[verb.end() :])
        if not tail or _NO_ANSWER.match(tail):
            continue
        if STRONG_COPULA.fullmatch(verb[0].split()[0] if verb[0].split() else "") and not is_strict:
            clause = _clause(tail)
            return None if clause and len(_NUMBER.findall(clause)) > 1 else clause
    return None


def _counted_subject(clause: str) -> str | None:
    """Return the number at the beginning of a clause if the next word is not its verb."""
    found = _FIRST_DIGIT.match(clause)
    if not found or "=" in clause or not STRONG_COPULA.search(clause):
        return None
    if spoken(part := " ".join(clause.split()[:2])) is not None:
        return part
    number = re.match(r"-?\d[\d,]*(?=\s+[a-z])|[A-Za-z]+", clause)
    rest = clause[number.end() :] if number else ""
    is_verb_next = STRONG_COPULA.match(rest.strip()) or unit_of(rest.split()[0] if rest else "")
    return number[0] if number and rest.startswith(" ") and not is_verb_next else None


def only_number(sentence: str) -> str | None:
    """Return the value with the only number of a sentence, as in "I see 3 people"."""
    body = undressed(sentence[:MAX_SENTENCE]).rstrip(".。!")
    places = list(_FIRST_DIGIT.finditer(body))
    if places and (command := _COMMAND.search(body)) and command.start() < places[0].start():
        # The numbers of a fraction are one value.
        value = head_value(body[command.start() :])
        is_only = value is not None and command.start() + len(value) > places[-1].start()
        return value if is_only else None
    if (points := _POINT.findall(body)) and len(points) == 1:
        return None if _FIRST_DIGIT.search(body.replace(points[0], "")) else points[0]
    if len(places) > 1:
        # "3 of the 8 slices", "in 2015, 42 %": a number after a preposition only describes.
        if len(shares := _SHARE.findall(body)) == 1:
            return shares[0]
        named = [one for one in places if not _LABELS.search(body[: one.start()])]
        definite = [one for one in named if not _DEFINITE.search(body[: one.start()])]
        places = definite or named
        free = [one for one in places if not _DESCRIBES.search(body[: one.start()])]
        places = free or places
    if len(places) != 1:
        return None
    return head_value(body[places[0].start() :]) or places[0][0]


def _clause(body: str) -> str | None:
    """Return the first clause as words; ``None`` if it is too long for an answer."""
    cut = SUBORDINATE.search(body)
    clause = undressed(body[: cut.start()] if cut else body).rstrip(" .。!,;:")
    clause = re.sub(r"\s*\((?:[a-z]|as |see |rounded|from )[^()]{0,80}\)\s*$", "", clause)
    return clause if clause and len(clause.split()) <= MAX_WORDS else None
