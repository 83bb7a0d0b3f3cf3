"""The run folder as a whole: may it be made, gone on with or removed, and where it came from."""

import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vaopd.config import RunConfig, load_config
from vaopd.distributed.world import World
from vaopd.errors import ConfigError, RunFolderError
from vaopd.records import keep_rows_up_to
from vaopd.training.alarms import WARNINGS_FILE
from vaopd.training.extension import LENGTH_KEYS


def check_free(output: Path, overwrite: bool) -> None:
    """Check that a new run may have this folder.

    Raises:
        RunFolderError: It exists, or holds something else than a run that could be replaced.
    """
    if overwrite:
        _check_removable(output)
    elif output.exists():
        raise RunFolderError(
            f"output folder {output} exists; choose another --output, or --resume to go on, "
            "or --overwrite to replace it"
        )


def check_same_recipe(config: RunConfig, output: Path) -> None:
    """Check that a run can go on with a recipe.

    Raises:
        RunFolderError: The folder is no run.
        ConfigError: The run was made by a recipe that learns something else.
    """
    recipe = output / "config.yaml"
    if not recipe.is_file():
        raise RunFolderError(f"{output} is no run folder (no config.yaml); start without --resume")
    saved = load_config(recipe)
    if difference := _difference(saved, config):
        raise ConfigError(
            f"{output} was made by another recipe: {difference}; resume with the same values"
        )


def remove_run(output: Path) -> None:
    """Delete a run folder to make it anew.

    Raises:
        RunFolderError: The folder does not look like a run, so it may hold something precious.
    """
    _check_removable(output)
    if output.exists():
        shutil.rmtree(output)


def forget_after(output: Path, step: int) -> None:
    """Drop the records of later steps, which a resumed run will write again.

    The summary goes in any case: it tells studies and reports that a run is finished.
    """
    (output / "summary.json").unlink(missing_ok=True)
    for name in ("metrics.jsonl", "validation.jsonl", WARNINGS_FILE):
        keep_rows_up_to(output / name, step)
    for name in ("rollouts", "validation"):
        for path in (output / name).glob("step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()


def _check_removable(output: Path) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    # Other tools write a config.yaml too; only a run has both files.
    if not all((output / name).is_file() for name in ("config.yaml", "environment.json")):
        raise RunFolderError(
            f"{output} is no run folder (no config.yaml with environment.json), so --overwrite "
            "leaves it; choose another --output"
        )


def _difference(saved: RunConfig, config: RunConfig) -> str:
    """Return which values would change what is learned, or nothing."""
    changes = []
    for section, values in config.model_dump(mode="json").items():
        old = getattr(saved, section).model_dump(mode="json")
        # ``extension`` checks the length.
        free = getattr(config, section).free_on_resume() | (
            LENGTH_KEYS if section == "training" else set()
        )
        changes += [
            f"{section}.{key} was {old.get(key)!r} and is {values.get(key)!r}"
            for key in {**old, **values}
            if old.get(key) != values.get(key) and key not in free
        ]
    return "; ".join(changes)


def environment(world: World) -> dict[str, Any]:
    """Return what ``environment.json`` says: command, versions, device, processes."""
    device = world.device
    packages = ("vaopd", "torch", "transformers", "tokenizers", "numpy", "pillow")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in packages},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the commit of the source tree, if the package runs from one."""
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
