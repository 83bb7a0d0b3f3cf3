"""The example of a model card, with torchvision, which the environment of vLLM has."""

import os
import subprocess
from pathlib import Path

import torch
from tests.card_example import card_example

from vaopd.models.loading import load_model
from vaopd.rollouts.vllm.server import PYTHON_VARIABLE
from vaopd.training.export import export


def test_the_full_processor_of_an_export_answers_where_torchvision_is_installed(tmp_path: Path):
    cpu, dtype = torch.device("cpu"), torch.float32
    load_model("tiny:student", device=cpu, dtype=dtype, compute_dtype=dtype).save(tmp_path / "base")
    export(tmp_path / "base", tmp_path / "model")
    code = card_example(tmp_path / "model")
    done = subprocess.run(
        [os.environ[PYTHON_VARIABLE], "-c", code],
        cwd=tmp_path / "model",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 2
