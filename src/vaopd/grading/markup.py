"""Removal of Markdown, HTML and LaTeX markup, so that the grammar reads words and values."""

import re
from functools import lru_cache

from vaopd.problems.boxed import Box, outer_boxes, without_boxes

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad\r]")
_LINE_BREAK = re.compile(r"<br\s?/?>|<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>", re.IGNORECASE)
_HTML = re.compile(r"(?<!<)</?(?:b|strong|i|em|u|p|span|div|center)>")
_POWER = re.compile(r"(?<=[0-9A-Za-z)])\*\*(?=[0-9(])(?![0-9A-Za-z ,.]{1,40}\*\*)")
_EMPHASIS = re.compile(
    r"\*{2,3}|`{1,3}(?:latex|math|text)?|(?<!\w)_{1,2}(?=\w)|(?<=\w)_{1,2}(?!\w|\{)"
)
_ITALIC = re.compile(r"(?<![\w*\\)])\*(?=[^\s*])([^*\n]{1,80})(?<=[^\s*])\*(?![\w*(\\])")
_JSON = re.compile(
    r"\"(?:final_?)?answer\"\s{0,3}:\s{0,3}(?:\"([^\"\n]{1,300})\"|(-?[\d.]{1,40}))", re.IGNORECASE
)
_TICK = re.compile("[✔✅☑](?=\ufe0f?[*_ \t]*$)", re.MULTILINE)
"""A tick at the end of a line, which marks an option or a result as right."""

_EMOJI = re.compile("(?!✓)[\u2600-\u27bf\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff]")
_CONTRACTED = re.compile(r"\b(it|that|this|there|here|what|answer|which)'s\b", re.IGNORECASE)
_DISPLAY = re.compile(r"\\\[|\\\]|\$\$")
_BOX_OF_ONE = re.compile(
    r"(\\+(?:boxed|fbox))[ \t]{0,4}([0-9]{1,30}(?:\.[0-9]{1,30})?|[A-Za-z])(?![A-Za-z])"
)
_WORDS = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|bb)|mbox|hbox|operatorname\*?|"
    r"boldsymbol|bm|bold|underline|displaystyle|large|Large|huge|"
    r"color\{[a-z]{1,10}\})[ \t]{0,4}\{([^{}]*)\}"
)
_SPACES = re.compile(
    r"\\[,;:!>/ ]|\\(?:quad|qquad|left|right|[bB]igg?[lr]?|displaystyle|limits|"
    r"hspace\{[^{}]{0,10}\}|"
    r"phantom\{[^{}]{0,20}\})(?![A-Za-z])|[\u00a0\u2002-\u200a\u202f\u205f\u3000]"
)
_SYMBOLS = (
    ("−", "-"), ("–", "-"), ("\u2011", "-"), ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"), ("\\cfrac", "\\frac"),
    ("{,}", ","), ("\\%", "%"), ("\\#", "#"), ("\\&", "&"), ("\\degree", "°"),
    ("º", "°"), ("˚", "°"),
    ("\\approx", "≈"), ("\\fallingdotseq", "≈"), ("\\simeq", "≈"),
    ("\\thickapprox", "≈"), ("\\implies", "⇒"),
    ("\\Rightarrow", "⇒"), ("\\Longrightarrow", "⇒"), ("\\rightarrow", "→"), ("\\to ", "→ "),
    ("\\therefore", "∴"), ("\\checkmark", "✓"),
    ("\\angle", "∠"), ("\\triangle", "△"), ("\\measuredangle", "∠"),
    ("\\leq", "≤"), ("\\geq", "≥"), ("\\le ", "≤ "),
    ("\\ge ", "≥ "), ("\\neq", "≠"),
    ("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'),
)  # fmt: skip
_OVER = re.compile(
    r"\\(?:overline|overrightarrow|overleftrightarrow|overset\{\\frown\}|widehat|vec)"
    r"\s?\{([A-Za-z' ]{1,8})\}"
)
"""A mark over the name of a line or an arc."""

_REPEATING = re.compile(r"(?<=\d\.)(\d{0,9}?)(\d{1,6}?)\2+(?:\.\.\.|…|\\l?dots)")
"""A decimal such as ``0.333...``, which is a fraction."""

_SIGNS_OF_END = re.compile(r"\\(?:blacksquare|square|Box|qed)(?![A-Za-z])")
_DEGREE = re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z])|°|\{°\})|(?<=\d)\\circ(?![A-Za-z])")
CURRENCY = "¤"
"""Replaces a dollar sign that means money and is not the delimiter of a formula."""

