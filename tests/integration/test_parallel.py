"""One process, two replicas and two halves of a sharded model learn the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_vllm import fake_python
from parallel_runs import (
    ADAPTERS,
    ALONE,
    AUTO,
    KINDS,
    LAG,
    REWARDED,
    VALIDATED,
    VLLM,
    config_of,
    prepare_beside,
    run,
)
from safetensors.torch import load_file

from vaopd.distributed.collectives import VARIABLE
from vaopd.errors import RunFolderError
from vaopd.records import read_rows
from vaopd.training.checkpoint import newest_checkpoint

RECIPE = """
student: {model: "tiny:student"}
teacher: {model: "tiny:teacher-s", batch_tokens: 1}
data:
  train: drawn:train?count=12&kinds=number+sum+dial
  validation: drawn:validation?count=3&kinds=number+sum+dial
  min_pixels: 1024
  max_pixels: 1048576
sampling: {num_rollouts: 2, temperature: 1.0, top_p: 1.0, max_new_tokens: 40, batch_tokens: 1}
validation: {num_samples: 1, pixelated: true}
training:
  problems_per_step: 3
  max_steps: 4
  learning_rate: 1.0e-4
  micro_batch_tokens: 1
  save_every: 2
  keep_checkpoints: null
  validate_every: null
  log_rollouts_every: 1
  gradient_noise_every: 2
"""
"""Three problems over two processes. Each problem travels alone, so the layouts round alike."""

SCRIPT = Path(__file__).with_name("parallel_runs.py")

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
        env=os.environ | {"OMP_NUM_THREADS": "1", VARIABLE: "1"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the runs of one process and of two: ``one``, ``ddp``, ``fsdp2``, ``ddp-fsdp2``, ..."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "recipe.yaml").write_text(RECIPE)
    run(config_of(folder), folder / "one")
    run(config_of(folder, *ALONE), folder / "one-alone")
    run(config_of(folder, *ADAPTERS), folder / "one-adapters")
    run(config_of(folder, *REWARDED), folder / "one-rewarded")
    prepare_beside(config_of(folder, *LAG), folder / "one-lag")
    run(config_of(folder, *AUTO), folder / "one-auto")
    vllm = (*VLLM, f"sampling.vllm.python={fake_python(folder)}")
    run(config_of(folder, *vllm), folder / "one-vllm")
    run(config_of(folder, *vllm, "training.rollout_lag=1"), folder / "one-vllm-lag")
    run(config_of(folder, *vllm, *VALIDATED), folder / "one-vllm-validated")
    done = torchrun(SCRIPT, "compare", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def numbers(path: Path) -> list[dict]:
    timings = ("time/", "beside/", "tokens_per_second")
    return [
        {key: value for key, value in row.items() if not key.startswith(timings)}
        for row in read_rows(path)
    ]


def assert_same_rows(found: Path, expected: Path) -> None:
    rows, others = numbers(found), numbers(expected)
    assert len(rows) == len(others) > 0
    for row, other in zip(rows, others, strict=True):
        assert row.pop("accuracy_by_kind", None) == other.pop("accuracy_by_kind", None)
        # pytest.approx compares no value that was not measured.
        assert [name for name in row if row[name] is None] == [
            name for name in other if other[name] is None
        ]
        row, other = ({k: v for k, v in r.items() if v is not None} for r in (row, other))
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
    assert len(set(losses)) == 4
    measured = [row for row in numbers(folder / kind / "metrics.jsonl") if "gradient/noise" in row]
    assert [row["step"] for row in measured] == [2, 4]
    for name in ("checkpoints/step_000002", "checkpoints/step_000004", "final"):
        assert_same_weights(
            folder / kind / name / "model.safetensors", folder / "one" / name / "model.safetensors"
        )


def test_the_runs_compared_have_ragged_rollouts_and_a_share_for_each(folder: Path):
    rows = read_rows(folder / "one" / "rollouts" / "step_000001.jsonl")
    assert len({len(row["token_ids"]) for row in rows}) > 2
    assert len({row["problem_id"] for row in rows}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_records_are_those_of_one_process(folder: Path, kind: str):
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert_same_rows(folder / kind / name, folder / "one" / name)
    for name in ("rollouts/step_000001.jsonl", "validation/step_000000.jsonl"):
        ours, theirs = read_rows(folder / kind / name), read_rows(folder / "one" / name)
        for key in ("problem_id", "sibling", "token_ids", "is_correct"):
            assert [row[key] for row in ours] == [row[key] for row in theirs]
        for row, other in zip(ours, theirs, strict=True):
            for key in {"kl", "token_weight", "visual_advantage"} & other.keys():
                assert row[key] == pytest.approx(other[key], rel=1e-3, abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_a_problem_enters_the_same_collectives(folder: Path, kind: str):
    found, expected = folder / f"{kind}-alone", folder / "one-alone"
    assert_same_rows(found / "metrics.jsonl", expected / "metrics.jsonl")
    assert_same_weights(found / "final/model.safetensors", expected / "final/model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_what_they_learn_in_one_process(folder: Path, kind: str):
    found, expected = folder / f"{kind}-adapters", folder / "one-adapters"
    assert_same_rows(found / "metrics.jsonl", expected / "metrics.jsonl")
    for name in ("final/model.safetensors", "final/adapter/adapter_model.safetensors"):
        assert_same_weights(found / name, expected / name)
    shutil.rmtree(found / "checkpoints/step_000002")
    run(config_of(folder, *ADAPTERS), found, resume=True)
    name = "final/adapter/adapter_model.safetensors"
    assert_same_weights(found / name, expected / name)


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_two_views_of_the_student_and_its_start_are_those_of_one_process(
    folder: Path, kind: str
):
    found, expected = folder / f"{kind}-rewarded", folder / "one-rewarded"
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert_same_rows(found / name, expected / name)
    rows, tested = numbers(found / "metrics.jsonl"), numbers(found / "validation.jsonl")
    assert rows[0]["kl/masked"] > 0.01
    assert rows[1]["kl/reference"] > 0
    assert tested[0]["teacher_kl"] > 0.01
    assert tested[0]["accuracy_sampled"] is not None
    assert_same_weights(found / "final/model.safetensors", expected / "final/model.safetensors")


def test_threads_that_prepare_the_next_step_do_not_get_between_the_others(folder: Path):
    assert [row["rollout/lag"] for row in read_rows(folder / "ddp-lag/metrics.jsonl")][1:] == [
        1
    ] * 3
    assert_same_rows(folder / "ddp-lag/metrics.jsonl", folder / "one-lag/metrics.jsonl")
    name = "final/model.safetensors"
    assert_same_weights(folder / "ddp-lag" / name, folder / "one-lag" / name)


@pytest.mark.parametrize("lag", ["", "-lag"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_vllm_server_samples_for_both_processes_from_the_weights_of_each_step(
    folder: Path, kind: str, lag: str
):
    found, expected = folder / f"{kind}-vllm{lag}", folder / f"one-vllm{lag}"
    assert_same_rows(found / "metrics.jsonl", expected / "metrics.jsonl")
    name = "final/model.safetensors"
    assert_same_weights(found / name, expected / name)
    versions = [
        {row["weights_version"] for row in read_rows(found / f"rollouts/step_00000{n}.jsonl")}
        for n in (1, 2, 3)
    ]
    assert versions == ([{0}, {0}, {1}] if lag else [{0}, {1}, {2}])
    ours, theirs = pushed(found / "vllm.log"), pushed(expected / "vllm.log")
    assert len(ours) == len(theirs) == (2 if lag else 3)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    assert len({row["lm_head.weight"] for row in ours}) == len(ours)


@pytest.mark.parametrize("kind", KINDS)
def test_one_vllm_server_validates_for_both_processes_after_each_step(folder: Path, kind: str):
    for step in (0, 1):
        name = f"validation/step_{step:06d}.jsonl"
        ours, theirs = (
            [(row["problem_id"], row["token_ids"]) for row in read_rows(folder / place / name)]
            for place in (f"{kind}-vllm-validated", "one-vllm-validated")
        )
        assert ours == theirs
        assert len(ours) == 3 * 2
    assert len(pushed(folder / f"{kind}-vllm-validated/vllm.log")) == 2


def pushed(log: Path) -> list[dict[str, float]]:
    """Return the sums of all weights that a server read, for each time it did."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("weights ")]
    return [json.loads(line.removeprefix("weights ")) for line in lines]


