"""Checks whether a run folder may be created, resumed or removed; records its environment."""

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from vaopd.config import RunConfig, load_config
from vaopd.distributed.world import World
from vaopd.errors import ConfigError, RunFolderError, TrainingError, is_out_of_memory
from vaopd.lock import LOCK, FolderLock
from vaopd.masking import masked
from vaopd.records import keep_rows_up_to
from vaopd.run_records import SCHEMA, schema_of
from vaopd.training.alarms import WARNINGS_FILE
from vaopd.training.checkpoint import NO_SPACE, not_written
from vaopd.training.extension import LENGTH_KEYS
from vaopd.training.ledger import LEDGER, check_records
from vaopd.versions import installed_version

Start = Literal["new", "resume", "overwrite"]
"""What becomes of a run folder that exists: an error, the run goes on, or it is replaced."""


def check_start(config: RunConfig, output: Path, start: Start) -> None:
    """Check that the folder may be used as the start wants: see the two checks below."""
    if start == "resume":
        check_same_recipe(config, output)
    else:
        check_free(output, overwrite=start == "overwrite")


def check_free(output: Path, overwrite: bool) -> None:
    """Check that a new run may use this folder.

    Raises:
        RunFolderError: The folder exists and ``overwrite`` is not set, or it is not a run folder
            and so may not be replaced.
    """
    if overwrite:
        _check_removable(output)
    elif output.exists() and not _is_abandoned(output):
        raise _exists(output)


def claim(output: Path, lock: FolderLock, overwrite: bool) -> None:
    """Create and lock the folder of a new run; with ``overwrite``, delete the old run in it.

    Raises:
        RunFolderError: Another run has begun in the folder since ``check_free``.
    """
    lock.acquire()
    if overwrite:
        remove_run(output)
    elif (output / "config.yaml").exists():
        raise _exists(output)


def remove_run(output: Path) -> None:
    """Delete all files of a run folder except its lock, so that a new run can use the folder.

    Raises:
        RunFolderError: The folder does not look like a run folder, so it may hold other data.
    """
    _check_removable(output)
    for path in output.iterdir() if output.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _exists(output: Path) -> RunFolderError:
    return RunFolderError(
        f"output folder {output} exists; choose another --output, or --resume to go on, "
        "or --overwrite to replace it"
    )


def _is_abandoned(output: Path) -> bool:
    """Return whether a run was killed before it wrote its first file into the folder."""
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    return LOCK in names and names <= {LOCK, ".config.yaml.partial"}


def check_same_recipe(config: RunConfig, output: Path) -> None:
    """Check that a run can be resumed with a recipe.

    Raises:
        RunFolderError: The folder is not a run folder, or a later vaopd wrote it.
        ConfigError: The run was started with a recipe that trains differently.
    """
    recipe = output / "config.yaml"
    if not recipe.is_file():
        raise RunFolderError(
            f"{output} is not a run folder (no config.yaml); start without --resume"
        )
    schema_of(output)
    saved = load_config(recipe)
    if difference := _difference(saved, config):
        raise ConfigError(
            f"{output} was made by another recipe: {difference}; resume with the same values"
        )


def forget_after(output: Path, step: int) -> None:
    """Delete the records of steps after ``step``, which a resumed run will write again.

    The summary is always deleted: studies and reports use it as the sign of a finished run.

    Raises:
        RunFolderError: A record of an earlier step is damaged; nothing is deleted.
    """
    check_records(output, step)
    (output / "summary.json").unlink(missing_ok=True)
    for name in ("metrics.jsonl", "validation.jsonl", WARNINGS_FILE, LEDGER):
        keep_rows_up_to(output / name, step)
    for name in ("rollouts", "validation"):
        for path in (output / name).glob("step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()


def _check_removable(output: Path) -> None:
    if not output.exists() or (output.is_dir() and {p.name for p in output.iterdir()} <= {LOCK}):
        return
    # Other tools also write a config.yaml; only a run folder has both files.
    if not all((output / name).is_file() for name in ("config.yaml", "environment.json")):
        raise RunFolderError(
            f"{output} is not a run folder (no config.yaml with environment.json), so --overwrite "
            "leaves it; choose another --output"
        )


def _difference(saved: RunConfig, config: RunConfig) -> str:
    """Return a text with the options that differ and would change training, or an empty text."""
    changes = []
    for section, values in config.model_dump(mode="json").items():
        old = getattr(saved, section).model_dump(mode="json")
        # `extension` checks the number of steps.
        free = getattr(config, section).free_on_resume() | (
            LENGTH_KEYS if section == "training" else set()
        )
        changes += [
            f"{section}.{key} was {old.get(key)!r} and is {values.get(key)!r}"
            for key in {**old, **values}
            if old.get(key) != values.get(key) and key not in free
        ]
    return "; ".join(changes)


@contextmanager
def shortage_explained(output: Path) -> Iterator[None]:
    """Turn an error by a lack of memory or of space into one sentence with the remedies.

    Raises:
        TrainingError: Memory of the device or of the machine ran out.
        RunFolderError: The disk of the run folder takes no more bytes.
    """
    try:
        yield
    # A panic of a library in Rust is not an Exception.
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise not_written("the run", output, error) from error
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()).split(". ")[0][:200] or type(error).__name__
        again = "go on by --resume" if (output / "config.yaml").is_file() else "start again"
        raise TrainingError(
            f"memory ran out ({reason}); {again} with a lower training.micro_batch_tokens, "
            "teacher.batch_tokens or sampling.batch_tokens, or with "
            "student.gradient_checkpointing=true; vaopd doctor RECIPE estimates what is needed"
        ) from error


def environment(world: World) -> dict[str, Any]:
    """Return the content of ``environment.json``: command, versions, device, processes."""
    device = world.device
    packages = ("vaopd", "torch", "transformers", "tokenizers", "numpy", "pillow")
    return {
        "schema": SCHEMA,
        "command": masked(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "packages": {name: installed_version(name) for name in packages},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the commit of the source tree, or ``None`` if the package is not run from one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