_ESCAPED_DOLLAR = re.compile(r"\\\$")
_MONEY = re.compile(r"\$(?=\d)")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}\s+[A-Za-z]{2,}|\s$")


@lru_cache(maxsize=1024)
def plain(text: str) -> str:
    r"""Return a response without markup; boxes and LaTeX values stay.

    A display becomes one line, ``\text{..}`` becomes its content, and a dollar sign of money
    becomes ``CURRENCY``. The last results are cached, because several rules read a response.
    """
    text = _INVISIBLE.sub("", text if text.isascii() else text.translate(_FULL_WIDTH))
    if "<" in text:
        text = _HTML.sub("", _LINE_BREAK.sub("\n", text))
    if '"' in text:
        text = _JSON.sub(lambda m: f"<answer>{m[1] or m[2]}</answer>", text)
    text = _REPEATING.sub(r"\1\\overline{\2}", text)
    text = _one_line_displays(text)
    text = "\n".join(map(_without_dollars, text.split("\n")))
    text = text.replace("\\(", " ").replace("\\)", " ")
    for old, new in _SYMBOLS:
        text = text.replace(old, new)
    text = text if text.isascii() else _EMOJI.sub(" ", _TICK.sub("✓", text))
    text = _CONTRACTED.sub(r"\1 is", text) if "'" in text else text
    text = _DEGREE.sub("°", text) if "\\" in text or "°" in text else text
    if "\\" in text:
        text = _BOX_OF_ONE.sub(r"\1{\2}", text)
        text = _OVER.sub(r"\1", _SIGNS_OF_END.sub(" ", text))
        for _ in range(3):
            text = _WORDS.sub(r" \1 ", text)
    if "\\" in text or not text.isascii():
        text = _SPACES.sub(" ", text)
    if "*" in text or "_" in text or "`" in text:
        text = _ITALIC.sub(r"\1", _EMPHASIS.sub("", _POWER.sub("^", text)))
    return text


def _one_line_displays(text: str) -> str:
    r"""Return the text with spaces for line breaks inside ``\[..\]`` and ``$$..$$``."""
    parts: list[str] = []
    position, inside = 0, ""
    for found in _DISPLAY.finditer(text):
        piece = text[position : found.start()]
        position = found.end()
        closes = {"\\[": "\\]", "$$": "$$"}.get(inside)
        if closes == found[0]:
            parts += [piece.replace("\n", " "), " "]
            inside = ""
        else:
            parts += [piece, " "]
            inside = found[0] if found[0] != "\\]" else ""
    return "".join([*parts, text[position:]])


def _without_dollars(line: str) -> str:
    """Return a line without dollar signs of formulas; those of money become ``CURRENCY``."""
    if "$" not in line:
        return line
    line = _ESCAPED_DOLLAR.sub(CURRENCY, line)
    pieces = line.split("$")
    if len(pieces) % 2 == 0 or any(_PROSE.search(piece) for piece in pieces[1::2]):
        # Dollar signs without pairs: money, or a formula that was cut.
        line = _MONEY.sub(CURRENCY, line)
    return line.replace("$", " ")


def boxes_of(text: str) -> list[tuple[Box, str]]:
    """Return the outermost boxes of a text that are not empty, with their contents."""
    found = [
        (box, without_boxes(text[box.content_start : box.content_end])) for box in outer_boxes(text)
    ]
    return [(box, content.strip()) for box, content in found if content.strip(" .$*{}")]
