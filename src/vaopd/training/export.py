"""Exports a run, a checkpoint or adapters as one plain Hugging Face folder (``vaopd export``)."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from vaopd.config import RunConfig
from vaopd.devices import DTYPES
from vaopd.errors import ConfigError, ModelError, RunFolderError, did_you_mean
from vaopd.evaluation.protocol import weights_of
from vaopd.hub.card import write_card
from vaopd.hub.origin import Origin, origin_of
from vaopd.hub.push import NO_TOKEN, HubTarget, has_token, push
from vaopd.models.adapters import is_adapter_folder
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.records import CARD, new_folder, read_json, write_json
from vaopd.training.checkpoint import (
    STATE,
    checkpoint_path,
    link_model,
    newest_checkpoint,
    writing,
)

RECORD = "export.json"
"""Says which weights were exported, so that a push goes on with the folder that it wrote."""


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
    folder = model_folder(source)
    cpu = torch.device("cpu")
    model = load_model(str(folder), device=cpu, dtype=torch.float32, compute_dtype=torch.float32)
    try:
        with new_folder(output) as partial:
            model.save(partial, DTYPES[dtype])
            write_card(partial, origin_of(folder), dtype=dtype)
            write_json(partial / RECORD, _record(folder, dtype))
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            f"model folder {output} could not be written ({' '.join(str(error).split())[-200:]}); "
            "nothing of it is left: make space, or choose another --output"
        ) from error
    return folder


def export_and_push(
    source: Path, output: Path | None, dtype: str | None, target: HubTarget
) -> tuple[Path, str]:
    """Push a model to the hub; return its folder and its address there.

    Without an output the folder of the source is pushed as it is, such as ``final/`` of a run. An
    output that holds the export of the same weights, from an earlier push, is pushed again.

    Raises:
        ConfigError: The source is not a plain model and there is no output, or the output holds
            something else.
        EngineError: The push failed.
    """
    folder = model_folder(source)
    if output is None:
        if not (folder / "config.json").is_file() or (folder / STATE).exists():
            raise ConfigError(
                f"{folder} is not a plain model but a checkpoint or adapters; give --output DIR, "
                "which is written and then pushed"
            )
        if dtype is not None:
            raise ConfigError(f"--dtype {dtype} changes the files; give --output DIR for them")
        output = folder
    elif not _is_export(output, folder, dtype or "float32"):
        export(source, output, dtype or "float32")
    own = read_json(output / "config.json").get("dtype") or "float32"
    write_card(output, origin_of(folder), dtype=own, name=target.name)
    return output, push(output, target)


def _record(folder: Path, dtype: str) -> dict[str, str | None]:
    return {"weights": weights_of(str(folder)), "dtype": dtype}


def _is_export(output: Path, folder: Path, dtype: str) -> bool:
    record = output / RECORD
    return record.is_file() and read_json(record) == _record(folder, dtype)


def write_final(
    run: Path, student: VisionLanguageModel, dtype: str, step: int
) -> Callable[[], None]:
    """Return what writes ``final/`` of a run, a plain model folder with its card.

    In float32 it is the model of the last checkpoint, which is not stored twice. Collecting other
    weights is a collective if the student is sharded; the result is for the main process alone.
    """
    is_saved = dtype == "float32" and not student.is_changed
    weights = None if is_saved else student.weights(DTYPES[dtype])
    adapters = student.trained_weights() if student.has_adapters else None

    def write() -> None:
        with writing("the final model", run), new_folder(run / "final") as folder:
            if is_saved:
                link_model(checkpoint_path(run, step), folder)
            else:
                student.save(folder, DTYPES[dtype], weights)
            if (before := run / "final" / CARD).is_file():
                shutil.copy(before, folder)  # a card that was edited stays as it is
            write_card(folder, Origin(run=run, step=step), dtype=dtype)
            if adapters is not None:
                # Use a separate folder: if the adapter were next to config.json, transformers
                # would apply it a second time.
                student.save_trained(folder / "adapter", adapters)

    return write


def unready(config: RunConfig) -> str | None:
    """Return what the push at the end of a run still needs; None if nothing is missing."""
    name = config.training.push_to_hub
    if name is None or has_token():
        return None
    return f"training.push_to_hub={name}: {NO_TOKEN} before the run ends"


def push_final(run: Path, name: str, say: Callable[[str], None]) -> None:
    """Push ``final/`` at the end of a run; a failure is said and never fails the run."""
    try:
        _, address = export_and_push(run, None, None, HubTarget(name))
    except Exception as error:  # whatever it is, the run has ended well
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"training.push_to_hub failed: {reason}; later: vaopd export {run} --push {name}")
    else:
        say(f"pushed the final model: {address}")


def model_folder(source: Path) -> Path:
    """Return the folder of a model: the source, or ``final/`` or the newest checkpoint in it.

    Raises:
        ConfigError: The source does not exist.
        ModelError: It does not hold a model.
    """
    if not source.is_dir():
        remedy = did_you_mean(source) or "; give a run folder, a checkpoint or adapters"
        raise ConfigError(f"{source} is not a folder{remedy}")
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
