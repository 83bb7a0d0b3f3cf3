"""Exports a run, a checkpoint or adapters as one plain Hugging Face folder (``vaopd export``)."""

from pathlib import Path

import torch
from safetensors import SafetensorError

from vaopd.devices import DTYPES
from vaopd.errors import ConfigError, ModelError, RunFolderError, did_you_mean
from vaopd.models.adapters import is_adapter_folder
from vaopd.models.loading import load_model
from vaopd.records import new_folder
from vaopd.training.checkpoint import newest_checkpoint


def export(source: Path, output: Path, dtype: str = "float32") -> Path:
    """Write a model folder that plain transformers loads, and return the folder of its source.

    Args:
        source: Run folder (``final/`` is used, or else the newest checkpoint), checkpoint or
            adapters.
        output: Folder to write; must not exist.
        dtype: Precision of the weights.

    Raises:
        ConfigError: The output exists, or the source does not exist.
        RunFolderError: The output cannot be written.
        ModelError: The source does not hold a model, or its base model cannot be loaded.
    """
    if output.exists():
        raise ConfigError(f"output {output} exists; choose another folder or remove it")
    if not source.is_dir():
        remedy = did_you_mean(source) or "; give a run folder, a checkpoint or adapters"
        raise ConfigError(f"{source} is not a folder{remedy}")
    folder = _model_folder(source)
    cpu = torch.device("cpu")
    model = load_model(str(folder), device=cpu, dtype=torch.float32, compute_dtype=torch.float32)
    try:
        with new_folder(output) as partial:
            model.save(partial, DTYPES[dtype])
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            f"model folder {output} could not be written ({' '.join(str(error).split())[-200:]}); "
            "nothing of it is left: make space, or choose another --output"
        ) from error
    return folder


def _model_folder(source: Path) -> Path:
    if is_adapter_folder(source) or (source / "config.json").is_file():
        return source
    final = source / "final"
    folder = final if (final / "config.json").is_file() else newest_checkpoint(source)
    if folder is None:
        raise ModelError(
            f"{source} holds no model, adapters or complete checkpoint; give a run folder with a "
            "checkpoint in it, or a model folder"
        )
    return folder
