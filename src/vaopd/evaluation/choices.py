"""The option letter that a response chooses."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from vaopd.evaluation.answers import Rule, extract_answer
from vaopd.evaluation.benchmark import Item, Verdict

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|boxed)\s*\{([^{}]*)\}")
_DRESS = re.compile(r"[*$`\"'“”]|\\[()\[\]]")
_OPENING = re.compile(
    r"^(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)s?(?:\s+is)?\s*:?\s*)?[(\[（]?([A-Z])"
    r"(?:[)\]）.:：,;、]|$|\s*$|\s*[-–—]\s|\s+(?=because\b|since\b|as\b|is\b))",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\b(?:option|choice|answer)\s+\(?([A-Z])(?![A-Za-z'])")
_BRACKETED = re.compile(r"[(（\[]([A-Z])[)）\]]")
_TOKEN = re.compile(r"(?<![A-Za-z0-9'’\\_-])([A-Z])(?![A-Za-z0-9'’_=(+^-])")
_TAIL_TOKENS = 5


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Return options by letter, A first."""
    return {LETTERS[index]: text for index, text in enumerate(options)}


def option_lines(options: Mapping[str, str], pattern: str = "{letter}. {text}") -> str:
    """Return one line for each option."""
    return "\n".join(pattern.format(letter=k, text=v) for k, v in options.items())


def chosen_letter(
    response: str, options: Mapping[str, str], rule: Rule = "first_committed"
) -> str | None:
    """Return the letter of the option a response commits to, or ``None``.

    The committed answer decides where there is one, and a committed answer that names no option
    is unparsed: nothing is looked for elsewhere. A response without a commitment is read as a
    bare answer, see ``uncommitted_letter``.
    """
    committed = extract_answer(response, rule=rule)
    if committed is not None:
        return letter_of_span(committed, options)
    return uncommitted_letter(response, options)


def grade_letter(response: str, item: Item, rule: Rule) -> Verdict:
    """Return whether the chosen letter is that of the reference."""
    letter = chosen_letter(response, item.reference["options"], rule)
    return Verdict(letter, letter == item.reference["answer"])


def letter_of_span(span: str, options: Mapping[str, str]) -> str | None:
    """Return the option that a short answer names, or ``None`` where none or several fit.

    In this order: a letter that opens the span (``B``, ``(B)``, ``B. text``, ``option B``), the
    text of one option, a letter that is named or in brackets, the only capital that stands alone,
    the only option whose text occurs.
    """
    span = _undressed(span)
    opening = _OPENING.match(span)
    if opening and (letter := opening[1].upper()) in options:
        return letter
    texts = {letter: _plain(text) for letter, text in options.items()}
    equal = [letter for letter, text in texts.items() if text and text == _plain(span)]
    if equal:
        return equal[0] if len(equal) == 1 else None
    for pattern in (_NAMED, _BRACKETED, _TOKEN):
        named = {found for found in pattern.findall(span) if found in options}
        if pattern is _TOKEN and not _ends_with_token(span, "A"):
            # "A" opens more noun phrases than it names options.
            named.discard("A")
        if named:
            return named.pop() if len(named) == 1 else None
    return _only_mentioned(_plain(span), texts)


def uncommitted_letter(response: str, options: Mapping[str, str]) -> str | None:
    """Return the option of a response without an answer marker or a box.

    In this order: the last line, then the first, if it opens with a letter or is an option; the
    last letter in brackets or named as an option; the only capital among the last five tokens; the
    only option whose text occurs in a reply shorter than twice all options.
    """
    lines = [line for line in map(_undressed, response.splitlines()) if line]
    if not lines:
        return None
    texts = {letter: _plain(text) for letter, text in options.items()}
    for line in (lines[-1], lines[0]):
        opening = _OPENING.match(line)
        if opening and (letter := opening[1].upper()) in options:
            return letter
        equal = [letter for letter, text in texts.items() if text and text == _plain(line)]
        if len(equal) == 1:
            return equal[0]
    whole = " ".join(lines)
    for pattern in (_BRACKETED, _NAMED):
        found = [letter for letter in pattern.findall(whole) if letter in options]
        if found:
            return found[-1]
    tail = " ".join(whole.split()[-_TAIL_TOKENS:])
    standing = {found for found in _TOKEN.findall(tail) if found in options}
    if not _ends_with_token(tail, "A"):
        standing.discard("A")
    if standing:
        return standing.pop() if len(standing) == 1 else None
    if len(whole) <= 2 * sum(map(len, options.values())):
        return _only_mentioned(_plain(whole), texts)
    return None


def _undressed(text: str) -> str:
    text = _WRAPPED.sub(r"\1", text)
    return _DRESS.sub("", text).strip().rstrip(".。!").strip()


def _ends_with_token(text: str, letter: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){letter}[\s.,;:!?)]*$", text) is not None


@lru_cache(maxsize=65536)
def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", _undressed(text)).casefold().strip(" ,;:!?")


def _only_mentioned(plain: str, texts: Mapping[str, str]) -> str | None:
    r"""Return the letter of the only option whose text occurs as whole words.

    A number inside a formula is not a mention: "5" is not in "5\sqrt{3}".
    """
    before, behind = r"(?<![\w\\^{}+*/=.-])", r"(?![\w\\^{}+*/=-]|\.\d)"
    mentioned = [
        letter
        for letter, text in texts.items()
        if text and re.search(before + re.escape(text) + behind, plain)
    ]
    # "acute triangle" mentions "triangle" too: the longer one is meant.
    meant = [
        letter
        for letter in mentioned
        if not any(texts[letter] != texts[o] and texts[letter] in texts[o] for o in mentioned)
    ]
    return meant[0] if len(meant) == 1 else None
