"""MATH-Vision: competition problems with one figure; choices or free answers."""

import re

from vaopd.evaluation import cells
from vaopd.evaluation.benchmark import (
    Benchmark,
    Item,
    Row,
    Verdict,
    by_category,
    image_first,
    verdict_of,
)
from vaopd.evaluation.options import grade_letter, option_lines
from vaopd.grading.grades import grade as grade_free
from vaopd.grading.reading import Rule
from vaopd.problems.problem import IMAGE_PLACEHOLDER

ASK_BOX = (
    'Please solve the problem and put your answer in one "\\boxed{}". '
    'If it is a multiple choice question, only one letter is allowed in the "\\boxed{}".'
)
_PLACE = re.compile(r"<image(\d+)>")


def item(row: Row) -> Item:
    """Return one problem; its figure replaces ``<image1>``.

    Placeholders with other numbers name parts of the same figure and stay as text.
    """
    question, choices = cells.required(row, "question"), cells.options(row)
    choices = choices if len(choices) > 1 else {}
    answer = cells.required(row, "answer")
    text = f"{ASK_BOX}\n{question}"
    # If the figure shows the options, their texts are only letters and are not in the prompt.
    if choices and "".join(choices.values()) != "".join(choices):
        text += "\n" + option_lines(choices, "({letter}) {text}")
    text, count = re.subn(r"<image1>", IMAGE_PLACEHOLDER, text, count=1)
    text = _PLACE.sub(r"(figure \1)", text)
    return Item(
        id=cells.required(row, "id", "index"),
        prompt=text if count else image_first(text),
        images=cells.images(row, "decoded_image", "image"),
        reference={
            "answer": cells.answer_letter(row, choices) if choices else answer,
            "options": choices,
            "category": cells.text(row, "subject", "category"),
            "level": cells.text(row, "level"),
            "question": question,
        },
    )


def grade(response: str, item: Item, rule: Rule, *, is_truncated: bool = False) -> Verdict:
    """Return the verdict: letters are compared, or free answers by value."""
    reference = item.reference
    if reference["options"]:
        return grade_letter(response, item, rule, is_truncated=is_truncated)
    return verdict_of(
        grade_free(response, reference["answer"], rule=rule, is_truncated=is_truncated)
    )


def _parts(item: Item) -> str:
    return str(item.reference["category"])


BENCHMARK = Benchmark(
    name="math_vision",
    title="MATH-Vision",
    hub_id="MathLLMs/MathVision",
    split="testmini",
    columns=("id", "question", "options", "decoded_image", "answer", "level", "subject"),
    files=("testmini.jsonl", "MathVision_MINI.tsv"),
    size=304,
    licence="MIT",
    citation="Wang et al. 2024, arXiv:2402.14804",
    item=item,
    grade=grade,
    measure=lambda run: by_category(run, _parts),
)
