"""The steps of a study: train missing runs, compare arms, write the results."""

import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vaopd.errors import StudyError
from vaopd.masking import masked
from vaopd.records import write_json, write_text
from vaopd.study.measuring import record_of
from vaopd.study.pages import write_reports
from vaopd.study.plan import Choices, Plan
from vaopd.study.report import render
from vaopd.study.results import Mean, collect, failed_arms
from vaopd.study.runs import Runner, is_finished, num_cores
from vaopd.study.tuning import CHOICES_FILE, choose, chosen


def tune(plan: Plan, output: Path, runner: Runner) -> Choices | None:
    """Train the candidates of every grid; write ``choices.json`` and return the choices.

    Returns ``None`` if the runner's budget had no time for all of them.

    Raises:
        StudyError: A candidate's run failed.
    """
    failures = runner.execute(plan.tuning_runs)
    if failures:
        name, message = next(iter(failures.items()))
        raise StudyError(
            f"{len(failures)} of {len(plan.tuning_runs)} tuning runs failed, first {name}: "
            f"{message}; without them no settings can be chosen, and the same command tries again"
        )
    if runner.postponed:
        return None
    rows = choose(plan.tuning, output)
    write_json(output / CHOICES_FILE, rows)
    for row in rows:
        runner.display.say(f"{row['table']}, {row['arm']}: {' '.join(row['chosen'])}")
    return chosen(rows)


def run_study(
    plan: Plan, output: Path, *, runner: Runner, command: Sequence[str] | None = None
) -> dict[str, Any]:
    """Train every run of the plan that is not finished, write json and page; return the json.

    Args:
        plan: What to run and compare.
        output: Folder of the study; finished runs in it are not repeated. If it is interrupted, the
            study writes the page of its finished runs.
        runner: Trains the runs.
        command: Command to record; by default that of the process.

    Raises:
        StudyError: Runs failed; the results of the others are written nevertheless.
    """
    command = command or sys.argv
    try:
        failures = runner.execute(plan.runs)
    except (KeyboardInterrupt, SystemExit):
        # An interrupted study also shows its results until then.
        write_study(plan, output, {}, command)
        raise
    study = write_study(plan, output, failures, command)
    if failures:
        raise StudyError(
            f"{len(failures)} of {len(plan.runs)} runs failed, first {next(iter(failures))}: "
            f"{next(iter(failures.values()))}; {output / 'study.html'} shows the others, and the "
            "same command tries again"
        )
    return study


def write_study(
    plan: Plan, output: Path, failures: dict[str, str], command: Sequence[str]
) -> dict[str, Any]:
    """Write json and page of a study and the reports of its finished runs; return the json."""
    results = collect(plan, output)
    write_reports(output, is_new_only=True)
    study = {
        "rows": results.rows,
        "means": [_mean_row(mean) for mean in results.means],
        "comparisons": [comparison.row() for comparison in results.comparisons],
        "failures": failed_arms(plan, failures),
        "protocol": protocol(plan, output, command),
    }
    write_json(output / "study.json", study)
    write_text(output / "study.html", render(plan, results, output, study))
    return study


def protocol(plan: Plan, output: Path, command: Sequence[str]) -> dict[str, Any]:
    """Return the protocol that others need to repeat the study."""
    finished = [run for run in plan.runs.values() if is_finished(output, run)]
    environments = [record_of(output, run).environment for run in finished]
    first = environments[0] if environments else {}
    return {
        "command": shlex.join(["vaopd", *masked(command[1:])]),
        "commits": sorted({str(environment["commit"]) for environment in environments}),
        "seeds": plan.seeds,
        "machine": f"{first.get('device', 'unknown device')}, {num_cores()} cores, "
        f"{first.get('threads', '?')} threads a run, {platform.platform()}",
        "versions": {"python": platform.python_version(), **first.get("packages", {})},
        "date": datetime.now(UTC).date().isoformat(),
        "choices": _read_json(choices) if (choices := output / CHOICES_FILE).is_file() else [],
        "recipe": plan.text,
    }


def _mean_row(mean: Mean) -> dict[str, Any]:
    values = asdict(mean)
    return values | values.pop("interval")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
