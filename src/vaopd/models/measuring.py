"""Measures prompts and their images without decoding an image or encoding a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vaopd.config import DataConfig
from vaopd.errors import ProblemError, VaopdError
from vaopd.models.families import Family, PromptSize, Size
from vaopd.problems.bad_rows import BadRow
from vaopd.problems.problem import Problem
from vaopd.views import fitted_sizes

CHARACTERS_A_TOKEN = 32
"""A prompt with more for each token of the limit is too long without being tokenized, which would
take gigabytes: only long runs of blanks have as many in a token."""

AT_ONCE = 256
"""Number of problems whose texts are tokenized together."""


@dataclass(frozen=True)
class Measured:
    """The measured sizes of the prompt of one problem."""

    prompt: PromptSize
    stored: tuple[Size, ...]
    """Width and height of the stored images."""

    fitted: tuple[Size, ...]
    """Width and height of the images after resizing to the pixel budget."""


def measure(
    problems: Sequence[Problem],
    family: Family,
    data: DataConfig,
    progress: Callable[[int], None] = lambda problems: None,
) -> tuple[list[Measured], list[BadRow]]:
    """Return the sizes of the usable prompts, and the problems whose prompts cannot be used.

    A problem whose teacher has images of its own must fit with either; the sizes are the student's.
    It reads only headers of images and tokenizes texts, so many thousands of problems take seconds.
    """
    measured: list[Measured] = []
    bad: list[BadRow] = []
    for start in range(0, len(problems), AT_ONCE):
        some = problems[start : start + AT_ONCE]
        own = [one.for_teacher() for one in some if one.teacher_images]
        refused = [
            replace(row, reason=f"teacher_images: {row.reason}")
            for row in _measure(own, family, data)[1]
        ]
        unfit = {row.id for row in refused}
        found, more = _measure([one for one in some if one.id not in unfit], family, data)
        measured += found
        bad += refused + more
        progress(len(some))
    return measured, bad


def _measure(
    problems: Sequence[Problem], family: Family, data: DataConfig
) -> tuple[list[Measured], list[BadRow]]:
    measured: list[Measured] = []
    bad: list[BadRow] = []
    readable = _readable(problems, data, bad)
    sizes = family.measure([one for one, _, _ in readable], [size for _, _, size in readable])
    for (problem, stored, fitted), prompt in zip(readable, sizes, strict=True):
        if isinstance(prompt, PromptSize) and prompt.tokens > data.max_prompt_tokens:
            prompt = too_long(problem, prompt.tokens, data)
        if isinstance(prompt, VaopdError):
            bad.append(BadRow(str(prompt), problem.id))
        else:
            measured.append(Measured(prompt, stored, fitted))
    return measured, bad


def _readable(
    problems: Sequence[Problem], data: DataConfig, bad: list[BadRow]
) -> list[tuple[Problem, tuple[Size, ...], tuple[Size, ...]]]:
    """Return readable problems with stored and fitted image sizes; add the others to ``bad``."""
    readable = []
    for problem in problems:
        try:
            check_characters(problem, data)
            stored = tuple(problem.image_sizes())
        except ProblemError as error:
            bad.append(BadRow(str(error), problem.id))
        else:
            fitted = tuple(_fitted(size, data) for size in stored)
            readable.append((problem, stored, fitted))
    return readable


def _fitted(size: Size, data: DataConfig) -> Size:
    return [size, *fitted_sizes(size, data.min_pixels, data.max_pixels)][-1]


def check_characters(problem: Problem, data: DataConfig) -> None:
    """Check that the text of a prompt may fit ``data.max_prompt_tokens``.

    Raises:
        ProblemError: It has too many characters.
    """
    most = CHARACTERS_A_TOKEN * data.max_prompt_tokens
    if len(problem.prompt) > most:
        raise ProblemError(
            f"problem {problem.id} has a prompt of {len(problem.prompt)} characters, over the "
            f"{most} that may fit data.max_prompt_tokens={data.max_prompt_tokens} "
            f"({CHARACTERS_A_TOKEN} a token); raise the limit or shorten the prompt"
        )


def too_long(problem: Problem, tokens: int, data: DataConfig) -> ProblemError:
    """Return the error about a prompt with more than ``data.max_prompt_tokens`` tokens."""
    return ProblemError(
        f"problem {problem.id} has a prompt of {tokens} tokens, over data.max_prompt_tokens="
        f"{data.max_prompt_tokens}; raise the limit or lower data.max_pixels (prompts are never "
        "cut, a cut would go through image tokens)"
    )
