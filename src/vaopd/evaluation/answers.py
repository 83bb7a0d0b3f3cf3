"""The answer a response commits to, and whether it equals the reference answer."""

import logging
import re
import threading
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from types import ModuleType
from typing import Literal

from vaopd.problems.boxed import Box, outer_boxes, without_boxes

Rule = Literal["first_committed", "last_boxed"]

MAX_ANSWER_CHARACTERS = 300
"""Longer answers are compared as text only: symbolic algebra on them may never end."""

SYMBOLIC_SECONDS = 3
"""Time limit of one symbolic parse or comparison in the main thread."""

# Gaps are bounded: `\s*` around optional parts takes quadratic time on a long run of spaces.
_MARKER = re.compile(
    r"(?<![A-Za-z])(?:final[ \t]{1,4})?answer[ \t]{0,4}\*{0,3}[ \t]{0,4}[:：]"
    r"|(?<![A-Za-z])the\s{1,4}(?:(?:final|correct)\s{1,4})?answer\s{1,4}is(?![A-Za-z])"
    r"[ \t]{0,4}[:：]?"
    r"|(?:最终|最后|正确)?答案[ \t]{0,4}\*{0,3}[ \t]{0,4}(?:[:：]|[是为][ \t]{0,4}[:：]?)",
    re.IGNORECASE,
)
_BOX_OPENING = re.compile(r"\\+(?:boxed|fbox)(?![A-Za-z])")
_DRESS = re.compile(r"(?:[ \t*$]|\\[(\[])*")
_MATH_BRACKETS = (r"\(", r"\)", r"\[", r"\]")


@dataclass(frozen=True)
class Grade:
    """What a response answered, and whether that is right."""

    extracted: str | None
    """The committed answer; ``None`` where the response commits to none (unparsed)."""

    is_correct: bool


def extract_answer(text: str, *, rule: Rule = "first_committed") -> str | None:
    r"""Return the answer a response commits to, or ``None`` when it commits to none.

    ``first_committed`` takes whatever comes first of

    - a balanced, filled ``\boxed{..}``;
    - a marker with something on its own line behind it: ``final answer:``, ``answer:``,
      ``the (final, correct) answer is``, ``答案：``, ``答案是``, ``答案为``, in any case. A box
      right behind the marker is the answer; otherwise the rest of the line is.

    A marker with an empty line behind it is passed over and never borrows a later line.
    ``last_boxed`` takes the last balanced, filled box. Both strip ``*``, ``$``, LaTeX math
    brackets and a final full stop from the ends.

    The official release falls back on the whole response, which counts a response without an
    answer as a wrong one; here the two can be told apart.
    """
    boxes = outer_boxes(text)
    filled = [(box.start, content) for box in boxes if (content := _content(text, box))]
    if rule == "last_boxed":
        return filled[-1][1] if filled else None
    committed = filled[:1]
    boxes_by_start = {box.start: box for box in boxes}
    for marker in _MARKER.finditer(text):
        if payload := _payload(text, marker.end(), boxes_by_start):
            committed.append((marker.start(), payload))
            break
    return min(committed)[1] if committed else None


def grade(response: str, answer: str, *, rule: Rule = "first_committed") -> Grade:
    """Return the extracted answer of a response and whether it equals the reference.

    Equal means, cheapest test first: the same text up to spacing, case and LaTeX dress; the same
    plain number to six decimals; the same expression to math-verify. Words are compared as text
    only, because algebra reads "rat" and "tar" as the same product.

    Args:
        response: The whole response.
        answer: The bare reference answer; a box around it is taken off.
        rule: As in ``extract_answer``.
    """
    extracted = extract_answer(response, rule=rule)
    if extracted is None:
        return Grade(None, False)
    return Grade(extracted, _is_same(extracted, _tidy(without_boxes(answer))))


def is_same_answer(first: str | None, second: str | None) -> bool:
    """Return whether two extracted answers are equal, as `grade` means it; no answer is one too."""
    if first is None or second is None:
        return first is second
    return _is_same(first, second)


def _content(text: str, box: Box) -> str:
    return _tidy(without_boxes(text[box.content_start : box.content_end]))


def _payload(text: str, marker_end: int, boxes_by_start: dict[int, Box]) -> str:
    """Return what stands on a marker's line behind it, or the box right behind it."""
    dress = _DRESS.match(text, marker_end)
    start = dress.end() if dress else marker_end
    if _BOX_OPENING.match(text, start):
        box = boxes_by_start.get(start)
        # A box cut off by the length limit is no commitment.
        return _content(text, box) if box else ""
    line_end = text.find("\n", start)
    return _tidy(without_boxes(text[start:] if line_end < 0 else text[start:line_end]))


def _tidy(answer: str) -> str:
    """Return the text without emphasis, dollars, math brackets and full stops at its ends."""
    while True:
        shorter = answer.strip().lstrip(" \n*$").rstrip(" \n*$.。")
        if shorter.startswith(_MATH_BRACKETS):
            shorter = shorter[2:]
        if shorter.endswith(_MATH_BRACKETS):
            shorter = shorter[:-2]
        if shorter == answer:
            return answer
        answer = shorter


