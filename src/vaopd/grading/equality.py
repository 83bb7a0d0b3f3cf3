"""Equality of a short answer and a reference: by value and unit, or word by word."""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from vaopd.grading.arithmetic import Number, is_same_number
from vaopd.grading.markup import plain
from vaopd.grading.symbolic import is_formula, is_same_formula
from vaopd.grading.units import Unit
from vaopd.grading.values import (
    Assigned,
    Listing,
    Quantity,
    Ratio,
    Value,
    Words,
    split_joined,
    stripped,
    value_of,
)
from vaopd.problems.boxed import without_boxes

_CHAIN = re.compile(
    r"\s*(?:≈|≐|≃|≅|\bor approximately\b|\bor about\b|\bwhich is approximately\b|"
    r"\(approximately\b|\(approx\.?|\(about\b|\(≈)\s*"
)
_ARTICLE = re.compile(
    r"^(?:(?:in|on|at|it is|it's|this is|they are|called|named)\s+)?(?:(?:an?|the)\s+)?(?=\S)"
)
_PUNCTUATION = re.compile(r"[\s,.;:!?\"'`()\[\]*_-]+")
_OUT_OF = re.compile(r"(\d{1,9}) (?:out of|in) (?:every )?(\d{1,9})")
_DIGITS_APART = re.compile(r"\d\s+\d")
_ABOUT = re.compile(
    r"^(?:[≈~∼]|(?:approximately|approx\.?|about|around|roughly)\s)\s*", re.IGNORECASE
)
_CONTRACTED_NOT = re.compile(r"(?<!ca)(?<!wo)n['’]t\b")
_INITIALS = re.compile(r"\b([a-z])\.(?=[a-z]\b)")
_SEVERAL = re.compile(r"\b(?:and|or)\b|[,;]\s")
_NAMES = re.compile(r"\(\s?[a-z](?:\s?,\s?[a-z]){1,2}\s?\)")
_ASIDE = re.compile(r"\s*\(([^()]{1,60})\)\s*$")
_PERCENT = (("percent", 1),)
_ANGLE = (("angle", 1),)


def is_equal(answer: str, references: str | Sequence[str], *, tolerance: float = 0.0) -> bool:
    """Return whether an answer equals a reference, or one of several accepted ones.

    Numbers are equal to six decimals, or within an absolute ``tolerance``. If both have a unit,
    the units are converted and must have the same dimension; a unit on one side only is ignored.
    Order matters in points, but not in sets. Words are compared without case, articles and
    punctuation.
    """
    accepted = [references] if isinstance(references, str) else references
    return any(_is_equal(answer, reference, tolerance) for reference in accepted)


@lru_cache(maxsize=65536)
def _is_equal(answer: str, reference: str, tolerance: float) -> bool:
    golds = _forms(without_boxes(reference))
    return any(_is_same(mine, gold, tolerance) for mine in _forms(answer) for gold in golds)


def _forms(text: str) -> list[str]:
    """Return the forms of an answer: ``5√3 ≈ 8.66`` has two forms of one value."""
    text = _ABOUT.sub("", stripped(re.split("[⇒⟹∴]", plain(text))[-1]))
    pieces = map(stripped, _CHAIN.split(text))
    forms = [text, *(_without_lone_end(piece) for piece in pieces)]
    for form in tuple(forms):
        sides = [stripped(side) for side in form.split("=")]
        if len(sides) > 1 and _is_calculated(sides) and not _SEVERAL.search(form):
            forms.append(sides[-1])
        elif len(sides) == 2 and _NAMES.fullmatch(sides[0]):
            forms.append(sides[1])
    if share := _OUT_OF.fullmatch(text):
        forms.append(f"{share[1]}/{share[2]}")
    if (aside := _ASIDE.search(text)) and aside.start():
        outside = text[: aside.start()]
        forms += [outside, *([aside[1]] if isinstance(value_of(outside), Words) else [])]
    return [form for form in dict.fromkeys(forms) if form]


def _without_lone_end(piece: str) -> str:
    """Return a piece without a closing bracket whose opening one is in an earlier piece."""
    return piece.rstrip(")") if piece.count(")") > piece.count("(") else piece


