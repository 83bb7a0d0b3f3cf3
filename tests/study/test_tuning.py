"""Settings of arms that are chosen from grids, on seeds and problems of their own."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from vaopd.cli import app
from vaopd.errors import ConfigError, StudyError
from vaopd.records import write_text
from vaopd.study.measuring import MeasuredRun, RunMeasures
from vaopd.study.plan import Plan
from vaopd.study.recipe import load_plan
from vaopd.study.run import tune
from vaopd.study.runs import Runner, record_file
from vaopd.study.tuning import choose, chosen

TUNED = """
recipe: base.yaml
seeds: [0, 1]
tuning: {seeds: [7, 8], overrides: ["data.validation=drawn:validation?count=2&seed=3"]}
tables:
  targets:
    title: Targets
    baseline: opd
    grid: {training.learning_rate: [1.0e-4, 2.0e-4]}
    arms:
      opd: [method.name=opd]
      contrast:
        set: [method.name=opd, method.target=contrast]
        grid: {method.strength: [0.5, 2.0]}
"""

# Leaves the record of a finished run, with the strength or the learning rate as its accuracy.
TRAIN = """#!/bin/sh
mkdir -p "$6"
touch "$6/config.yaml"
echo '{}' > "$6/summary.json"
case "$(cat "$4")" in *strength:\\ 2*) a=0.9;; *learning_rate:\\ 0.0002*) a=0.3;; *) a=0.5;; esac
records="$(dirname "$(dirname "$6")")/records"
mkdir -p "$records"
sed "s/ACCURACY/$a/" RECORD > "$records/$(basename "$6").json"
"""
EMPTY = MeasuredRun((), (), {"accuracy": np.zeros(0)}, {})
RECORD = json.dumps(RunMeasures(EMPTY, EMPTY, [{"steps": 2, "accuracy": "ACCURACY"}], {}).as_json())
RECORD = RECORD.replace('"ACCURACY"', "ACCURACY")


@pytest.fixture
def tuned(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_text(recipe.with_name("tuned.yaml"), TUNED)
    script = tmp_path / "python"
    write_text(tmp_path / "record.json", RECORD)
    script.write_text(TRAIN.replace("RECORD", str(tmp_path / "record.json")))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr("vaopd.study.runs.POLL_SECONDS", 0.02)
    return recipe.with_name("tuned.yaml")


def runner(output: Path, budget: float | None = None) -> Runner:
    console = Console(file=io.StringIO(), width=200)
    return Runner(output, jobs=1, console=console, budget_seconds=budget)


def settings_of(plan: Plan, arm: str) -> set[tuple[float, float]]:
    configs = [run.config for run in plan.tables[0].arms[arm].runs.values()]
    return {(c.training.learning_rate, getattr(c.method, "strength", 0.0)) for c in configs}


def test_each_point_of_a_grid_has_a_run_for_each_tuning_seed(tuned: Path):
    plan = load_plan(tuned)
    assert [(one.arm, len(one.candidates)) for one in plan.tuning] == [("opd", 2), ("contrast", 2)]
    configs = [run.config for run in plan.tuning_runs.values()]
    assert len(configs) == 8
    assert {c.training.seed for c in configs} == {7, 8}
    assert {c.data.validation for c in configs} == {"drawn:validation?count=2&seed=3"}
    # The runs of the tables have other seeds and the base recipe's problems.
    assert {run.config.training.seed for run in plan.runs.values()} == {0, 1}
    assert {run.config.data.validation for run in plan.runs.values()} == {
        "drawn:validation?count=4"
    }


def test_the_best_candidate_is_chosen_and_trained_with_the_test_seeds(tuned: Path, tmp_path: Path):
    output = tmp_path / "out"
    plan = load_plan(tuned)
    choices = tune(plan, output, runner(output))
    assert choices is not None
    assert choices == {
        ("targets", "opd"): ("training.learning_rate=0.0001",),
        ("targets", "contrast"): ("method.strength=2.0",),
    }
    final = plan.with_choices(choices)
    assert settings_of(final, "opd") == {(1e-4, 1.0)}
    assert settings_of(final, "contrast") == {(1e-6, 2.0)}
    rows = json.loads((output / "choices.json").read_text())
    assert rows[1]["tried"][1] == {
        "settings": ["method.strength=2.0"],
        "accuracy": {"7": 0.9, "8": 0.9},
    }


def test_among_equal_candidates_the_first_is_chosen(tuned: Path, tmp_path: Path):
    plan = load_plan(tuned)
    for run in plan.tuning_runs.values():
        write_text(record_file(tmp_path, run), RECORD.replace("ACCURACY", "0.5"))
    found = chosen(choose(plan.tuning, tmp_path))
    assert found["targets", "opd"] == ("training.learning_rate=0.0001",)


def test_an_unfinished_candidate_is_an_error(tuned: Path, tmp_path: Path):
    with pytest.raises(StudyError, match=r"tuning run opd-seed7.* is not finished"):
        choose(load_plan(tuned).tuning, tmp_path)


def test_a_failed_candidate_ends_the_study_with_its_message(tuned: Path, tmp_path: Path):
    Path(sys.executable).write_text("#!/bin/sh\necho error: no luck\nexit 1\n")
    with pytest.raises(StudyError, match=r"8 of 8 tuning runs failed, first opd-.*: no luck"):
        tune(load_plan(tuned), tmp_path / "out", runner(tmp_path / "out"))


def test_grids_of_different_size_are_refused(tuned: Path):
    write_text(tuned, tuned.read_text().replace("[0.5, 2.0]", "[0.5, 1.0, 2.0]"))
    with pytest.raises(ConfigError, match=r"grids of different size \(opd 2, contrast 3\)"):
        load_plan(tuned)


def test_a_grid_without_a_section_tuning_is_refused(tuned: Path):
    lines = [line for line in tuned.read_text().splitlines() if not line.startswith("tuning")]
    write_text(tuned, "\n".join(lines))
    with pytest.raises(ConfigError, match="has a grid, but the study has no section tuning"):
        load_plan(tuned)


def test_a_used_budget_postpones_runs_and_the_next_call_goes_on(tuned: Path, tmp_path: Path):
    output, plan = tmp_path / "out", load_plan(tuned)
    tight = runner(output, budget=0.0)
    assert tune(plan, output, tight) is None
    assert tight.postponed == 8
    assert not (output / "choices.json").exists()
    assert tune(plan, output, runner(output, budget=600.0)) is not None


def test_a_run_begins_only_if_it_is_expected_to_end_in_time(tuned: Path, tmp_path: Path):
    output, plan = tmp_path / "out", load_plan(tuned)
    some = runner(output, budget=600.0)
    some.durations = [1e6]
    some.execute(plan.runs)
    assert some.postponed == len(plan.runs)


def test_the_command_tunes_and_says_when_the_budget_ended_before(tuned: Path, tmp_path: Path):
    output = tmp_path / "out"
    command = ["study", str(tuned), "--output", str(output), "--budget-minutes", "0"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert "no settings are chosen yet, because the budget ended before" in done.output


def test_all_arms_of_one_seed_come_before_the_next_seed(tuned: Path):
    seeds = [run.config.training.seed for run in load_plan(tuned).runs.values()]
    assert seeds == sorted(seeds)
