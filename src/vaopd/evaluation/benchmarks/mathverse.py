"""MathVerse testmini: each problem has five versions with different amounts of text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vaopd.evaluation import cells
from vaopd.evaluation.benchmark import (
    Benchmark,
    Graded,
    Item,
    Measurement,
    Row,
    Verdict,
    image_first,
    verdict_of,
)
from vaopd.grading.grades import grade as grade_free
from vaopd.grading.grades import grade_choice
from vaopd.grading.naming import LETTERS
from vaopd.grading.reading import Rule

VERSIONS = (
    "Text Dominant",
    "Text Lite",
    "Vision Intensive",
    "Vision Dominant",
    "Vision Only",
)
_CHOICE_LINE = re.compile(r"^\s*\(?([A-H])\s*[:.)]\s*(.+?)\s*$", re.MULTILINE)
_ASK = {
    True: "provide the correct option letter, e.g., A, B, C, D.",
    False: "provide the final value, e.g., 1, 2.5, 300.",
}


def item(row: Row) -> Item | None:
    """Return one version of one problem; its prompt is the published query if the row has one.

    It returns ``None`` for ``Text Only``, a separate set without images.
    """
    metadata = row.get("metadata")
    details: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
    version = cells.text(row, "problem_version") or str(details.get("problem_version") or "")
    version = " ".join(version.replace("_", " ").title().split())
    if version not in VERSIONS:
        return None
    is_choice = cells.required(row, "question_type").replace("_", "-") == "multi-choice"
    question = cells.text(row, "question")
    full = question or cells.text(row, "question_for_eval")
    choices = _choices(row, full) if is_choice else {}
    if is_choice and not choices:
        # Only the image shows the options.
        choices = {letter: "" for letter in LETTERS[:6]}
    problem = cells.text(row, "problem_index", "problem_group")
    return Item(
        id=cells.required(row, "sample_index", "pid", "index"),
        prompt=image_first(
            cells.text(row, "query_wo") or _query(is_choice, _with_choices(question, row))
        ),
        images=cells.images(row, "image", "decoded_image"),
        reference={
            "answer": cells.required(row, "answer").strip(),
            "options": choices,
            "version": version,
            "category": version,
            "question": full,
            "subject": str(details.get("subject") or details.get("subjects") or ""),
        },
        cluster=f"problem {problem}" if problem else "",
    )


def _choices(row: Row, question: str) -> dict[str, str]:
    listed = "\n".join(cells.sequence(row.get("choices")))
    return dict(_CHOICE_LINE.findall(listed or question.partition("Choices:")[2]))


def _with_choices(question: str, row: Row) -> str:
    listed = cells.sequence(row.get("choices"))
    if not question or not listed or "Choices:" in question:
        return question
    return f"{question.rstrip()}\nChoices:\n" + "\n".join(listed)


def _query(is_choice: bool, question: str) -> str:
    """Return the direct query for rows without one, such as those of the project page."""
    ask = f"directly answer the question and {_ASK[is_choice]}"
    if not question:
        return f"According to the question shown in the image, please {ask}"
    return f"Please {ask}\nQuestion: {question}"


def grade(response: str, item: Item, rule: Rule, *, is_truncated: bool = False) -> Verdict:
    """Return the verdict: letters are compared, or the free answer by value.

    The official scorer uses a language model in two steps, so report this score as rule-based.
    """
    reference = item.reference
    gold, options = reference["answer"], reference["options"]
    if options:
        letter = gold.strip("().")
        return verdict_of(
            grade_choice(response, letter, options, rule=rule, is_truncated=is_truncated)
        )
    return verdict_of(grade_free(response, gold, rule=rule, is_truncated=is_truncated))


def measure(run: Sequence[Graded]) -> Iterable[Measurement]:
    """Yield accuracy overall and by version."""
    for graded in run:
        item, value = graded.item, float(graded.verdict.is_correct)
        for part in ("micro", item.reference["version"]):
            yield Measurement(part, item.cluster or item.id, value)


BENCHMARK = Benchmark(
    name="mathverse",
    title="MathVerse",
    hub_id="AI4Math/MathVerse",
    configs=("testmini",),
    split="testmini",
    columns=(
        "sample_index",
        "problem_index",
        "problem_version",
        "question",
        "image",
        "answer",
        "question_type",
        "metadata",
        "query_wo",
        "question_for_eval",
    ),
    files=("testmini.jsonl", "sample.jsonl", "MathVerse_MINI.tsv"),
    size=3940,
    licence="MIT on the hub's card; the project page says CC BY-SA 4.0",
    citation="Zhang et al. 2024, arXiv:2403.14624",
    item=item,
    grade=grade,
    measure=measure,
    combinations={"mean of versions": dict.fromkeys(VERSIONS, 1 / len(VERSIONS))},
    headline="mean of versions",
    judge_question=lambda item: item.reference["question"],
)
