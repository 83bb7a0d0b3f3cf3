"""Checkpoints: a Hugging Face model folder plus ``trainer_state/``, nothing pickled.

The model folder holds float32 weights, so resuming from it loses nothing. Where adapters are
trained it is a folder of adapters, a small part of the model's size.
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vaopd.errors import RunFolderError
from vaopd.models import adapters
from vaopd.models.loading import VisionLanguageModel
from vaopd.records import new_folder, write_json

STATE = "trainer_state"


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after ``step`` updates."""
    return run / "checkpoints" / f"step_{step:06d}"


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(p.parents[1] for p in (run / "checkpoints").glob(f"step_*/{STATE}/state.json"))


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or none."""
    return max(checkpoints(run), default=None)


def remove_old_checkpoints(run: Path, keep: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints; none of them if that is ``None``."""
    for folder in checkpoints(run)[:-keep] if keep else []:
        shutil.rmtree(folder)


def save_checkpoint(
    folder: Path,
    student: VisionLanguageModel,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write model, optimizer moments and state; the folder appears only when complete."""
    with new_folder(folder) as partial:
        student.save_trained(partial)
        (partial / STATE).mkdir()
        save_file(_moments(student, optimizer), partial / STATE / "optimizer.safetensors")
        write_json(partial / STATE / "state.json", state)


def load_checkpoint(
    folder: Path, student: VisionLanguageModel, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put weights and moments back and return the saved state.

    Raises:
        RunFolderError: The checkpoint is damaged or belongs to another model.
    """
    try:
        weights = _saved_weights(folder, student)
        moments = load_file(folder / STATE / "optimizer.safetensors")
        state = json.loads((folder / STATE / "state.json").read_text(encoding="utf-8"))
    except RunFolderError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise RunFolderError(
            f"checkpoint {folder} cannot be read ({' '.join(str(error).split())[:200]}); remove "
            "that folder to resume from the one before it"
        ) from error
    student.model.load_state_dict(weights, strict=not student.has_adapters)
    parameters = dict(student.model.named_parameters())
    for key, value in moments.items():
        name, _, kind = key.rpartition("::")
        # All kinds: fused AdamW reads its step count on the parameter's device.
        optimizer.state[parameters[name]][kind] = _restored(value, parameters[name].device)
    return state


def _saved_weights(folder: Path, student: VisionLanguageModel) -> dict[str, torch.Tensor]:
    """Return the weights under the names of the model in memory; with adapters, what is trained.

    Loading a copy through transformers undoes whatever key mapping its saving did.
    """
    if student.has_adapters:
        return _saved_adapters(folder, student)
    try:
        # Our own configuration: without its config.json, transformers would build a model of the
        # class's default size, tens of gigabytes.
        source, report = type(student.model).from_pretrained(
            folder,
            config=copy.deepcopy(student.model.config),
            dtype=torch.float32,
            output_loading_info=True,
        )
        misfit = "; ".join(f"{key}: {sorted(names)}" for key, names in report.items() if names)
    except RuntimeError as error:
        source, misfit = None, " ".join(str(error).split())
    if source is None or misfit:
        raise RunFolderError(
            f"checkpoint {folder} does not fit the student {student.name!r} ({misfit[:200]}); "
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
            # All 8-bit moments share one table of values; a file does not share.
            is_shared = tensor.data_ptr() in places
            moments[f"{name}::{key}"] = tensor.clone() if is_shared else tensor
            places.add(tensor.data_ptr())
    return moments


def _restored(value: torch.Tensor, device: torch.device) -> torch.Tensor | int:
    """Return an entry of the optimizer's state; 8-bit AdamW counts its steps in an int."""
    if value.ndim == 0 and value.dtype == torch.int64:
        return int(value)
    return value.to(device)
