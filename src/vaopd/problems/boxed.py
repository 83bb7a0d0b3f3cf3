r"""The ``\boxed{..}`` of LaTeX answers, found by counting braces."""

import re
from dataclasses import dataclass

# Any number of backslashes, because models trained on JSON write two.
_TOKEN = re.compile(r"(?P<box>\\+(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)


@dataclass(frozen=True)
class Box:
    r"""One balanced ``\boxed{..}``: its place in the text and its content."""

    start: int
    content_start: int
    content_end: int
    end: int


def outer_boxes(text: str) -> list[Box]:
    r"""Return the balanced boxes of a text in order, without boxes inside other boxes.

    Braces after a backslash are characters of the answer, as in ``\boxed{\{1, 2\}}``. A box
    without a closing brace, as at the end of a truncated response, does not count.
    """
    outermost: list[Box] = []
    for box in sorted(_all_boxes(text), key=lambda box: box.start):
        if not outermost or box.start >= outermost[-1].end:
            outermost.append(box)
    return outermost


def without_boxes(text: str) -> str:
    """Return the text with every balanced box replaced by its content, without outer spaces."""
    cuts = [
        cut
        for box in _all_boxes(text)
        for cut in ((box.start, box.content_start), (box.content_end, box.end))
    ]
    kept, position = [], 0
    for start, end in sorted(cuts):
        kept.append(text[position:start])
        position = end
    return "".join([*kept, text[position:]]).strip()


def _all_boxes(text: str) -> list[Box]:
    # One pass with a stack, because a looping model writes thousands of boxes that never close.
    found: list[Box] = []
    open_braces: list[re.Match[str]] = []
    for token in _TOKEN.finditer(text):
        if token["box"] or token[0] == "{":
            open_braces.append(token)
        elif token[0] == "}" and open_braces:
            opening = open_braces.pop()
            if opening["box"]:
                found.append(Box(opening.start(), opening.end(), token.start(), token.end()))
    return found
