r"""Values of numbers as models write them: ``1,250``, ``2 1/2``, ``5\sqrt{3}``, ``1.2e3``."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

Number = Fraction | float
"""Exact if the expression is rational, otherwise to about 15 digits."""

MAX_CHARACTERS = 200
MAX_DEPTH = 20
MAX_EXPONENT = 200
APART = Fraction(1, 10**6)
"""Difference from which two decimals are not equal; math-verify rounds to six places."""

CLOSE = 1e-9
"""Relative difference below which two values are equal."""

_GROUPED = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+)(?![\d,]| \d)")
_FRACTIONS_OF_ONE = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5",
    "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_MIXED = re.compile(
    r"(?<![\d.])(\d{1,9})(?:\s+|\s*\+?\s*(?=\\frac)|"
    r"\s+and\s+)(?:(\d{1,9})\s*/\s*(\d{1,9})(?![\d.])|"
    r"\\frac\s*\{\s*(\d{1,9})\s*\}\s*\{\s*(\d{1,9})\s*\})"
)
_REPEATING = re.compile(r"(\d{1,9})\.(\d{0,9})\\(?:overline|bar|dot)\{?(\d{1,6})\}?")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,100}(?:\.\d{0,100})?|\.\d{1,100})(?:[eE][+-]?\d{1,3}(?![\d.]))?)"
    r"|(?P<command>\\?(?:frac|sqrt|cdot|times|div|pi|sin|cos|tan|cot|sec|csc|ln|log|"
    r"pm)(?![A-Za-z])|[√π∛])"
    r"|(?P<mark>[-+*/×·÷^(){}\[\]!|,]))"
)
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "cot": lambda x: 1 / math.tan(x),
    "sec": lambda x: 1 / math.cos(x), "csc": lambda x: 1 / math.sin(x), "ln": math.log,
    "log": math.log10,
}  # fmt: skip


class _UnreadableError(Exception):
    """The text is not a number."""


@lru_cache(maxsize=65536)
def number_of(text: str) -> Number | None:
    """Return the value of an expression without variables; ``None`` for any other text.

    Two numbers side by side are not a product: ``1 1`` is neither 11 nor 1.
    """
    text = text.strip()
    if not text or len(text) > MAX_CHARACTERS:
        return None
    try:
        tokens = _tokens(_written_out(text))
        parser = _Parser(tokens)
        value = parser.sum()
        if parser.position != len(tokens):
            return None
        return value if isinstance(value, Fraction) or math.isfinite(value) else None
    except (_UnreadableError, ArithmeticError, ValueError):
        return None


def is_same_number(first: Number, second: Number, tolerance: float = 0.0) -> bool:
    """Return whether two values are equal, or differ by at most an absolute tolerance.

    Decimals are compared to six places, as in math-verify.
    """
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        difference: Number = abs(first - second)
        allowed: Number = APART
    else:
        # A fraction may be too large for a float.
        try:
            difference = abs(float(first) - float(second))
            allowed = CLOSE * max(1.0, abs(float(first)), abs(float(second)))
        except OverflowError:
            return False
    # Two different small values are not equal, although both are near zero.
    if max(abs(first), abs(second)) < Fraction(1, 10**4):
        allowed = APART * max(abs(first), abs(second))
        difference = abs(Fraction(first) - Fraction(second))
    return difference <= tolerance + 1e-12 if tolerance else difference < allowed or first == second


def _written_out(text: str) -> str:
    """Return the text with grouped thousands, mixed numbers and raised digits in plain form."""
    for mark, fraction in _FRACTIONS_OF_ONE.items():
        text = re.sub(rf"(?<=\d)\s?{mark}", f" {fraction}", text).replace(mark, fraction)
    text = _REPEATING.sub(_as_fraction, text)
    text = _RAISED.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _GROUPED.sub(lambda m: m[0].replace(",", "").replace(" ", ""), text)
    return _MIXED.sub(lambda m: f"({m[1]}+{m[2] or m[4]}/{m[3] or m[5]})", text)


def _as_fraction(decimal: re.Match[str]) -> str:
    """Return a repeating decimal as a fraction: 0.1666... is (16 - 1) / 90."""
    whole, first, block = decimal.groups()
    below = 10 ** len(first) * (10 ** len(block) - 1)
    above = int(whole + first + block) - int(whole + first)
    return f"({above}/{below})"


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise _UnreadableError
        tokens.append(found[0].strip().removeprefix("\\"))
        position = found.end()
    return tokens


class _Parser:
    """Recursive descent over tokens; raises ``_UnreadableError`` at an unknown token."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise _UnreadableError
        self.position += 1
        return token

    def sum(self) -> Number:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _UnreadableError
        value = self.product()
        while self.peek() in ("+", "-"):
            sign = self.take()
            other = self.product()
            value = value + other if sign == "+" else value - other
        self.depth -= 1
        return value

    def product(self) -> Number:
        value = self.signed()
        while token := self.peek():
            if token in ("*", "×", "·", "cdot", "times"):
                self.take()
                value = value * self.signed()
            elif token in ("/", "÷", "div"):
                self.take()
                value = value / self.signed()
            elif token in ("frac", "sqrt", "√", "∛", "π", "pi", "(", *_FUNCTIONS):
                # Factors without an operator are a product, but two numbers are not.
                value = value * self.power()
            else:
                break
        return value

    def signed(self) -> Number:
        if self.peek() in ("+", "-"):
            sign = self.take()
            value = self.signed()
            return -value if sign == "-" else value
        return self.power()

    def power(self) -> Number:
        value = self.atom()
        while self.peek() == "!":
            self.take()
            if value.denominator != 1 if isinstance(value, Fraction) else True:
                raise _UnreadableError
            value = Fraction(math.factorial(_small(value, 50)))
        if self.peek() == "^":
            self.take()
            return _raised(value, self.argument())
        return value

    def argument(self) -> Number:
        """Read ``{..}`` or one token; unlike in TeX, a number of several digits is one token."""
        if self.peek() == "{":
            self.take()
            value = self.sum()
            self.take("}")
            return value
        return self.signed() if self.peek() in ("+", "-") else self.atom()

    def atom(self) -> Number:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return Fraction(token)
        closing = {"(": ")", "{": "}", "|": "|", "[": "]"}.get(token)
        if closing:
            value = self.sum()
            self.take(closing)
            return abs(value) if token == "|" else value
        if token in ("π", "pi"):
            return math.pi
        if token == "frac":
            return self._fraction()
        if token in ("sqrt", "√", "∛"):
            return self._root(token)
        if token in _FUNCTIONS:
            return _FUNCTIONS[token](float(self.argument()))
        raise _UnreadableError

    def _fraction(self) -> Number:
        token = self.peek()
        if len(token) == 2 and token.isdigit():
            # "\frac12" means one half.
            self.take()
            return Fraction(int(token[0]), int(token[1]))
        numerator = self.argument()
        return numerator / self.argument()

    def _root(self, token: str) -> Number:
        degree: Number = Fraction(3 if token == "∛" else 2)
        if self.peek() == "[":
            self.take()
            degree = self.sum()
            self.take("]")
        return _raised(self.argument(), 1 / degree)


def _small(value: Number, limit: int) -> int:
    if abs(value) > limit:
        raise _UnreadableError
    return int(value)


def _raised(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            power = _small(exponent, MAX_EXPONENT)
            if max(base.numerator.bit_length(), base.denominator.bit_length()) > 64:
                raise _UnreadableError
            return base**power
        root = _exact_root(base, exponent.denominator) if exponent.numerator == 1 else None
        if root is not None:
            return root
    value = float(base) ** float(exponent)
    if isinstance(value, complex):
        raise _UnreadableError
    return value


def _exact_root(base: Fraction, degree: int) -> Fraction | None:
    """Return the root if it is rational; else ``None``."""
    if base < 0 or not 2 <= degree <= 10 or base.numerator.bit_length() > 200:
        return None
    top, bottom = round(base.numerator ** (1 / degree)), round(base.denominator ** (1 / degree))
    root = Fraction(top, bottom) if bottom else None
    return root if root is not None and root**degree == base else None
