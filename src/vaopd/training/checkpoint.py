"""Checkpoints: a Hugging Face model folder plus ``trainer_state/``, nothing pickled.

The model folder holds float32 weights, so resuming from it loses nothing.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vaopd.errors import RunFolderError
from vaopd.models.loading import VisionLanguageModel
from vaopd.records import new_folder, write_json

STATE = "trainer_state"


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after ``step`` updates."""
    return run / "checkpoints" / f"step_{step:06d}"


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or none."""
    complete = [p.parents[1] for p in (run / "checkpoints").glob(f"step_*/{STATE}/state.json")]
    return max(complete, default=None)


def save_checkpoint(
    folder: Path,
    student: VisionLanguageModel,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write model, optimizer moments and state; the folder appears only when complete."""
    with new_folder(folder) as partial:
        student.save(partial)
        (partial / STATE).mkdir()
        save_file(_moments(student, optimizer), partial / STATE / "optimizer.safetensors")
        write_json(partial / STATE / "state.json", state)


def load_checkpoint(
    folder: Path, student: VisionLanguageModel, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put weights and moments back and return the saved state.

    Raises:
        RunFolderError: The checkpoint belongs to another model.
    """
    # Loading a copy through transformers undoes whatever key mapping its saving did.
    source = type(student.model).from_pretrained(folder, dtype=torch.float32)
    try:
        student.model.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise RunFolderError(
            f"checkpoint {folder} does not fit the student {student.name!r} "
            f"({' '.join(str(error).split())[:200]}); resume with the recipe it was made by"
        ) from None
    moments = load_file(folder / STATE / "optimizer.safetensors")
    for name, parameter in student.model.named_parameters():
        keys = {k: f"{name}::{k}" for k in ("step", "exp_avg", "exp_avg_sq")}
        if keys["step"] in moments:
            # All of them: fused AdamW reads its step count on the parameter's device.
            optimizer.state[parameter] = {
                k: moments[v].to(parameter.device) for k, v in keys.items()
            }
    return json.loads((folder / STATE / "state.json").read_text(encoding="utf-8"))


def _moments(
    student: VisionLanguageModel, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{name}::{key}": value.contiguous()
        for name, parameter in student.model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
