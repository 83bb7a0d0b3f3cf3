"""Separation of a response into reasoning and answer."""

import re
from dataclasses import dataclass

_NAMES = (
    r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|reason|reflection|scratchpad|"
    r"inner_monologue|rationale|analysis)"
)
_OPENING = (
    rf"<{_NAMES}>|\[THINK(?:ING)?\]|◁think▷|<\|?begin_of_thought\|?>|<\|think(?:ing)?\|>"
    r"|<\|channel\|>\s{0,4}analysis\s{0,4}<\|message\|>"
)
_CLOSING = (
    rf"</{_NAMES}>|\[/THINK(?:ING)?\]|◁/think▷|<\|?end_of_thought\|?>|<\|/think(?:ing)?\|>"
    r"|<\|channel\|>\s{0,4}final\s{0,4}<\|message\|>|\bassistantfinal"
)
_MARKS = frozenset("<[◁")
"""Every tag except ``assistantfinal`` begins with one of these characters."""

_TAG = re.compile(f"(?P<opening>{_OPENING})|(?P<closing>{_CLOSING})", re.IGNORECASE)


@dataclass(frozen=True)
class Parts:
    """A response in two parts: its reasoning and its answer."""

    reasoning: str
    answer: str
    """The text outside all blocks of reasoning; empty if a block never closes."""

    is_open: bool
    """Whether a block of reasoning never closes; then the response has no answer."""


def split_reasoning(response: str) -> Parts:
    """Return the reasoning and the answer of a response.

    A closing tag without an opening tag ends reasoning that the chat template began in the prompt.
    """
    if not _MARKS.intersection(response) and "assistantfinal" not in response.lower():
        return Parts("", response, False)
    reasoning: list[str] = []
    answer: list[str] = []
    depth = position = 0
    for tag in _TAG.finditer(response):
        before = response[position : tag.start()]
        position = tag.end()
        if tag["opening"]:
            (reasoning if depth else answer).append(before)
            depth += 1
            continue
        if not depth:
            reasoning += answer
            answer = []
        reasoning.append(before)
        depth = max(depth - 1, 0)
    rest = response[position:]
    if depth:
        return Parts("".join([*reasoning, rest]), "", True)
    return Parts("".join(reasoning), "".join([*answer, rest]), False)
