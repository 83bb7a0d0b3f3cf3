"""The value at the beginning of a sentence: "5 cm" of "5 cm, because the sides are 3 and 4"."""

import re

from vaopd.grading.arithmetic import number_of
from vaopd.grading.markup import boxes_of
from vaopd.grading.phrases import REFUSAL, sentences, undressed
from vaopd.grading.spoken import WORD, spoken
from vaopd.grading.units import unit_of
from vaopd.grading.values import Quantity, value_of

MAX_WORDS = 12
"""Most words of a short answer; longer clauses are prose."""

MIN_CLAUSE_WORDS = 3
"""Fewest words of a clause without a known verb, so that what follows is subordinate."""

MAX_SENTENCE = 1000
MAX_VALUE = 300
"""Number of characters of a sentence and of a value that are read."""

_LEAD_IN = re.compile(
    r"(?:(?:approximately|approx\.?|about|around|roughly|nearly|almost|exactly|precisely|"
    r"simply|just|only|clearly|therefore|thus|hence|so|"
    r"then|indeed|probably|likely|most likely|definitely|actually|still|now|also|given by|"
    r"equal to|equals?|closest to|obviously|"
    r"(?:the )?coordinates|that|it is|it's|it must be|this is|we have|we get|namely|i\.e\.|"
    r"estimated (?:to be|at)|"
    r"calculated (?:to be|as)|found to be|"
    r"≈|~|∼|=|:|→|⇒|∴|大约|约为|约|为|是|等于)(?:[\s,]+|(?<=[≈~∼=:→⇒∴约为是于])))"
    r"|(?:(?:the )?(?:highest|lowest|largest|greatest|smallest|most|least|located|"
    r"situated|(?!divid|multipli)\w{2,12}(?:ing|ed))\s+)?(?:at|in|on|by|during|"
    r"around|for)\s+(?:the (?:year|point)\s+)?(?=[(\d-])",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"(?:not\b(?!\s+(?:enough|defined|possible|drawn|visible|given|listed|parallel|equal|"
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
_SUBORDINATE = re.compile(
    r"\s*(?:,\s*(?:which|who|because|since|as|where|with|given|assuming|when|if|but|while|just|"
    r"(?:\w+ ){1,3}of (?:whom|which|them|these)|well|ahead|even though|although|though|"
    r"and (?:the|it|this|we)|making|meaning|using|based|due|after|for|not|rather|according|"
    r"whereas|indicating|rounded|corresponding|matching|option|that is|i\.e\.?|or (?:about|"
    r"approximately|roughly)|followed by|compared to)\b|\b(?:because|since|as (?:shown|it|"
    r"the|indicated|seen|given|per|can|required|stated|we)|which (?:is|means|has|was|can|"
    r"matches|corresponds)|"
    r"due to|according to|based on|so that|rounded to|when rounded|rather than|instead of|"
    r"by (?:using|the|applying)|using)\b|\s-\s(?=[A-Za-z]{2})|\u2014|因为|由于|，)",
    re.IGNORECASE,
)
_DEPENDENT = re.compile(
    r"(?:(?:so|and|but|now|then|therefore|thus|hence),?\s+)?(?:since|because|as|given|if|"
    r"when|using|from|with|after|by|according|based|in|for|looking|to|at|on|under|"
    r"substituting|combining|考虑|根据|由于|因为)\b",
    re.IGNORECASE,
)
_COPULA = re.compile(
    r"(?:\b(?:is|are|was|were|equals?|becomes?|be|gives?|has|have|"
    r"(?<!out )(?<!half )(?<!third )(?<!thirds )(?<!quarter )(?<!quarters )(?<!fourth )"
    r"(?<!% )(?<!percent )(?<!sum )(?<!product )(?<!root )(?<!each )(?<!average )of|contains?|"
    r"shows?|reads?|measures?|costs?|totals?|says?|"
    r"needs?|requires?|takes?|weighs?|travel(?:s|ed)|covers?|"
    r"pays?|paid|spends?|spent|earn(?:s|ed)|(?:length|area|radius|volume|value|measure|width|height|"
    r"perimeter|slope|side|diameter|mass|speed)(?=\s+[-\d\\])|there (?:is|are)|approximately|"
    r"about|we (?:get|have|find|obtain)|to be|as|corresponds? to|match(?:es)?)\b|=|≈|:(?=\s)|[是为有]|等于|→|⇒)"
    r"(?:\s+(?:equal to|approximately|about|around|roughly|exactly|therefore|thus|also|now|"
    r"given by|found to be|a total of|only|just|called|named|known as|likely|probably|"
    r"clearly|located|indeed|precisely|shown|written))?",
    re.IGNORECASE,
)
_STRONG_COPULA = re.compile(
    r"\b(?:is|are|was|were|equals?|becomes?|be)\b|=|≈|[是为]|等于", re.IGNORECASE
)
_SEEMS = re.compile(
    r"\b(?:might|may|seems?|appears?|at first|looks like|think|expect)\b", re.IGNORECASE
)
_NOT_BUT = re.compile(r"not\b[^,;.]{1,60}?,?\s+but\s+(?:rather\s+)?", re.IGNORECASE)
_FIRST_DIGIT = re.compile(
    rf"(?<![\d.,:/^A-Za-z-])[-+¤€£¥]?\d|\b(?:{WORD})\b|(?<=[有是为])[一二两三四五六七八九十]{{1,3}}(?=\w)",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"(?:the|it|he|she|they|there|we|each|every)\s+\w+\s+\w", re.IGNORECASE)
_QUOTED = re.compile(r"\s*:?\s*\"([^\"]{1,80})$")
_RESULT = re.compile(
    r"(?:,|;|\u2014|\s-)\s+(?:and\s+)?(?:so|thus|hence|therefore|giving|making|leaving|yielding|"
    r"which (?:gives|yields|makes|leaves|means(?: that)?)|resulting in|for a total of)"
    r"(?: us)?,?\s+|\s*[⇒⟹∴]\s*",
    re.IGNORECASE,
)
"""Words before the result of a sentence."""

_ENUMERATED = re.compile(
    rf"((?!step|figure|part|case)[^:,.]{{0,80}}\b(?:{WORD}|\d+)(?: [a-z]+){{1,4}}): ", re.IGNORECASE
)
"""A count before its parts, as in "there are four dogs: two here and two there"."""

_RELATES = re.compile(r"\s*,\s*(?!\s|and\b|but\b)")
_INSERTED = re.compile(
    r",\s*(?:which|who|where)\b[^,]{1,100}(?=,\s*(?:is|are|was|were|has|had)\b),"
)
_RESTATED = re.compile(
    r"(?:,?\s+(?:or(?=\s+(?:about|approx|roughly))|i\.e\.,?|that is,?|namely|"
    r"which (?:is|equals|corresponds to|matches|simplifies to|reduces to)(?: equal to)?)|"
    r"\s\((?=approximately|approx|about|≈|or\b|i\.e\.))\s*"
    r"((?:approximately|approx\.?|about|roughly|or|i\.e\.,?|≈)?\s?[^(),;]{1,60})\)?$",
    re.IGNORECASE,
)
"""A second form of the value at the end of a sentence: "or about 8.7", "(≈ 8.7)"."""

_COMMAND = re.compile(r"\\(?:frac|sqrt)\s?(?=[\[{\d]).{0,60}?\d|√\s?[\d(]")
_YES_NO = re.compile(r"(yes|no|true|false)(?=\s*(?:[,.;:!\u2014]|$)|\s+because)", re.IGNORECASE)
_MATH_WORDS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "lim",
        "exp",
        "arcsin",
        "arccos",
        "arctan",
        "mod",
        "gcd",
        "max",
        "min",
        "deg",
        "and",
        "or",
        "to",
        "per",
        "by",
        "squared",
        "cubed",
        "pi",
        "inf",
    ]
)
_TOKEN = re.compile(r"\S+")
_PROSE_TOKEN = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?:'[a-z]+)?")
_SHARE = re.compile(r"\bout of \d+")
_JOINT = frozenset(("and", "or", "to", "by", "per"))
_UNIT_WORDS = frozenset(
    (
        "thousand",
        "million",
        "billion",
        "trillion",
        "square",
        "cubic",
        "squared",
        "cubed",
        "sq",
        "cu",
        "sq.",
        "cu.",
        "per",
        "/",
        "degrees",
        "degree",
    )
)


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
    body = _without_lead_ins(first.rstrip("! "))
    if but := _NOT_BUT.match(body):
        body = body[but.end() :]
    if not body or _NO_ANSWER.match(body):
        return None
    if word := _YES_NO.match(body):
        return word[1]
    value = head_value(body)
    if value is not None:
        return value
    if REFUSAL.match(body):
        return _clause(body)
    cut = None if _DEPENDENT.match(body) else _SUBORDINATE.search(body)
    clause = body[: cut.start()] if cut and cut.start() else body
    said_of = only_number(clause) if _SUBJECT.match(clause) else None
    return after_verb(clause) or said_of or _clause(body)


