"""A step whose gradient is not finite is left out, counted and said."""

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from vaopd.errors import TrainingError
from vaopd.problems.problem import Problem
from vaopd.problems.sources import load_problems
from vaopd.records import read_json, read_rows
from vaopd.training import run as run_module
from vaopd.training.checkpoint import checkpoints
from vaopd.training.run import train
from vaopd.training.schedule import problems_of_step
from vaopd.training.skipping import Skips
from vaopd.training.step import Step
from vaopd.training.step_result import StepResult

Spoil = Callable[..., None]


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Let the gradient of the named steps be no number, and of no others."""
    intact = Step.run
    spoiled: set[int] = set()

    def run(
        self: Step, problems: Sequence[Problem], step: int, coming: Sequence[Problem] = ()
    ) -> StepResult:
        if step not in spoiled:
            return intact(self, problems, step, coming)
        hook = self.student.head.register_hook(lambda gradient: gradient * math.nan)
        try:
            return intact(self, problems, step, coming)
        finally:
            hook.remove()

    def choose(*steps: int) -> None:
        spoiled.clear()
        spoiled.update(steps)

    monkeypatch.setattr(Step, "run", run)
    return choose


def test_a_skipped_step_is_said_and_recorded_and_the_run_goes_on(
    make_config: Callable, tmp_path: Path, spoil: Spoil
):
    spoil(2)
    said = io.StringIO()
    config = make_config("training.max_steps=3")
    result = train(config, tmp_path / "run", console=Console(file=said, width=10_000))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, second, third = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert second["skipped_in_a_row"] == 1 and "gradient_norm" not in second
    assert "skipped_in_a_row" not in first.keys() | third.keys()
    assert third["gradient_norm"] > 0
    problems = problems_of_step(load_problems(config.data.train), 2, config.training)
    expected = (
        f"step 2 skipped (1 in a row): loss is {second['loss']} and gradient norm nan, not both "
        "finite; the weights are as they were; problems: "
        f"{', '.join(problem.id for problem in problems)}\n"
    )
    assert expected in said.getvalue()
    assert result.skipped_steps == 1
    assert read_json(tmp_path / "run" / "summary.json")["skipped_steps"] == 1


def test_as_many_skipped_steps_in_a_row_as_allowed_end_the_run(
    make_config: Callable, tmp_path: Path, spoil: Spoil
):
    spoil(1, 3, 4)
    config = make_config("training.max_steps=5", "training.max_skipped_steps=2")
    with pytest.raises(TrainingError) as error:
        train(config, tmp_path / "run", console=quiet())
    assert str(error.value).startswith("step 4 skipped (2 in a row): loss is ")
    assert "training.max_skipped_steps=2 ends the run here; start anew" in str(error.value)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row.get("skipped_in_a_row", 0) for row in rows] == [1, 0, 1, 2]


def test_a_resumed_run_remembers_how_many_steps_were_skipped(
    make_config: Callable, tmp_path: Path, spoil: Spoil
):
    def config(limit: int):
        options = ("training.max_steps=5", "training.save_every=1")
        return make_config(*options, f"training.max_skipped_steps={limit}")

    spoil(2, 3, 4)
    with pytest.raises(TrainingError, match="step 3 skipped"):
        train(config(2), tmp_path / "run", console=quiet())
    # Step 2 is the first in a row and in the checkpoint, so step 4 is the third.
    with pytest.raises(TrainingError, match=r"^step 4 skipped \(3 in a row\)"):
        train(config(3), tmp_path / "run", resume=True, console=quiet())
    result = train(config(4), tmp_path / "run", resume=True, console=quiet())
    assert result.skipped_steps == 3


def test_a_run_that_ended_by_a_skip_goes_on_once_the_cause_is_gone(
    make_config: Callable, tmp_path: Path, spoil: Spoil
):
    fixed = ("training.max_steps=3", "training.save_every=2", "training.max_skipped_steps=1")
    config = make_config(*fixed)
    train(config, tmp_path / "whole", console=quiet())
    spoil(3)
    with pytest.raises(TrainingError, match="step 3 skipped"):
        train(config, tmp_path / "run", console=quiet())
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    spoil()
    train(config, tmp_path / "run", resume=True, console=quiet())
    finals = [tmp_path / name / "final" / "model.safetensors" for name in ("run", "whole")]
    assert finals[0].read_bytes() == finals[1].read_bytes()


@pytest.mark.parametrize(
    ("losses", "loss", "factor", "is_spike"),
    [
        ([0.2, 0.3, 0.4], 3.1, 10.0, True),
        # Not above ten times the median, .3.
        ([0.2, 0.3, 0.4], 2.9, 10.0, False),
        # Ten times the median, and not a nat more than it.
        ([0.01], 0.9, 10.0, False),
        ([0.01], 1.02, 10.0, True),
        ([], 1e9, 10.0, False),
        ([0.3], 1e9, None, False),
    ],
)
def test_a_spike_is_far_above_the_median_of_the_steps_before(
    losses: list[float], loss: float, factor: float | None, is_spike: bool
):
    assert Skips(losses=losses).is_spike(loss, factor) is is_spike


def test_only_the_last_twenty_applied_steps_are_compared():
    skips = Skips()
    for number in range(25):
        skips.note(False, float(number))
    skips.note(True, 1e9)
    assert skips.losses == [float(number) for number in range(5, 25)]


def test_a_learning_rate_of_a_thousand_ends_the_run_and_keeps_the_sound_checkpoints(
    make_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ("training.max_steps=9", "training.save_every=1", "training.keep_checkpoints=1")
    schedule = "training.warmup_fraction=0"
    held_out = "data.validation=drawn:validation?count=2"
    config = make_config(*options, schedule, held_out, "training.validate_every=3")
    monkeypatch.setattr(run_module, "learning_rate", lambda _, step, __: 1e3 if step > 4 else 1e-4)
    with pytest.raises(TrainingError, match=r"^step 8 skipped \(3 in a row\): "):
        train(config, tmp_path / "run", console=quiet())
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row.get("skipped_in_a_row", 0) for row in rows] == [0, 0, 0, 0, 0, 1, 2, 3]
    # Step 5 makes the weights useless, which its loss does not show yet. Step 4 is kept for it.
    names = [path.name for path in checkpoints(tmp_path / "run")]
    assert names[:2] == ["step_000004", "step_000005"]
    assert read_json(tmp_path / "run" / "checkpoints" / "best.json")["step"] == 3
    assert not (tmp_path / "run" / "final").exists()
