"""AI2D: multiple-choice questions about diagrams of primary-school science."""

from vaopd.errors import ProblemError
from vaopd.evaluation import cells
from vaopd.evaluation.benchmark import (
    Benchmark,
    Item,
    Row,
    by_reference_category,
    image_first,
)
from vaopd.evaluation.options import grade_letter, option_lines
from vaopd.grading.naming import LETTERS

ASK_LETTER = "Answer with the option's letter from the given choices directly."


def item(row: Row) -> Item:
    """Return one question; its answer is an index on the hub and a letter in the TSV."""
    choices, question = cells.options(row), cells.required(row, "question")
    answer = cells.required(row, "answer").strip()
    letter = LETTERS[int(answer)] if answer.isdigit() and int(answer) < 26 else answer
    if letter not in choices:
        raise ProblemError(f"the answer {answer!r} is none of the {len(choices)} options")
    return Item(
        id=cells.text(row, "id", "index"),
        prompt=image_first(f"{question}\n{option_lines(choices)}\n{ASK_LETTER}"),
        images=cells.images(row, "image"),
        reference={
            "answer": letter,
            "options": choices,
            "category": cells.text(row, "category"),
            "question": question,
        },
    )


BENCHMARK = Benchmark(
    name="ai2d",
    title="AI2D",
    hub_id="lmms-lab/ai2d",
    split="test",
    columns=("question", "options", "answer", "image"),
    files=("test.jsonl", "sample.jsonl", "AI2D_TEST.tsv"),
    size=3088,
    licence="of AI2, not stated with the copies on the hub",
    citation="Kembhavi et al. 2016, arXiv:1603.07396",
    item=item,
    grade=grade_letter,
    measure=by_reference_category,
)
