"""Every damaged file of a checkpoint is found before it is used, and a sound one is offered."""

import random
import shutil
import signal
import socket
from pathlib import Path

from tests.drill.children import Child
from tests.drill.runs import Drill, difference, resumed, train

from vaopd.training.checkpoint import newest_checkpoint

KINDS = {
    "weights": ("model.safetensors",),
    "moments": ("trainer_state/optimizer.safetensors",),
    "state": ("trainer_state/state.json",),
    "checksums": ("checksums.json", "trainer_state/checksums.json"),
    "model settings": ("config.json", "generation_config.json", "tokenizer.json"),
}
"""Files of a checkpoint. The rollouts that a run samples ahead are in its state."""

RECORDS = ("manifest.json", "config.yaml")
NEWEST, SOUND = "step_000004", "step_000003"


def run(drill: Drill) -> None:
    """Flip bits, cut files, tear last lines, and start second runs."""
    for name, harm in (("bit flip", flipped), ("truncation", truncated)):
        while drill.left(name) > 0:
            number = drill.tally.count(name).tried
            damage_a_checkpoint(drill, name, harm, random.Random(f"{drill.seed} {name} {number}"))
    while drill.left("bit flip: run folder") > 0:
        damage_a_record(drill)
    while drill.left("bit flip: records") > 0:
        damage_a_row(drill)
    while drill.left("torn last line") > 0:
        tear(drill)
    while drill.left("second run") > 0:
        start_a_second(drill)


def unfinished(drill: Drill) -> Path:
    """Return a run that was killed in its sixth step, with two checkpoints."""
    path = drill.folder / "unfinished"
    if path.exists():
        return path
    work = drill.fresh("unfinished")
    child = Child(train(drill.recipe, work), drill.log)
    child.wait_for("train", 6)
    child.kill()
    newest = newest_checkpoint(work)
    assert newest is not None and newest.name == NEWEST, "killed at another moment"
    work.rename(path)
    return path


def flipped(whole: bytes, draw: random.Random) -> bytes:
    """Return the bytes with one bit changed."""
    changed = bytearray(whole)
    changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncated(whole: bytes, draw: random.Random) -> bytes:
    """Return the first bytes."""
    return whole[: draw.randrange(len(whole))]


def damage_a_checkpoint(drill: Drill, name: str, harm, draw: random.Random) -> None:
    """Damage one file of the newest checkpoint, try to resume, and restore the file."""
    run = unfinished(drill)
    kind = list(KINDS)[drill.tally.count(name).tried % len(KINDS)]
    path = run / "checkpoints" / NEWEST / draw.choice(KINDS[kind])
    whole = path.read_bytes()
    path.write_bytes(harm(whole, draw))
    records = (run / "metrics.jsonl").read_bytes()
    child = Child(train(drill.recipe, run, "--resume"), drill.log)
    code = child.wait()
    path.write_bytes(whole)
    said = child.errors()
    is_told = len(said) == 1 and NEWEST in said[0] and f"go on from {SOUND}" in said[0]
    if code != 1 or "Traceback" in child.text() or (run / "metrics.jsonl").read_bytes() != records:
        drill.tally.add(name, "lost", 1, f"{path.name} ({kind}): {child.text()[-300:]}")
        shutil.rmtree(run)
    else:
        outcome = "survived" if is_told else "wrong"
        drill.tally.add(name, outcome, 1, "" if is_told else f"{path.name}: {child.text()[-300:]}")