def after_verb(sentence: str, *, is_strict: bool = False) -> str | None:
    """Return the value after the verb of a sentence, as in "the length is 5 cm"."""
    body = undressed(sentence[:MAX_SENTENCE]).rstrip(".。!")
    again = _RESTATED.search(body)
    if again and (second := whole_value(_without_lead_ins(again[1]))):
        # "36π cm (about 113 cm)" has two forms of one answer.
        first = after_verb(body[: again.start()], is_strict=is_strict)
        return f"{first} ≈ {second}" if first and head_value(first) else second
    body = main_clause(body)
    return _counted_subject(body) or _after_verb(body, is_strict=is_strict)


def _after_verb(body: str, *, is_strict: bool) -> str | None:
    verbs = list((_STRONG_COPULA if is_strict else _COPULA).finditer(body))
    if len(verbs) > 1:
        # "5√3 ≈ 8.66" has two forms of one answer.
        verbs = [verb for verb in verbs if not verb[0].startswith("≈")] or verbs
    if verbs and (quoted := _QUOTED.match(body, verbs[-1].end())):
        return quoted[1]
    for verb in verbs[-6:]:
        tail = _without_lead_ins(body[verb.end() :])
        if tail and not _NO_ANSWER.match(tail) and head_value(tail) == tail.rstrip(" .。,;"):
            return head_value(tail)
    for verb in reversed(verbs[-6:]):
        tail = _without_lead_ins(body[verb.end() :])
        if not tail or _NO_ANSWER.match(tail):
            continue
        value = head_value(tail)
        if value is not None:
            return value
        if (
            _STRONG_COPULA.fullmatch(verb[0].split()[0] if verb[0].split() else "")
            and not is_strict
        ):
            return _clause(tail)
    return None


