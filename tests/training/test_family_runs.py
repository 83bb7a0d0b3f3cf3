"""Two steps of training with a student and a teacher of every family of docs/models.md."""

import json
from pathlib import Path

import pytest
import torch
from random_models import FAMILIES, random_model
from rich.console import Console
from safetensors.torch import load_file

from vaopd.config import parse_config, parse_overrides
from vaopd.training.run import train


def save_models(folder: Path, student: str, teacher: str) -> None:
    for number, (name, family) in enumerate((("student", student), ("teacher", teacher))):
        (folder / f"{name}-processor").mkdir()
        random_model(family, folder / f"{name}-processor", number).save(folder / name)


def losses_of(folder: Path, output: str, *overrides: str) -> list[float]:
    """Train for two steps with the models of a folder."""
    config = parse_config(
        parse_overrides(
            ["training.device=cpu", *overrides],
            {
                "student": {"model": str(folder / "student")},
                "teacher": {"model": str(folder / "teacher")},
                "data": {"train": "drawn:train?count=8", "min_pixels": 1024, "max_pixels": 4096},
                "sampling": {"num_rollouts": 2, "max_new_tokens": 4},
                "training": {"problems_per_step": 2, "max_steps": 2, "learning_rate": 1e-3},
            },
        )
    )
    train(config, folder / output, console=Console(quiet=True))
    lines = (folder / output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_dense_student_learns_from_a_teacher_with_experts(tmp_path: Path):
    # As Qwen3-VL-2B from Qwen3-VL-30B-A3B.
    save_models(tmp_path, "qwen3_vl", "qwen3_vl_moe")
    packed = losses_of(tmp_path, "packed", "teacher.cache_vision_mb=1")
    plain = losses_of(tmp_path, "plain", "training.share_prefix=false")
    assert packed == pytest.approx(plain, rel=1e-4)
    half = losses_of(tmp_path, "half", "teacher.dtype=bfloat16")
    assert half == pytest.approx(packed, rel=0.05)
    answers = losses_of(tmp_path, "answers", "method.name=off_policy_kd")
    assert len(answers) == 2 and all(0 < loss < 100 for loss in answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_trains_the_eyes_and_the_language_of_a_family(family: str, tmp_path: Path):
    save_models(tmp_path, family, family)
    losses = losses_of(tmp_path, "run")
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)
    before, after = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("student", "run/final")
    )
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("vis" in name for name in changed)
    assert any("layers" in name and "vis" not in name for name in changed)
