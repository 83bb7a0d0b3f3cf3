"""Kinds of values of short answers: a quantity, a ratio, a listing, or words."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from vaopd.grading.arithmetic import Number, number_of
from vaopd.grading.spoken import spoken, with_digits
from vaopd.grading.units import NO_UNIT, Unit, unit_of

MAX_CHARACTERS = 300
_STARTS = " \t\n,;:。，；\"'`*"
_ENDS = _STARTS + "."
_SCALES = {
    "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "万": 10**4,
    "亿": 10**8,
}  # fmt: skip
_SCALED = re.compile(
    r"([-+¤€£¥]?[\d.,]{1,20})\s*(thousand|million|billion|trillion|万|亿)(?![A-Za-z])(.{0,40})",
    re.IGNORECASE,
)
_CURRENCY = re.compile(r"([-+]?)\s*([¤€£¥₹])\s*(?=[\d.])")
_BOUNDARY = re.compile(
    r"(?<=[\d})π°²³!])(?=\s*[A-Za-z°%℃℉¤€£¥¢Ωμµ\u4e00-\u9fff\\(])|(?<=\s)(?=[A-Za-z%°(])"
)
_LABEL = re.compile(r"\(?[^\W\d_][^\d=+*/\\^{}<>,:;]{0,60}")
_COMPOUND = re.compile(
    r"\s*(?:and\s+|,\s*)?(\d{1,9}(?:\.\d{1,9})?)\s*([A-Za-z°]{1,12}|'|\")(?=[\s,\d]|$)\.?"
)
_ASSIGNED = re.compile(r"(?P<symbol>[^=≈<>≤≥]{1,60}?)\s*(?:=|≈|:(?=\s))\s*(?P<value>[^=]{1,300})")
_COUNTED = re.compile(
    r"(-?\d[\d.,]*)\s?[个只条张位本支名颗辆块把朵头座种次人棵根片件倍]([\u4e00-\u9fff]{0,6})"
)
"""A number, a Chinese measure word, and the counted things."""

_NAMED_POINT = re.compile(r"([A-Z]'{0,2})\s?(\(.{1,80}\))")
_RATIO = re.compile(
    r"([^:]{1,40}?)\s*(?::|∶|\\colon|\\ratio|\bto\b)\s*([^:]{1,40}?)(?:\s*(?::|∶)\s*([^:]{1,40}))?"
)
_CLOCK = re.compile(
    r"(?P<hour>\d{1,2})(?:[:.](?P<minute>[0-5]\d))?\s?(?P<half>[ap])\.?\s?m\.?", re.IGNORECASE
)
_JOINED = re.compile(
    r"\s*(?:[,;，；、]\s*(?:and|or)?|\b(?:and|or)\b|\\(?:lor|vee|land|wedge|cup)\b|[和或])\s*"
)
_LIMIT = re.compile(r"\\lim\s*[^-+*/^<>]{1,40}")
_SYMBOL = re.compile(
    r"\\?[A-Za-z]{1,8}(?:_\{?\s?\w{1,5}\s?\}?|')?(?:\([a-z]\))?|(?:m\s?)?(?:∠|\\angle|△|"
    r"\\triangle)\s?[A-Z0-9]{1,3}|[A-Z]{1,4}"
)


@dataclass(frozen=True)
class Quantity:
    """A number with its unit."""

    number: Number
    unit: Unit = NO_UNIT
    label: str = ""
    """The counted things if they are not a unit, such as ``apples``."""

    scale: int = 1
    """The number that a word such as "million" multiplied the written number with."""


@dataclass(frozen=True)
class Ratio:
    """Two or three numbers with colons between them."""

    parts: tuple[Number, ...]
    is_clock: bool = False
    """Whether it may also be a time of day, which is not reduced like a fraction."""

    half: str = ""
    """``a`` before noon and ``p`` after noon, if the time of day says it."""


@dataclass(frozen=True)
class Listing:
    """Several values: a point, an interval, a set, or a bare enumeration."""

    brackets: str
    """The two brackets, ``{}`` for a set and for solutions joined by "or"; empty for none."""

    items: tuple["Value", ...]


@dataclass(frozen=True)
class Assigned:
    """A value with its name, as in ``x = 5``."""

    symbol: str
    value: "Value"


@dataclass(frozen=True)
class Words:
    """Any other answer: words, or a formula with variables."""

    text: str


Value = Quantity | Ratio | Listing | Assigned | Words


@lru_cache(maxsize=65536)
def value_of(text: str) -> Value:
    """Return the value of a short answer without markup."""
    text = stripped(text)
    if len(text) > MAX_CHARACTERS:
        return Words(text)
    for read in (_clock, _quantity, _signs, _bracketed, _assigned, _ratio, _enumeration):
        if (value := read(text)) is not None:
            return value
    return Words(text)


def stripped(text: str) -> str:
    """Return a text without outer spaces, quotes and full stops, and without outer braces."""
    # A point before a digit is part of the number, as in ".25".
    text = text.lstrip(_STARTS).rstrip(_ENDS)
    while text.startswith("{") and text.endswith("}") and _is_one_group(text[1:-1]):
        text = text[1:-1].lstrip(_STARTS).rstrip(_ENDS)
    return text


def _quantity(text: str) -> Quantity | None:
    if scaled := _SCALED.fullmatch(text):
        inner = _quantity(scaled[1] + scaled[3])
        times = _SCALES[scaled[2].lower()]
        return Quantity(inner.number * times, inner.unit, inner.label, times) if inner else None
    text = with_digits(text)
    said = _said(text)
    if said is not None:
        return said
    plain = number_of(text)
    if plain is not None:
        return Quantity(plain)
    if money := _CURRENCY.match(text):
        number = number_of(money[1] + text[money.end() :])
        unit = unit_of(money[2])
        if number is not None and unit is not None:
            return Quantity(number, unit)
        inner = _quantity(money[1] + text[money.end() :])
        return Quantity(inner.number, unit) if inner and unit and inner.label else None
    if counted := _COUNTED.fullmatch(text):
        number = number_of(counted[1])
        return Quantity(number, label=counted[2]) if number is not None else None
    return _with_unit(text) or _compound(text)


def _said(text: str) -> Quantity | None:
    """Return a number in words, alone or before the counted things."""
    number = spoken(text)
    if number is not None:
        return Quantity(number)
    words = text.split()
    for count in range(min(len(words) - 1, 5), 0, -1):
        number, rest = spoken(" ".join(words[:count])), " ".join(words[count:]).lower()
        if number is not None:
            if (unit := unit_of(rest)) is not None:
                return Quantity(number, unit)
            is_count = number.denominator == 1 and re.fullmatch(r"[a-z ]{1,30}", rest)
            return Quantity(number, label=rest) if is_count else None
    return None


def _with_unit(text: str) -> Quantity | None:
    """Return a number with the longest unit after it, or with the things that it counts."""
    labelled = None
    for boundary in _BOUNDARY.finditer(text):
        at = boundary.start()
        number = number_of(text[:at])
        if number is None:
            continue
        rest = text[at:].strip()
        unit = unit_of(rest)
        if unit is not None and rest:
            return Quantity(number, unit)
        if labelled is None and _LABEL.fullmatch(rest) and _is_counted(rest, text[at - 1 : at + 1]):
            labelled = Quantity(number, label=rest.lower())
    return labelled


def _is_counted(rest: str, joint: str) -> bool:
    """Whether the words after a number name counted things, not a variable or another clause."""
    words = rest.strip("()").split()
    return (
        " " in joint
        and len(words) <= 4
        and all(len(word) > 2 or word in ("of",) for word in words)
        and not (set(words) & {"and", "or", "to", "by", "than", "not", "but", "o'clock"})
    )


def _compound(text: str) -> Quantity | None:
    """Return the sum of ``2 hours 30 minutes`` or ``5 ft 6 in``."""
    total, position, units = None, 0, set()
    while position < len(text):
        found = _COMPOUND.match(text, position)
        if found is None:
            return None
        unit = unit_of({"'": "ft", '"': "in"}.get(found[2], found[2]))
        number = number_of(found[1])
        if unit is None or number is None or unit.is_generic:
            return None
        units.add(unit.dimensions)
        total = number * unit.size + (total or 0)
        position = found.end()
    if total is None or len(units) != 1:
        return None
    return Quantity(total, Unit(NO_UNIT.size, units.pop()))


def _signs(text: str) -> Listing | None:
    for mark in ("\\pm", "±"):
        if text.startswith(mark):
            inner = _quantity(text.removeprefix(mark).strip())
            if inner:
                return Listing("{}", (inner, Quantity(-inner.number, inner.unit, inner.label)))
    return None


def _bracketed(text: str) -> Value | None:
    if named := _NAMED_POINT.fullmatch(text):
        point = _bracketed(named[2])
        return Assigned(named[1], point) if isinstance(point, Listing) else None
    opening, closing = _brackets(text)
    if not opening:
        return None
    body = text[len(opening) : len(text) - len(closing)]
    if not _is_closed(body):
        return None
    items = [stripped(item) for item in _split_top(body)]
    marks = opening.lstrip("\\")[:1] + closing.lstrip("\\")[:1]
    if len(items) < 2:
        is_set = marks == "{}"
        if is_set or (marks == "()" and number_of(body) is None and len(body) > 1):
            inner = value_of(body)
            return Listing("{}", (inner,)) if is_set else inner
        return None
    return Listing(marks.replace("la", "()"), tuple(map(value_of, items)))


def _brackets(text: str) -> tuple[str, str]:
    for opening in ("\\{", "(", "[", "{", "⟨", "]"):
        if text.startswith(opening):
            for closing in ("\\}", ")", "]", "}", "⟩", "["):
                if text.endswith(closing) and len(text) > len(opening) + len(closing):
                    return opening, closing
    return "", ""


def _assigned(text: str) -> Assigned | None:
    found = _ASSIGNED.fullmatch(text)
    if found is None:
        return None
    symbol = found["symbol"].strip()
    is_listing = len(_split_top(text)) > 1 and number_of(found["value"]) is None
    if is_listing or symbol.startswith(("(", "[", "{", "\\{")):
        return None
    symbol = re.sub(r"_\{[^{}]*\}", "", symbol).strip() if "\\lim" in symbol else symbol
    if not (
        _SYMBOL.fullmatch(symbol)
        or _LIMIT.fullmatch(symbol)
        or re.fullmatch(r"(?:[A-Za-z'∠△]+ ?){1,7}", symbol)
    ):
        return None
    return Assigned(symbol.replace(" ", ""), value_of(found["value"]))


def _clock(text: str) -> Ratio | None:
    clock = _CLOCK.fullmatch(text)
    if clock is None:
        return None
    parts = Fraction(clock["hour"]), Fraction(clock["minute"] or 0)
    return Ratio(parts, True, clock["half"].lower())


def _ratio(text: str) -> Ratio | None:
    found = _RATIO.fullmatch(text)
    if found is None:
        return None
    written = [part.strip() for part in found.groups() if part]
    numbers = [number_of(part) for part in written]
    if any(number is None for number in numbers):
        return None
    is_clock = len(written) == 2 and re.fullmatch(r"[0-5]\d", written[1]) is not None
    return Ratio(tuple(n for n in numbers if n is not None), is_clock and "to" not in text)


def _enumeration(text: str) -> Listing | None:
    """Return values with commas, "and" or "or" between them; ``None`` if they are words."""
    pieces = [stripped(piece) for piece in split_joined(text)]
    if len(pieces) < 2 or not all(pieces):
        return None
    values = tuple(map(value_of, pieces))
    if any(isinstance(value, Words | Listing) and not _is_short(value) for value in values):
        return None
    is_set = re.search(r"\bor\b|或|\\(?:lor|vee|cup)", text) or (
        all(isinstance(value, Assigned) for value in values)
        and len({value.symbol for value in values if isinstance(value, Assigned)}) == 1
    )
    return Listing("{}" if is_set else "", values)


def _is_short(value: Words | Listing) -> bool:
    return isinstance(value, Listing) or re.search(r"[A-Za-z]{2}", value.text) is None


def _split_top(text: str) -> list[str]:
    """Return the pieces of a text, split at commas and semicolons outside brackets."""
    pieces, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character in ",;，；" and depth == 0:
            pieces.append(text[start:index])
            start = index + 1
    return [*pieces, text[start:]]


def split_joined(text: str) -> list[str]:
    """Return the pieces of an enumeration, split at commas, "and" and "or"."""
    pieces: list[str] = []
    for piece in _split_top(text):
        piece = re.sub(r"^\s*(?:and|or)\b", "", piece)
        pieces += _JOINED.split(piece) if _is_closed(piece) and "(" not in piece else [piece]
    return [piece for piece in pieces if piece.strip()]


def _is_one_group(text: str) -> bool:
    return _is_closed(text) and len(_split_top(text)) == 1


def _is_closed(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return depth == 0