def _counted_subject(clause: str) -> str | None:
    """Return the number at the beginning of a clause if the next word is not its verb."""
    found = _FIRST_DIGIT.match(clause)
    if not found or not _STRONG_COPULA.search(clause):
        return None
    number = re.match(r"-?\d[\d,]*(?=\s+[a-z])|[A-Za-z]+", clause)
    rest = clause[number.end() :] if number else ""
    is_verb_next = _STRONG_COPULA.match(rest.strip()) or unit_of(rest.split()[0] if rest else "")
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
    if not places or (len(places) > 1 and places[0].start() > 0):
        return None
    return head_value(body[places[0].start() :])


def whole_value(sentence: str) -> str | None:
    """Return the sentence if it is only a value; else ``None``."""
    body = undressed(sentence).rstrip(".。!")
    return body if head_value(body) == body else None


def main_clause(body: str) -> str:
    """Return the sentence without a clause of reasons before or after it."""
    if _DEPENDENT.match(body):
        before, comma, rest = body.partition(", ")
        if before.count("(") > before.count(")"):
            return body
        while comma and _COPULA.search(rest) is None and ", " in rest:
            _, comma, rest = rest.partition(", ")
        body = rest if comma else body
    if counted := _ENUMERATED.match(body):
        body = counted[1]
    before, but, after = body.partition(", but ")
    if but and _SEEMS.search(before):
        body = after
    for result in reversed(list(_RESULT.finditer(body))):
        after = undressed(body[result.end() :])
        if _STRONG_COPULA.search(after) or head_value(_without_lead_ins(after)):
            body = after
            break
    for cut in _SUBORDINATE.finditer(body):
        before = body[: cut.start()]
        is_clause = _RELATES.match(cut[0]) and len(before.split()) >= MIN_CLAUSE_WORDS
        if is_clause and (inserted := _INSERTED.match(body, cut.start())):
            return main_clause(before + body[inserted.end() :])
        if is_clause or _STRONG_COPULA.search(before):
            return before
    return body


def _without_lead_ins(text: str) -> str:
    text = undressed(text)
    while True:
        lead = _LEAD_IN.match(text)
        shorter = undressed(text[lead.end() :]) if lead else text
        if shorter == text or not shorter:
            return text
        text = shorter


def head_value(text: str) -> str | None:
    """Return the number, formula, point or listing at the beginning of a text, with its unit."""
    text = text[:MAX_VALUE].rstrip(" .。,;")
    kept = 0
    tokens = list(_TOKEN.finditer(text))
    for index, token in enumerate(tokens):
        if not _belongs(tokens, index, text, text[:kept].strip()):
            break
        kept = token.end()
        if _ends_clause(token[0]) and not _goes_on(tokens, index):
            break
    head = _trimmed(text[:kept])
    if not head or not _is_value(head):
        return None
    return head


