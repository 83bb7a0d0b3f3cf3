"""Numbers in words: "twenty-one", "two thirds", "three and a half", "二十五"."""

import re
from fractions import Fraction
from functools import lru_cache

_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_PARTS_OF = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6,
    "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "twelfth": 12,
}  # fmt: skip
_VALUES = {word: n for n, word in enumerate(_SMALL)}
_VALUES |= {word: 10 * n for n, word in enumerate(_TENS, start=2)}
WORD = "|".join(_SMALL[2:] + _TENS)
"""Words that are a number in any sentence; "one" and "zero" are also other words."""

_CHINESE = {character: n for n, character in enumerate("零一二三四五六七八九")} | {"两": 2}
_CHINESE_SCALES = {"十": 10, "百": 100, "千": 1000}
_CHINESE_HEAD = re.compile(r"[零一二两三四五六七八九十百千]{1,7}")
_CHINESE_SHARE = re.compile(rf"({_CHINESE_HEAD.pattern})分之({_CHINESE_HEAD.pattern})")


@lru_cache(maxsize=8192)
def spoken(text: str) -> Fraction | None:
    """Return the number that the words of a text are; ``None`` for any other text."""
    words = text.lower().replace("-", " ").split()
    if not 1 <= len(words) <= 8:
        return None
    *head, last = words
    part = _PARTS_OF.get(last.removesuffix("s"))
    if part is None:
        return _whole(words)
    joint = len(head) - 1 - head[::-1].index("and") if "and" in head else -1
    number = _whole(head[:joint]) if joint >= 0 else Fraction(0)
    of = head[joint + 1 :]
    count = Fraction(1) if of in ([], ["a"], ["an"]) else _whole(of)
    return None if number is None or count is None else number + count / part


def _whole(words: list[str]) -> Fraction | None:
    """Return the whole number of words such as "two hundred and five"."""
    total = group = 0
    before = ""
    for word in words:
        if word == "and" and before in _SCALES:
            pass
        elif word in ("a", "an") and not before:
            group = 1
        elif word == "dozen" and group and before != "and":
            group *= 12
        elif word in _VALUES and (
            not before or before in ("and", *_SCALES) or _is_ones(before, word)
        ):
            group += _VALUES[word]
        elif word == "hundred" and 0 < group < 100:
            group *= 100
        elif word in _SCALES and group:
            total, group = total + group * _SCALES[word], 0
        else:
            return None
        before = word
    return None if before in ("", "and", "a", "an") else Fraction(total + group)


def _is_ones(before: str, word: str) -> bool:
    return before in _TENS and word in _SMALL[1:10]


def with_digits(text: str) -> str:
    """Return a text that begins with a Chinese number with digits in its place."""
    if share := _CHINESE_SHARE.match(text):
        below, above = (with_digits(part) for part in share.groups())
        rest = text[share.end() :]
        return f"{above}%{rest}" if share[1] == "百" else f"{above}/{below}{rest}"
    found = _CHINESE_HEAD.match(text)
    if found is None:
        return text
    total = group = 0
    for character in found[0]:
        if character in _CHINESE:
            group = 10 * group + _CHINESE[character]
        else:
            total, group = total + (group or 1) * _CHINESE_SCALES[character], 0
    return f"{total + group}{text[found.end() :]}"
