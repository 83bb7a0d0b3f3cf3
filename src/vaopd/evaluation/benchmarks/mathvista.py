"""MathVista testmini: test use only by its owners' terms; never train on it."""

import ast
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from vaopd.errors import ProblemError
from vaopd.evaluation import cells
from vaopd.evaluation.answers import Rule, extract_answer
from vaopd.evaluation.benchmark import (
    UNPARSED,
    Benchmark,
    Item,
    Row,
    Verdict,
    by_reference_category,
    image_first,
)
from vaopd.evaluation.choices import letter_of_span, lettered, option_lines, uncommitted_letter

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
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}")
_NUMBER = re.compile(
    r"(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d{1,30})?(?:\.\d{1,30})?(?:[eE][+-]?\d{1,3})?"
    r"(?:\s*/\s*\d{1,30})?"
)
_LIST = re.compile(r"\[[^\[\]]*\]")


def item(row: Row) -> Item:
    """Return one question; the published query is sent where the row has it."""
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


def grade(response: str, item: Item, rule: Rule) -> Verdict:
    """Take the answer span, bring it to the form of the answer type, and compare exactly.

    The official scorer lets a language model take the span. Here it is the committed answer, else
    the reply itself where that is a choice, else its last number or list.
    """
    reference = item.reference
    if reference["question_type"] == "multi_choice":
        normalised = _choice(response, reference["choices"], rule)
    else:
        span = extract_answer(response, rule=rule)
        normalised = _value(response if span is None else span, reference, span is not None)
    if normalised is None:
        return UNPARSED
    return Verdict(normalised, normalised == _gold(reference))


def _gold(reference: Any) -> str:
    answer = str(reference["answer"]).strip()
    return _list_text(answer) or answer if reference["answer_type"] == "list" else answer


def _choice(response: str, choices: Sequence[str], rule: Rule) -> str | None:
    """Return the text of the chosen option; the nearest by edit distance for another span."""
    options = lettered(choices)
    span = extract_answer(response, rule=rule)
    if span is None:
        letter = uncommitted_letter(response, options)
        return options[letter] if letter else None
    letter = letter_of_span(span, options)
    return options[letter] if letter else nearest(span, tuple(choices))


@lru_cache(maxsize=65536)
def nearest(span: str, choices: tuple[str, ...]) -> str:
    """Return the choice with the least edit distance, the first of equals: the official rule."""
    return min(choices, key=lambda choice: _edit_distance(span[:300], choice))


def _edit_distance(first: str, second: str) -> int:
    previous = list(range(len(second) + 1))
    for row, left in enumerate(first, start=1):
        current = [row]
        for column, right in enumerate(second, start=1):
            substitution = previous[column - 1] + (left != right)
            current.append(min(previous[column] + 1, current[-1] + 1, substitution))
        previous = current
    return previous[-1]


def _value(text: str, reference: Any, is_committed: bool) -> str | None:
    """Return a number or list as the official normaliser writes it; ``None`` where there is none.

    A committed span may hold an equation, whose right side counts, and a unit behind the number.
    """
    if reference["answer_type"] == "list":
        return _list_text(text)
    if is_committed:
        text = text.rpartition("=")[2]
    numbers = _numbers(text)
    if not numbers:
        return None
    number = numbers[0] if is_committed else numbers[-1]
    if reference["answer_type"] == "integer":
        return str(int(number))
    return str(round(number, reference["precision"]))


def _numbers(text: str) -> list[float]:
    text = _FRACTION.sub(r"\1/\2", text.replace("\\,", "").replace("{,}", ","))
    values = []
    for found in _NUMBER.findall(text):
        numerator, _, denominator = found.replace(",", "").replace("−", "-").partition("/")
        try:
            value = float(numerator) / float(denominator or 1)
        except (ValueError, ZeroDivisionError):
            continue
        if abs(value) < 1e300:
            values.append(value)
    return values


def _list_text(text: str) -> str | None:
    """Return the last list in a text with Python's own spacing."""
    for found in reversed(_LIST.findall(text)):
        try:
            return str(list(ast.literal_eval(found)))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


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
