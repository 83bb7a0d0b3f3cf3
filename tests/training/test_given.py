"""Problems that are given to a training in Python."""

import io
import json
from pathlib import Path

import datasets
import pytest
from rich.console import Console

from vaopd.config import parse_config
from vaopd.errors import ConfigError
from vaopd.problems.drawn import DrawnProblems
from vaopd.training.run import train


def test_a_training_takes_problems_from_python_and_records_that(tmp_path: Path):
    config = parse_config(
        {
            "student": {"model": "tiny:student"},
            "data": {"train": "nothing that exists", "min_pixels": 1024},
            "method": {"name": "sft"},
            "training": {"max_steps": 1, "problems_per_step": 2, "device": "cpu"},
        }
    )
    train_set = list(DrawnProblems(num_problems=2))
    held_out = datasets.Dataset.from_list(
        [
            {"id": one.id, "problem": one.prompt, "images": list(one.images), "answer": one.answer}
            for one in DrawnProblems(split="validation", num_problems=1)
        ]
    )
    data = {"train": train_set, "validation": held_out}
    quiet = Console(file=io.StringIO())
    run = tmp_path / "run"
    result = train(config, run, data=data, console=quiet)
    assert result.steps == 1
    assert result.after is not None
    recorded = (run / "config.yaml").read_text()
    assert "train: python:train" in recorded
    assert "validation: python:validation" in recorded
    assert json.loads((run / "manifest.json").read_text())["train"]["problems"] == 2
    again = train(config, run, data=data, console=quiet, resume=True)
    assert again.steps == 1
    other = {**data, "train": list(DrawnProblems(num_problems=2, seed=1))}
    with pytest.raises(ConfigError, match=r"data\.train has changed since"):
        train(config, run, data=other, console=quiet, resume=True)


def test_a_part_that_a_run_does_not_have_is_refused(tmp_path: Path):
    config = parse_config({"student": {"model": "s"}, "data": {"train": "drawn:train"}})
    with pytest.raises(ConfigError, match="data has the key 'test'; give the problems of train or"):
        train(config, tmp_path / "run", data={"test": []})
