"""The student as a vLLM reads it: a model folder, or tensors under the names of its files."""

import json
from collections.abc import Iterator
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
    """The whole weights in the main process, where each process holds a part of them; until they
    are written, because the files are in main memory as well."""

    head: Tensor | None
    """A copy of a tied head, for a vLLM on a CPU: it packs the head once and a tied head never
    again, so new embeddings would meet the old head."""

    def write(self, folder: Path) -> None:
        """Write a model folder, in which a head of its own is not tied.

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

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what the files of such a folder hold, on the device; not for sharded models."""
        weights = self.model.weights(self.model.compute_dtype)
        yield from revert_weight_conversion(self.model.model, weights).items()
        if self.head is not None:
            yield HEAD, self.head


def needs_own_head(model: VisionLanguageModel) -> bool:
    """Return whether a vLLM must be started with a head that is not tied; see ``Snapshot``."""
    embeddings = model.model.get_input_embeddings().weight
    return model.device.type == "cpu" and model.model.get_output_embeddings().weight is embeddings


def snapshot(model: VisionLanguageModel) -> Snapshot:
    """Return the model's weights as they are now; a collective where it is sharded."""
    gathered = model.weights(model.compute_dtype) if model.sharding else None
    head = None
    if needs_own_head(model):
        with torch.no_grad(), model.whole_head():
            head = model.head.to(model.compute_dtype, copy=True)
    return Snapshot(model, gathered, head)
