"""Benchmarks in the layout of training problems: Geometry3K, ViRL39K, drawn, and users' own."""

from vaopd.evaluation.benchmark import (
    Benchmark,
    Item,
    Row,
    Verdict,
    by_reference_category,
    verdict_of,
)
from vaopd.evaluation.benchmarks.own import own_item
from vaopd.evaluation.options import grade_letter
from vaopd.grading.grades import grade as grade_free
from vaopd.grading.reading import Rule
from vaopd.problems.problem import Problem


def item(row: Row) -> Item | None:
    """Return the item of a row that holds a ``Problem``, or of a user's row.

    A ``Problem`` without an answer has none.
    """
    problem = row.get("problem")
    if not isinstance(problem, Problem):
        return own_item(row)
    if problem.answer is None:
        return None
    return Item(
        id=problem.id,
        prompt=problem.prompt,
        images=problem.images,
        reference={
            "answer": problem.answer,
            "category": problem.kind,
            "question": problem.prompt,
        },
    )


def grade(response: str, item: Item, rule: Rule, *, is_truncated: bool = False) -> Verdict:
    """Compare the free answer by value, the rule of validation during training, or the option."""
    reference = item.reference
    if reference.get("options"):
        return grade_letter(response, item, rule, is_truncated=is_truncated)
    return verdict_of(
        grade_free(
            response,
            reference.get("answers") or reference["answer"],
            rule=rule,
            is_truncated=is_truncated,
            tolerance=reference.get("tolerance", 0.0),
        )
    )


def problem_benchmark(
    name: str,
    title: str,
    *,
    source: str,
    size: int | None = None,
    licence: str = "as its owner says",
    citation: str = "",
) -> Benchmark:
    """Return the benchmark of a source that ``load_problems`` reads."""
    return Benchmark(
        name=name,
        title=title,
        hub_id=None,
        split="",
        columns=("images", "problem", "answer"),
        problems=source,
        size=size,
        licence=licence,
        citation=citation,
        item=item,
        grade=grade,
        measure=by_reference_category,
    )
