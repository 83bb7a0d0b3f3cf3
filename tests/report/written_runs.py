"""Hand-written run folders: text that a browser finds hard, and numbers known in advance."""

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vaopd.pictures import save_picture
from vaopd.views import pixelate

CONFIG = """\
student: {model: "tiny:student"}
teacher: {model: "tiny:teacher-m"}
method: {name: va_opd}
training: {max_steps: 4}
"""

LATEX = ["The", " angle", " is", " $", "\\frac", "{1}", "{2}", "$", " of", " 90", ",", "\n", "so",
         " \\boxed{", "45", "}", "."]  # fmt: skip
HOSTILE = ["<script>", "window.broken", "=1", "</script>", "<img src=x", " onerror=", "alert(1)>"]
MIXED = ["角度", "是", "שלום", " مرحبا", " 45", "°"]


def picture(text: str, side: int = 240) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    draw.polygon([(20, side - 30), (side - 20, side - 30), (side // 3, 30)], outline="black")
    draw.text((side // 2, side - 60), text, fill="black")
    return image


def row(tokens: list[str], **changes: Any) -> dict[str, Any]:
    """Return a rollout row whose token n has an advantage of n / 2 nats."""
    count = len(tokens)
    original = [-0.1] * count
    degraded = [-0.1 - n / 2 for n in range(count)]
    high = set(range(count - math.ceil(count / 5), count))
    base: dict[str, Any] = {
        "step": 1,
        "problem_id": "geometry:1",
        "sibling": 0,
        "prompt": "<image>Find the angle $\\alpha$ of the triangle.",
        "answer": "45",
        "response": "".join(tokens),
        "is_correct": True,
        "finish_reason": "stop",
        "rollout_weight": 0.75,
        "token_ids": list(range(count)),
        "tokens": tokens,
        "original_logprobs": original,
        "degraded_logprobs": degraded,
        "visual_advantage": [n / 2 for n in range(count)],
        "is_high": [n in high for n in range(count)],
        "kl": [(count - n) / 10 for n in range(count)],
        "token_weight": [0.75 / count] * count,
    }
    return base | changes


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def stored(folder: Path, text: str) -> dict[str, list[str]]:
    image = picture(text)
    return {
        "images": [f"images/{save_picture(image, folder / 'images')}"],
        "degraded_images": [f"images/{save_picture(pixelate(image), folder / 'images')}"],
    }


def write_evaluation(
    folder: Path, right: list[bool], *, limit: int = 64, benchmark: str = "drawn"
) -> Path:
    """Write what `vaopd evaluate` leaves: one item for each verdict, one sample, all parsed."""
    place = folder / benchmark
    ids = [f"p{number}" for number in range(len(right))]
    write_rows(
        place / "items.jsonl",
        [{"id": id, "prompt": "?", "reference": {"answer": "1"}, "cluster": ""} for id in ids],
    )
    write_rows(
        place / "verdicts.jsonl",
        [
            {"id": id, "sample": 0, "extracted": "1" if yes else "2", "is_correct": yes}
            for id, yes in zip(ids, right, strict=True)
        ],
    )
    value = 100 * sum(right) / len(right)
    score = {"benchmark": benchmark, "headline": "accuracy", "value": value,
             "interval": [value - 5, value + 5], "items": len(right), "samples": 1,
             "unparsed": 0.25, "truncated": 0.125}  # fmt: skip
    results = {"protocol": None, "benchmarks": {benchmark: score}, "averages": {}}
    (folder / "results.json").write_text(json.dumps(results))
    protocol = {"model": folder.name, "samples": 1, "max_new_tokens": limit}
    (folder / "protocol.json").write_text(json.dumps(protocol))
    return folder


def write_run(run: Path, *, is_finished: bool = True) -> Path:
    """Write a run of two steps, two problems and two siblings each, with validations."""
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG)
    (run / "environment.json").write_text(json.dumps({"device": "cpu", "commit": "abc123"}))
    if is_finished:
        (run / "summary.json").write_text("{}")
    metrics = [
        {"step": n, "loss": 1 / n, "kl/mean": 0.5 / n, "va/mean": 0.2 * n, "accuracy": n / 4,
         "response/length": 10, "response/truncated_share": 0.5, "time/sample": 1.5,
         "time/train": 0.5, "tokens_per_second": 100.0, "new/thing": 7}
        for n in (1, 2)
    ]  # fmt: skip
    write_rows(run / "metrics.jsonl", metrics)
    write_rows(
        run / "validation.jsonl",
        [
            {"step": 0, "accuracy": 0.25, "student_va": 1.0, "answer_change_rate": 0.1},
            {"step": 2, "accuracy": 0.5, "student_va": 2.0, "answer_change_rate": 0.3,
             "accuracy_by_kind": {"bars": 0.5}},
        ],
    )  # fmt: skip
    one, two = stored(run / "rollouts", "one"), stored(run / "rollouts", "two")
    other = {"problem_id": "geometry:2", "prompt": "<image>How long is AB?", **two}
    wrong = {"sibling": 1, "is_correct": False, "rollout_weight": 0.25}
    for step in (1, 2):
        write_rows(
            run / "rollouts" / f"step_{step:06d}.jsonl",
            [
                row(LATEX, step=step, **one),
                row(HOSTILE, step=step, **one, **wrong),
                row(MIXED, step=step, **other),
                row(["No", " idea", "."], step=step, **other, **wrong, finish_reason="length"),
            ],
        )
    return run
