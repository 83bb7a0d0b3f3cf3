import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vaopd.evaluation.validation import Validator
from vaopd.records import read_rows
from vaopd.training import run as run_module
from vaopd.training.checkpoint import newest_checkpoint
from vaopd.training.run import train
from vaopd.training.step import Step
from vaopd.training.stopping import StopRequest


def quiet() -> Console:
    return Console(file=io.StringIO(), width=300)


def signal_in_step_2(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    run = Step.run

    def signalled(self: Step, problems: list, step: int, coming: list):
        if step == 2:
            os.kill(os.getpid(), number)
        return run(self, problems, step, coming)

    monkeypatch.setattr(Step, "run", signalled)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_behind_its_step_and_it_can_go_on(
    make_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    config = make_config("training.max_steps=3", "training.save_every=null")
    before = signal.getsignal(number)
    console = quiet()
    with monkeypatch.context() as patch:
        signal_in_step_2(patch, number)
        result = train(config, tmp_path / "run", console=console)
    assert (result.is_stopped, result.steps) == (True, 2)
    assert isinstance(console.file, io.StringIO)
    assert "stopping: this step is finished and saved first" in console.file.getvalue()
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and newest.name == "step_000002"
    assert not (tmp_path / "run" / "final").exists()
    assert not (tmp_path / "run" / "summary.json").exists()
    assert signal.getsignal(number) is before
    rest = train(config, tmp_path / "run", resume=True, console=quiet())
    assert (rest.is_stopped, rest.steps) == (False, 3)
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_the_command_says_how_to_go_on(
    run: Callable, tmp_path: Path, make_config: Callable, monkeypatch: pytest.MonkeyPatch
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(make_config("training.max_steps=3").to_yaml())
    signal_in_step_2(monkeypatch, signal.SIGTERM)
    code, out, _ = run("train", recipe, "--output", tmp_path / "run")
    assert code == 0
    assert "stopped after step 2; the same command with --resume goes on" in out


def test_a_signal_during_the_last_step_changes_nothing(
    make_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    signal_in_step_2(monkeypatch, signal.SIGTERM)
    result = train(make_config("training.max_steps=2"), tmp_path / "run", console=quiet())
    assert (result.is_stopped, result.steps) == (False, 2)
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_a_signal_during_a_save_costs_one_more_step(
    make_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = run_module.save_checkpoint

    def signalled(*arguments: object) -> None:
        save(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    config = make_config("training.max_steps=4", "training.save_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_checkpoint", signalled)
        result = train(config, tmp_path / "run", console=quiet())
    assert (result.is_stopped, result.steps) == (True, 3)
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and newest.name == "step_000003"


def test_a_signal_before_the_first_step_leaves_a_run_that_begins_again(
    make_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = make_config("data.validation=drawn:validation?count=2", "training.max_steps=1")
    examine = Validator.examine

    def signalled(self: Validator, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return examine(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Validator, "examine", signalled)
        result = train(config, tmp_path / "run", console=quiet())
    assert (result.is_stopped, result.steps) == (True, 0)
    assert train(config, tmp_path / "run", resume=True, console=quiet()).steps == 1


def test_a_second_interrupt_ends_a_plain_run_at_once():
    said: list[str] = []
    with StopRequest(said.append) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_made
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert said == ["stopping: this step is finished and saved first; Ctrl-C again stops now"]


def test_a_launcher_may_repeat_the_interrupt():
    said: list[str] = []
    with StopRequest(said.append, has_launcher=True) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_made
    assert said == ["stopping: this step is finished and saved first"]
