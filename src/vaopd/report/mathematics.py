"""LaTeX in running text as MathML, which browsers draw without a library or fonts.

The converter passes some of its input through unescaped, so its output is not trusted: it
is parsed, and a formula with any other than known MathML elements is shown as source text.
"""

import re
from html import escape
from xml.etree import ElementTree

from latex2mathml.converter import convert

MATHML = "http://www.w3.org/1998/Math/MathML"
ELEMENTS = frozenset({
    "math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub", "msup",
    "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd", "menclose", "mpadded",
    "mphantom", "mstyle", "mmultiscripts", "mprescripts", "none",
})  # fmt: skip
ATTRIBUTES = frozenset({
    "display", "displaystyle", "scriptlevel", "mathvariant", "stretchy", "fence", "separator",
    "form", "accent", "accentunder", "lspace", "rspace", "width", "height", "depth", "notation",
    "columnalign", "rowspacing", "columnspacing", "linethickness", "minsize", "maxsize",
    "movablelimits", "largeop", "linebreak",
})  # fmt: skip
PARTS = {
    "mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "msubsup": 3,
    "munder": 2, "mover": 2, "munderover": 3,
}  # fmt: skip
FORMULA = re.compile(
    r"\$\$(?P<display>.+?)\$\$"
    r"|\\\[(?P<bracket>.+?)\\\]"
    r"|\\\((?P<inline>.+?)\\\)"
    # "$5 and $6" are prices, so a formula has no space inside its dollars and no digit after them.
    r"|(?<![\\$])\$(?P<dollar>(?!\s)(?:\\.|[^$\\\n])+?(?<!\s))\$(?!\d)"
    r"|(?P<boxed>\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})",
    re.DOTALL,
)
PLAIN = re.compile(r"(?:\\boxed\{)?(?:[^\W_]|[\s.,:;=+*/()<>%°-])*\}?")
"""A formula that reads the same without being drawn, such as a boxed number or ``x + 5``."""

LONGEST_FORMULA = 2000
"""Longest formula in characters; the converter's time grows faster than the length."""


def has_formula(text: str) -> bool:
    """Return whether the text has a formula to draw."""
    return FORMULA.search(text) is not None


def rendered(text: str) -> str | None:
    """Return `readable` text, or ``None`` if drawing its formulas would not change how it reads.

    A boxed number reads the same as its source, and so does a formula that cannot be drawn.
    """
    formulas = [match for match in FORMULA.finditer(text) if not PLAIN.fullmatch(_source(match))]
    is_drawn = any(_formula(match).startswith("<math") for match in formulas)
    return readable(text) if is_drawn else None


def readable(text: str) -> str:
    """Return safe HTML of the text with its formulas as MathML; invalid LaTeX stays text."""
    parts, place = [], 0
    for match in FORMULA.finditer(text):
        parts.append(escape(text[place : match.start()]))
        parts.append(_formula(match))
        place = match.end()
    parts.append(escape(text[place:]))
    return "".join(parts)


def _source(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None)


def _formula(match: re.Match[str]) -> str:
    source = _source(match)
    display = "block" if match["display"] or match["bracket"] else "inline"
    if len(source) > LONGEST_FORMULA or not (drawn := mathml(source, display)):
        return f'<code class="raw-math">{escape(match.group())}</code>'
    return drawn


def mathml(latex: str, display: str = "inline") -> str:
    """Return a formula as MathML, or '' if it is not valid LaTeX or not only mathematics."""
    latex = latex.replace(r"\begin{aligned}", r"\begin{array}{rl}")
    latex = latex.replace(r"\end{aligned}", r"\end{array}")
    try:
        converted = convert(latex, display=display)
        # Column marks outside a table are passed through as a bare ampersand.
        root = ElementTree.fromstring(re.sub(r"&(?!#x?[0-9A-Fa-f]+;)", "&amp;", converted))
    except Exception:
        # The converter raises a dozen exceptions, also IndexError and RecursionError; a response
        # may hold any text, and the page then shows that text.
        return ""
    if not all(_is_known(element) and _is_complete(element) for element in root.iter()):
        return ""
    root.set("title", latex)
    ElementTree.register_namespace("", MATHML)
    return ElementTree.tostring(root, encoding="unicode")


def _is_known(element: ElementTree.Element) -> bool:
    name = element.tag.removeprefix(f"{{{MATHML}}}")
    has_unknown_command = name == "mi" and (element.text or "").startswith("\\")
    return name in ELEMENTS and element.attrib.keys() <= ATTRIBUTES and not has_unknown_command


def _is_complete(element: ElementTree.Element) -> bool:
    """Return whether a formula is complete: half a fraction would be drawn as an error."""
    name = element.tag.removeprefix(f"{{{MATHML}}}")
    return name not in PARTS or len(element) == PARTS[name]
