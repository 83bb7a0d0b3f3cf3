"""Saves and loads checkpoints: a Hugging Face model folder plus ``trainer_state/``, no pickles.

The model folder holds float32 weights, so resuming from it loses no precision. If adapters are
trained, it holds only the adapters, which are much smaller than the model.
"""

import copy
import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)

from vaopd.distributed.world import World
from vaopd.errors import RunFolderError
from vaopd.models import adapters
from vaopd.models.model import VisionLanguageModel
from vaopd.models.pretrained import read_weights
from vaopd.models.sharding import local, sent_value, spread
from vaopd.records import damage, new_folder, read_json, write_json

STATE = "trainer_state"
MOMENTS_FILE = "optimizer.safetensors"
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What the system says when it takes no more bytes."""

SHARDS_FILE = "optimizer.json"
"""Lists the files of sharded moments, so that a missing file is detected."""


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after ``step`` updates."""
    return run / "checkpoints" / f"step_{step:06d}"


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(p.parents[1] for p in (run / "checkpoints").glob(f"step_*/{STATE}/state.json"))


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or ``None``."""
    return max(checkpoints(run), default=None)


def newest_sound(run: Path, but: Path) -> Path | None:
    """Return the newest checkpoint other than ``but`` whose files match their checksums."""
    others = (folder for folder in reversed(checkpoints(run)) if folder != but)
    return next((folder for folder in others if not checkpoint_damage(folder)), None)


def checkpoint_damage(folder: Path) -> str:
    """Return how the files of a checkpoint differ from their checksums, '' if they do not."""
    state = damage(folder / STATE)
    return damage(folder) or (f"{STATE}/{state}" if state else "")


def remove_old_checkpoints(run: Path, keep: int | None, keep_every: int | None = None) -> None:
    """Delete all but the newest ``keep`` checkpoints; delete nothing if ``keep`` is ``None``.

    Checkpoints of steps divisible by ``keep_every`` are kept as well.
    """
    for folder in checkpoints(run)[:-keep] if keep else []:
        step = int(folder.name.removeprefix("step_"))
        if keep_every is None or step % keep_every:
            shutil.rmtree(folder)


def link_model(checkpoint: Path, folder: Path) -> None:
    """Fill a folder with the model of a checkpoint.

    Weights are hard links if the file system supports them: they need no extra space while the
    checkpoint exists, and they stay when it is removed.
    """
    shutil.copytree(
        checkpoint,
        folder,
        ignore=shutil.ignore_patterns(STATE),
        copy_function=_link_weights,
        dirs_exist_ok=True,
    )


def _link_weights(source: str, target: str) -> None:
    """Link the large files, which are never edited in place; copy files that a user may edit."""
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # the file system has no hard links: a copy only needs more space
    shutil.copy2(source, target)


@contextmanager
def writing(what: str, run: Path) -> Iterator[None]:
    """Turn a write error into one sentence with the newest complete checkpoint, if there is one.

    Raises:
        RunFolderError: The disk is full or not writable; an incomplete checkpoint never has a
            checkpoint's name.
    """
    try:
        yield
    # safetensors raises its own exception for a failed write.
    except (OSError, SafetensorError) as error:
        if isinstance(error, RunFolderError):
            raise
        raise not_written(what, run, error) from error


def not_written(what: str, run: Path, error: Exception) -> RunFolderError:
    """Return the error of a failed write: what is free and used, and what is left to go on from."""
    reason = " ".join(str(error).split())[-200:]
    newest = newest_checkpoint(run)
    left = (
        f"checkpoint {newest.name} is as it was: make space and go on from it with --resume"
        if newest
        else "there is no earlier checkpoint: make space, and --resume begins at step 1 again"
    )
    if run.is_dir():
        used = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        free = shutil.disk_usage(run).free
        left += f" ({free / 1e6:.0f} MB are free, {run} takes {used / 1e6:.0f} MB)"
    return RunFolderError(f"{what} could not be written ({reason}); {left}")


def save_checkpoint(
    folder: Path,
    student: VisionLanguageModel,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    world: World | None = None,
) -> None:
    """Write model, optimizer moments and state; the folder appears only when it is complete.

    Weights are saved unsharded, so every checkpoint is a model folder. The moments are twice as
    large; if they are sharded, all processes write their shards at the same time.

    Raises:
        RunFolderError: The disk is full or not writable.
    """
    world = world or World()
    weights, moments = student.trained_weights(), _moments(student, optimizer)
    with writing(f"checkpoint {folder}", folder.parents[1]), ExitStack() as stack:
        partial = world.on_main(lambda: stack.enter_context(new_folder(folder)))
        if student.sharding is not None:
            _save_shards(moments, partial / STATE, world)

        def write() -> None:
            student.save_trained(partial, weights)
            (partial / STATE).mkdir(exist_ok=True)
            if student.sharding is None:
                save_file(moments, partial / STATE / MOMENTS_FILE)
            else:
                files = sorted(path.name for path in (partial / STATE).glob("*.safetensors"))
                write_json(partial / STATE / SHARDS_FILE, {"files": files})
            write_json(partial / STATE / "state.json", state)
            stack.close()

        world.on_main(write)


def _save_shards(moments: dict[str, Tensor], folder: Path, world: World) -> None:
    """Write the moments as safetensors shards, one per process, in DCP's layout."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    failure = None
    try:
        state_dict_saver.save(moments, storage_writer=writer)
    except CheckpointException as error:
        # DCP raises it in every process if one process failed; it is not a subclass of Exception.
        failure = OSError("; ".join(str(reason) for reason, _ in error.failures.values()))

    def check() -> None:
        if failure is not None:
            raise failure

    world.agree(check)