def _is_calculated(sides: list[str]) -> bool:
    """Whether an equation calculates its last side: in several steps, or without a variable."""
    if len(sides) > 2 or not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", sides[0])):
        return True
    operands = re.split(r"\s[-+*/×·÷]\s", re.sub(r"\\(?:times|cdot|div)", "*", sides[0]))
    return len(operands) > 1 and all(isinstance(value_of(one), Quantity) for one in operands)


def _is_same(answer: str, reference: str, tolerance: float) -> bool:
    mine, gold = value_of(answer), value_of(reference)
    if _same_values(mine, gold, tolerance):
        return True
    if isinstance(mine, Assigned) and not isinstance(gold, Assigned):
        mine = _innermost(mine)
    elif isinstance(gold, Assigned) and not isinstance(mine, Assigned):
        gold = _innermost(gold)
    return _same_values(mine, gold, tolerance)


def _innermost(value: Value) -> Value:
    while isinstance(value, Assigned):
        value = value.value
    return value


def _same_values(mine: Value, gold: Value, tolerance: float) -> bool:
    if isinstance(mine, Quantity) and isinstance(gold, Quantity):
        return _same_quantities(mine, gold, tolerance)
    if isinstance(mine, Ratio) or isinstance(gold, Ratio):
        return _same_ratios(mine, gold)
    if isinstance(mine, Listing) and isinstance(gold, Listing):
        return _same_listings(mine, gold, tolerance)
    if isinstance(mine, Assigned) and isinstance(gold, Assigned):
        same_name = mine.symbol == gold.symbol or min(len(mine.symbol), len(gold.symbol)) > 1
        return same_name and _same_values(mine.value, gold.value, tolerance)
    if isinstance(mine, Words) and isinstance(gold, Words) and _same_words(mine.text, gold.text):
        return True
    if isinstance(mine, Listing) != isinstance(gold, Listing):
        return _one_of_a_set(mine, gold, tolerance)
    texts = [_formula(value) for value in (mine, gold)]
    return None not in texts and is_same_formula(texts[0] or "", texts[1] or "")


def _formula(value: Value) -> str | None:
    if isinstance(value, Words):
        return value.text if is_formula(value.text) else None
    if isinstance(value, Quantity) and not value.label and value.unit.is_generic:
        number = value.number
        if isinstance(number, Fraction) and max(map(abs, number.as_integer_ratio())) < 10**15:
            return (
                str(number)
                if number.denominator == 1
                else f"\\frac{{{number.numerator}}}{{{number.denominator}}}"
            )
        return None
    return (
        f"{value.symbol}={inner}"
        if isinstance(value, Assigned) and (inner := _formula(value.value))
        else None
    )


def _one_of_a_set(mine: Value, gold: Value, tolerance: float) -> bool:
    """Whether each member of a set equals a single value, as in "0.25, or 25%"."""
    listing, other = (mine, gold) if isinstance(mine, Listing) else (gold, mine)
    assert isinstance(listing, Listing)
    is_one = len(listing.items) == 1 or listing.brackets == "{}"
    return is_one and all(_same_values(item, other, tolerance) for item in listing.items)


def _same_quantities(mine: Quantity, gold: Quantity, tolerance: float) -> bool:
    if mine.label and gold.label and not _same_labels(mine.label, gold.label):
        return False
    if (mine.scale == 1) != (gold.scale == 1) and (mine.unit.is_generic or gold.unit.is_generic):
        # The question may have the scale, as in "how many million?".
        written = [one.number / one.scale for one in (mine, gold)]
        if is_same_number(written[0], written[1], tolerance):
            return True
    if mine.unit.is_generic or gold.unit.is_generic:
        if is_same_number(mine.number, gold.number, tolerance):
            return True
        # 80 % equals 0.8.
        shares = [_share(mine), _share(gold)]
        is_percent = _PERCENT in (mine.unit.dimensions, gold.unit.dimensions)
        return is_percent and is_same_number(shares[0], shares[1], tolerance / 100)
    if mine.unit.dimensions != gold.unit.dimensions:
        return False
    if mine.unit.size == gold.unit.size:
        return is_same_number(mine.number, gold.number, tolerance)
    converted = mine.number * _factor(mine.unit, gold.unit)
    return is_same_number(_settled(converted), gold.number, tolerance)


