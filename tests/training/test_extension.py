"""A run that is resumed to more steps, and what that does to its learning rate."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from vaopd.config import load_config
from vaopd.errors import ConfigError
from vaopd.records import read_rows
from vaopd.training.extension import extension
from vaopd.training.run import train
from vaopd.training.step import Step


def training_of(make_config: Callable, *overrides: str):
    return make_config(*overrides).training


def test_the_two_learning_rates_are_said(make_config: Callable):
    # No warm-up in 8 or 16 steps; peak 1e-3. Step 8 of 8: (1 + cos(7/8 pi)) / 2 = .0381.
    # Step 9 of 16: (1 + cos(8/16 pi)) / 2 = .5.
    saved = training_of(make_config, "training.max_steps=8")
    longer = training_of(make_config, "training.max_steps=16")
    assert extension(saved, longer, 8, 8) == (
        "extended from 8 to 16 steps: the schedule is computed for 16, so the learning rate goes "
        "from 3.81e-05 at step 8 to 5.00e-04 at step 9"
    )


def test_more_epochs_extend_a_run_without_a_step_limit(make_config: Callable):
    saved = training_of(make_config, "training.max_steps=null", "training.epochs=2")
    longer = training_of(make_config, "training.max_steps=null", "training.epochs=4")
    # 8 problems at 2 a step: 4 steps an epoch.
    assert (extension(saved, longer, 8, 3) or "").startswith("extended from 8 to 16 steps")


def test_epochs_beyond_the_step_limit_change_nothing(make_config: Callable):
    saved = training_of(make_config, "training.max_steps=4")
    assert extension(saved, training_of(make_config, "training.max_steps=4"), 8, 2) is None
    more = training_of(make_config, "training.max_steps=4", "training.epochs=9")
    assert extension(saved, more, 8, 2) is None


def test_a_length_that_the_run_has_not_reached_yet_is_shorter_too(make_config: Callable):
    saved = training_of(make_config, "training.max_steps=8")
    with pytest.raises(ConfigError, match="give 6 steps, but the run was made for 8"):
        extension(saved, training_of(make_config, "training.max_steps=6"), 8, 2)


def test_a_run_that_begins_at_its_first_step_has_no_curve_to_leave(make_config: Callable):
    saved = training_of(make_config, "training.max_steps=8")
    assert extension(saved, training_of(make_config, "training.max_steps=16"), 8, 0) is None


def test_a_finished_run_is_extended_and_a_shorter_one_refused(
    make_config: Callable, tmp_path: Path
):
    output = tmp_path / "run"
    train(make_config("training.max_steps=2"), output, console=Console(file=io.StringIO()))
    first = (output / "final" / "model.safetensors").read_bytes()
    console = Console(file=io.StringIO(), width=300)
    longer = make_config("training.max_steps=3")
    result = train(longer, output, resume=True, console=console)
    assert isinstance(console.file, io.StringIO)
    # Peak 1e-3: step 2 of 2 has (1 + cos(pi / 2)) / 2, step 3 of 3 (1 + cos(2/3 pi)) / 2.
    assert (
        "extended from 2 to 3 steps: the schedule is computed for 3, so the learning rate goes "
        "from 5.00e-04 at step 2 to 2.50e-04 at step 3"
    ) in console.file.getvalue()
    rows = read_rows(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 5e-4, 2.5e-4])
    assert result.steps == json.loads((output / "summary.json").read_text())["steps"] == 3
    assert (output / "final" / "model.safetensors").read_bytes() != first
    assert load_config(output / "config.yaml") == longer

    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"give 1 steps, but the run was made for 3.*resume with"):
        train(make_config("training.max_steps=1"), output, resume=True, console=console)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_run_that_goes_on_is_not_called_finished(
    make_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    output = tmp_path / "run"
    quiet = Console(file=io.StringIO())
    train(make_config("training.max_steps=1"), output, console=quiet)
    assert (output / "summary.json").exists()

    def no_step(*arguments: object) -> None:
        raise OSError("the next step fails")

    monkeypatch.setattr(Step, "run", no_step)
    with pytest.raises(OSError, match="the next step fails"):
        train(make_config("training.max_steps=2"), output, resume=True, console=quiet)
    assert not (output / "summary.json").exists()
