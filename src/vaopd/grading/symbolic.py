"""Equality of formulas with variables by math-verify, only where it ends in a short time."""

import logging
import re
import threading
from functools import lru_cache
from types import ModuleType

MAX_CHARACTERS = 300
"""Longer answers are compared as text only, because symbolic algebra on them may never end."""

SECONDS = 3
"""Time limit of one symbolic parse or comparison in the main thread."""

MAX_EXPONENT = 1000
"""Limit on the product of all exponents, because exponents of nested powers multiply."""

MAX_EXPONENT_OF_SUM = 12
"""Limit on an exponent after a bracket, which may hold a sum that algebra expands."""

MAX_BRACKET_DEPTH = 12
"""Limit on nested brackets: the time of the LaTeX grammar is exponential in their depth."""

_POWER = r"(?:\^|\*\*)"
_WORDS = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|ln|arc|lim|exp|min|max|mod|"
    r"pi)(?:[^A-Za-z]|$))[^\W\d_]{3,}"
)
_POWER_OF_POWER = re.compile(rf"{_POWER}(?:[\w.\\]+{_POWER}|[({{][^^]{{0,40}}{_POWER})")
_UNSOLVED = re.compile(r"\s*-?\d+\s*[A-Za-z][^=]*=")
"""An equation such as "2x = 10", of which math-verify would take the right side."""

_OPEN_ENDED = re.compile(r"\\(?:sum|prod|o?i*nt|lim|binom)(?![A-Za-z])|\d{3}!|!!|[)}]!")
_EXPONENT = re.compile(rf"([)}}\]]?){_POWER}[{{(+-]*(\d{{1,9}})")
_RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_FORMULA = re.compile(r"[\d\\=<>≤≥^+*/()\[\]{}|_∪∞-]")


def is_same_formula(first: str, second: str) -> bool:
    """Return whether math-verify finds two formulas equal; an unreadable one is not equal."""
    if not (is_formula(first) and is_formula(second)):
        return False
    if any(
        _UNSOLVED.match(one) and "=" not in other
        for one, other in ((first, second), (second, first))
    ):
        return False
    return _is_same(first, second)


def is_formula(text: str) -> bool:
    """Return whether symbolic comparison of this answer is meaningful and ends in a short time.

    Words are not products of letters: algebra finds "rat" and "tar" equal. Powers of powers and
    large factorials are one long operation on big numbers, which an alarm signal cannot interrupt;
    outside the main thread there is no alarm signal.
    """
    plain = re.sub(r"\s", "", text)
    if not plain or len(plain) > MAX_CHARACTERS or _WORDS.search(text):
        return False
    if not plain.isascii() if len(plain) == 1 else not _FORMULA.search(plain):
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
    # Half-open intervals such as (1, 2] have different brackets, so any bracket may close any.
    depth = deepest = 0
    for character in plain:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
        if depth < 0:
            return False
    return depth == 0 and deepest <= MAX_BRACKET_DEPTH


@lru_cache(maxsize=1)
def _math_verify() -> ModuleType:
    # Imported at first use, because it loads SymPy, which takes most of a second.
    import math_verify

    # It warns at each time limit; an answer that cannot be compared is wrong.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify


@lru_cache(maxsize=65536)
def _is_same(answer: str, reference: str) -> bool:
    """Return whether two formulas are equal; cached, because samples repeat a few answers."""
    library = _math_verify()
    # The time limit is an alarm signal, which only the main thread can receive.
    in_main_thread = threading.current_thread() is threading.main_thread()
    seconds = SECONDS if in_main_thread else None
    gold, target = (
        library.parse(_as_latex(text), parsing_timeout=seconds) for text in (reference, answer)
    )
    return library.verify(gold, target, timeout_seconds=seconds)


def _as_latex(answer: str) -> str:
    for mark, command in (
        ("°", r"^{\circ}"),
        ("≤", r"\leq "),
        ("≥", r"\geq "),
        ("≠", r"\neq "),
        ("π", r"\pi "),
        ("∞", r"\infty "),
        ("∪", r"\cup "),
        ("√", r"\sqrt "),
    ):
        answer = answer.replace(mark, command)
    answer = _RAISED.sub(lambda m: f"^{{{m[0].translate(_DIGITS)}}}", answer)
    return r"\boxed{" + answer + "}"
