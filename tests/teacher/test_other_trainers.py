"""Rollout files as ms-swift and verl write them, by the commands of docs/from_other_trainers.md."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vaopd.config import parse_config
from vaopd.problems.drawn import DrawnProblems
from vaopd.teacher.local import LocalTeacher, load_teacher
from vaopd.teacher.rollout_file import score_file

PAGE = Path(__file__).parents[2] / "docs" / "from_other_trainers.md"
CONFIG = parse_config(
    {
        "student": {"model": "tiny:teacher-s"},
        "teacher": {"model": "tiny:teacher-s"},
        "data": {"train": "-", "min_pixels": 1024, "max_pixels": 1048576},
    }
)
SIBLINGS = 2


@pytest.fixture(scope="module")
def teacher() -> LocalTeacher:
    return load_teacher(CONFIG, torch.device("cpu"))


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def problems(folder: Path) -> list[dict]:
    """Return two problems as rows with an image file each."""
    rows = []
    for number, problem in enumerate(DrawnProblems(split="test", num_problems=2)):
        (image,) = problem.images
        assert isinstance(image, bytes)
        (folder / f"{number}.png").write_bytes(image)
        text = {"problem": problem.prompt, "answer": problem.answer}
        rows.append({"id": f"p{number}", **text, "images": [f"{number}.png"]})
    return rows


def code(name: str) -> str:
    """Return the block of the page that begins with the name of a file."""
    (block,) = re.findall(rf"```python\n# {name}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return block


def run(folder: Path, name: str, *arguments: str, given: str = "") -> str:
    (folder / name).write_text(code(name))
    done = subprocess.run(
        [sys.executable, name, *arguments],
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_results_of_swift_infer_are_scored_as_they_are(tmp_path: Path, teacher: LocalTeacher):
    rows = [
        {
            "response": "It is 7.",
            "labels": row["answer"],
            "logprobs": None,
            "messages": [
                {"role": "user", "content": row["problem"]},
                {"role": "assistant", "content": "It is 7."},
            ],
            "images": [{"bytes": None, "path": str(tmp_path / row["images"][0])}],
        }
        for row in problems(tmp_path)
    ]
    source = lines(tmp_path / "result.jsonl", rows)
    score_file(source, tmp_path / "scored.jsonl", teacher, CONFIG)
    plain = [
        {"problem": row["problem"], "images": row["images"], "response": "It is 7."}
        for row in problems(tmp_path)
    ]
    score_file(lines(tmp_path / "plain.jsonl", plain), tmp_path / "same.jsonl", teacher, CONFIG)
    found, wanted = read(tmp_path / "scored.jsonl"), read(tmp_path / "same.jsonl")
    assert [row["labels"] for row in found] == [row["labels"] for row in rows]
    for one, other in zip(found, wanted, strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["visual_advantage"] == other["visual_advantage"]


def test_rollouts_of_verl_become_the_weights_of_the_paper(tmp_path: Path, teacher: LocalTeacher):
    known = problems(tmp_path)
    source = lines(tmp_path / "problems.jsonl", known)
    dumped = [
        {"input": "user\n..", "output": text, "gts": row["answer"], "score": 0.0, "step": 12,
         "problem_id": row["id"]}
        for row in known
        for text in ("The bar has 7.", "I see nothing of the kind here.")
    ]  # fmt: skip
    given = "".join(json.dumps(row) + "\n" for row in dumped)
    (tmp_path / "responses.jsonl").write_text(run(tmp_path, "responses.py", given=given))
    scored = tmp_path / "scored.jsonl"
    score_file(tmp_path / "responses.jsonl", scored, teacher, CONFIG, problems=str(source))
    rows = read(scored)
    assert [row["step"] for row in rows] == [12] * 4
    weights = [json.loads(line) for line in run(tmp_path, "weights.py", str(scored)).splitlines()]
    assert [len(one["weights"]) for one in weights] == [len(row["tokens"]) for row in rows]
    for first in range(0, 4, SIBLINGS):
        siblings = weights[first : first + SIBLINGS]
        assert len({one["problem_id"] for one in siblings}) == 1
        assert all(weight >= 0 for one in siblings for weight in one["weights"])
        assert sum(sum(one["weights"]) for one in siblings) == pytest.approx(1, rel=1e-5)
