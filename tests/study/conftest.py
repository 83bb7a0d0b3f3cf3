"""Run folders as a training leaves them, written by hand: no model is loaded here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vaopd.records import write_json, write_rows, write_text
from vaopd.study.plan import PlannedRun
from vaopd.study.runs import run_folder

BASE = """
student: {model: "tiny:student"}
teacher: {model: "tiny:teacher-m"}
data: {train: "drawn:train?count=8", validation: "drawn:validation?count=4"}
validation: {num_samples: 1, pixelated: true}
training: {problems_per_step: 2, max_steps: 2}
"""

STUDY = """
recipe: base.yaml
seeds: [0, 1]
overrides: [training.learning_rate=1.0e-4]
quick: {seeds: [5], overrides: [training.max_steps=1], tables: [methods]}
tables:
  methods:
    title: Methods
    baseline: opd
    figures: [intervals, curves, sparsity]
    arms:
      base: []
      opd: [method.name=opd]
      va_opd: []
  views:
    title: Views
    baseline: va_opd
    overrides: [method.epsilon=1.0e-6]
    axis: {name: strength, value: 0.5}
    arms:
      va_opd: []
      blur: [view.name=blur]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_text(tmp_path / "base.yaml", BASE)
    write_text(tmp_path / "study.yaml", STUDY)
    return tmp_path / "study.yaml"


def response(problem: int, view: str, is_correct: bool, **more: Any) -> dict[str, Any]:
    """Return one row of a validation file: two tokens, the second in the high group."""
    row = {
        "view": view,
        "problem_id": f"p{problem}",
        "sibling": 0,
        "kind": "bars" if problem < 2 else "dial",
        "response": "<script>alert(1)</script>",
        "is_correct": is_correct,
        "finish_reason": "stop",
        "token_ids": [1, 2],
        "tokens": ["<script>", "alert(1)</script>"],
    }
    if view == "original":
        row |= {"visual_advantage": [1.0, 3.0], "student_visual_advantage": [0.0, 0.5]}
        row["is_high"] = [False, True]
    else:
        row["is_changed"] = is_correct
    return row | more


def write_run(folder: Path, before: list[bool], after: list[bool], seconds: float = 2.0) -> None:
    """Write a finished run of two steps that answers four problems."""
    for step, verdicts in ((0, before), (2, after)):
        rows = [response(i, "original", is_right) for i, is_right in enumerate(verdicts)]
        rows += [response(i, "degraded", False) for i in range(len(verdicts))]
        write_rows(folder / "validation" / f"step_{step:06d}.jsonl", rows)
    numbers = [
        {"step": step, "accuracy": sum(v) / 4, "va_correlation": 0.25}
        for step, v in ((0, before), (2, after))
    ]
    write_rows(folder / "validation.jsonl", numbers)
    steps = [
        {"step": n, "response/tokens": 10 * n, "time/train": seconds, "time/score": 1.0}
        for n in (1, 2)
    ]
    write_rows(folder / "metrics.jsonl", steps)
    environment = {"commit": "abc1234", "device": "cpu", "threads": 1, "packages": {"vaopd": "0"}}
    write_json(folder / "environment.json", environment)
    write_json(folder / "summary.json", {})


@pytest.fixture
def finish(tmp_path: Path) -> Callable[..., None]:
    """Return a way to let a planned run have ended with these answers."""

    def write(run: PlannedRun, before: list[bool], after: list[bool], **more: Any) -> None:
        write_run(run_folder(tmp_path / "out", run), before, after, **more)

    return write
