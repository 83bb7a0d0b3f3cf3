"""Runs that sample through a vLLM server without a model; tests/vllm has the real one."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_vllm import fake_python
from rich.console import Console

from vaopd.config import RunConfig
from vaopd.errors import ConfigError, EngineError
from vaopd.records import read_rows
from vaopd.training.run import train


@pytest.fixture
def vllm_config(make_config: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., RunConfig]:
    def make(*overrides: str) -> RunConfig:
        return make_config(
            "sampling.engine=vllm",
            f"sampling.vllm.python={fake_python(tmp_path)}",
            "training.log_rollouts_every=1",
            "training.max_steps=3",
            "training.save_every=1",
            *overrides,
        )

    return make


def quiet() -> Console:
    return Console(file=io.StringIO(), width=500)


def versions(output: Path, step: int) -> set[int]:
    rows = read_rows(output / "rollouts" / f"step_{step:06d}.jsonl")
    return {row["weights_version"] for row in rows}


def test_each_step_samples_from_the_weights_before_it(vllm_config, tmp_path: Path):
    console = quiet()
    train(vllm_config(), tmp_path / "run", console=console)
    assert [versions(tmp_path / "run", step) for step in (1, 2, 3)] == [{0}, {1}, {2}]
    assert "vLLM answers after" in console.file.getvalue()  # pyright: ignore
    assert "fake vLLM" in (tmp_path / "run" / "vllm.log").read_text()


def test_a_teacher_that_is_sampled_from_is_sent_once(vllm_config, tmp_path: Path):
    train(vllm_config("method.name=off_policy_kd"), tmp_path / "run", console=quiet())
    assert versions(tmp_path / "run", 3) == {0}


def test_a_killed_server_ends_the_run_and_a_resumed_one_finishes(vllm_config, tmp_path: Path):
    # Two problems a step, so the second step kills the server.
    killed = vllm_config('sampling.vllm.arguments=["--kill-at", "3"]')
    output = tmp_path / "run"
    with pytest.raises(EngineError, match=rf"exit code -9; see {output / 'vllm.log'}"):
        train(killed, output, console=quiet())
    assert [row["step"] for row in read_rows(output / "metrics.jsonl")] == [1]
    train(vllm_config(), output, resume=True, console=quiet())
    assert [row["step"] for row in read_rows(output / "metrics.jsonl")] == [1, 2, 3]
    assert versions(output, 2) == {1}


def test_a_missing_environment_is_found_before_there_is_a_folder(make_config, tmp_path: Path):
    config = make_config("sampling.engine=vllm", "sampling.vllm.python=/nowhere")
    with pytest.raises(ConfigError, match="not a Python interpreter"):
        train(config, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()
