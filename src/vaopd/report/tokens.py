"""Alignment of tokens with the text of their response, so that every character is whole.

A byte-level tokenizer may cut a character into several tokens, each of which decodes to U+FFFD by
itself. Only the response text has the character; only the tokens have the numbers.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

REPLACEMENT = "\ufffd"
MAX_CHARACTER_BYTES = 4


@dataclass(frozen=True)
class Span:
    """A piece of the response and the tokens that wrote it."""

    text: str
    first: int
    """Index of the first token."""

    count: int
    """Number of tokens; 0 for text without a token."""

    special: str = ""
    """Name of a token that is not part of the text, such as ``<|im_end|>``."""


def align(tokens: Sequence[str], response: str) -> list[Span]:
    """Return the response cut into spans; their texts join to exactly the response.

    Tokens that share a character share a span. A token without a place in the response (end of
    turn, removed by the decoder) becomes a separate span with an empty text.

    Args:
        tokens: Each token decoded by itself.
        response: All tokens decoded together, special tokens left out.
    """
    encoded = response.encode("utf-8", "surrogatepass")
    ends = _token_ends(tokens, encoded)
    boundaries = _character_boundaries(response)
    spans: list[Span] = []
    start = first = end = 0
    for index, (token, matched) in enumerate(zip(tokens, ends, strict=True)):
        if matched is None:
            if index == first:
                spans.append(Span("", index, 1, special=token))
                first = index + 1
            continue
        end = matched
        if end in boundaries:
            spans.append(Span(_text(encoded[start:end]), first, index + 1 - first))
            start, first = end, index + 1
    if first < len(tokens):
        # The length limit cut a character: its bytes are shown as the decoder returned them.
        spans.append(Span(_text(encoded[start:]), first, len(tokens) - first))
    elif start < len(encoded):
        spans.append(Span(_text(encoded[start:]), len(tokens), 0))
    return spans


def _token_ends(tokens: Sequence[str], encoded: bytes) -> list[int | None]:
    """Return the byte where each token ends; None for a token that is not in the response.

    U+FFFD stands for one to three bytes, so a token may end at several places. All are followed
    (by start, only the first way to get there) until a later token decides.
    """
    ways: dict[int, int] = {0: 0}
    history: list[dict[int, int] | None] = []
    for token in tokens:
        following: dict[int, int] = {}
        for offset in ways:
            for end in _possible_ends(token, encoded, offset):
                following.setdefault(end, offset)
        history.append(following or None)
        ways = following or ways
    ends: list[int | None] = [None] * len(tokens)
    # Of several alignments, the one that covers most of the text.
    place = max(ways)
    for index in range(len(tokens) - 1, -1, -1):
        came_from = history[index]
        if came_from is not None:
            ends[index] = place
            place = came_from[place]
    return ends


def _possible_ends(token: str, encoded: bytes, offset: int) -> list[int]:
    if not token:
        return []
    if REPLACEMENT not in token:
        plain = token.encode("utf-8", "surrogatepass")
        if encoded.startswith(plain, offset):
            return [offset + len(plain)]
        # Some decoders drop the space before a word when the word is decoded alone.
        gap = _white_bytes(encoded, offset)
        return [gap + len(plain)] if gap > offset and encoded.startswith(plain, gap) else []
    shortest = len(token.replace(REPLACEMENT, "").encode()) + token.count(REPLACEMENT)
    longest = shortest + token.count(REPLACEMENT) * (MAX_CHARACTER_BYTES - 1)
    return [
        end
        for end in range(offset + shortest, min(offset + longest, len(encoded)) + 1)
        if encoded[offset:end].decode("utf-8", "replace") == token
    ]


def _white_bytes(encoded: bytes, offset: int) -> int:
    while offset < len(encoded) and encoded[offset : offset + 1].isspace():
        offset += 1
    return offset


def _character_boundaries(text: str) -> set[int]:
    """Return the byte offsets between visible characters."""
    boundaries, offset, previous = set(), 0, ""
    for character in text:
        if not _continues(character, previous):
            boundaries.add(offset)
        offset += len(character.encode("utf-8", "surrogatepass"))
        previous = character
    return boundaries | {offset}


def _continues(character: str, previous: str) -> bool:
    """Return whether a code point is drawn as part of the one before it."""
    if not previous or previous.isspace():
        return False
    is_mark = unicodedata.category(character) in ("Mn", "Me", "Mc")
    is_skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    # The zero-width joiner joins on both sides.
    return is_mark or is_skin_tone or "\u200d" in (character, previous)


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogatepass")
