"""The student as a vLLM reads it: a model folder, or tensors under the names of its files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from vaopd.models.loading import VisionLanguageModel
from vaopd.records import write_json

HEAD = "lm_head.weight"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The student's weights at the precision of its forwards, while they do not change."""

    model: VisionLanguageModel
    gathered: dict[str, Tensor] | None
    """The whole weights in the main process, where each process holds a part of them."""

    head: Tensor | None
    """A copy of a tied head, for a vLLM on a CPU: it packs the head once and a tied head never
    again, so new embeddings would meet the old head."""

    def write(self, folder: Path) -> None:
        """Write a model folder, in which a head of its own is not tied."""
        self.model.save(folder, self.model.compute_dtype, self.gathered)
        if self.head is None:
            return
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        for part in (config, config.get("text_config", {})):
            part["tie_word_embeddings"] = False
        write_json(path, config)
        save_file({HEAD: self.head}, folder / "head.safetensors")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what the files of such a folder hold, where it is."""
        weights = self.gathered or self.model.weights(self.model.compute_dtype)
        yield from revert_weight_conversion(self.model.model, weights).items()
        if self.head is not None:
            yield HEAD, self.head


def snapshot(model: VisionLanguageModel) -> Snapshot:
    """Return the model's weights as they are now; a collective where it is sharded."""
    gathered = model.weights(model.compute_dtype) if model.sharding else None
    embeddings = model.model.get_input_embeddings().weight
    head = None
    if model.device.type == "cpu" and model.model.get_output_embeddings().weight is embeddings:
        with torch.no_grad(), model.whole_head():
            head = model.head.to(model.compute_dtype, copy=True)
    return Snapshot(model, gathered, head)
