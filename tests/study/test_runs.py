import io
import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from vaopd.errors import StudyError
from vaopd.study.plan import Plan
from vaopd.study.recipe import load_plan
from vaopd.study.run import run_study
from vaopd.study.runs import Runner, run_folder

# Stands in for python -m vaopd train RECIPE --output DIR [--resume]: notes how it was called, fails
# for blurred views, and otherwise leaves what a finished run leaves.
TRAIN = """#!/bin/sh
echo "threads $OMP_NUM_THREADS $7" >> "$(dirname "$4")/calls.txt"
mkdir -p "$6"
touch "$6/config.yaml"
if grep -q blur "$4"; then echo "error: no blur today; try again" >&2; exit 1; fi
echo '{}' > "$6/summary.json"
"""


@pytest.fixture
def plan(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    script = tmp_path / "python"
    script.write_text(TRAIN)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr("vaopd.study.runs.POLL_SECONDS", 0.02)
    monkeypatch.setattr("vaopd.study.runs.num_cores", lambda: 6)
    return load_plan(recipe)


def execute(plan: Plan, output: Path, jobs: int = 2) -> tuple[dict[str, str], str]:
    """Return the failures and what was printed."""
    text = io.StringIO()
    runner = Runner(output, jobs=jobs, console=Console(file=text, width=200))
    return runner.execute(plan.runs), text.getvalue()


def calls(output: Path) -> list[str]:
    return (output / "recipes" / "calls.txt").read_text().splitlines()


def test_every_run_is_trained_once_with_its_share_of_the_cores(plan: Plan, tmp_path: Path):
    execute(plan, tmp_path / "out")
    assert calls(tmp_path / "out") == ["threads 3 "] * 6
    finished = {p.parent.name for p in (tmp_path / "out" / "runs").glob("*/summary.json")}
    blurred = {run.name for run in plan.tables[1].arms["blur"].runs.values()}
    assert finished == set(plan.runs) - blurred


def test_a_failing_run_is_reported_and_does_not_stop_the_others(plan: Plan, tmp_path: Path):
    failures, text = execute(plan, tmp_path / "out")
    blurred = [run.name for run in plan.tables[1].arms["blur"].runs.values()]
    assert failures == dict.fromkeys(blurred, "no blur today; try again")
    assert "6/6" in text
    assert text.count("failed after") == 2
    assert text.count("done in") == 4


def test_finished_runs_are_not_repeated_and_others_are_resumed(plan: Plan, tmp_path: Path):
    execute(plan, tmp_path / "out")
    _, text = execute(plan, tmp_path / "out", jobs=1)
    # Only the two that failed, from what they left.
    assert calls(tmp_path / "out")[6:] == ["threads 6 --resume"] * 2
    assert "6 runs, 4 of them finished before, 1 at a time" in text


def test_a_folder_without_a_single_file_of_a_run_is_begun_anew(plan: Plan, tmp_path: Path):
    name = next(iter(plan.runs))
    (run_folder(tmp_path / "out", plan.runs[name])).mkdir(parents=True)
    execute(plan, tmp_path / "out")
    assert calls(tmp_path / "out").count("threads 3 ") == 6


def test_the_recipe_of_a_run_is_the_resolved_one(plan: Plan, tmp_path: Path):
    from vaopd.config import load_config

    execute(plan, tmp_path / "out")
    for name, run in plan.runs.items():
        assert load_config(tmp_path / "out" / "recipes" / f"{name}.yaml") == run.config


def test_a_study_whose_runs_fail_is_written_all_the_same(plan: Plan, tmp_path: Path, finish):
    for run in plan.runs.values():
        if run.config.view.name != "blur":
            finish(run, [True] * 4, [True] * 4)
    console = Console(file=io.StringIO())
    with pytest.raises(
        StudyError, match=r"2 of 6 runs failed, first va_opd-seed\d-.*no blur today"
    ):
        runner = Runner(tmp_path / "out", jobs=2, console=console)
        run_study(plan, tmp_path / "out", runner=runner, command=["x", "study", "a b"])
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert {row["arm"] for row in study["rows"]} == {"base", "opd", "va_opd"}
    assert [(row["table"], row["arm"], row["seed"]) for row in study["failures"]] == [
        ("views", "blur", 0),
        ("views", "blur", 1),
    ]
    assert study["protocol"]["command"] == "vaopd study 'a b'"
    assert study["protocol"]["commits"] == ["abc1234"]
    assert study["protocol"]["recipe"] == plan.text
    assert "no blur today" in (tmp_path / "out" / "study.html").read_text()


def test_an_interrupted_study_shows_what_is_finished(plan: Plan, tmp_path: Path, finish):
    for run in list(plan.runs.values())[:2]:
        finish(run, [True] * 4, [True] * 4)
    Path(sys.executable).write_text("#!/bin/sh\nkill -INT $PPID\nexec sleep 60\n")
    with pytest.raises(KeyboardInterrupt):
        runner = Runner(tmp_path / "out", jobs=1, console=Console(file=io.StringIO()))
        run_study(plan, tmp_path / "out", runner=runner)
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    # Both arms of the first seed.
    assert {row["arm"] for row in study["rows"]} == {"base", "opd", "va_opd"}
    assert {row["seed"] for row in study["rows"]} == {0}
    assert (tmp_path / "out" / "study.html").is_file()


def test_a_study_that_is_killed_takes_its_runs_with_it(plan: Plan, tmp_path: Path):
    # The run notes its process, kills the study and would sleep on.
    script = Path(sys.executable)
    script.write_text('#!/bin/sh\necho $$ > "$6.pid"\nkill -TERM $PPID\nexec sleep 60\n')
    (tmp_path / "out" / "runs").mkdir(parents=True)
    with pytest.raises(SystemExit) as stop:
        execute(plan, tmp_path / "out", jobs=1)
    assert stop.value.code == 143
    (pid,) = [int(path.read_text()) for path in (tmp_path / "out" / "runs").glob("*.pid")]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
