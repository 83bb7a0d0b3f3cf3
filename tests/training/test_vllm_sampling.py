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


VALIDATED = (
    "data.validation=drawn:validation?count=2",
    "validation.num_samples=2",
    "training.validate_every=1",
)


def answers(output: Path, step: int) -> list[list[int]]:
    return [row["token_ids"] for row in read_rows(output / "validation" / f"step_{step:06d}.jsonl")]


@pytest.mark.parametrize("lag", [0, 1])
def test_validation_is_answered_by_vllm_with_the_weights_after_the_step(
    vllm_config, tmp_path: Path, lag: int
):
    config = vllm_config(*VALIDATED, f"training.rollout_lag={lag}", "validation.pixelated=true")
    train(config, tmp_path / "run", console=quiet())
    # The fake's ids follow from the seed of the request alone: the same in every validation.
    first, last = answers(tmp_path / "run", 0), answers(tmp_path / "run", 3)
    assert len(first) == 2 * 2 * 2
    assert first == last
    log = (tmp_path / "run" / "vllm.log").read_text()
    # A step samples from what the validation before it sent.
    assert [line for line in log.splitlines() if line.startswith("version ")] == [
        f"version {number}" for number in range(4)
    ]
    weights = [line for line in log.splitlines() if line.startswith("weights ")]
    assert len(weights) == len(set(weights)) == 4


def test_validation_is_greedy_where_the_recipe_says_so(vllm_config, tmp_path: Path):
    config = vllm_config(*VALIDATED, "validation.temperature=0", "training.max_steps=1")
    train(config, tmp_path / "run", console=quiet())
    ids = answers(tmp_path / "run", 1)
    # Two equal answers to each problem.
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_vllm_sleeps_after_a_validation(vllm_config, tmp_path: Path):
    config = vllm_config(*VALIDATED, "sampling.vllm.sleep=true", "training.max_steps=1")
    train(config, tmp_path / "run", console=quiet())
    log = (tmp_path / "run" / "vllm.log").read_text()
    # After the validation before the step, after the step's rollouts, after the last validation.
    assert log.count("asleep") == 3


def test_a_student_that_does_not_sample_the_rollouts_is_validated_in_process(
    vllm_config, make_config, tmp_path: Path
):
    method = ("method.name=off_policy_kd", *VALIDATED, "training.max_steps=1")
    train(vllm_config(*method), tmp_path / "run", console=quiet())
    train(make_config(*method), tmp_path / "plain", console=quiet())
    assert answers(tmp_path / "run", 0) == answers(tmp_path / "plain", 0)


def test_auto_is_the_transformers_sampler_on_a_cpu_to_the_last_bit(make_config, tmp_path: Path):
    console = quiet()
    same = ("training.device=cpu", "training.log_rollouts_every=1", *VALIDATED)
    train(make_config(*same, "sampling.engine=auto"), tmp_path / "auto", console=console)
    train(make_config(*same), tmp_path / "plain", console=quiet())
    assert "because this run is on cpu" in console.file.getvalue()  # pyright: ignore
    for file in ("config.yaml", "rollouts/step_000001.jsonl", "validation/step_000002.jsonl"):
        texts = [(tmp_path / run / file).read_bytes() for run in ("auto", "plain")]
        assert texts[0] == texts[1]
    losses = [
        [row["loss"] for row in read_rows(tmp_path / run / "metrics.jsonl")]
        for run in ("auto", "plain")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_a_missing_environment_is_found_before_there_is_a_folder(make_config, tmp_path: Path):
    config = make_config("sampling.engine=vllm", "sampling.vllm.python=/nowhere")
    with pytest.raises(ConfigError, match="not a Python interpreter"):
        train(config, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()
