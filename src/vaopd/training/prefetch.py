"""Prompts of the next step, encoded while the device works on this one."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.problem import Problem

Encoded = tuple[list[EncodedPrompt], list[EncodedPrompt] | None]
"""Original prompts of a step, and the degraded ones where the method needs them."""


class PromptsAhead:
    """Decodes, degrades and tokenizes in a thread, and hands the result to the step it is for.

    Pillow and numpy work without the interpreter's lock for most of that time. An error waits for
    its step too: what is wrong with a problem is said when its turn comes.
    """

    def __init__(self, encode: Callable[[Sequence[Problem]], Encoded]) -> None:
        self.encode = encode
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompts")
        self.waiting: dict[tuple[str, ...], Future[Encoded]] = {}

    def begin(self, problems: Sequence[Problem]) -> None:
        """Start to encode the problems of a coming step."""
        self.waiting[_names(problems)] = self.executor.submit(self.encode, problems)

    def take(self, problems: Sequence[Problem]) -> Encoded:
        """Return the prompts of these problems, encoded now unless that was begun."""
        begun = self.waiting.pop(_names(problems), None)
        return self.encode(problems) if begun is None else begun.result()


def _names(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(problem.id for problem in problems)
