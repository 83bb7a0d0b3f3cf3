"""Runs that are killed, stopped and paused at random moments end in the bits of one that is not."""

import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

from tests.drill.children import Child
from tests.drill.runs import (
    Drill,
    difference,
    evaluate,
    evaluation_difference,
    resumed,
    train,
)

KILLS_OF_A_RUN = 6
SIGNALS = ("SIGTERM", "SIGINT twice", "STOP and CONT")
LENGTHS = {"start": 2.0, "train": 0.15, "validate": 0.3, "save": 0.1, "export": 0.05}
"""About how many seconds a phase lasts; kills are drawn within it and a little after it."""


def run(drill: Drill) -> None:
    """Kill trainings and evaluations, then try the other signals."""
    while sum(drill.left(f"SIGKILL: {phase}") > 0 for phase in LENGTHS):
        kill_a_training(drill)
    while drill.left("SIGKILL: evaluate") > 0:
        kill_an_evaluation(drill)
    for name in SIGNALS:
        while drill.left(name) > 0:
            disturb(drill, name)


def generator(drill: Drill, name: str) -> random.Random:
    """Return the generator of the next case of a class."""
    tried = sum(count.tried for count in drill.tally.counts.values())
    return random.Random(f"{drill.seed} {name} {tried}")


def kill_a_training(drill: Drill) -> None:
    """Kill one run several times, each time in the phase that has had the fewest kills."""
    draw, output = generator(drill, "kill"), drill.fresh("killed")
    kills: Counter[str] = Counter()
    tries = 0
    while sum(kills.values()) < KILLS_OF_A_RUN and tries < 3 * KILLS_OF_A_RUN:
        tries += 1
        wanted = {p: drill.left(f"SIGKILL: {p}") - kills[f"SIGKILL: {p}"] for p in LENGTHS}
        phase = max(wanted, key=lambda p: (wanted[p] > 0, wanted[p] / drill.sizes[f"SIGKILL: {p}"]))
        if wanted[phase] <= 0:
            break
        child = Child(resumed(drill.recipe, output), drill.log)
        if phase != "start":
            child.wait_for(phase, draw.randint(1, 2) if phase in ("train", "save") else 1)
        time.sleep(draw.uniform(0, LENGTHS[phase]))
        seen = child.phase
        if child.kill():
            # The phase in which the kill fell; a late one falls into what comes next.
            kills[f"SIGKILL: {seen}"] += 1
        elif child.code:
            drill.tally.add_all(dict(kills), "lost", child.text()[-400:])
            return
        else:
            break
    child = Child(resumed(drill.recipe, output), drill.log)
    finish(drill, child, dict(kills), output)


def finish(
    drill: Drill, child: Child, tried: dict[str, int], output: Path, *, checkpoints: bool = True
) -> None:
    """Wait for the last resumption of a run, compare the run, and record the outcome."""
    if child.wait() != 0:
        drill.tally.add_all(tried, "lost", child.text()[-400:])
    elif other := difference(output, drill.whole, checkpoints=checkpoints):
        drill.tally.add_all(tried, "wrong", other)
    else:
        drill.tally.add_all(tried, "survived")


def kill_an_evaluation(drill: Drill) -> None:
    """Kill one evaluation several times, then let it end."""
    draw, output = generator(drill, "evaluation"), drill.fresh("evaluation")
    command, kills = evaluate(drill.whole, output), 0
    expected = drill.evaluated
    while kills < min(KILLS_OF_A_RUN, drill.left("SIGKILL: evaluate")):
        child = Child(command, drill.log)
        child.wait_for("evaluate", 1)
        time.sleep(draw.uniform(0, 0.3))
        if not child.kill():
            break
        kills += 1
    child = Child(command, drill.log)
    if child.wait() != 0:
        drill.tally.add("SIGKILL: evaluate", "lost", kills, child.text()[-400:])
    elif other := evaluation_difference(output, expected):
        drill.tally.add("SIGKILL: evaluate", "wrong", kills, other)
    else:
        drill.tally.add("SIGKILL: evaluate", "survived", kills)
    if kills == 0:
        raise AssertionError("an evaluation ended before it could be killed")
    shutil.rmtree(output)


def disturb(drill: Drill, name: str) -> None:
    """Send a run other signals than SIGKILL, resume it where it ended, and compare."""
    draw, output = generator(drill, name), drill.fresh("disturbed")
    child = Child(train(drill.recipe, output), drill.log)
    child.wait_for("train", draw.randint(1, 3))
    time.sleep(draw.uniform(0, 0.2))
    if name == "STOP and CONT":
        child.send(signal.SIGSTOP)
        time.sleep(draw.uniform(0.05, 0.3))
        child.send(signal.SIGCONT)
        finish(drill, child, {name: 1}, output)
        return
    number = signal.SIGTERM if name == "SIGTERM" else signal.SIGINT
    child.send(number)
    if number == signal.SIGINT:
        time.sleep(draw.uniform(0, 0.1))
        child.send(number)
    code = child.wait()
    # 0: stopped after a step, or at its end; 130: the second Ctrl-C interrupted.
    if code not in (0, 130):
        drill.tally.add(name, "wrong", 1, f"exit code {code}: {child.text()[-300:]}")
        return
    child = Child(resumed(drill.recipe, output), drill.log)
    # The stop saved one more checkpoint.
    finish(drill, child, {name: 1}, output, checkpoints=False)
