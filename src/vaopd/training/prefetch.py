"""Encodes the prompts of the next step while the device works on the current step."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.problem import Problem

Encoded = tuple[list[EncodedPrompt], list[EncodedPrompt] | None]
"""The original prompts of a step, and the degraded prompts if the method needs them."""


class PromptsAhead:
    """Decodes, degrades and tokenizes prompts in a thread before the step that needs them.

    Pillow and numpy release the interpreter's lock for most of that time. An error is raised when
    the step takes its prompts, not earlier.
    """

    def __init__(self, encode: Callable[[Sequence[Problem]], Encoded]) -> None:
        self.encode = encode
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompts")
        self.waiting: dict[tuple[str, ...], Future[Encoded]] = {}

    def begin(self, problems: Sequence[Problem]) -> None:
        """Start to encode the problems of a later step."""
        self.waiting[_names(problems)] = self.executor.submit(self.encode, problems)

    def take(self, problems: Sequence[Problem]) -> Encoded:
        """Return the prompts of these problems; encode them now if `begin` did not start it."""
        begun = self.waiting.pop(_names(problems), None)
        return self.encode(problems) if begun is None else begun.result()


def _names(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(problem.id for problem in problems)
