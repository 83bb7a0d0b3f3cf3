"""A user's own file as a benchmark: free answers, choices, several answers, a tolerance."""

from collections.abc import Mapping
from typing import Any

from vaopd.errors import ProblemError
from vaopd.evaluation.benchmark import ImageSource, Item, Row, StoredImage
from vaopd.evaluation.cells import text
from vaopd.evaluation.options import lettered, option_lines
from vaopd.evaluation.rows import image_of
from vaopd.grading.naming import LETTERS
from vaopd.problems.boxed import outer_boxes, without_boxes
from vaopd.problems.conversations import conversation_of, listed
from vaopd.problems.problem import IMAGE_PLACEHOLDER

ASK_LETTER = "Answer with the option's letter."
QUESTIONS = ("question", "problem", "query")
ANSWERS = ("answers", "answer", "solution", "gt_answer")
IMAGES = ("images", "image", "image_path")


def own_item(row: Row) -> Item:
    """Return the item of a row of a user's file; docs/own_benchmark.md lists the columns.

    Raises:
        ProblemError: The row has no question or no answer, or its answer is not an option.
    """
    question, said, pictures = _conversation(row)
    question = question or text(row, *QUESTIONS)
    if not question:
        raise ProblemError(f"the row has none of {', '.join(QUESTIONS)}, messages or prompt")
    answers = next((found for name in ANSWERS if (found := _several(row.get(name)))), said)
    if not answers:
        raise ProblemError("the row has no answer, so it cannot be scored; fill its answer")
    options = _options(row)
    images = pictures or next((found for name in IMAGES if (found := _images(row.get(name)))), ())
    if IMAGE_PLACEHOLDER not in question:
        question = IMAGE_PLACEHOLDER * len(images) + question
    reference: dict[str, Any] = {
        "answer": answers[0],
        "category": text(row, "category", "kind"),
        "question": question,
    }
    prompt = question
    if options:
        reference |= {"answer": _letter(answers, options), "options": options}
        if not all(option in question for option in options.values()):
            prompt = f"{question}\n{option_lines(options)}\n{ASK_LETTER}"
    elif len(answers) > 1:
        reference["answers"] = answers
    if tolerance := text(row, "tolerance"):
        reference["tolerance"] = _tolerance(tolerance)
    return Item(text(row, "id", "qid", "index"), prompt, images, reference)


def _conversation(row: Row) -> tuple[str, list[str], tuple[ImageSource, ...]]:
    """Return question, answers and images of a row that holds a conversation."""
    found = conversation_of(row)
    images = [image for cell in found.images for image in _images(cell)]
    return found.question, [_bare(one) for one in found.answers], tuple(images)


def _bare(answer: str) -> str:
    """Return the content of the last box of a reference response; without a box all of it."""
    boxes = outer_boxes(answer)
    return (
        without_boxes(answer[boxes[-1].content_start : boxes[-1].content_end]) if boxes else answer
    )


def _several(cell: Any) -> list[str]:
    if found := listed(cell):
        return [str(one).strip() for one in found if str(one).strip()]
    return (
        []
        if cell is None or isinstance(cell, list)
        else [_bare(str(cell).strip())][: bool(str(cell).strip())]
    )


def _options(row: Row) -> dict[str, str]:
    cell = row.get("options") or row.get("choices")
    if isinstance(cell, Mapping):
        return {str(k).strip().upper(): str(v) for k, v in cell.items() if v not in (None, "")}
    if found := listed(cell):
        return lettered([str(one) for one in found])
    columns = {k: str(row[k]) for k in LETTERS if row.get(k) not in (None, "")}
    return columns if {"A", "B"} <= columns.keys() else {}


def _letter(answers: list[str], options: Mapping[str, str]) -> str:
    """Return the letter of the answer: a letter, or the text of exactly one option."""
    (answer,) = answers if len(answers) == 1 else (" or ".join(answers),)
    if (letter := answer.strip("() .").upper()) in options:
        return letter
    equal = [k for k, option in options.items() if option.strip() == answer.strip()]
    if len(equal) != 1:
        raise ProblemError(
            f"the answer {answer!r:.60} is neither a letter of {', '.join(options)} nor the text "
            "of one option; correct it"
        )
    return equal[0]


def _tolerance(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ProblemError(f"tolerance is {cell!r}, expected a number of at least 0; correct it")
    return value


def _images(cell: Any) -> tuple[ImageSource, ...]:
    if isinstance(cell, StoredImage):
        return (cell,)
    cells = cell if isinstance(cell, list) else listed(cell) or [cell]
    return tuple(found for one in cells if (found := image_of(one)) is not None)
