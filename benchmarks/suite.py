"""Runs the arms, each in a process of its own, and gathers what they measured.

A process an arm: peak memory is then the arm's own, and two arms never compete for memory.
Rounds go through all arms in turn, so a slow minute of the machine falls on all of them.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from benchmarks.startup import measure_startup

ROUNDS_PHASES = ("update", "loss", "target", "sampling", "step")
"""Measured in every round; the others once."""

ONCE_PHASES = ("epochs", "probe", "growth")
PHASES = (*ROUNDS_PHASES, *ONCE_PHASES, "startup")

Numbers = dict[str, Any]
Results = dict[str, dict[str, Numbers]]
"""What was measured, by phase and arm."""


def run_suite(
    device: str, scale: str, *, phases: Sequence[str], rounds: int, say: Callable[[str], None]
) -> Results:
    """Return the medians of all arms of the phases.

    An arm that fails is reported as not measured, with the last line of its error.
    """
    runs: dict[str, dict[str, list[Numbers]]] = {}
    for number in range(rounds):
        for phase in (p for p in PHASES if p in phases and p != "startup"):
            if number and phase not in ROUNDS_PHASES:
                continue
            for arm in import_module(f"benchmarks.{phase}").ARMS:
                earlier = runs.setdefault(phase, {}).setdefault(arm, [])
                if earlier and "missing" in earlier[-1]:
                    continue
                earlier.append(_run_apart(phase, arm, device, scale))
                say(f"round {number + 1}/{rounds}, {phase}: {arm}: {_brief(earlier[-1])}")
    results = {
        phase: {arm: summary(measured) for arm, measured in arms.items()}
        for phase, arms in runs.items()
    }
    if "startup" in phases:
        results["startup"] = measure_startup()
    return results


def _run_apart(phase: str, arm: str, device: str, scale: str) -> Numbers:
    options = ["--phase", phase, "--arm", arm, "--device", device, "--scale", scale]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"missing": lines[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def _brief(numbers: Numbers) -> str:
    return numbers.get("missing") or f"{numbers['seconds']:.2f} s"


def summary(measured: list[Numbers]) -> Numbers:
    """Return the medians of an arm's rounds; what is no time or memory is that of the last."""
    last = measured[-1]
    if "missing" in last:
        return last
    result = dict(last)
    for key in ("seconds", "peak_bytes"):
        result[key] = statistics.median(numbers[key] for numbers in measured)
    result["all_seconds"] = [numbers["seconds"] for numbers in measured]
    if "phase_seconds" in last:
        result["phase_seconds"] = {
            phase: statistics.median(numbers["phase_seconds"][phase] for numbers in measured)
            for phase in last["phase_seconds"]
        }
    return result