def damage_a_record(drill: Drill) -> None:
    """Flip a bit of a file of the run folder that a resumed run reads before its checkpoint.

    A flip that changes nothing that is used, such as a key that a resumed run may change, ends in
    the results of the uninterrupted run.
    """
    name = "bit flip: run folder"
    number = drill.tally.count(name).tried
    run, draw = drill.fresh("record"), random.Random(f"{drill.seed} {name} {number}")
    shutil.copytree(unfinished(drill), run)
    path = run / RECORDS[number % len(RECORDS)]
    path.write_bytes(flipped(path.read_bytes(), draw))
    child = Child(train(drill.recipe, run, "--resume"), drill.log)
    code = child.wait()
    is_refused = code in (1, 2) and len(child.errors()) == 1 and "Traceback" not in child.text()
    if is_refused or (code == 0 and not difference(run, drill.whole)):
        drill.tally.add(name, "survived")
    else:
        outcome = "wrong" if code == 0 else "lost"
        drill.tally.add(name, outcome, 1, f"{path.name}: {child.text()[-300:]}")


def damage_a_row(drill: Drill) -> None:
    """Flip a bit of a record of a step before the newest checkpoint, and try to resume."""
    name = "bit flip: records"
    number = drill.tally.count(name).tried
    run, draw = drill.fresh("row"), random.Random(f"{drill.seed} {name} {number}")
    shutil.copytree(unfinished(drill), run)
    step = draw.randint(1, 4)
    path = (
        run / ("metrics.jsonl", f"rollouts/step_{step:06d}.jsonl", "validation.jsonl")[number % 3]
    )
    lines = path.read_bytes().splitlines(keepends=True)
    number_of_line = step - 1 if path.name == "metrics.jsonl" else 0
    lines[number_of_line] = flipped(lines[number_of_line], draw)
    path.write_bytes(b"".join(lines))
    child = Child(train(drill.recipe, run, "--resume"), drill.log)
    code, said = child.wait(), child.errors()
    is_told = code == 1 and len(said) == 1 and path.name in said[0]
    outcome = "survived" if is_told and "Traceback" not in child.text() else "wrong"
    note = "" if outcome == "survived" else f"{path.name}: {child.text()[-300:]}"
    drill.tally.add(name, outcome, 1, note)


def tear(drill: Drill) -> None:
    """Cut the last line of the metrics or of the validations, as a kill may, and resume."""
    name = "torn last line"
    number = drill.tally.count(name).tried
    run, draw = drill.fresh("torn"), random.Random(f"{drill.seed} {name} {number}")
    shutil.copytree(unfinished(drill), run)
    path = run / ("metrics.jsonl", "validation.jsonl", "warnings.jsonl")[number % 3]
    lines = path.read_bytes().splitlines(keepends=True)
    # A row of a step after the checkpoint, as it is written when a process is killed.
    torn = lines[-1].replace(b'"step": ', b'"step": 9')
    path.write_bytes(b"".join(lines) + torn[: draw.randrange(1, len(torn))])
    child = Child(resumed(drill.recipe, run), drill.log)
    if child.wait() != 0:
        drill.tally.add(name, "lost", 1, child.text()[-300:])
    elif other := difference(run, drill.whole):
        drill.tally.add(name, "wrong", 1, other)
    else:
        drill.tally.add(name, "survived")


def start_a_second(drill: Drill) -> None:
    """Start a second run in the folder of one that is running; the first must not notice."""
    name = "second run"
    run = drill.fresh("shared")
    draw = random.Random(f"{drill.seed} {name} {drill.tally.count(name).tried}")
    first = Child(train(drill.recipe, run), drill.log)
    first.wait_for("train", 1)
    first.send(signal.SIGSTOP)
    flag = draw.choice(["--resume", "--overwrite"])
    second = Child(train(drill.recipe, run, flag), drill.folder / "second.log")
    code = second.wait()
    first.send(signal.SIGCONT)
    owner = f"is being written by process {first.pid} on {socket.gethostname()}"
    is_told = len(second.errors()) == 1 and owner in second.errors()[0]
    if first.wait() != 0 or difference(run, drill.whole):
        drill.tally.add(name, "lost", 1, f"{flag}: {first.text()[-300:]}")
    else:
        outcome = "survived" if code == 1 and is_told else "wrong"
        drill.tally.add(name, outcome, 1, "" if is_told else second.text()[-300:])
