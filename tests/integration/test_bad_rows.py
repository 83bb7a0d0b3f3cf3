"""Two processes leave out the same bad rows as one."""

import json
from pathlib import Path

import pytest
from parallel_runs import run_by_recipe
from PIL import Image
from world_processes import launched

from vaopd.records import read_rows

RECIPE = """
student: {model: "tiny:new-student"}
teacher: {model: "tiny:new-teacher-s"}
data: {train: DATA, on_bad_row: skip, min_pixels: 1024, max_pixels: 1048576}
sampling: {num_rollouts: 2, max_new_tokens: 6}
training: {problems_per_step: 2, epochs: 1, learning_rate: 1.0e-4, device: cpu}
"""


def write_rows(folder: Path) -> Path:
    """Write eight rows, of which the second does not read and two others are found by checks."""
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    for name in ("a.png", "cut.png"):
        noise.save(folder / name)
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:2000])
    good = {"images": ["a.png"], "answer": "1"}
    rows = [{**good, "problem": f"<image>What is {n}?"} for n in range(8)]
    rows[1]["problem"] = "What?"
    rows[3]["images"] = ["cut.png"]
    rows[5]["problem"] = "<image>" + "long " * 9000
    path = folder / "made.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_two_processes_leave_out_what_one_leaves_out(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("DATA", str(write_rows(tmp_path))))
    run_by_recipe(recipe, tmp_path / "none")
    launched(2, run_by_recipe, recipe, tmp_path / "ddp", "training.parallel=ddp")
    manifests = [(tmp_path / name / "manifest.json").read_text() for name in ("none", "ddp")]
    assert manifests[0] == manifests[1]
    assert json.loads(manifests[0])["train"]["problems"] == 5
    assert len(json.loads(manifests[0])["skipped"]["train"]) == 3
    losses = [
        [row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl")]
        for name in ("none", "ddp")
    ]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
