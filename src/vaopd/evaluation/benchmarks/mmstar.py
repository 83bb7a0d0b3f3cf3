"""MMStar: choice questions that cannot be answered without the image, in six categories."""

import re

from vaopd.errors import ProblemError
from vaopd.evaluation import cells
from vaopd.evaluation.benchmark import (
    Benchmark,
    Item,
    Row,
    by_reference_category,
    image_first,
)
from vaopd.evaluation.benchmarks.ai2d import ASK_LETTER
from vaopd.evaluation.options import grade_letter, option_lines

CATEGORIES = (
    "coarse perception",
    "fine-grained perception",
    "instance reasoning",
    "logical reasoning",
    "math",
    "science & technology",
)
_OPTION = re.compile(r"(?:^|[\s,(])([A-D])\s*[:.)]\s*(.*?)(?=,?\s*\(?[B-D]\s*[:.)]\s|$)", re.DOTALL)


def item(row: Row) -> Item:
    """Return one question; the options are in its text, or in columns of the TSV."""
    question = cells.required(row, "question").strip()
    choices = cells.options(row)
    asked = f"{question}\n{option_lines(choices)}" if choices else question
    choices = choices or _options_in(question)
    answer = cells.required(row, "answer").strip().upper()
    if answer not in choices:
        raise ProblemError(f"the answer {answer!r} is none of the options {', '.join(choices)}")
    category = cells.required(row, "category").strip().lower()
    if category not in CATEGORIES:
        raise ProblemError(f"the category {category!r} is none of {', '.join(CATEGORIES)}")
    return Item(
        id=cells.required(row, "index"),
        prompt=image_first(f"{asked}\n{ASK_LETTER}"),
        images=cells.images(row, "image"),
        reference={
            "answer": answer,
            "options": choices,
            "category": category,
            "question": question,
        },
    )


def _options_in(question: str) -> dict[str, str]:
    """Return the options after ``Options:``, or four letters if only the image shows them."""
    listed = question.rpartition("Options:")[2] if "Options:" in question else question
    found = {letter: text.strip(" ,\n") for letter, text in _OPTION.findall(listed)}
    return {letter: found.get(letter, "") for letter in "ABCD"}


BENCHMARK = Benchmark(
    name="mmstar",
    title="MMStar",
    hub_id="Lin-Chen/MMStar",
    revision="bc98d668301da7b14f648724866e57302778ab27",
    configs=("mmstar",),
    split="val",
    columns=("index", "question", "image", "answer", "category", "l2_category"),
    files=("val.jsonl", "MMStar.tsv"),
    size=1500,
    licence="not stated by its owners",
    citation="Chen et al. 2024, arXiv:2403.20330",
    item=item,
    grade=grade_letter,
    measure=by_reference_category,
    combinations={
        "mean of categories": {f"accuracy/{name}": 1 / len(CATEGORIES) for name in CATEGORIES}
    },
    judge_question=lambda item: item.reference["question"],
)