def _share(one: Quantity) -> Number:
    return one.number / 100 if one.unit.dimensions == _PERCENT else one.number


def _factor(unit: Unit, into: Unit) -> Fraction | float:
    factor = unit.size / into.size
    return float(factor) if unit.dimensions == _ANGLE else factor


def _settled(number: Number) -> Number:
    """Return a converted angle without the last digits, which are rounding errors of pi."""
    return round(number, 9) if isinstance(number, float) else number


def _same_labels(mine: str, gold: str) -> bool:
    words = [{word.rstrip("s") for word in re.findall(r"\w+", label)} for label in (mine, gold)]
    return bool(words[0] & words[1])


def _same_ratios(mine: Value, gold: Value) -> bool:
    if isinstance(mine, Ratio) and isinstance(gold, Ratio):
        if len(mine.parts) != len(gold.parts):
            return False
        if mine.is_clock or gold.is_clock:
            return mine.parts == gold.parts and (
                not (mine.half and gold.half) or mine.half == gold.half
            )
        first, second = mine.parts, gold.parts
        return all(
            is_same_number(first[0] * second[k], first[k] * second[0]) for k in range(len(first))
        )
    return False


def _same_listings(mine: Listing, gold: Listing, tolerance: float) -> bool:
    if len(mine.items) != len(gold.items):
        return False
    sets = [one.brackets == "{}" for one in (mine, gold)]
    loose = not (mine.brackets and gold.brackets)
    if loose and "(" in gold.brackets and not _is_point(mine):
        return False
    if not loose and mine.brackets != gold.brackets:
        return False
    if gold.brackets == "()" and _is_point(mine):
        mine = Listing("()", tuple(map(_innermost, mine.items)))
    items = [tuple(_unnamed(one)) for one in (mine, gold)]
    if any(sets) or all(isinstance(v, Assigned) for v in (*mine.items, *gold.items)):
        return _same_members(list(items[0]), list(items[1]), tolerance)
    return all(_same_values(a, b, tolerance) for a, b in zip(*items, strict=True))


def _is_point(listing: Listing) -> bool:
    """Whether a listing gives the coordinates of a point by name and in order."""
    names = [item.symbol for item in listing.items if isinstance(item, Assigned)]
    return len(names) == len(listing.items) and names == ["x", "y", "z"][: len(names)]


def _unnamed(listing: Listing) -> list[Value]:
    """Return the members; a name that all share is removed, as in ``x = 1 or x = 2``."""
    names = {item.symbol for item in listing.items if isinstance(item, Assigned)}
    if len(names) == 1:
        return [_innermost(item) for item in listing.items]
    return list(listing.items)


def _same_members(mine: list[Value], gold: list[Value], tolerance: float) -> bool:
    left = list(gold)
    for one in mine:
        found = next((other for other in left if _same_values(one, other, tolerance)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


@lru_cache(maxsize=65536)
def words(text: str) -> str:
    """Return the words of a text: without case, articles, punctuation and LaTeX spacing."""
    low = re.sub(r"\s+", " ", plain(text)).strip().casefold().replace("&", "and")
    low = _CONTRACTED_NOT.sub(" not", low)
    low = _INITIALS.sub(r"\1", low)
    return _ARTICLE.sub("", _PUNCTUATION.sub(" ", low).strip()) or low


def _same_words(mine: str, gold: str) -> bool:
    if words(mine) == words(gold):
        return _signs_of(mine) == _signs_of(gold)
    if (things := _things(mine)) and things == _things(gold):
        return True
    if _DIGITS_APART.search(mine) or _DIGITS_APART.search(gold):
        return False
    squeezed = [re.sub(r"[\s{}]", "", text).casefold() for text in (mine, gold)]
    return squeezed[0] == squeezed[1] != ""


def _things(text: str) -> list[str]:
    """Return the things of an enumeration such as "red and blue", in alphabetical order."""
    things = [words(thing) for thing in split_joined(text)]
    return sorted(things) if len(things) > 1 and all(things) else []


def _signs_of(text: str) -> str:
    """Return the signs, points and brackets of a formula, which ``words`` removes."""
    if not re.search(r"[\d\\=]", text):
        return ""
    return " ".join(re.findall(r"[-+()\[\]]|(?<=\d)[.,](?=\d)|\.(?=\d)|\d+", text))
