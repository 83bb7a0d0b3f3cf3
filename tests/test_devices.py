import logging
from pathlib import Path

import pytest
import torch

from vaopd import devices
from vaopd.config import RunConfig, parse_config
from vaopd.devices import check_auto_device, unusable_gpu
from vaopd.errors import ConfigError
from vaopd.training.run import train

TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040)."
HUB = "Qwen/Qwen3-VL-2B-Instruct"


def raises_too_old() -> None:
    raise RuntimeError(TOO_OLD)


@pytest.fixture
def old_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose driver is there, with a CUDA build of torch that does not start."""
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02\n")
    monkeypatch.setattr(devices, "NVIDIA_FILES", (file,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", raises_too_old)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return file


def recipe(model: str, device: str = "auto") -> RunConfig:
    return parse_config(
        {
            "student": {"model": model},
            "teacher": {"model": "tiny:teacher-s"},
            "data": {"train": "drawn:train?count=2"},
            "training": {"device": device},
        }
    )


@pytest.mark.usefixtures("old_driver")
def test_a_driver_that_is_too_old_ends_a_run_of_a_hub_model_before_it_begins(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        train(recipe(HUB), tmp_path / "run")
    assert str(caught.value) == (
        "training.device is auto, and this machine has an NVIDIA GPU that cannot be used "
        f"({TOO_OLD}); update its driver, or install a torch that fits it, or set "
        "training.device=cpu"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("old_driver")
def test_tiny_models_run_on_the_cpu_with_a_warning(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        check_auto_device("auto", recipe("tiny:student").local_models)
    (line,) = caplog.messages
    assert TOO_OLD in line and "the CPU is used" in line


@pytest.mark.usefixtures("old_driver")
def test_a_device_that_the_user_chose_is_not_questioned(monkeypatch: pytest.MonkeyPatch):
    check_auto_device("cpu", [HUB])
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        check_auto_device("auto", [HUB])


def test_a_machine_without_a_gpu_has_nothing_to_report(
    old_driver: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "")
    old_driver.unlink()
    assert unusable_gpu() is None
    check_auto_device("auto", [HUB])


def test_a_gpu_is_found_by_nvidia_smi_where_the_driver_has_no_files(
    old_driver: Path, monkeypatch: pytest.MonkeyPatch
):
    old_driver.unlink()
    smi = old_driver.parent / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(old_driver.parent))
    assert unusable_gpu() == TOO_OLD
    smi.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert unusable_gpu() is None


@pytest.mark.usefixtures("old_driver")
def test_a_torch_without_cuda_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert unusable_gpu() == f"torch {torch.__version__} is a build without CUDA"


@pytest.mark.usefixtures("old_driver")
def test_a_gpu_that_works_has_nothing_to_report(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert unusable_gpu() is None


@pytest.mark.usefixtures("old_driver")
@pytest.mark.parametrize(
    "command",
    [
        ["score", "--teacher", HUB, "--rollouts", "FILE", "--output", "OUT"],
        ["evaluate", HUB, "--benchmark", "drawn", "--limit", "1", "--output", "OUT"],
        ["serve-teacher", HUB, "--port", "0"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_that_computes_refuses_the_silent_cpu(command, run, tmp_path, monkeypatch):
    (tmp_path / "FILE").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*command)
    assert code == 2
    assert err.count("\n") <= 2 and TOO_OLD in err, err
