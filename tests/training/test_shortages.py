"""A lack of memory or of space is one sentence, and a folder that is gone is not begun anew."""

import errno
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vaopd.errors import RunFolderError, TrainingError, is_out_of_memory
from vaopd.training.run import train
from vaopd.training.run_folder import shortage_explained
from vaopd.training.step import Step

CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: x"


class PanicException(BaseException):
    """A panic of a library in Rust, which pyo3 does not make an Exception."""


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
        RuntimeError(CPU),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("x.so: failed to map segment from shared object"),
        RuntimeError("unable to mmap 4342400 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("could not create a primitive"),
        PanicException("The global thread pool has not been initialized.: ThreadPoolBuildError"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_kind_of_lack_of_memory_is_told_with_a_remedy(error: BaseException, tmp_path: Path):
    assert is_out_of_memory(error)
    remedy = r"^memory ran out \(.+\); start again with a lower training.micro_batch_tokens"
    with pytest.raises(TrainingError, match=remedy), shortage_explained(tmp_path):
        raise error
    (tmp_path / "config.yaml").touch()
    with pytest.raises(TrainingError, match="go on by --resume"), shortage_explained(tmp_path):
        raise error


def test_a_full_disk_is_told_with_what_is_used(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_bytes(bytes(3_000_000))
    words = r"the run could not be written \(.*No space left.*\); .* takes 3 MB\)$"
    with pytest.raises(RunFolderError, match=words), shortage_explained(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        FileNotFoundError(errno.ENOENT, "x"),
        TrainingError("memory"),
        KeyboardInterrupt(),
        SystemExit(3),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_stay_as_they_are(error: BaseException, tmp_path: Path):
    with pytest.raises(type(error)) as raised, shortage_explained(tmp_path):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_run_whose_folder_is_gone_ends_and_begins_no_other_folder(
    make_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_removed: bool
):
    output, intact = tmp_path / "run", Step.run

    def run(self: Step, problems: list, step: int, coming: list):
        result = intact(self, problems, step, coming)
        if step == 2 and is_removed:
            shutil.rmtree(output)
        elif step == 2:
            output.rename(tmp_path / "moved")
            output.mkdir()
        return result

    monkeypatch.setattr(Step, "run", run)
    with pytest.raises(RunFolderError, match="was moved or removed during the run; put it back"):
        train(make_config("training.max_steps=3"), output, console=Console(file=io.StringIO()))
    assert list(output.rglob("*")) == []
