"""One process, two replicas and two halves of a sharded model learn the same."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from vaopd.config import load_config
from vaopd.errors import ConfigError
from vaopd.records import read_rows
from vaopd.training.checkpoint import newest_checkpoint
from vaopd.training.loop import train

RECIPE = """
student: {model: "tiny:student"}
teacher: {model: "tiny:teacher-s", batch_tokens: 1}
data:
  train: drawn:train?count=15
  validation: drawn:validation?count=3
  min_pixels: 1024
  max_pixels: 1048576
sampling: {num_rollouts: 2, temperature: 1.0, top_p: 1.0, max_new_tokens: 12, batch_tokens: 1}
validation: {num_samples: 1, pixelated: true}
training:
  problems_per_step: 3
  max_steps: 5
  learning_rate: 1.0e-4
  micro_batch_tokens: 1
  save_every: 3
  keep_checkpoints: null
  validate_every: null
  log_rollouts_every: 1
"""
"""Three problems over two processes. Each problem travels alone, so the layouts round alike."""

SCRIPT = Path(__file__).with_name("parallel_runs.py")
KINDS = ("ddp", "fsdp2")

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 900


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *map(str, arguments)]
    return start(command)


def start(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the runs of one process and of two: ``one``, ``ddp``, ``fsdp2``, ``ddp-fsdp2``, ..."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "recipe.yaml").write_text(RECIPE)
    train(load_config(folder / "recipe.yaml"), folder / "one", console=quiet())
    single = ("training.problems_per_step=1", "training.max_steps=2", "data.validation=null")
    train(load_config(folder / "recipe.yaml", single), folder / "one-alone", console=quiet())
    done = torchrun(SCRIPT, "compare", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def numbers(path: Path) -> list[dict]:
    timings = ("time/", "tokens_per_second")
    return [
        {key: value for key, value in row.items() if not key.startswith(timings)}
        for row in read_rows(path)
    ]


def assert_same_rows(found: Path, expected: Path) -> None:
    rows, others = numbers(found), numbers(expected)
    assert len(rows) == len(others) > 0
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5), found


def assert_same_weights(found: Path, expected: Path) -> None:
    ours, theirs = load_file(found), load_file(expected)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        # An update moves a weight by up to 1e-4.
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_learns(folder: Path, kind: str):
    losses = [row["loss"] for row in numbers(folder / kind / "metrics.jsonl")]
    expected = [row["loss"] for row in numbers(folder / "one" / "metrics.jsonl")]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len(set(losses)) == 5
    for name in ("checkpoints/step_000003", "checkpoints/step_000005", "final"):
        assert_same_weights(
            folder / kind / name / "model.safetensors", folder / "one" / name / "model.safetensors"
        )
