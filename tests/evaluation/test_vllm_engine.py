"""``vaopd evaluate --engine vllm`` with a server without a model; tests/vllm has the real one."""

import json
from collections.abc import Callable
from pathlib import Path

from fake_vllm import fake_python

from vaopd.evaluation.engines.openai import runs_of
from vaopd.records import read_rows

Run = Callable[..., tuple[int, str, str]]
OPTIONS = ("--engine", "vllm", "--samples", 2, "--min-pixels", 1024, "--concurrency", 1)


def test_the_server_is_started_asked_and_stopped(run: Run, ai2d_data: Path, tmp_path: Path):
    output = tmp_path / "out"
    code, out, err = run(
        "evaluate", "tiny:student", "--benchmark", "ai2d", "--data", ai2d_data, "--output", output,
        *OPTIONS, "--vllm-python", fake_python(tmp_path), "--vllm-arguments", "--seed '1 2'",
    )  # fmt: skip
    assert code == 0, err
    # 4 items, each with its 2 samples in one request.
    assert "4 requests, 0 retries, 36 prompt" in out
    assert "vLLM is starting; its log is" in err
    protocol = json.loads((output / "protocol.json").read_text())
    assert (protocol["engine"], protocol["base_url"]) == ("vllm", None)
    log = (output / "vllm.log").read_text()
    assert "--served-model-name tiny:student --dtype float32 --seed 1 2" in log
    # The model's folder is gone with the server.
    folder = Path(log.split("--model ")[1].split()[0])
    assert folder.name.startswith("vaopd-model-")
    assert not folder.exists()


def test_samples_grow_to_what_one_run_of_all_of_them_gives(
    run: Run, ai2d_data: Path, tmp_path: Path
):
    def rows(output: Path, *calls: int) -> list[dict]:
        python = fake_python(tmp_path)
        for samples in calls:
            code, _, err = run(
                "evaluate", "tiny:student", "--benchmark", "ai2d", "--data", ai2d_data, "--output",
                output, *OPTIONS, "--samples", samples, "--vllm-python", python,
            )  # fmt: skip
            assert code == 0, err
        return read_rows(output / "ai2d" / "predictions.jsonl")

    grown, at_once = rows(tmp_path / "grown", 2, 4), rows(tmp_path / "once", 4)
    assert grown == at_once
    # The answer of the server is the seed: no two samples have the same one.
    assert len({row["response"] for row in grown}) == 16
    # Each sample has a count of its own, and usage has the sum of four.
    assert {row["response_tokens"] for row in grown} <= {2, 3, 4, 5, 6}


def test_samples_that_follow_each_other_are_one_request():
    assert runs_of([0, 1, 2, 3]) == [[0, 1, 2, 3]]
    assert runs_of([1, 3, 4]) == [[1], [3, 4]]
    assert runs_of([0, 1, 3], longest=1) == [[0], [1], [3]]


def test_a_server_that_dies_leaves_its_answers_and_the_same_command_goes_on(
    run: Run, ai2d_data: Path, tmp_path: Path
):
    output = tmp_path / "out"
    command = (
        "evaluate", "tiny:student", "--benchmark", "ai2d", "--data", ai2d_data, "--output", output,
        *OPTIONS, "--vllm-python", fake_python(tmp_path),
    )  # fmt: skip
    code, _, err = run(*command, "--vllm-arguments", "--kill-at 3")
    assert code == 1
    assert err.splitlines()[-1] == (
        f"error: the vLLM server ended with exit code -9; see {output / 'vllm.log'}; "
        "the same command goes on from here"
    )
    predictions = output / "ai2d" / "predictions.jsonl"
    assert len(predictions.read_text().splitlines()) == 4
    code, out, err = run(*command)
    assert code == 0, err
    assert "2 requests" in out
    assert len(predictions.read_text().splitlines()) == 8


def test_a_server_that_does_not_start_and_arguments_that_cannot_be_read(
    run: Run, ai2d_data: Path, tmp_path: Path
):
    command = ("evaluate", "tiny:student", "--benchmark", "ai2d", "--data", ai2d_data, *OPTIONS)
    python = fake_python(tmp_path, "exit 7")
    code, _, err = run(*command, "--output", tmp_path / "a", "--vllm-python", python)
    assert (code, "ended with exit code 7; see" in err) == (1, True)
    code, _, err = run(
        *command, "--output", tmp_path / "b", "--vllm-python", python, "--vllm-arguments", "'open"
    )
    assert (code, "cannot be read: No closing quotation" in err) == (2, True)
    code, _, err = run(*command, "--output", tmp_path / "b", "--vllm-python", "/nowhere")
    assert (code, "not a Python interpreter" in err) == (2, True)
    assert not (tmp_path / "b").exists()
