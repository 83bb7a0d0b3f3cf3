"""HallusionBench: yes-no questions about figures and edited copies of them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from vaopd.errors import ProblemError
from vaopd.evaluation import cells
from vaopd.evaluation.benchmark import (
    OFFICIAL,
    Benchmark,
    Graded,
    Item,
    Measurement,
    Row,
    Verdict,
    image_first,
)
from vaopd.grading.reading import Rule
from vaopd.grading.yes_no import read_yes_no


def item(row: Row) -> Item | None:
    """Return one question with an image; ``None`` for one without (``visual_input`` is 0)."""
    if cells.text(row, "visual_input") == "0":
        return None
    index = cells.text(row, "index").split("_")
    if "set_id" not in row and len(index) >= 6:
        # The TSV of VLMEvalKit has the three numbers in its index.
        row = {**row, "set_id": index[3], "figure_id": index[4], "question_id": index[5]}
    category = cells.required(row, "category")
    subcategory = cells.required(row, "subcategory", "l2-category", "l2_category")
    ids = [cells.required(row, name) for name in ("set_id", "figure_id", "question_id")]
    gold = cells.required(row, "gt_answer", "answer").strip().lower()
    if gold not in ("0", "1", "yes", "no"):
        raise ProblemError(f"gt_answer is {gold!r}, expected 0, 1, yes or no")
    group = f"{category}/{subcategory}/{ids[0]}"
    return Item(
        id=f"{group}/{ids[1]}/{ids[2]}",
        prompt=image_first(cells.required(row, "question")),
        images=cells.images(row, "image"),
        reference={
            "answer": "yes" if gold in ("1", "yes") else "no",
            "category": category,
            "figure": f"{group}/{ids[1]}",
            # In all figures of a set, the same number means the same question.
            "question_group": f"{group}//{ids[2]}",
            # VLMEvalKit ignores the category, so VD/ocr and VS/ocr are one group.
            "official_figure": f"{subcategory}/{ids[0]}/{ids[1]}",
            "official_group": f"{subcategory}/{ids[0]}//{ids[2]}",
            "question": cells.required(row, "question"),
            "details": cells.text(row, "gt_answer_details"),
        },
        cluster=group,
    )


def grade(response: str, item: Item, rule: Rule, *, is_truncated: bool = False) -> Verdict:
    """Return the verdict on yes or no.

    ``official`` is the rule of VLMEvalKit, by which a reply with both words has no answer.
    """
    gold = item.reference["answer"]
    reading = read_yes_no(response, rule=rule, is_truncated=is_truncated)
    return Verdict(
        reading.text,
        reading.text == gold,
        {OFFICIAL: yes_or_no(response) == gold},
        reading.confidence,
        reading.rule,
    )


def yes_or_no(text: str) -> str | None:
    """Return the only one of the two words that occurs, or ``None``."""
    words = set(re.findall(r"[^\W_]+", text.lower())) & {"yes", "no"}
    return words.pop() if len(words) == 1 else None


def measure(run: Sequence[Graded]) -> Iterable[Measurement]:
    """Yield aAcc over questions, fAcc over figures and qAcc over groups of one question.

    A figure or a group counts if all of its questions are right. ``official`` uses the rule and the
    groups of VLMEvalKit. The three metrics are resampled together by set, because figures and
    questions of a set share their content.
    """
    for graded in run:
        reference, value = graded.item.reference, float(graded.verdict.is_correct)
        yield Measurement("aAcc", graded.item.cluster, value)
        for name, is_right in graded.verdict.variants.items():
            yield Measurement(f"aAcc {name}", graded.item.cluster, float(is_right))
        yield Measurement(f"aAcc/{reference['category']}", graded.item.cluster, value)
    for part, key in (("fAcc", "figure"), ("qAcc", "question_group")):
        for members in _grouped(run, key):
            all_right = all(member.verdict.is_correct for member in members)
            yield Measurement(part, members[0].item.cluster, float(all_right))
    for part, key in (("fAcc", "official_figure"), ("qAcc", "official_group")):
        for members in _grouped(run, key):
            if OFFICIAL not in members[0].verdict.variants:
                continue
            all_right = all(member.verdict.variants[OFFICIAL] for member in members)
            yield Measurement(f"{part} {OFFICIAL}", members[0].item.cluster, float(all_right))


def _grouped(run: Sequence[Graded], key: str) -> Iterable[list[Graded]]:
    """Return the questions grouped by a key of their references; old files may lack newer keys."""
    groups: dict[str, list[Graded]] = defaultdict(list)
    for graded in run:
        reference = graded.item.reference
        older = {"official_figure": "figure", "official_group": "question_group"}.get(key, key)
        groups[reference.get(key) or reference[older].partition("/")[2]].append(graded)
    return groups.values()


BENCHMARK = Benchmark(
    name="hallusionbench",
    title="HallusionBench",
    hub_id="lmms-lab/HallusionBench",
    split="image",
    columns=(
        "category",
        "subcategory",
        "visual_input",
        "set_id",
        "figure_id",
        "question_id",
        "question",
        "gt_answer",
        "gt_answer_details",
        "image",
    ),
    files=("image.jsonl", "HallusionBench.json", "HallusionBench.tsv"),
    size=951,
    licence="BSD-3-Clause",
    citation="Guan et al. 2024, arXiv:2310.14566",
    item=item,
    grade=grade,
    measure=measure,
    combinations={"mean": {"aAcc": 1 / 3, "fAcc": 1 / 3, "qAcc": 1 / 3}},
    headline="mean",
    judge_question=lambda item: item.reference["question"],
)
