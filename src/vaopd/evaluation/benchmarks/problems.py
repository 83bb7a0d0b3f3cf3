"""Benchmarks in the layout of training problems: Geometry3K, ViRL39K, drawn and user files."""

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

    For a ``Problem`` without an answer it returns ``None``.
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
    """Return the verdict: the option, or the free answer by value as in validation of training."""
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


_GEOMETRY3K = {"licence": "MIT", "citation": "Lu et al. 2021, arXiv:2105.04165"}
PROBLEM_SETS = (
    problem_benchmark(
        "geometry3k", "Geometry3K test", source="hiyouga/geometry3k@test", size=601, **_GEOMETRY3K
    ),
    problem_benchmark(
        "geometry3k_validation",
        "Geometry3K validation",
        source="hiyouga/geometry3k@validation",
        size=300,
        **_GEOMETRY3K,
    ),
    # The set has no test split, so a run must leave these 500 problems out of its training data.
    # For a model that was trained on all of ViRL39K this score is not valid.
    problem_benchmark(
        "virl39k",
        "ViRL39K held out",
        source="TIGER-Lab/ViRL39K?sample=500&seed=42",
        size=500,
        licence="MIT by a third party's table",
        citation="Wang et al. 2025, arXiv:2504.08837",
    ),
    # From the test stream, which training never uses.
    problem_benchmark(
        "drawn",
        "drawn problems",
        source="drawn:test?count=240",
        size=240,
        licence="Apache-2.0, drawn by this package",
    ),
)
"""Named benchmarks in the layout of training problems."""