def _belongs(tokens: list[re.Match[str]], index: int, text: str, before: str) -> bool:
    """Whether a token continues the value before it."""
    token = tokens[index]
    bare = token[0].strip("(),.;:[]{}\"'").lower()
    if _is_symbolic(token[0]):
        return True
    if bare in _JOINT:
        return index + 1 < len(tokens) and bool(before) and _begins_value(tokens[index + 1][0])
    if spoken(before) is not None and spoken(f"{before} {bare}") is not None:
        return True
    if not before or not (re.search(r"[\d})π√]", before) or spoken(before) is not None):
        return False
    if bare in ("out", "of") and (share := _SHARE.search(text, token.start() - 4)):
        return share.start() <= token.start()
    if bare in ("am", "pm", "a.m", "p.m"):
        return before[-1].isdigit()
    if bare in _UNIT_WORDS or unit_of(bare) is not None:
        return bool(re.search(r"[\dπ})°/]$|[a-z]$|\bper$", before))
    return False


def _begins_value(token: str) -> bool:
    return _is_symbolic(token) or unit_of(token.strip(".,)")) is not None


def _is_symbolic(token: str) -> bool:
    """Whether a token has no words except functions, and units after a number."""
    bare = token.strip("(),.;:!?\"'")
    if not bare:
        return bool(token.strip(",.;:!?\"'"))
    if len(bare) == 1:
        return bare not in "aAI" and not "\u4e00" <= bare <= "\u9fff"
    if re.search(r"[\u4e00-\u9fff]", bare):
        return (
            re.fullmatch(r"(?:[-\d.,/]+|[一二两三四五六七八九十百]+)[\u4e00-\u9fff]{1,7}", bare)
            is not None
            and value_of(bare).__class__ is Quantity
        )
    if re.fullmatch(WORD, bare, re.IGNORECASE):
        return True
    said = [word for word in _PROSE_TOKEN.findall(bare) if word.lower() not in _MATH_WORDS]
    if not said:
        return re.search(r"[\d\\=<>≤≥^+*/()\[\]{}|°²³%π√±¤€£¥∠△∞-]|^.$", bare) is not None
    if all(word.isupper() and len(word) <= 4 for word in said) and re.search(r"[=∠△+/<>]", bare):
        return True
    number = re.match(r"[-+¤€£¥]?[\d.,/]*\d", bare)
    return number is not None and unit_of(bare[number.end() :]) is not None


def _ends_clause(token: str) -> bool:
    return token.endswith((",", ";", "，", "；"))


def _goes_on(tokens: list[re.Match[str]], index: int) -> bool:
    """Whether a value continues after a comma, as an enumeration or inside a bracket."""
    text = "".join(token[0] for token in tokens[: index + 1])
    if sum(map(text.count, "([{")) > sum(map(text.count, ")]}")):
        return True
    following = tokens[index + 1][0] if index + 1 < len(tokens) else ""
    return bool(following) and (_is_symbolic(following) or following.lower() in ("and", "or"))


def _trimmed(head: str) -> str:
    """Return a value without connecting words at its end and without an incomplete remark."""
    head = re.sub(r"(?:\s+(?:and|or|to|by|per))?[\s,;:=≈]*$", "", undressed(head))
    opened = head.rfind(" (")
    if opened > 0 and head.count("(") > head.count(")"):
        head = head[:opened]
    return undressed(head).rstrip(",;")


def _is_value(head: str) -> bool:
    if re.search(r"[\d\\π∞√]", head) or isinstance(value_of(head), Quantity):
        return True
    return re.fullmatch(r"[-+]?[b-zB-HJ-Z]", head) is not None or bool(
        re.search(r"[=<>^+*/]", head) and len(head) > 2
    )


def _clause(body: str) -> str | None:
    """Return the first clause as words; ``None`` if it is too long for an answer."""
    cut = _SUBORDINATE.search(body)
    clause = undressed(body[: cut.start()] if cut else body).rstrip(" .。!,;:")
    clause = re.sub(r"\s*\((?:[a-z]|as |see |rounded|from )[^()]{0,80}\)\s*$", "", clause)
    return clause if clause and len(clause.split()) <= MAX_WORDS else None


def is_number(text: str) -> bool:
    """Return whether a text is a number with or without a unit."""
    return number_of(text) is not None or isinstance(value_of(text), Quantity)
