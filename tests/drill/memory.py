"""Memory that runs out ends a command with one sentence, and the run goes on with more of it."""

import random
import signal
from collections.abc import Callable
from typing import Any

import torch
from tests.drill.children import Child, limit_memory
from tests.drill.runs import Drill, difference, evaluate, resumed, train

from vaopd.evaluation.validation import Validator
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.local import LocalTeacher
from vaopd.training import setup
from vaopd.training.step import Step

PLACES: dict[str, tuple[Any, str]] = {
    "sample": (TransformersSampler, "sample"),
    "score": (LocalTeacher, "score"),
    "train": (Step, "accumulate"),
    "validate": (Validator, "examine"),
    "load": (setup, "load_student"),
}
SENTENCES = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."),
    lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 9663676416 bytes. Error code 12 (Cannot allocate memory)"
    ),
    MemoryError,
)
"""How a GPU, torch on a CPU, and Python say it."""


def run(drill: Drill) -> None:
    """Simulate the shortage at each place, then limit the memory of trainings and evaluations."""
    for name in PLACES:
        while drill.left(f"memory: {name}") > 0:
            simulate(drill, name)
    for name in ("memory limit: train", "memory limit: evaluate"):
        while drill.left(name) > 0:
            limit(drill, name)


def failing(function: Callable, call: int, error: Callable[[], BaseException]) -> Callable:
    """Return the function, which fails at a call of this number."""
    calls = []

    def work(*arguments, **options):
        calls.append(None)
        if len(calls) == call:
            raise error()
        return function(*arguments, **options)

    return work


def one_sentence(child: Child) -> str:
    """Return what is wrong with the end of a child whose memory ran out, or ''."""
    code, said = child.wait(), child.errors()
    if code == -signal.SIGABRT and "memory allocation of " in child.text():
        return ""  # the library that tokenizes is in Rust, which ends the process and says why
    if code == 1 and len(said) == 1 and "Traceback" not in child.text() and "memory" in said[0]:
        return ""
    return f"exit code {code}: {child.text()[-300:]}"


def simulate(drill: Drill, name: str) -> None:
    """Let one call fail, then resume without failures and compare."""
    number = drill.tally.count(f"memory: {name}").tried
    owner, function = PLACES[name]
    call = 1 if name == "load" else 1 + number % 2
    error = SENTENCES[number % len(SENTENCES)]

    def prepare() -> None:
        setattr(owner, function, failing(getattr(owner, function), call, error))

    output = drill.fresh("memory")
    found = one_sentence(Child(train(drill.recipe, output), drill.log, prepare=prepare))
    child = Child(resumed(drill.recipe, output), drill.log)
    record(drill, f"memory: {name}", found, child, difference_of(drill, output))


def limit(drill: Drill, name: str) -> None:
    """Let the address space grow by a random amount that may or may not do."""
    draw = random.Random(f"{drill.seed} {name} {drill.tally.count(name).tried}")
    output, is_training = drill.fresh("memory"), name.endswith("train")
    command = train(drill.recipe, output) if is_training else evaluate(drill.whole, output)
    child = Child(command, drill.log, prepare=limit_memory(draw.randint(2, 120)))
    found = "" if child.wait() == 0 else one_sentence(child)
    child = Child(resumed(drill.recipe, output) if is_training else command, drill.log)
    record(drill, name, found, child, difference_of(drill, output) if is_training else str)


def difference_of(drill: Drill, output) -> Callable[[], str]:
    return lambda: difference(output, drill.whole)


def record(drill: Drill, name: str, found: str, child: Child, compare: Callable[[], str]) -> None:
    """Record the outcome after the child that goes on."""
    if child.wait() != 0:
        drill.tally.add(name, "lost", 1, child.text()[-300:])
    elif other := compare():
        drill.tally.add(name, "wrong", 1, other)
    else:
        drill.tally.add(name, "wrong" if found else "survived", 1, found)
