"""Encodes the prompts of the next step while the device works on the current step."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.problem import Problem


@dataclass(frozen=True, eq=False)
class Encoded:
    """The prompts of a step, one of each kind for each problem."""

    student: list[EncodedPrompt]
    teacher: list[EncodedPrompt]
    """The student's own, except for problems with ``teacher_images``."""

    degraded: list[EncodedPrompt] | None
    """The teacher's, with degraded images, if the method needs them."""


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