def _is_same(extracted: str, answer: str) -> bool:
    mine, theirs = _plain_text(extracted), _plain_text(answer)
    if mine == theirs:
        return bool(theirs)
    numbers = _plain_number(mine), _plain_number(theirs)
    if numbers[0] is not None and numbers[1] is not None:
        # Six decimals, as math-verify rounds.
        return abs(numbers[0] - numbers[1]) < Fraction(1, 10**6)
    if not (_is_algebra(mine) and _is_algebra(theirs)):
        return False
    return _is_same_expression(extracted, answer)


_UNDRESSED = (
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])"), ""),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])|°"), ""),
    (re.compile(r"\\[,;:! ]|[\s$~]"), ""),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
)


def _plain_text(answer: str) -> str:
    """Return the answer without case, spacing, text commands, degree signs and grouping commas."""
    for pattern, replacement in _UNDRESSED:
        answer = pattern.sub(replacement, answer)
    return answer.casefold()


_NUMBER = re.compile(r"([+-]?)(?:(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})|(\d{1,30})/(\d{1,30}))")


def _plain_number(plain: str) -> Fraction | None:
    """Return the value of ``-3``, ``2.50`` or ``3/4``; ``None`` for everything else."""
    matched = _NUMBER.fullmatch(plain.replace("−", "-"))
    if matched is None:
        return None
    sign, decimal, numerator, denominator = matched.groups()
    if decimal is not None:
        value = Fraction(decimal)
    elif int(denominator) == 0:
        return None
    else:
        value = Fraction(int(numerator), int(denominator))
    return -value if sign == "-" else value


MAX_EXPONENT = 1000
"""Limit on the product of all exponents: nested powers multiply."""

MAX_EXPONENT_OF_SUM = 12
"""Limit behind a bracket, which may hold a sum that algebra multiplies out."""

MAX_BRACKET_DEPTH = 12
"""The LaTeX grammar takes exponential time in the depth of brackets."""

_POWER = r"(?:\^|\*\*)"
_WORDS = re.compile(r"[^\W\d_]{2,}|[^\d\\]*[^\W\d_]{4,}[^\d\\]*")
_POWER_OF_POWER = re.compile(rf"{_POWER}(?:[\w.\\]+{_POWER}|[({{][^^]{{0,40}}{_POWER})")
_OPEN_ENDED = re.compile(r"\\(?:sum|prod|o?i*nt|lim|binom)(?![A-Za-z])|\d{3}!|!!|[)}]!")
_EXPONENT = re.compile(rf"([)}}\]]?){_POWER}[{{(+-]*(\d{{1,9}})")


def _is_algebra(plain: str) -> bool:
    """Whether symbolic comparison means something for this answer and is sure to end.

    Words are not products of letters. Powers of powers and large factorials hold the interpreter
    inside one big-number operation, which no alarm can interrupt, and outside the main thread
    there is no alarm at all.
    """
    if not plain or len(plain) > MAX_ANSWER_CHARACTERS or _WORDS.fullmatch(plain):
        return False
    if _POWER_OF_POWER.search(plain) or _OPEN_ENDED.search(plain):
        return False
    product = 1
    for bracket, digits in _EXPONENT.findall(plain):
        product *= max(int(digits), 1)
        if bracket and int(digits) > MAX_EXPONENT_OF_SUM:
            return False
    return product <= MAX_EXPONENT and _is_shallow(plain)


def _is_shallow(plain: str) -> bool:
    # Half-open intervals are written (1, 2], so any bracket may close any other.
    depth = deepest = 0
    for character in plain:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
        if depth < 0:
            return False
    return depth == 0 and deepest <= MAX_BRACKET_DEPTH


@lru_cache(maxsize=1)
def _math_verify() -> ModuleType:
    # Imported at first use: it loads SymPy, which takes most of a second.
    import math_verify

    # It reports each time limit as a warning; an answer that cannot be compared is a wrong one.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify


@lru_cache(maxsize=65536)
def _is_same_expression(extracted: str, answer: str) -> bool:
    """Whether math-verify finds the two expressions equal; what it cannot read is not equal.

    Remembered: the samples of a problem give the same few answers, and algebra takes milliseconds.
    """
    library = _math_verify()
    # Its time limit is an alarm signal, which only the main thread can receive.
    in_main_thread = threading.current_thread() is threading.main_thread()
    seconds = SYMBOLIC_SECONDS if in_main_thread else None
    gold, target = (
        library.parse(_as_latex(text), parsing_timeout=seconds) for text in (answer, extracted)
    )
    return library.verify(gold, target, timeout_seconds=seconds)


def _as_latex(answer: str) -> str:
    return r"\boxed{" + answer.replace("°", r"^{\circ}") + "}"
