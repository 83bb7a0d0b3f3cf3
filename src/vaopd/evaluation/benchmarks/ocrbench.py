"""OCRBench: 1,000 questions about text in images, scored by containment."""

from collections.abc import Iterable, Sequence

from vaopd.errors import ProblemError
from vaopd.evaluation import cells
from vaopd.evaluation.benchmark import (
    Benchmark,
    Graded,
    Item,
    Measurement,
    Row,
    Verdict,
    image_first,
)
from vaopd.grading.reading import Rule
from vaopd.grading.transcription import read_transcription

TYPES = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition",
)


def item(row: Row) -> Item:
    """Return one question; nothing is added to its text."""
    answer = row.get("answer", row.get("answers"))
    if isinstance(answer, str) and answer.startswith("[") and "dataset_name" not in row:
        answer = cells.sequence(answer)
    golds = [str(one) for one in answer] if isinstance(answer, list) else [str(answer or "")]
    if not any(gold.strip() for gold in golds):
        raise ProblemError("answer is missing or empty; download the row again")
    kind = cells.required(row, "question_type", "type", "category")
    if kind not in TYPES:
        raise ProblemError(f"question_type {kind!r} is none of the ten types")
    dataset = cells.text(row, "dataset", "dataset_name") or _dataset_of(kind)
    identity = cells.text(row, "index", "image_path", "id")
    question = cells.required(row, "question")
    return Item(
        # One image may have several questions.
        id=f"{dataset}/{identity}/{question}" if identity else "",
        prompt=image_first(question),
        images=cells.images(row, "image"),
        reference={"answers": golds, "dataset": dataset, "type": kind, "question": question},
    )


def _dataset_of(kind: str) -> str:
    # The TSV does not name data sets; only the one of handwritten formulas has a special rule.
    return "HME100k" if kind == TYPES[-1] else ""


def grade(response: str, item: Item, rule: Rule, *, is_truncated: bool = False) -> Verdict:
    """Return the verdict: right if the answer of the reply contains a gold text.

    ``raw`` is the official rule, which searches the whole reply.
    """
    reading = read_transcription(response, rule=rule, is_truncated=is_truncated)
    golds, dataset = item.reference["answers"], item.reference["dataset"]
    return Verdict(
        reading.text,
        reading.text is not None and contains(reading.text, golds, dataset),
        {"raw": contains(response, golds, dataset)},
        reading.confidence,
        reading.rule,
    )


def contains(text: str, golds: Sequence[str], dataset: str) -> bool:
    """Return whether a gold text occurs, ignoring case, or for HME100k ignoring spaces."""
    return any(_folded(gold, dataset) in _folded(text, dataset) for gold in golds if gold.strip())


def _folded(text: str, dataset: str) -> str:
    text = text.strip().replace("\n", " ")
    return text.replace(" ", "") if dataset == "HME100k" else text.lower()


def measure(run: Sequence[Graded]) -> Iterable[Measurement]:
    """Yield hits in the answer and in the whole reply, each overall and by type."""
    for graded in run:
        item, verdict = graded.item, graded.verdict
        for part, is_hit in (
            ("final span", verdict.is_correct),
            ("raw text", verdict.variants.get("raw", False)),
        ):
            yield Measurement(part, item.id, float(is_hit))
            yield Measurement(f"{part}/{item.reference['type']}", item.id, float(is_hit))


BENCHMARK = Benchmark(
    name="ocrbench",
    title="OCRBench",
    hub_id="echo840/OCRBench",
    split="test",
    columns=("dataset", "question", "question_type", "answer", "image"),
    files=("test.jsonl", "OCRBench.json", "OCRBench.tsv"),
    size=1000,
    licence="MIT for the repository; images keep the terms of 29 source sets",
    citation="Liu et al. 2024, arXiv:2305.07895",
    item=item,
    grade=grade,
    measure=measure,
    headline="final span",
)
