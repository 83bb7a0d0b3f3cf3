"""Wraps a vision-language model: forward, weights, sharding and saving."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from vaopd.models import adapters
from vaopd.models.families import Family
from vaopd.models.sharding import Sharding
from vaopd.problems.problem import Problem
from vaopd.records import write_json


class VisionLanguageModel:
    """A transformers model with its tokenizer and the adapter of its family."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        family: Family,
        *,
        processors: Sequence[Any] = (),
        compute_dtype: torch.dtype | None = None,
        name: str = "",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.family = family
        self.processors = list(processors)
        self.compute_dtype = compute_dtype or model.dtype
        self.quantization = "none"
        self.name = name
        self.sharding: Sharding | None = None

    @property
    def base(self) -> Any:
        """The model without its language-model head; it maps ids and images to hidden states."""
        return self.model.model

    @property
    def head(self) -> Float[Tensor, "V H"]:
        """Weight of the language-model head, possibly tied to the embeddings.

        If the model is sharded, this is the whole weight only inside ``whole_head`` or
        ``whole_model``.
        """
        if self.sharding is not None and self.sharding.head is not None:
            return self.sharding.head
        return self.model.get_output_embeddings().weight

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.model.device

    @property
    def vocab_size(self) -> int:
        """Number of tokenizer ids; rows of the head beyond it are padding."""
        return len(self.tokenizer)

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a response."""
        ids = self.model.generation_config.eos_token_id
        listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
        own = self.tokenizer.eos_token_id
        return sorted({*listed, *([] if own is None else [own])})

    @property
    def forbidden_ids(self) -> list[int]:
        """Ids that a sampler must not draw: vision placeholders, padding, other special tokens.

        After a sampled image placeholder, the next forward would expect an image that is missing.
        """
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        special -= self._meaningful_added_tokens()
        config = self.model.config
        for key in ("image_token_id", "video_token_id", "vision_start_token_id"):
            # Some tokenizers do not mark these ids as special.
            if isinstance(token := getattr(config, key, None), int):
                special.add(token)
        return sorted(i for i in special - set(self.eos_token_ids) if i < self.vocab_size)

    def _meaningful_added_tokens(self) -> set[int]:
        """Added tokens that a model may need to write, such as ``<think>``."""
        added = self.tokenizer.added_tokens_decoder
        return {i for i, token in added.items() if not token.special}

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context in which forwards run at the compute precision."""
        # Adapters are float32, but the other weights may already have the compute precision.
        dtypes = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        if dtypes == {self.compute_dtype}:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    def shard(self, mesh: DeviceMesh | None) -> None:
        """Shard the parameters over the processes of a mesh (FSDP2), if there is a mesh."""
        if mesh is None:
            return
        grey = Image.new("RGB", (64, 64), "grey")
        # encode() gets the image separately; the problem only has to have an image.
        problem = Problem("filler", "<image>", (b"",), None, "filler", "filler")
        filler = self.family.encode(problem, [grey])
        self.sharding = Sharding(self.model, mesh, self.compute_dtype, filler)

    def whole_head(self) -> contextlib.AbstractContextManager:
        """Return the context in which ``head`` is whole; its end shards the head's gradient."""
        return self.sharding.whole_head() if self.sharding else contextlib.nullcontext()

    def whole_model(self) -> contextlib.AbstractContextManager:
        """Return the context for any number of forwards without gradient, such as sampling."""
        return self.sharding.whole_model() if self.sharding else contextlib.nullcontext()

    def save(
        self,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        """Write a Hugging Face model folder: safetensors weights, tokenizer and processors.

        Adapters are merged into the weights, quantized weights are written at ``dtype``.

        Args:
            folder: Created if it does not exist.
            dtype: Precision of the weights.
            weights: Result of ``weights(dtype)``, needed if the model is sharded.
        """
        state = self.weights(dtype) if weights is None else weights
        model = adapters.plain_shell(self.model) if self.is_changed else self.model
        own_dtype = model.config.dtype
        model.save_pretrained(folder, state_dict=state)
        model.config.dtype = own_dtype
        _write_dtype(folder / "config.json", dtype)
        self._save_processors(folder)

    def save_trained(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write the weights that training changes, in float32: adapters, or all without adapters.

        Args:
            folder: Created if it does not exist.
            weights: Result of ``trained_weights()``, needed if the model is sharded.
        """
        if not self.has_adapters:
            self.save(folder, weights=weights)
            return
        trained = self.trained_weights() if weights is None else weights
        adapters.save_adapters(self.model, folder, trained, self.quantization)
        self._save_processors(folder)

    def weights(
        self, dtype: torch.dtype = torch.float32, *, in_main_memory: bool = False
    ) -> dict[str, Tensor]:
        """Return the weights of the plain transformers model: adapters merged, dequantized.

        If the model is sharded, this is a collective, and only rank 0 gets the weights, in main
        memory.

        Args:
            dtype: Precision of the result.
            in_main_memory: Whether to move the weights to main memory, one by one.
        """
        if self.sharding is None and in_main_memory:
            return adapters.plain_weights(self.model, dtype, lambda t, d: t.to("cpu", d))
        if self.sharding is None:
            return adapters.plain_weights(self.model, dtype)
        return adapters.plain_weights(self.model, dtype, self.sharding.gathered)

    def trained_weights(self) -> dict[str, Tensor]:
        """Return the weights that ``save_trained`` writes; a collective if the model is sharded."""
        if not self.has_adapters:
            return self.weights()
        trained = adapters.trained_weights(self.model)
        if self.sharding is None:
            return trained
        gathered = {n: self.sharding.gathered(t, torch.float32) for n, t in trained.items()}
        return {n: t for n, t in gathered.items() if t is not None}

    @property
    def has_adapters(self) -> bool:
        """Whether the model has low-rank adapters."""
        return adapters.has_adapters(self.model)

    @property
    def is_changed(self) -> bool:
        """Whether the model in memory differs from the plain transformers model of its class."""
        return self.has_adapters or self.quantization != "none"

    def _save_processors(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        for processor in self.processors:
            if isinstance(processor, Path):
                shutil.copy(processor, folder / processor.name)
            else:
                processor.save_pretrained(folder)


def _write_dtype(path: Path, dtype: torch.dtype) -> None:
    """Write the precision of the files; transformers records that of the model in memory."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        if "dtype" in part:
            part["dtype"] = str(dtype).removeprefix("torch.")
    write_json(path, config)
