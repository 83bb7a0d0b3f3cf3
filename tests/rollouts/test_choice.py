"""What ``sampling.engine=auto`` chooses; ``cuda`` is only a name here, no device is touched."""

import sys
from pathlib import Path

import pytest
import torch
from fake_vllm import fake_python

from vaopd.config import RunConfig, parse_config, parse_overrides
from vaopd.errors import ConfigError
from vaopd.rollouts.vllm.choice import choose_engine
from vaopd.rollouts.vllm.environment import record, recorded_python
from vaopd.rollouts.vllm.server import PYTHON_VARIABLE, find_python

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


def recipe(*overrides: str) -> RunConfig:
    values = {
        "student": {"model": "tiny:student"},
        "teacher": {"model": "tiny:teacher-s"},
        "data": {"train": "drawn:train?count=4"},
        "sampling": {"engine": "auto"},
    }
    return parse_config(parse_overrides(overrides, values))


def test_an_engine_that_is_named_is_taken_without_a_word():
    for name in ("transformers", "vllm"):
        choice = choose_engine(recipe(f"sampling.engine={name}"), CUDA)
        assert (choice.engine, choice.line) == (name, None)


def test_a_cpu_samples_in_process_even_with_vllm(tmp_path: Path):
    python = fake_python(tmp_path)
    choice = choose_engine(recipe(f"sampling.vllm.python={python}"), torch.device("cpu"))
    assert choice.engine == "transformers"
    assert choice.line == ("sampling.engine=auto: sampling in process, because this run is on cpu")


def test_a_gpu_takes_the_first_environment_of_key_variable_and_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pythons = {}
    for name in ("key", "variable", "recorded"):
        (tmp_path / name).mkdir()
        pythons[name] = fake_python(tmp_path / name)
    record(pythons["recorded"])
    line = "sampling.engine=auto: vLLM (in the environment of {})"
    assert choose_engine(recipe(), CUDA).line == line.format(pythons["recorded"])
    monkeypatch.setenv(PYTHON_VARIABLE, str(pythons["variable"]))
    assert choose_engine(recipe(), CUDA).line == line.format(pythons["variable"])
    by_key = choose_engine(recipe(f"sampling.vllm.python={pythons['key']}"), CUDA)
    assert (by_key.engine, by_key.line) == ("vllm", line.format(pythons["key"]))


def test_a_vllm_in_this_environment_is_found_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "executable", str(fake_python(tmp_path)))
    assert choose_engine(recipe(), CUDA).engine == "vllm"


def test_a_gpu_without_vllm_samples_in_process_and_says_how_to_build_it():
    choice = choose_engine(recipe(), CUDA)
    assert choice.engine == "transformers"
    assert choice.line is not None
    assert "sampling in process, because vLLM is not installed for" in choice.line
    assert choice.line.endswith("or build one: vaopd setup-vllm DIR")


def test_an_environment_that_was_removed_is_named_and_not_used(tmp_path: Path):
    record(tmp_path / "gone" / "bin" / "python")
    choice = choose_engine(recipe(), CUDA)
    assert choice.engine == "transformers"
    assert f"'{tmp_path}/gone/bin/python' is not a Python interpreter" in (choice.line or "")


def test_an_interpreter_that_the_user_named_must_have_vllm(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="'/nowhere' is not a Python interpreter"):
        choose_engine(recipe("sampling.vllm.python=/nowhere"), CUDA)
    monkeypatch.setenv(PYTHON_VARIABLE, "/elsewhere")
    with pytest.raises(ConfigError, match="'/elsewhere' is not a Python interpreter"):
        choose_engine(recipe(), CUDA)


def test_servers_that_run_already_need_no_environment():
    choice = choose_engine(recipe("sampling.vllm.addresses=[http://127.0.0.1:1]"), CUDA)
    assert choice.line == "sampling.engine=auto: vLLM (at http://127.0.0.1:1)"


def test_what_vllm_cannot_serve_is_sampled_in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record(fake_python(tmp_path))
    assert "samples no rollouts" in (choose_engine(recipe("method.name=sft"), CUDA).line or "")
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    choice = choose_engine(recipe("training.parallel=ddp"), CUDA)
    assert choice.engine == "transformers"
    assert "16 processes on several machines" in (choice.line or "")


def test_a_family_that_was_not_tried_is_sampled_in_process(tmp_path: Path):
    from transformers import LlavaConfig

    record(fake_python(tmp_path))
    LlavaConfig().save_pretrained(tmp_path / "llava")
    choice = choose_engine(recipe(f"student.model={tmp_path / 'llava'}"), CUDA)
    assert choice.engine == "transformers"
    assert "is a llava, and vLLM was tried with" in (choice.line or "")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"python": 3}', "\xff"])
def test_a_record_that_cannot_be_read_counts_as_none(text: str, tmp_path: Path):
    (tmp_path / "settings" / "vaopd").mkdir(parents=True)
    (tmp_path / "settings" / "vaopd" / "vllm.json").write_text(text, encoding="latin-1")
    assert recorded_python() is None


def test_every_user_of_vllm_finds_the_recorded_environment(tmp_path: Path):
    python = fake_python(tmp_path)
    record(python)
    assert find_python(None, "--vllm-python") == str(python)
