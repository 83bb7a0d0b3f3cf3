"""A run that is killed and resumed ends in the bits of one that is not."""

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vaopd.config import load_config
from vaopd.records import read_rows
from vaopd.training.checkpoint import newest_checkpoint
from vaopd.training.run import train

RECIPE = """
student: {model: "tiny:new-student"}
teacher: {model: "tiny:new-teacher-s"}
data:
  train: drawn:train?count=7
  validation: drawn:validation?count=2
  min_pixels: 1024
  max_pixels: 1048576
sampling: {num_rollouts: 2, temperature: 1.0, top_p: 1.0, max_new_tokens: 6}
validation: {num_samples: 1, pixelated: true}
training:
  problems_per_step: 2
  max_steps: 8
  learning_rate: 1.0e-3
  save_every: 3
  keep_checkpoints: null
  validate_every: 4
  log_rollouts_every: 1
"""
"""Three steps an epoch, so the order of the second and third epoch counts."""

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 240

TIMINGS = ("time/", "tokens_per_second")


def quiet() -> Console:
    return Console(file=io.StringIO())


def start(recipe: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "vaopd", "train", str(recipe), "--output", str(output)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(command, env=os.environ | threads, stderr=subprocess.DEVNULL)


def kill_in_the_second_save(process: subprocess.Popen, output: Path) -> None:
    """Wait until the files of the checkpoint after step 6 are being written, then kill."""
    partial = output / "checkpoints" / ".step_000006.partial"
    whole = output / "checkpoints" / "step_000006"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (partial.exists() or whole.exists()):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no second checkpoint"
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def without_timings(path: Path) -> list[dict]:
    return [
        {key: value for key, value in row.items() if not key.startswith(TIMINGS)}
        for row in read_rows(path)
    ]


@dataclass
class Runs:
    whole: Path
    """Went through, in this process."""

    killed: Path
    """Killed in a process of its own, then resumed in this one."""

    newest_at_kill: Path | None
    steps_at_kill: list[int]
    files_at_kill: set[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("resume")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    killed = folder / "killed"
    process = start(recipe, killed)
    try:
        kill_in_the_second_save(process, killed)
    finally:
        process.kill()
        process.wait()
    newest = newest_checkpoint(killed)
    steps = [row["step"] for row in read_rows(killed / "metrics.jsonl")]
    files = {str(path.relative_to(killed)) for path in killed.rglob("*")}
    config = load_config(recipe)
    whole = train(config, folder / "whole", console=quiet())
    resumed = train(config, killed, resume=True, console=quiet())
    assert resumed.steps == whole.steps == 8
    return Runs(whole.output, killed, newest, steps, files)


def test_the_kill_came_after_a_checkpoint_and_before_the_end(runs: Runs):
    assert runs.newest_at_kill is not None
    # Step 6 is logged before it is saved.
    assert runs.steps_at_kill == [1, 2, 3, 4, 5, 6]
    assert "final" not in runs.files_at_kill


def test_what_had_the_name_of_a_checkpoint_was_complete(runs: Runs):
    """Usually the kill comes in the middle of the save; it may be late on a busy machine."""
    assert runs.newest_at_kill is not None
    is_late = runs.newest_at_kill.name == "step_000006"
    assert ("checkpoints/step_000006" in runs.files_at_kill) == is_late
    assert ("checkpoints/.step_000006.partial" in runs.files_at_kill) != is_late
    name = f"checkpoints/{runs.newest_at_kill.name}"
    for file in ("model.safetensors", "trainer_state/optimizer.safetensors"):
        assert f"{name}/{file}" in runs.files_at_kill


def test_the_resumed_run_ends_in_the_bits_of_the_uninterrupted_one(runs: Runs):
    names = ["final/model.safetensors"]
    for step in (3, 6, 8):
        folder = f"checkpoints/step_{step:06d}"
        names += [f"{folder}/model.safetensors", f"{folder}/trainer_state/optimizer.safetensors"]
    for name in names:
        assert (runs.killed / name).read_bytes() == (runs.whole / name).read_bytes(), name


def test_the_resumed_run_has_the_numbers_of_the_uninterrupted_one(runs: Runs):
    rows = without_timings(runs.killed / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows == without_timings(runs.whole / "metrics.jsonl")


def test_the_resumed_run_has_the_records_of_the_uninterrupted_one(runs: Runs):
    names = ["validation.jsonl", "config.yaml"]
    names += [f"rollouts/step_{step:06d}.jsonl" for step in range(1, 9)]
    for name in names:
        assert (runs.killed / name).read_bytes() == (runs.whole / name).read_bytes(), name
    assert [row["step"] for row in read_rows(runs.killed / "validation.jsonl")] == [0, 4, 8]


def test_nothing_of_the_interrupted_save_is_left(runs: Runs):
    hidden = [path for path in runs.killed.rglob(".*")]
    assert hidden == []


def test_every_step_changed_something(runs: Runs):
    # Or equal bits would prove nothing.
    rows = without_timings(runs.whole / "metrics.jsonl")
    assert len({row["loss"] for row in rows}) == 8
    weights = [
        (runs.whole / "checkpoints" / f"step_{step:06d}" / "model.safetensors").read_bytes()
        for step in (3, 6, 8)
    ]
    assert len(set(weights)) == 3
