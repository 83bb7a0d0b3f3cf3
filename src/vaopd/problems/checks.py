"""Checks of stored problems before a run begins: images, answers, references."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from vaopd.errors import ProblemError
from vaopd.problems.bad_rows import BadRow
from vaopd.problems.problem import Problem


def damaged_images(
    problems: Sequence[Problem], progress: Callable[[int], None] = lambda problems: None
) -> list[BadRow]:
    """Return the problems with an image that is missing, in no known format, or cut short.

    Every image is decoded once, so that a damaged one is found before the run begins.
    """

    def check(problem: Problem) -> BadRow | None:
        try:
            problem.load_images()
            check_teacher_images(problem)
        except ProblemError as error:
            return BadRow(str(error), problem.id)
        return None

    # Threads, because Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        return list(_reported(pool.map(check, problems), progress))


def check_teacher_images(problem: Problem) -> None:
    """Decode the images that only the teacher sees, if there are any.

    Raises:
        ProblemError: One of them is missing, in no known format, or cut short.
    """
    try:
        if problem.teacher_images:
            problem.for_teacher().load_images()
    except ProblemError as error:
        raise ProblemError(f"teacher_images: {error}") from None


def _reported(
    results: Iterator[BadRow | None], progress: Callable[[int], None]
) -> Iterator[BadRow]:
    for result in results:
        progress(1)
        if result is not None:
            yield result


def without_answer(problems: Sequence[Problem], purpose: str = "to validate by") -> list[BadRow]:
    """Return the problems whose responses cannot be graded."""
    return [
        BadRow(f"problem {one.id} has no answer {purpose}; add one", one.id)
        for one in problems
        if one.answer is None
    ]


def without_image(problems: Sequence[Problem]) -> list[BadRow]:
    """Return the problems that cannot be shown with a degraded image."""
    return [
        BadRow(
            f"problem {one.id} has no image, and validation.pixelated=true compares answers to the "
            "image and to the degraded image; leave it out of data.validation or set "
            "validation.pixelated=false",
            one.id,
        )
        for one in problems
        if one.is_text_only
    ]


def without_reference(problems: Sequence[Problem]) -> list[BadRow]:
    """Return the problems without a reference for supervised fine-tuning."""
    return [
        BadRow(
            f"problem {one.id} has no reference response, which method.name=sft needs; add a "
            "'references' column or choose another method",
            one.id,
        )
        for one in problems
        if not one.references
    ]
