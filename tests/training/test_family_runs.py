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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_trains_the_eyes_and_the_language_of_a_family(family: str, tmp_path: Path):
    for number, name in enumerate(("student", "teacher")):
        (tmp_path / f"{name}-processor").mkdir()
        random_model(family, tmp_path / f"{name}-processor", number).save(tmp_path / name)
    config = parse_config(
        parse_overrides(
            ["training.device=cpu"],
            {
                "student": {"model": str(tmp_path / "student")},
                "teacher": {"model": str(tmp_path / "teacher")},
                "data": {"train": "drawn:train?count=8", "min_pixels": 1024, "max_pixels": 4096},
                "sampling": {"num_rollouts": 2, "max_new_tokens": 4},
                "training": {"problems_per_step": 2, "max_steps": 2, "learning_rate": 1e-3},
            },
        )
    )
    train(config, tmp_path / "run", console=Console(quiet=True))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)
    before, after = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("student", "run/final")
    )
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("vis" in name for name in changed)
    assert any("layers" in name and "vis" not in name for name in changed)
