"""A training whose teacher is in other processes: the same bits, and what happens when they die."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.teacher_service import TOKEN, Serving, serve_model

from vaopd.config import load_config
from vaopd.models.loading import load_model
from vaopd.records import append_row, read_rows
from vaopd.teacher.remote import pool
from vaopd.training import tracker
from vaopd.training.run import train

RECIPE = """
student: {model: "tiny:new-student"}
teacher: {model: "tiny:new-teacher-s", batch_tokens: 100}
data:
  train: drawn:train?count=7
  validation: drawn:validation?count=2
  min_pixels: 1024
  max_pixels: 1048576
sampling: {num_rollouts: 2, temperature: 1.0, top_p: 1.0, max_new_tokens: 6}
validation: {num_samples: 1, pixelated: true}
training:
  problems_per_step: 2
  max_steps: 4
  learning_rate: 1.0e-3
  save_every: 2
  keep_checkpoints: null
  validate_every: null
  log_rollouts_every: 1
"""

TIMINGS = ("time/", "tokens_per_second")

pytestmark = pytest.mark.slow


@dataclass
class Server:
    process: subprocess.Popen
    url: str

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def running() -> Iterator[list[Server]]:
    """Two servers: they are started once, and tests kill them one after the other."""
    environment = os.environ | {
        "VAOPD_TEACHER_TOKEN": TOKEN,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-m", "vaopd", "serve-teacher", "tiny:new-teacher-s", "--port", "0"]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        found = []
        for process in processes:
            assert process.stdout is not None
            # A token that was given is not printed again.
            line = process.stdout.readline()
            assert line.startswith("serving tiny:new-teacher-s (float32, on cpu): http://127.0.0.1")
            found.append(Server(process, line.split()[-1]))
        yield found
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="module")
def spare() -> Iterator[Serving]:
    """A server in this process, which no test kills."""
    options = {"dtype": torch.float32, "compute_dtype": torch.float32}
    serving = serve_model(load_model("tiny:new-teacher-s", device=torch.device("cpu"), **options))
    yield serving
    serving.stop()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAOPD_TEACHER_TOKEN", TOKEN)
    monkeypatch.setattr(pool, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remote") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def local(recipe: Path) -> Path:
    """The run with the teacher in this process."""
    return train(load_config(recipe), recipe.parent / "local", console=quiet()).output


def quiet() -> Console:
    return Console(file=io.StringIO())


def at(*found: Server | Serving) -> str:
    return f"teacher.addresses=[{', '.join(server.url for server in found)}]"


def kill_after_step(monkeypatch: pytest.MonkeyPatch, step: int, server: Server) -> None:
    def append(path: Path, row: dict) -> None:
        append_row(path, row)
        if path.name == "metrics.jsonl" and row["step"] == step:
            server.kill()

    monkeypatch.setattr(tracker, "append_row", append)


def without_timings(path: Path) -> list[dict]:
    return [
        {key: value for key, value in row.items() if not key.startswith(TIMINGS)}
        for row in read_rows(path)
    ]


def check_same_run(found: Path, expected: Path) -> None:
    rows = without_timings(found / "metrics.jsonl")
    assert len({row["loss"] for row in rows}) == 4
    assert rows == without_timings(expected / "metrics.jsonl")
    names = ["final/model.safetensors", "validation.jsonl", "validation/step_000004.jsonl"]
    names += [f"rollouts/step_{step:06d}.jsonl" for step in range(1, 5)]
    names += ["checkpoints/step_000004/trainer_state/optimizer.safetensors"]
    for name in names:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_run_with_a_teacher_elsewhere_has_the_bits_of_the_local_one(
    recipe: Path, local: Path, running: list[Server], tmp_path: Path
):
    config = load_config(recipe, [at(*running)])
    check_same_run(train(config, tmp_path / "run", console=quiet()).output, local)
    # The token is nowhere in the run folder.
    texts = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(texts) > 10
    assert not any(TOKEN.encode() in text for text in texts)
    # The teacher's own measures came from the servers too.
    (first, *_) = read_rows(tmp_path / "run" / "validation.jsonl")
    assert first["teacher_va"] is not None


def test_a_run_goes_on_when_one_of_two_servers_is_killed(
    recipe: Path, local: Path, running: list[Server], tmp_path: Path, monkeypatch
):
    kill_after_step(monkeypatch, 2, running[0])
    config = load_config(recipe, [at(*running)])
    check_same_run(train(config, tmp_path / "run", console=quiet()).output, local)
    assert running[0].process.returncode == -9


def test_a_run_without_servers_stops_and_is_resumed_to_the_same_bits(
    recipe: Path,
    local: Path,
    running: list[Server],
    spare: Serving,
    run: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_after_step(patch, 3, running[1])
        code, _, err = run("train", recipe, at(running[1]), "--output", output)
    assert code == 1
    (line,) = [row for row in err.splitlines() if row.startswith("error:")]
    assert f"no teacher answers: {running[1].url} (ConnectError" in line
    assert "go on with --resume" in line
    assert not (output / "final").exists()
    # Where the teacher runs is not what is learned, so another address is no other recipe.
    code, _, err = run("train", recipe, at(spare), "--output", output, "--resume")
    assert (code, "error" in err) == (0, False)
    check_same_run(output, local)


def test_another_token_and_none_are_sentences_before_there_is_a_folder(
    recipe: Path, spare: Serving, run: Callable, tmp_path: Path, monkeypatch
):
    arguments = ("train", recipe, at(spare), "--output", tmp_path / "run")
    monkeypatch.setenv("VAOPD_TEACHER_TOKEN", "wrong")
    code, _, err = run(*arguments)
    assert (code, "refuses the token; set VAOPD_TEACHER_TOKEN" in err) == (1, True)
    monkeypatch.delenv("VAOPD_TEACHER_TOKEN")
    code, _, err = run(*arguments)
    assert (code, "needs the servers' token in the environment variable" in err) == (2, True)
    assert not (tmp_path / "run").exists()