def load_checkpoint(
    folder: Path,
    student: VisionLanguageModel,
    optimizer: torch.optim.Optimizer,
    world: World | None = None,
) -> dict[str, Any]:
    """Restore weights and moments and return the saved state.

    Works for checkpoints of any number of processes, sharded or not.

    Raises:
        RunFolderError: The checkpoint is damaged or belongs to another model.
    """
    world = world or World()
    reads_weights = world.is_main or world.shards is None
    weights, moments, state = world.agree(lambda: _read(folder, student, reads_weights))
    tensors = student.model.state_dict(keep_vars=True)
    mesh = world.shards
    # Of a sharded model the main process alone has the weights, and sends them one by one.
    for name in world.on_main(lambda: sorted(weights)):
        tensor = tensors[name].detach()
        value = sent_value(weights.get(name), tensor, mesh) if mesh else weights[name]
        local(tensor).copy_(local(spread(value, tensor)))
    parameters = dict(student.model.named_parameters())
    for key, value in moments.items():
        name, _, kind = key.rpartition("::")
        optimizer.state[parameters[name]][kind] = value
    # All processes use the main process's state: its step decides what is done next.
    return world.on_main(lambda: state)


def _read(
    folder: Path, student: VisionLanguageModel, reads_weights: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor | int], dict[str, Any]]:
    """Return unsharded weights, moments laid out like the parameters, and the state."""
    try:
        if reads_weights and (found := checkpoint_damage(folder)):
            raise ValueError(found)
        weights = _saved_weights(folder, student) if reads_weights else {}
        moments = _saved_moments(folder / STATE, student)
        state = json.loads((folder / STATE / "state.json").read_text(encoding="utf-8"))
    except RunFolderError:
        raise
    except (OSError, SafetensorError, ValueError, CheckpointException) as error:
        sound = newest_sound(folder.parents[1], folder)
        remedy = (
            f"remove that folder to go on from {sound.name}, the newest sound checkpoint"
            if sound
            else "remove that folder; no other checkpoint is sound, so that --resume without any "
            "begins at step 1"
        )
        raise RunFolderError(
            f"checkpoint {folder} cannot be read ({' '.join(str(error).split())[:200]}); {remedy}"
        ) from error
    return weights, moments, state


def _saved_moments(folder: Path, student: VisionLanguageModel) -> dict[str, Tensor | int]:
    """Return the moments that this process needs, from one file or from shards."""
    device = student.device
    parameters = dict(student.model.named_parameters())
    if not (folder / SHARDS_FILE).is_file():
        with safe_open(folder / MOMENTS_FILE, "pt") as saved:
            # One by one: a process with shards keeps only its part of each.
            return {
                key: _restored(saved.get_tensor(key), parameters[_name(key)])
                for key in saved.keys()  # noqa: SIM118  # not a dictionary
            }
    files = read_json(folder / SHARDS_FILE)["files"]
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{missing[0]} is missing")
    reader = HuggingFaceStorageReader(str(folder))
    moments: dict[str, Tensor | int] = {
        key: torch.empty((), device=device)
        if key.endswith("::step")
        else torch.empty_like(parameters[_name(key)].detach())
        for key in reader.read_metadata().state_dict_metadata
    }
    with warnings.catch_warnings():
        # Each process reads its part without collectives; torch warns about this.
        warnings.simplefilter("ignore")
        state_dict_loader.load(moments, storage_reader=reader, no_dist=True)
    return moments


def _name(key: str) -> str:
    """Return the name of the parameter that a key of the moments belongs to."""
    return key.rpartition("::")[0]


def _saved_weights(folder: Path, student: VisionLanguageModel) -> dict[str, torch.Tensor]:
    """Return the saved weights under the parameter names of the model in memory.

    With adapters, only the trained weights are returned. Loading a copy through transformers
    reverses the key mapping that transformers applied when it saved.
    """
    if student.has_adapters:
        return _saved_adapters(folder, student)
    # Pass the student's configuration: if config.json is missing, transformers would build a model
    # of the class's default size, tens of gigabytes.
    source, misfit = read_weights(
        type(student.model),
        folder,
        str(folder),
        config=copy.deepcopy(student.model.config),
        dtype=torch.float32,
    )
    if misfit:
        raise RunFolderError(
            f"checkpoint {folder} does not fit the student {student.name!r} ({misfit}); "
            "resume with the recipe it was made by"
        )
    return source.state_dict()


def _saved_adapters(folder: Path, student: VisionLanguageModel) -> dict[str, torch.Tensor]:
    weights = adapters.read_adapters(folder)
    mine = adapters.trained_weights(student.model)
    misfit = sorted(
        name
        for name in weights.keys() | mine.keys()
        if name not in weights or name not in mine or weights[name].shape != mine[name].shape
    )
    if misfit:
        raise RunFolderError(
            f"checkpoint {folder} does not fit the adapters of {student.name!r} ({misfit[0]}); "
            "resume with the recipe it was made by"
        )
    return weights


def _moments(
    student: VisionLanguageModel, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    moments: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, parameter in student.model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(value).contiguous()
            # All 8-bit moments share one table of values, but a safetensors file cannot share
            # memory between tensors.
            place = local(tensor).data_ptr()
            moments[f"{name}::{key}"] = tensor.clone() if place in places else tensor
            places.add(place)
    return moments


def _restored(value: Tensor, parameter: Tensor) -> Tensor | int:
    """Return an entry of the optimizer's state; 8-bit AdamW stores its step count as an int."""
    if value.ndim:
        return spread(value, parameter)
    return int(value) if value.dtype == torch.int64 else value.to(parameter.device)
