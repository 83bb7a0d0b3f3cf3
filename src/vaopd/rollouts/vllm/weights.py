"""The student in vLLM's formats: a model folder, or tensors under the names of its files."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from vaopd.errors import EngineError
from vaopd.models.model import VisionLanguageModel
from vaopd.records import write_json

HEAD = "lm_head.weight"


@dataclass(eq=False)
class Snapshot:
    """The student's weights at the precision of its forwards, while they do not change."""

    model: VisionLanguageModel
    gathered: dict[str, Tensor] | None
    """The whole weights in the main process, if each process holds a part of them. Freed when they
    are written, because the files are in main memory as well."""

    head: Tensor | None
    """A copy of a tied head, for a vLLM on a CPU: it packs a tied head only once, so new embeddings
    would be used with the old head."""

    def write(self, folder: Path) -> None:
        """Write a model folder; if there is a copy of the head, as one that is not tied.

        Raises:
            EngineError: The disk, or shared memory, is full or refuses.
        """
        try:
            self._write(folder)
        # safetensors has an exception of its own for a failed write.
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())[-200:]
            count = sum(parameter.numel() for parameter in self.model.model.parameters())
            size = count * self.model.compute_dtype.itemsize / 2**30
            raise EngineError(
                f"the weights for vLLM could not be written to {folder} ({reason}); make space "
                f"for {size:.1f} GiB, or name another place by sampling.vllm.weights_folder"
            ) from error

    def _write(self, folder: Path) -> None:
        dtype = self.model.compute_dtype
        weights = self.gathered or self.model.weights(dtype, in_main_memory=True)
        self.gathered = None
        self.model.save(folder, dtype, weights)
        if self.head is None:
            return
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        for part in (config, config.get("text_config", {})):
            part["tie_word_embeddings"] = False
        write_json(path, config)
        save_file({HEAD: self.head}, folder / "head.safetensors")

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of such a folder: on the device, or gathered ones of a sharded model.

        Those that are not at the precision of the forwards, or have adapters, are copies.
        """
        weights = self.gathered or self.model.weights(self.model.compute_dtype)
        own_head = {} if self.head is None else {HEAD: self.head}
        return {**revert_weight_conversion(self.model.model, weights), **own_head}


def needs_own_head(model: VisionLanguageModel) -> bool:
    """Return whether vLLM must be started with a head that is not tied; see ``Snapshot``."""
    embeddings = model.model.get_input_embeddings().weight
    return model.device.type == "cpu" and model.model.get_output_embeddings().weight is embeddings


def snapshot(model: VisionLanguageModel) -> Snapshot:
    """Return a snapshot of the model's current weights; a collective if it is sharded."""
    gathered = model.weights(model.compute_dtype) if model.sharding else None
    head = None
    if needs_own_head(model):
        with torch.no_grad(), model.whole_head():
            head = model.head.to(model.compute_dtype, copy=True)
    return Snapshot(model, gathered, head)


def bytes_of_weights(folder: Path) -> int:
    """Return the size of the weights in a model folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
