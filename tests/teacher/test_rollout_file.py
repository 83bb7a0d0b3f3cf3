import json
from pathlib import Path

import pytest
import torch

from vaopd.config import parse_config
from vaopd.errors import ProblemError
from vaopd.problems.drawn import DrawnProblems
from vaopd.teacher.local import LocalTeacher, load_teacher
from vaopd.teacher.rollout_file import score_file

CONFIG = parse_config(
    {
        "student": {"model": "tiny:teacher-m"},
        "teacher": {"model": "tiny:teacher-m"},
        "data": {"train": "-", "min_pixels": 1024, "max_pixels": 1048576},
    }
)


@pytest.fixture(scope="module")
def teacher() -> LocalTeacher:
    return load_teacher(CONFIG, torch.device("cpu"))


def write_rows(folder: Path, **changes: object) -> Path:
    """Write three rows that all carry the same id, as a trainer's step counter would."""
    file = folder / "rollouts.jsonl"
    rows = []
    for index, problem in enumerate(DrawnProblems(split="test", num_problems=3)):
        (image,) = problem.images
        assert isinstance(image, bytes)
        (folder / f"{index}.png").write_bytes(image)
        row = {"id": "7", "problem": problem.prompt, "images": [f"{index}.png"], "mine": index}
        rows.append(row | {"response": problem.references[0]} | changes)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def score(source: Path, output: Path, teacher: LocalTeacher) -> list[dict]:
    score_file(source, output, teacher, CONFIG)
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_every_row_comes_back_in_order_with_its_own_columns_and_scores(
    tmp_path: Path, teacher: LocalTeacher
):
    rows = score(write_rows(tmp_path), tmp_path / "scored.jsonl", teacher)
    assert [row["mine"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert "".join(row["tokens"]) == row["response"]
        gains = zip(row["original_logprobs"], row["degraded_logprobs"], strict=True)
        assert row["visual_advantage"] == pytest.approx([max(0, o - d) for o, d in gains], abs=2e-6)


def test_what_the_teacher_saw_is_saved_and_a_rows_own_images_stay(
    tmp_path: Path, teacher: LocalTeacher
):
    rows = score(write_rows(tmp_path), tmp_path / "scored.jsonl", teacher)
    assert [row["images"] for row in rows] == [["0.png"], ["1.png"], ["2.png"]]
    for row in rows:
        (original,), (degraded,) = row["original_images"], row["degraded_images"]
        assert original.startswith("scored_images/") and original != degraded
        assert (tmp_path / original).is_file() and (tmp_path / degraded).is_file()


def test_rows_that_share_an_id_are_scored_with_their_own_images(
    tmp_path: Path, teacher: LocalTeacher
):
    together = score(write_rows(tmp_path), tmp_path / "together.jsonl", teacher)
    lines = (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "alone.jsonl").write_text(lines[2] + "\n", encoding="utf-8")
    (alone,) = score(tmp_path / "alone.jsonl", tmp_path / "scored_alone.jsonl", teacher)
    assert together[2]["original_logprobs"] == pytest.approx(alone["original_logprobs"], abs=1e-4)


def test_the_printed_numbers_carry_the_advantage(tmp_path: Path, teacher: LocalTeacher):
    # The first digit of the first reading can only come from the image.
    (row, *_) = score(write_rows(tmp_path), tmp_path / "scored.jsonl", teacher)
    first = next(i for i, token in enumerate(row["tokens"]) if token.strip().isdigit())
    assert row["visual_advantage"][first] > 1
    assert row["is_high"][first]


def test_a_row_without_a_response_is_named_and_leaves_no_output(
    tmp_path: Path, teacher: LocalTeacher
):
    with pytest.raises(ProblemError, match="row 1 has neither a response text nor token_ids"):
        score(write_rows(tmp_path, response=""), tmp_path / "scored.jsonl", teacher)
    assert not list(tmp_path.glob("*scored*")) and not list(tmp_path.glob(".*partial"))


def test_what_a_recipe_adds_to_questions_is_before_the_scored_response(
    tmp_path: Path, teacher: LocalTeacher
):
    plain = score(write_rows(tmp_path), tmp_path / "plain.jsonl", teacher)
    found = []
    for key in ("system_prompt", "prompt_suffix"):
        data = CONFIG.data.model_copy(update={key: "Be brief."})
        output = tmp_path / f"{key}.jsonl"
        score_file(
            tmp_path / "rollouts.jsonl", output, teacher, CONFIG.model_copy(update={"data": data})
        )
        found.append([json.loads(line) for line in output.read_text().splitlines()])
    for rows in found:
        assert [row["token_ids"] for row in rows] == [row["token_ids"] for row in plain]
        assert [row["original_logprobs"] for row in rows] != [
            row["original_logprobs"] for row in plain
        ]
    assert found[0][0]["original_logprobs"] != found[1][0]["original_logprobs"]
