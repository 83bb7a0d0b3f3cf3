"""Checks whether a run folder may be created, resumed or removed; records its environment."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from vaopd.config import RunConfig, load_config
from vaopd.distributed.world import World
from vaopd.errors import ConfigError, RunFolderError
from vaopd.masking import masked
from vaopd.records import keep_rows_up_to
from vaopd.training.alarms import WARNINGS_FILE
from vaopd.training.extension import LENGTH_KEYS
from vaopd.versions import installed_version


def check_free(output: Path, overwrite: bool) -> None:
    """Check that a new run may use this folder.

    Raises:
        RunFolderError: The folder exists and ``overwrite`` is not set, or it is not a run folder
            and so may not be replaced.
    """
    if overwrite:
        _check_removable(output)
    elif output.exists():
        raise RunFolderError(
            f"output folder {output} exists; choose another --output, or --resume to go on, "
            "or --overwrite to replace it"
        )


def check_same_recipe(config: RunConfig, output: Path) -> None:
    """Check that a run can be resumed with a recipe.

    Raises:
        RunFolderError: The folder is not a run folder.
        ConfigError: The run was started with a recipe that trains differently.
    """
    recipe = output / "config.yaml"
    if not recipe.is_file():
        raise RunFolderError(
            f"{output} is not a run folder (no config.yaml); start without --resume"
        )
    saved = load_config(recipe)
    if difference := _difference(saved, config):
        raise ConfigError(
            f"{output} was made by another recipe: {difference}; resume with the same values"
        )


def remove_run(output: Path) -> None:
    """Delete a run folder so that a new run can use its path.

    Raises:
        RunFolderError: The folder does not look like a run folder, so it may hold other data.
    """
    _check_removable(output)
    if output.exists():
        shutil.rmtree(output)


def forget_after(output: Path, step: int) -> None:
    """Delete the records of steps after ``step``, which a resumed run will write again.

    The summary is always deleted: studies and reports use it as the sign of a finished run.
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


def environment(world: World) -> dict[str, Any]:
    """Return the content of ``environment.json``: command, versions, device, processes."""
    device = world.device
    packages = ("vaopd", "torch", "transformers", "tokenizers", "numpy", "pillow")
    return {
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
