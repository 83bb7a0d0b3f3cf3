"""A checkpoint of one number of processes is resumed by any other; a worker that dies is told.

Losses of another number of processes agree within ``TOLERANCE``: the terms of the loss and of the
gradient are the same and are added in another order, which changes the last bits of float32
(6e-8 of each sum), and AdamW passes such changes on to the following steps.
"""

import random
import shutil
import signal
import socket
import time
from pathlib import Path

from tests.drill.children import Child
from tests.drill.runs import STEPS, Drill, metrics, train

WORLDS = (("none", 1), ("ddp", 2), ("fsdp2", 2), ("ddp", 3))
TOLERANCE = 1e-3
"""Of a loss, relative."""

FIRST = 4
"""Step of the checkpoint that is resumed."""


def run(drill: Drill) -> None:
    """Resume each kind of checkpoint by each kind of world, and kill workers."""
    pairs = [(writer, reader) for writer in WORLDS for reader in WORLDS]
    while drill.left("world size") > 0:
        number = drill.tally.count("world size").tried
        writer, reader = pairs[number % len(pairs)]
        found = resume_elsewhere(drill, writer, reader)
        note = f"{writer} -> {reader}: {found}" if found else ""
        drill.tally.add("world size", "wrong" if found else "survived", 1, note)
    while drill.left("killed worker") > 0:
        kill_a_worker(drill)


def start(drill: Drill, world: tuple[str, int], output: Path, *more: str) -> list[Child]:
    """Start the processes of a run; the first writes the folder."""
    parallel, size = world
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [*train(drill.recipe, output, *more), f"training.parallel={parallel}"]
    launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [
        Child(
            command,
            drill.folder / f"child-{rank}.log",
            environment={}
            if parallel == "none"
            else launch | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]


def written(drill: Drill, world: tuple[str, int]) -> Path:
    """Return a run of a world up to its checkpoint after step ``FIRST``."""
    path = drill.folder / f"written-{world[0]}-{world[1]}"
    if not path.exists():
        work = drill.fresh("written")
        children = start(drill, world, work)
        assert [child.wait() for child in children] == [0] * world[1], children[0].text()
        for step in range(FIRST + 1, STEPS + 1):
            shutil.rmtree(work / "checkpoints" / f"step_{step:06d}", ignore_errors=True)
        work.rename(path)
    return path


def resume_elsewhere(drill: Drill, writer: tuple[str, int], reader: tuple[str, int]) -> str:
    """Resume a run in another world and return how its losses differ, or ''."""
    run = drill.fresh("resumed")
    shutil.copytree(written(drill, writer), run)
    children = start(drill, reader, run, "--resume")
    codes = [child.wait() for child in children]
    if any(codes):
        return f"exit codes {codes}: {children[0].text()[-300:]}"
    pairs = zip(metrics(run), metrics(drill.whole), strict=True)
    for mine, whole in pairs:
        if abs(mine["loss"] - whole["loss"]) > TOLERANCE * abs(whole["loss"]):
            return f"loss of step {mine['step']} is {mine['loss']} and not {whole['loss']}"
    return ""


def kill_a_worker(drill: Drill) -> None:
    """Kill the second process of two: the first ends with a reason, and the run goes on."""
    name = "killed worker"
    draw = random.Random(f"{drill.seed} {name} {drill.tally.count(name).tried}")
    run, world = drill.fresh("worker"), ("ddp", 2)
    children = start(drill, world, run)
    children[1].wait_for("train", draw.randint(1, 4))
    time.sleep(draw.uniform(0, 0.3))
    children[1].send(signal.SIGKILL)
    code, said = children[0].wait(), children[0].errors()
    found = ""
    if code != 1 or len(said) != 1:
        found = f"exit code {code}: {children[0].text()[-300:]}"
    children = start(drill, world, run, *(["--resume"] if (run / "config.yaml").is_file() else []))
    codes = [child.wait() for child in children]
    if any(codes):
        drill.tally.add(name, "lost", 1, f"exit codes {codes}: {children[0].text()[-300:]}")
        return
    whole = metrics(written(drill, world))
    if metrics(run) != whole:
        found = "metrics.jsonl"
    drill.tally.add(name, "wrong" if found else "survived", 1, found)
