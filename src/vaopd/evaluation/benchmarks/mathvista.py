"""MathVista testmini; its owners allow use as a test only, so never train on it."""

from dataclasses import replace
from typing import Any

from vaopd.errors import ProblemError
from vaopd.evaluation import cells
from vaopd.evaluation.benchmark import (
    Benchmark,
    Item,
    Row,
    Verdict,
    by_reference_category,
    image_first,
    verdict_of,
)
from vaopd.evaluation.options import lettered, option_lines
from vaopd.grading.grades import Grade, grade_choice, graded
from vaopd.grading.markup import plain
from vaopd.grading.reading import Rule, read_answer
from vaopd.grading.values import Listing, Quantity, Value, value_of

_HINTS = {
    "text": "and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the "
    "end.",
    "float1": "requiring a floating-point number with one decimal place and provide the final "
    "value, e.g., 1.2, 1.3, 1.4, at the end.",
    "float2": "requiring a floating-point number with two decimal places and provide the final "
    "value, e.g., 1.23, 1.34, 1.45, at the end.",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], "
    "[1.2, 1.3, 1.4], at the end.",
}


def item(row: Row) -> Item:
    """Return one question; its prompt is the published query if the row has one."""
    question, kind = cells.required(row, "question"), cells.required(row, "question_type")
    choices = cells.sequence(row.get("choices"))
    answer_type = cells.text(row, "answer_type") or "text"
    if kind == "multi_choice" and not choices:
        raise ProblemError("choices is empty for a multi_choice question")
    precision = int(float(cells.text(row, "precision") or 0))
    key = f"float{precision}" if answer_type == "float" else answer_type
    if key not in _HINTS:
        raise ProblemError(f"answer_type {answer_type!r} with precision {precision} is unknown")
    query = cells.text(row, "query") or (question if question.startswith("Hint:") else "")
    return Item(
        id=cells.required(row, "pid", "index"),
        prompt=image_first(query or _query(row, key, question, choices)),
        images=cells.images(row, "decoded_image", "image"),
        reference={
            "answer": _answer_text(row, choices),
            "choices": choices,
            "question_type": kind,
            "answer_type": answer_type,
            "precision": precision,
            "category": _task(row),
            "question": question,
        },
    )


def _answer_text(row: Row, choices: list[str]) -> str:
    answer = cells.required(row, "answer")
    if choices and answer not in choices:
        raise ProblemError(f"the answer {answer!r} is none of the choices")
    return answer


def _task(row: Row) -> str:
    metadata = row.get("metadata")
    source: Any = metadata if isinstance(metadata, dict) else row
    return str(source.get("task") or "")


def _query(row: Row, key: str, question: str, choices: list[str]) -> str:
    unit = cells.text(row, "unit")
    lines = [f"Hint: Please answer the question {_HINTS[key]}", f"Question: {question}"]
    lines[1] += f" (Unit: {unit})" if unit else ""
    if choices:
        lines += ["Choices:", option_lines(lettered(choices), "({letter}) {text}")]
    return "\n".join(lines).strip()


def grade(response: str, item: Item, rule: Rule, *, is_truncated: bool = False) -> Verdict:
    """Return the verdict: the answer is normalised as the owners do it, then compared exactly.

    The official scorer extracts the answer with a language model; here the rules of vaopd do it.
    An integer is truncated and a decimal rounded, as by the official normaliser.
    """
    reference = item.reference
    if reference["question_type"] == "multi_choice":
        return verdict_of(_grade_choice(response, reference, rule, is_truncated))
    reading = read_answer(response, rule=rule, is_truncated=is_truncated)
    normalised = None if reading.text is None else _normalised(reading.text, reference)
    is_correct = normalised == _gold(reference)
    return verdict_of(replace(graded(reading, is_correct), extracted=normalised))


def _grade_choice(response: str, reference: Any, rule: Rule, is_truncated: bool) -> Grade:
    options = lettered(reference["choices"])
    letter = next(key for key, text in options.items() if text == reference["answer"])
    found = grade_choice(response, letter, options, rule=rule, is_truncated=is_truncated)
    return replace(found, extracted=options.get(found.extracted or ""))


def _gold(reference: Any) -> str:
    answer = str(reference["answer"]).strip()
    return (
        _normalised(answer, reference) or answer if reference["answer_type"] == "list" else answer
    )


def _normalised(answer: str, reference: Any) -> str | None:
    """Return a number or list as the official normaliser writes it, or ``None``."""
    # In "x = 5 + 7 = 12" the last side counts.
    value = value_of(plain(answer).rpartition("=")[2])
    kind = reference["answer_type"]
    if kind == "list":
        return _list_text(value)
    if kind == "text":
        return answer
    if not isinstance(value, Quantity) or abs(value.number) >= 1e300:
        return None
    number = float(value.number)
    return str(int(number)) if kind == "integer" else str(round(number, reference["precision"]))


def _list_text(value: Value) -> str | None:
    """Return a listing of numbers as text in the form of a Python list."""
    if not isinstance(value, Listing):
        return None
    numbers = [float(one.number) for one in value.items if isinstance(one, Quantity)]
    if len(numbers) != len(value.items):
        return None
    return str([int(number) if number.is_integer() else number for number in numbers])


BENCHMARK = Benchmark(
    name="mathvista",
    title="MathVista",
    hub_id="AI4Math/MathVista",
    revision="2b6ad69445fbb5695c9b165475e8decdbeb97747",
    split="testmini",
    columns=(
        "pid",
        "question",
        "decoded_image",
        "choices",
        "unit",
        "precision",
        "answer",
        "question_type",
        "answer_type",
        "metadata",
        "query",
    ),
    files=(
        "testmini.jsonl",
        "sample_with_images.jsonl",
        "testmini_text_only.json",
        "MathVista_MINI.tsv",
    ),
    size=1000,
    licence="CC BY-SA 4.0, test use only",
    citation="Lu et al. 2024, arXiv:2310.02255",
    item=item,
    grade=grade,
    measure=by_reference_category,
    judge_question=lambda item: item.reference["question"],
)
