"""Every command that loads a model refuses one whose weights are not all there, in one sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from vaopd.models.loading import load_model

LAYER = "model.language_model.layers.0.mlp.up_proj.weight"

RECIPE = """
student: {{model: {student}}}
teacher: {{model: {teacher}}}
data: {{train: "drawn:train?count=8", min_pixels: 1024}}
training: {{max_steps: 1, problems_per_step: 2, device: cpu}}
"""

COMMANDS = {
    "student": ("train", "student.yaml", "--output", "out"),
    "teacher": ("train", "teacher.yaml", "--output", "out"),
    "evaluate": ("evaluate", "model", "--benchmark", "drawn", "--device", "cpu", "--output", "out"),
    "score": ("score", "--teacher", "model", "--rollouts", "texts.jsonl", "--output", "out"),
    "serve": ("serve-teacher", "model", "--port", "0"),
    "export": ("export", "model", "--output", "out"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_not_go_on_with_random_weights(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    monkeypatch.chdir(tmp_path)
    logging.disable_progress_bar()  # of the save below; the commands do it for their loads
    cpu, dtype = torch.device("cpu"), torch.float32
    load_model("tiny:new-student", device=cpu, dtype=dtype, compute_dtype=dtype).save(Path("model"))
    weights = load_file("model/model.safetensors")
    del weights[LAYER]
    save_file(weights, "model/model.safetensors", metadata={"format": "pt"})
    other = "tiny:new-student"
    Path("student.yaml").write_text(RECIPE.format(student="model", teacher=other))
    Path("teacher.yaml").write_text(RECIPE.format(student=other, teacher="model"))
    Path("texts.jsonl").write_text("{}\n")
    code, _, err = run(*COMMANDS[command])
    assert code == 1
    (line,) = err.strip().splitlines()
    assert line.startswith(f"error: model 'model' cannot be used: 1 weight is missing: {LAYER};")
    # An evaluation notes what it is about to do; no command has results.
    assert command == "evaluate" or not Path("out").exists()
    assert list(Path("out").rglob("predictions.jsonl")) == []
