"""Full disks, read-only and moved folders: the message names the cause, and no checkpoint is lost.

The disks are small tmpfs mounts in a mount namespace of this process, which needs root on Linux;
without that right the size of files is limited instead (RLIMIT_FSIZE), which refuses long writes
as a full disk does.
"""

import ctypes
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.drill.children import Child
from tests.drill.corruption import unfinished
from tests.drill.runs import (
    Drill,
    difference,
    evaluate,
    evaluation_difference,
    resumed,
    train,
)

from vaopd.training.checkpoint import checkpoint_damage, checkpoints

NEW_NAMESPACE = 0x00020000
"""CLONE_NEWNS of sched.h."""

NOBODY = 65534
CAUSES = ("No space left", "File too large", "Read-only", "Permission denied", "I/O error")


def run(drill: Drill) -> None:
    """Fill disks, take rights away, move and remove folders, hide /dev/shm."""
    can_mount = private_mounts()
    if not can_mount:
        drill.show("no right to mount: a limit of the size of files stands in for full disks")
    cases: dict[str, Callable[[Drill, random.Random], str]] = {
        "full disk: run": fill_a_run if can_mount else limit_a_run,
        "full disk: evaluate": fill_an_evaluation,
        "full disk: export": fill_an_export,
        "read-only folder": take_rights_away,
        "folder moved": move_the_folder,
        "folder removed": remove_the_folder,
    }
    if can_mount:
        cases["no /dev/shm"] = hide_shared_memory
    for name, case in cases.items():
        while drill.left(name) > 0:
            draw = random.Random(f"{drill.seed} {name} {drill.tally.count(name).tried}")
            found = case(drill, draw)
            kind = "lost" if found.startswith("lost") else "wrong"
            drill.tally.add(name, kind if found else "survived", 1, found)


def private_mounts() -> bool:
    """Let mounts of this process be seen by it and its children only; return whether it may."""
    if ctypes.CDLL(None).unshare(NEW_NAMESPACE) != 0:
        return False
    made = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True)
    return made.returncode == 0


def mount(folder: Path, size: int) -> None:
    """Mount an empty disk of so many kilobytes."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
    subprocess.run(command, check=True)


def grow(folder: Path) -> None:
    """Let a mounted disk have space again."""
    subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)


def kilobytes(folder: Path) -> int:
    """Return what the files take; those that are linked, such as the model of a run, count once."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in found}.values()) // 1024


def refused(child: Child) -> str:
    """Return what is wrong with the end of a child that could not write, or ''."""
    code, said = child.wait(), child.errors()
    if code != 1 or len(said) != 1 or "Traceback" in child.text():
        return f"exit code {code}: {child.text()[-300:]}"
    if not any(cause in said[0] for cause in CAUSES):
        return f"the cause is not named: {said[0]}"
    return ""


def unsound(run: Path) -> str:
    """Return the first checkpoint of a run that is not whole, or ''."""
    found = [(path, checkpoint_damage(path)) for path in checkpoints(run)]
    return next((f"lost: {path.name}: {what}" for path, what in found if what), "")


def completed(drill: Drill, run: Path) -> str:
    """Resume a run and return how it differs from the uninterrupted run, or ''."""
    child = Child(resumed(drill.recipe, run), drill.log)
    if child.wait() != 0:
        return f"lost: {child.text()[-300:]}"
    return difference(run, drill.whole)


