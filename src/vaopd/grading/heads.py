"""The value at the beginning of a text: "5 cm" of "5 cm, because the sides are 3 and 4"."""

import re
from functools import lru_cache

from vaopd.grading.phrases import undressed
from vaopd.grading.spoken import WORD, spoken
from vaopd.grading.units import unit_of
from vaopd.grading.values import Quantity, Ratio, value_of

MAX_VALUE = 300
"""Number of characters of a sentence and of a value that are read."""
_LEAD_IN = re.compile(
    r"(?:(?:approximately|approx\.?|about|around|roughly|nearly|almost|exactly|precisely|"
    r"simply|just|only|clearly|therefore|thus|hence|so|"
    r"then|indeed|probably|likely|most likely|definitely|actually|still|now|also|given by|"
    r"equal to|equals?|closest to|obviously|"
    r"(?:the )?coordinates|that|it is|it's|it must be|this is|we have|we get|namely|i\.e\.|"
    r"(?!compar|add|relat|limit)\w{3,12}(?:ed|en) (?:to be|to|as|at)|found to be|"
    r"≈|~|∼|=|:|→|⇒|∴|大约|约为|约|为|是|等于)(?:[\s,]+|(?<=[≈~∼=:→⇒∴约为是于])))"
    r"|(?:(?:the )?(?:highest|lowest|largest|greatest|smallest|most|least|located|"
    r"situated|(?!divid|multipli)\w{2,12}(?:ing|ed))\s+)?(?:at|in|on|by|during|"
    r"around|for)\s+(?:the (?:year|point)\s+)?(?=[(\d-])",
    re.IGNORECASE,
)
_MATH_WORDS = frozenset(
    ["sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "lim", "exp", "arcsin", "arccos", "mod",
     "arctan", "gcd", "max", "min", "deg", "and", "or", "to", "per", "by", "squared", "cubed", "pi"]
)  # fmt: skip
_TOKEN = re.compile(r"\S+")
_PROSE_TOKEN = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?:'[a-z]+)?")
_SHARE = re.compile(r"\bout of \d+")
_FUNCTIONS = frozenset(["sin", "cos", "tan", "log", "ln"])
_OPERATORS = tuple("+-*/=^<>≤≥≈∠△")
_JOINT = frozenset(("and", "or", "to", "by", "per"))
_UNIT_WORDS = frozenset(
    ["thousand", "million", "billion", "trillion", "square", "cubic", "squared", "cubed", "sq",
     "cu", "sq.", "cu.", "per", "/", "degrees", "degree"]
)  # fmt: skip


@lru_cache(maxsize=8192)
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
    following = tokens[index + 1][0] if index + 1 < len(tokens) else ""
    is_variable = len(bare) == 1 and (before[-1:] in _OPERATORS or following[:1] in _OPERATORS)
    if is_variable or bare in _FUNCTIONS or _is_symbolic(token[0]):
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


@lru_cache(maxsize=8192)
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


def whole_value(sentence: str) -> str | None:
    """Return the sentence if it is only a value; else ``None``."""
    body = undressed(sentence).rstrip(".。!")
    return body if head_value(body) == body else None


def without_lead_ins(text: str) -> str:
    """Return a text without words such as "approximately" and "it is" before its value."""
    text = undressed(text)
    while True:
        lead = _LEAD_IN.match(text)
        shorter = undressed(text[lead.end() :]) if lead else text
        if shorter == text or not shorter:
            return text
        text = shorter


def is_number(text: str) -> bool:
    """Return whether a text is a number with or without a unit, a ratio or a time of day."""
    return isinstance(value_of(text), Quantity | Ratio)
