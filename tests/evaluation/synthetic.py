"""A full-size synthetic set of predictions: the eight benchmarks of the paper, all items.

python tests/evaluation/synthetic.py DIR [--samples 8]
vaopd evaluate --predictions DIR
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vaopd.evaluation.benchmark import Item
from vaopd.evaluation.benchmarks.mathverse import VERSIONS
from vaopd.evaluation.benchmarks.mmmu import SUBJECTS
from vaopd.evaluation.benchmarks.mmstar import CATEGORIES
from vaopd.evaluation.benchmarks.ocrbench import TYPES
from vaopd.evaluation.predictions import Prediction, write_items
from vaopd.evaluation.registry import BENCHMARKS, PAPER
from vaopd.records import write_rows

WORDS = [
    "the",
    "lower",
    "angle",
    "of",
    "this",
    "figure",
    "is",
    "equal",
    "to",
    "what",
    "stands",
    "so",
]


def rows(name: str, count: int) -> Iterator[dict[str, Any]]:
    """Yield rows in the schema of a benchmark."""
    options = ["12", "13 cm", "an acute triangle", "none of these"]
    for number in range(count):
        letter = "ABCD"[number % 4]
        base: dict[str, Any] = {"question": f"Question {number}?", "image": b"none"}
        if name == "wemath":
            steps, at = (2, number) if number < 360 * 3 else (3, number - 360 * 3)
            tree, step = divmod(at, steps + 1)
            key = f"{steps}steps_{'multi' if step == steps else step + 1}"
            yield base | {"ID": str(tree), "key": key, "answer": letter,
                          "option": "; ".join(f"{k}. {v}" for k, v in zip("ABCD", options, strict=True))}  # fmt: skip
        elif name == "mathvista":
            kind = ("text", "integer", "float")[number % 3]
            answer = {"text": options[number % 4], "integer": "12", "float": "3.5"}[kind]
            yield base | {"pid": str(number), "answer_type": kind, "answer": answer,
                          "precision": 1, "choices": options if kind == "text" else None,
                          "question_type": "multi_choice" if kind == "text" else "free_form"}  # fmt: skip
        elif name == "mathverse":
            is_choice = number % 10 < 5
            yield base | {"sample_index": str(number), "problem_index": str(number // 5),
                          "problem_version": VERSIONS[number % 5],
                          "question_type": "multi-choice" if is_choice else "free-form",
                          "question": "What?\nChoices:\nA:1\nB:2\nC:3\nD:4" if is_choice else "What?",
                          "answer": letter if is_choice else ("5\\sqrt{3}", "8.25")[number % 2]}  # fmt: skip
        elif name == "hallusionbench":
            yield base | {"category": "VD", "subcategory": "map", "visual_input": "1",
                          "set_id": str(number // 8), "figure_id": str(number // 2 % 4),
                          "question_id": str(number % 2), "gt_answer": str(number % 2)}  # fmt: skip
        elif name == "ai2d":
            yield base | {"id": str(number), "options": options, "answer": str(number % 4)}
        elif name == "mmmu":
            open_item = number % 17 == 0
            yield base | {"id": f"validation_{SUBJECTS[number % 30]}_{number}",
                          "question_type": "open" if open_item else "multiple-choice",
                          "options": str([] if open_item else options),
                          "answer": "12" if open_item else letter}  # fmt: skip
        elif name == "mmstar":
            listed = ", ".join(f"{k}: {v}" for k, v in zip("ABCD", options, strict=True))
            yield base | {"index": str(number), "question": f"What?\nOptions: {listed}",
                          "answer": letter, "category": CATEGORIES[number % 6]}  # fmt: skip
        else:
            kind = TYPES[number % 10]
            yield base | {"index": str(number), "question_type": kind, "answer": ["12", "twelve"],
                          "dataset": "HME100k" if kind == TYPES[-1] else "svt"}  # fmt: skip


def response(item: Item, generator: random.Random) -> str:
    """Return a response that is right half of the time, in one of several forms."""
    reference = item.reference
    gold = reference.get("answers", reference.get("answer"))
    gold = gold[0] if isinstance(gold, list) else gold
    wrong = "no" if gold == "yes" else "yes" if gold == "no" else generator.choice("ABCD17")
    value = gold if generator.random() < 0.5 else wrong
    prose = " ".join(generator.choices(WORDS, k=60))
    form = generator.choice(
        ("{p}.\n\\boxed{{{v}}}", "{p}.\nAnswer: {v}", "The answer is {v}. {p}", "{v}", "{p}")
    )
    return form.format(p=prose, v=value)


def write_synthetic(output: Path, samples: int, sizes: dict[str, int] | None = None) -> int:
    """Write items and predictions; return the number of responses.

    ``sizes`` names the benchmarks and how many items each has; without it, they are the eight of
    the paper, each complete.
    """
    total = 0
    for name in sizes or PAPER:
        generator = random.Random(name)
        benchmark = BENCHMARKS[name]
        assert benchmark.size is not None
        count = sizes[name] if sizes else benchmark.size
        items = [item for row in rows(name, count) if (item := benchmark.item(row))]
        assert len({item.id for item in items}) == count, name
        write_items(output / name, items)
        predictions = [
            Prediction(id=item.id, sample=sample, response=response(item, generator),
                       finish_reason="length" if generator.random() < 0.02 else "stop",
                       response_tokens=80)
            for item in items for sample in range(samples)
        ]  # fmt: skip
        write_rows(output / name / "predictions.jsonl", (asdict(one) for one in predictions))
        total += len(predictions)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    print(json.dumps({"responses": write_synthetic(options.output, options.samples)}))


if __name__ == "__main__":
    main()