def fill_a_run(drill: Drill, draw: random.Random) -> str:
    """Train on a disk that is too small by a random amount, make space, and resume."""
    disk = drill.fresh("disk")
    mount(disk, draw.randint(40, kilobytes(drill.whole)))
    try:
        child = Child(train(drill.recipe, disk / "run"), drill.log)
        found = refused(child) or unsound(disk / "run")
        grow(disk)
        return found or completed(drill, disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def limit_a_run(drill: Drill, draw: random.Random) -> str:
    """Train while no file may grow beyond a random size, and resume without the limit."""
    run = drill.fresh("limited")
    largest = max(path.stat().st_size for path in drill.whole.rglob("*.safetensors"))
    child = Child(
        train(drill.recipe, run), drill.log, prepare=limit_files(draw.randrange(2000, largest))
    )
    return refused(child) or unsound(run) or completed(drill, run)


def limit_files(size: int) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def fill_an_evaluation(drill: Drill, draw: random.Random) -> str:
    """Evaluate while no file may grow beyond a random size, and go on without the limit."""
    output, expected = drill.fresh("evaluation"), drill.evaluated
    largest = max(path.stat().st_size for path in expected.rglob("*") if path.is_file())
    command = evaluate(drill.whole, output)
    limit = limit_files(draw.randrange(100, largest))
    # The output of the child is a file too, and grows less.
    child = Child(command, drill.log, prepare=limit)
    found = refused(child)
    again = Child(command, drill.log)
    if again.wait() != 0:
        return f"lost: {again.text()[-300:]}"
    return found or evaluation_difference(output, expected)


def fill_an_export(drill: Drill, draw: random.Random) -> str:
    """Export while no file may grow beyond a random size: the output does not appear."""
    output = drill.fresh("export")
    largest = max(path.stat().st_size for path in (drill.whole / "final").iterdir())
    command = ["export", str(drill.whole), "--output", str(output)]
    child = Child(command, drill.log, prepare=limit_files(draw.randrange(500, largest)))
    found = refused(child)
    left = list(output.parent.glob(f".{output.name}*"))
    return found or (f"lost: {output} exists" if output.exists() or left else "")


def take_rights_away(drill: Drill, draw: random.Random) -> str:
    """Resume as a user who may only read the folder, then as one who may write it."""
    run = drill.fresh("read-only")
    shutil.copytree(unfinished(drill), run)
    for path in [run, *run.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in (run.parent, *run.parent.parents):
        if parent.owner() == "root" and parent != Path("/tmp") and parent != Path("/"):
            parent.chmod(0o755)

    def become_nobody() -> None:
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    child = Child(train(drill.recipe, run, "--resume"), drill.log, prepare=become_nobody)
    found = refused(child)
    for path in [run, *run.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return found or completed(drill, run)


def begun(drill: Drill, draw: random.Random, run: Path) -> Child:
    """Start a run and stop it at a random moment of its steps."""
    child = Child(train(drill.recipe, run), drill.log)
    child.wait_for("train", draw.randint(2, 4))
    time.sleep(draw.uniform(0, 0.2))
    child.send(signal.SIGSTOP)
    return child


def move_the_folder(drill: Drill, draw: random.Random) -> str:
    """Move the folder of a run away: the run ends, and goes on when the folder is back."""
    run = drill.fresh("moved")
    child = begun(drill, draw, run)
    elsewhere = drill.fresh("elsewhere")
    run.rename(elsewhere)
    child.send(signal.SIGCONT)
    code, said = child.wait(), child.errors()
    shutil.rmtree(run, ignore_errors=True)
    elsewhere.rename(run)
    found = unsound(run) or completed(drill, run)
    if code != 1 or len(said) != 1:
        return found or f"exit code {code}: {child.text()[-300:]}"
    return found


def remove_the_folder(drill: Drill, draw: random.Random) -> str:
    """Remove the folder of a run: the run ends with one sentence and no half folder as a run."""
    run = drill.fresh("removed")
    child = begun(drill, draw, run)
    shutil.rmtree(run)
    child.send(signal.SIGCONT)
    code, said = child.wait(), child.errors()
    if code != 1 or len(said) != 1:
        return f"exit code {code}: {child.text()[-300:]}"
    return f"lost: {run} looks like a run" if (run / "config.yaml").exists() else ""


def hide_shared_memory(drill: Drill, draw: random.Random) -> str:
    """Train where /dev/shm cannot be written."""
    run = drill.fresh("unshared")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/dev/shm"], check=True)
    try:
        return completed(drill, run)
    finally:
        subprocess.run(["umount", "/dev/shm"], check=True)