def test_a_server_sees_no_launcher_of_the_processes_that_share_it(folder: Path):
    text = (folder / "ddp-vllm/vllm.log").read_text()
    assert text.count("fake vLLM") == 1
    assert "launcher: []" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_sleeps_after_the_samples_of_both_processes(folder: Path, kind: str):
    lines = (folder / f"{kind}-vllm/vllm.log").read_text().splitlines()
    happened = [line.split()[0] for line in lines if line.startswith(("weights", "asleep"))]
    assert happened == ["weights", "asleep"] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_answer_to_one_process_is_the_error_of_both(folder: Path, kind: str):
    first, second = outcomes(folder / f"{kind}-unsampled")
    assert first == ["PeerError", "process 1 failed: expanded otherwise on purpose"]
    assert second == ["AlignmentError", "expanded otherwise on purpose"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vllm_that_only_the_first_process_misses_ends_both(folder: Path, kind: str):
    first, second = outcomes(folder / f"{kind}-nowhere")
    assert first[0] == "ConfigError" and "/nowhere" in first[1]
    assert second[0] == "PeerError" and second[1].endswith(first[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_server_ends_both_processes_with_its_log(folder: Path, kind: str):
    output = folder / f"{kind}-killed"
    first, second = outcomes(output)
    assert first[0] == "EngineError" and f"exit code -9; see {output / 'vllm.log'}" in first[1]
    assert second[0] == "PeerError" and "exit code -9" in second[1]
    assert [row["step"] for row in read_rows(output / "metrics.jsonl")] == [1]


def test_a_process_that_runs_out_of_memory_begins_again_and_the_update_is_the_same(folder: Path):
    assert outcomes(folder / "ddp-auto") == [[], [16384, 8192]]
    assert_same_weights(
        folder / "ddp-auto/final/model.safetensors", folder / "one-auto/final/model.safetensors"
    )


@pytest.mark.parametrize(
    ("writer", "reader"),
    [("one", "ddp"), ("one", "fsdp2"), ("ddp", "fsdp2"), ("fsdp2", "ddp"), ("fsdp2", "fsdp2")],
)
def test_any_kind_goes_on_from_the_checkpoint_of_any(folder: Path, writer: str, reader: str):
    assert_goes_on(folder / f"{writer}-{reader}", folder)


@pytest.mark.parametrize("writer", KINDS)
def test_one_process_goes_on_from_the_checkpoint_of_two(folder: Path, writer: str):
    output = folder / f"{writer}-one"
    copy_up_to_step_2(folder / writer, output)
    run(config_of(folder), output, resume=True)
    assert_goes_on(output, folder)


def copy_up_to_step_2(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("final", "step_000004"))


def assert_goes_on(output: Path, folder: Path) -> None:
    rows = numbers(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert_same_rows(output / "metrics.jsonl", folder / "one" / "metrics.jsonl")
    name = "final/model.safetensors"
    assert_same_weights(output / name, folder / "one" / name)
    # The moments of the first two steps, or the last two would go elsewhere.
    start = load_file(folder / "one/checkpoints/step_000002/model.safetensors")
    end = load_file(output / name)
    assert max((end[key] - start[key]).abs().max().item() for key in end) > 2e-5


def test_sharded_moments_are_written_by_every_process_and_not_pickled(folder: Path):
    state = folder / "fsdp2/checkpoints/step_000002/trainer_state"
    assert {path.name for path in state.iterdir()} == {
        "checksums.json",
        "optimizer.json",
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
        "state.json",
    }
    sizes = sorted(path.stat().st_size for path in state.glob("shard-*"))
    assert sizes[1] < 1.2 * sizes[0]


def test_a_lost_shard_is_noticed(folder: Path):
    output = folder / "lost"
    copy_up_to_step_2(folder / "fsdp2", output)
    next((output / "checkpoints/step_000002/trainer_state").glob("shard-00002*")).unlink()
    with pytest.raises(
        RunFolderError, match=r"step_000002 cannot be read \(.*/shard-00002.* missing"
    ):
        run(config_of(folder), output, resume=True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_one_process_ends_all_of_them(folder: Path, kind: str):
    first, second = outcomes(folder / f"{kind}-failed")
    assert first == ["PeerError", "process 1 failed: damaged on purpose"]
    assert second == ["ProblemError", "damaged on purpose"]
    # The first step was recorded.
    assert len(read_rows(folder / f"{kind}-failed" / "metrics.jsonl")) == 1


def test_a_full_disk_fails_the_save_in_all_processes_and_leaves_what_was_there(folder: Path):
    first, second = outcomes(folder / "fsdp2-full")
    assert first[0] == "RunFolderError" and "step_000004 could not be written" in first[1]
    assert second[0] == "PeerError"
    saved = [path.name for path in (folder / "fsdp2-full/checkpoints").iterdir()]
    assert saved == ["step_000002"]


def outcomes(output: Path) -> list[list[str]]:
    return [json.loads(output.with_name(f"{output.name}-{r}.json").read_text()) for r in (0, 1)]


def test_an_error_between_two_layers_ends_the_launch(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = torchrun(SCRIPT, "fsdp2", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error: failed on purpose") == 1
    # The first process was waiting; torchrun ended it before or after it noticed.
    assert done.stderr.count("error: ") <= 2


def test_accelerate_is_a_launcher_too(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    # Its --cpu starts a single process; with --multi_gpu it is torchrun, whatever the device.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "vaopd", "train", str(tmp_path / "recipe.yaml"), "training.parallel=ddp"]
    command += ["training.device=cpu", "training.max_steps=1", "data.validation=null"]
    command += ["--output", str(tmp_path / "run")]
    done = start(command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "in 2 processes (ddp)" in done.stderr
    assert done.stdout.count("1 steps in") == 1


def test_sigterm_of_the_launcher_saves_and_leaves_a_run_that_can_go_on(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    output = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", "-m", "vaopd", "train", str(tmp_path / "recipe.yaml"), "--output", str(output)]
    command += ["training.parallel=ddp", "training.max_steps=200", "training.epochs=100"]
    command += ["data.validation=null"]
    limits = {
        "OMP_NUM_THREADS": "1",
        VARIABLE: "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(PATIENCE_SECONDS),
    }
    process = subprocess.Popen(
        command, env=os.environ | limits, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (output / "metrics.jsonl").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    assert "stopped after step" in out
    assert err.count("stopping: this step is finished and saved first") == 1
    steps = [row["step"] for row in read_rows(output / "metrics.jsonl")]
    newest = newest_checkpoint(output)
    assert newest is not None and newest.name == f"step_{steps[-1]:06d}"
    assert not (output / "summary.json").exists()
