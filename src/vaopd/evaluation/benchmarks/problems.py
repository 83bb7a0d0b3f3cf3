"""Benchmarks in the layout of training problems: Geometry3K, ViRL39K, drawn, and users' own."""

from vaopd.evaluation import answers
from vaopd.evaluation.answers import Rule
from vaopd.evaluation.benchmark import Benchmark, Item, Row, Verdict, by_reference_category
from vaopd.problems.problem import Problem


def item(row: Row) -> Item | None:
    """Return the item of a row that holds a ``Problem``; without an answer there is none."""
    problem: Problem = row["problem"]
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


def grade(response: str, item: Item, rule: Rule) -> Verdict:
    """Compare by text, number and math-verify: the rule of validation during training."""
    graded = answers.grade(response, item.reference["answer"], rule=rule)
    return Verdict(graded.extracted, graded.is_correct)


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
