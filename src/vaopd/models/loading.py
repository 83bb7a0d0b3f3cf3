"""Loading, checking and saving of vision-language models."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
)
from transformers.utils.hub import cached_file

from vaopd import views
from vaopd.config import DataConfig, ViewConfig
from vaopd.errors import ConfigError, ModelError
from vaopd.models import adapters, tiny
from vaopd.models.families import Family, generic, qwen_vl
from vaopd.models.measuring import too_long
from vaopd.models.pretrained import read_pretrained, read_processor
from vaopd.models.prompts import EncodedPrompt, check_same_prompt, check_same_text
from vaopd.models.quantization import quantization_config
from vaopd.models.sharding import Sharding
from vaopd.models.supported import check_parts, read_supported
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
        quantization: str = "none",
        name: str = "",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.family = family
        self.processors = list(processors)
        self.compute_dtype = compute_dtype or model.dtype
        self.quantization = quantization
        self.name = name
        self.sharding: Sharding | None = None

    @property
    def base(self) -> Any:
        """The model without its language-model head: ids and images to last hidden states."""
        return self.model.model

    @property
    def head(self) -> Float[Tensor, "V H"]:
        """Weight of the language-model head, possibly tied to the embeddings.

        Where the model is sharded, the whole weight inside ``whole_head`` or ``whole_model``.
        """
        if self.sharding is not None and self.sharding.head is not None:
            return self.sharding.head
        return self.model.get_output_embeddings().weight

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    @property
    def vocab_size(self) -> int:
        """Number of tokenizer ids; rows of the head beyond it are padding."""
        return len(self.tokenizer)

    @property
    def eos_token_ids(self) -> list[int]:
        """Ids that end a response."""
        ids = self.model.generation_config.eos_token_id
        listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
        own = self.tokenizer.eos_token_id
        return sorted({*listed, *([] if own is None else [own])})

    @property
    def forbidden_ids(self) -> list[int]:
        """Ids no sampler may draw: vision placeholders, padding and other special tokens.

        A sampled image placeholder would make the next forward claim an image that is not there.
        """
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        special -= self._meaningful_added_tokens()
        config = self.model.config
        for key in ("image_token_id", "video_token_id", "vision_start_token_id"):
            # Some tokenizers do not mark these as special.
            if isinstance(token := getattr(config, key, None), int):
                special.add(token)
        return sorted(i for i in special - set(self.eos_token_ids) if i < self.vocab_size)

    def _meaningful_added_tokens(self) -> set[int]:
        """Added tokens that are text, such as ``<think>``: a model may need to write them."""
        added = self.tokenizer.added_tokens_decoder
        return {i for i, token in added.items() if not token.special}

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context in which forwards run at the compute precision."""
        # Adapters are float32 beside weights that may be at the compute precision already.
        dtypes = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        if dtypes == {self.compute_dtype}:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    def shard(self, mesh: DeviceMesh | None) -> None:
        """Spread the parameters over the processes of a mesh (FSDP2), if there is one."""
        if mesh is None:
            return
        grey = Image.new("RGB", (64, 64), "grey")
        # The picture is given to encode(); the problem only has to have one.
        problem = Problem("filler", "<image>", (b"",), None, "filler", "filler")
        filler = self.family.encode(problem, [grey])
        self.sharding = Sharding(self.model, mesh, self.compute_dtype, filler)

    def whole_head(self) -> contextlib.AbstractContextManager:
        """Return the context in which ``head`` can be used; it spreads the head's gradient."""
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
            folder: Made where it does not exist.
            dtype: Precision of the weights.
            weights: What ``weights(dtype)`` gave, where the processes had to gather them.
        """
        state = self.weights(dtype) if weights is None else weights
        model = adapters.plain_shell(self.model) if self.is_changed else self.model
        own_dtype = model.config.dtype
        model.save_pretrained(folder, state_dict=state)
        model.config.dtype = own_dtype
        _write_dtype(folder / "config.json", dtype)
        self._save_processors(folder)

    def save_trained(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write what training changes, in float32: adapters where there are some, else all.

        Args:
            folder: Made where it does not exist.
            weights: What ``trained_weights()`` gave, where the processes had to gather them.
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

        A collective where the model is sharded: then only rank 0 gets them, in main memory.

        Args:
            dtype: Their precision.
            in_main_memory: Whether they leave the device one by one.
        """
        if self.sharding is None and in_main_memory:
            return adapters.plain_weights(self.model, dtype, lambda t, d: t.to("cpu", d))
        if self.sharding is None:
            return adapters.plain_weights(self.model, dtype)
        return adapters.plain_weights(self.model, dtype, self.sharding.gathered)

    def trained_weights(self) -> dict[str, Tensor]:
        """Return what ``save_trained`` writes; a collective as ``weights`` is."""
        if not self.has_adapters:
            return self.weights()
        trained = adapters.trained_weights(self.model)
        if self.sharding is None:
            return trained
        gathered = {n: self.sharding.gathered(t, torch.float32) for n, t in trained.items()}
        return {n: t for n, t in gathered.items() if t is not None}

    @property
    def has_adapters(self) -> bool:
        """Whether low-rank adapters stand beside the weights."""
        return adapters.has_adapters(self.model)

    @property
    def is_changed(self) -> bool:
        """Whether the model in memory is not the plain transformers model of its class."""
        return self.has_adapters or self.quantization != "none"

    def _save_processors(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        for processor in self.processors:
            if isinstance(processor, Path):
                shutil.copy(processor, folder / processor.name)
            else:
                processor.save_pretrained(folder)


def _write_dtype(path: Path, dtype: torch.dtype) -> None:
    """Correct the precision that transformers notes, which is that of the model in memory."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        if "dtype" in part:
            part["dtype"] = str(dtype).removeprefix("torch.")
    write_json(path, config)


def load_model(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    compute_dtype: torch.dtype,
    seed: int = 0,
    quantization: str = "none",
    key: str = "student.quantization",
) -> VisionLanguageModel:
    """Return a model by hub name, local folder, ``tiny:NAME`` or ``tiny:new-NAME``.

    A folder of LoRA adapters gives their base model with the adapters merged into it.

    Args:
        name: As written in a recipe.
        device: Where the weights go.
        dtype: Precision of the weights.
        compute_dtype: Precision of forward passes, through autocast where it differs.
        seed: Of the random weights of ``tiny:new-NAME``.
        quantization: ``8bit`` or ``4bit`` holds the language model's linear layers so.
        key: The setting that asked for the quantization, for the error.

    Raises:
        ConfigError: What quantization needs is not installed.
        ModelError: The model, its tokenizer or its image processor cannot be loaded.
    """
    if adapters.is_adapter_folder(name):
        if quantization != "none":
            raise ConfigError(
                f"{key} is {quantization!r}, but {name} holds LoRA adapters; merge them first: "
                f"vaopd export {name} --output DIR"
            )
        return _load_adapted(Path(name), device=device, dtype=dtype, compute_dtype=compute_dtype)
    if name.startswith("tiny:new-"):
        if quantization != "none":
            raise ConfigError(f"{key} is {quantization!r}, but {name} has no weights to quantize")
        torch.manual_seed(seed)
        model: Any = tiny.new_model(name.removeprefix("tiny:new-"))
        source = tiny.asset_folder("tokenizer")
    else:
        source = tiny.asset_folder(name.removeprefix("tiny:")) if name.startswith("tiny:") else name
        quantized = quantization_config(key, quantization, compute_dtype)
        # Quantized weights are made where they stay; `to` would not move their scales.
        place = {"quantization_config": quantized, "device_map": {"": device}} if quantized else {}
        model = read_supported(source, name, dtype=dtype, **place)
        if name.startswith("tiny:"):
            source = tiny.asset_folder("tokenizer")
    # Parameters only: buffers such as the rotary frequencies must stay float32.
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(device=device, dtype=dtype)
    if quantization == "none":
        model = model.to(device=device)
    loaded = wrap_model(model, source, name=name, compute_dtype=compute_dtype)
    loaded.quantization = quantization
    return loaded


def _load_adapted(
    folder: Path, *, device: torch.device, dtype: torch.dtype, compute_dtype: torch.dtype
) -> VisionLanguageModel:
    """Return the base model of an adapter folder with the adapters merged into it."""
    base, quantization = adapters.read_base(folder)

    def load(quantization: str) -> VisionLanguageModel:
        try:
            return load_model(
                base,
                device=device,
                dtype=dtype,
                compute_dtype=compute_dtype,
                quantization=quantization,
            )
        except ModelError as error:
            raise ModelError(f"the base model of the adapters {folder}: {error}") from error

    loaded = load("none")
    if quantization == "none":
        adapters.attach(loaded.model, folder)
        adapters.merge(loaded.model)
    else:
        # The adapters answer to the rounded weights they were trained beside.
        rounded = load(quantization)
        adapters.attach(rounded.model, folder)
        loaded.model.load_state_dict(rounded.weights(dtype))
    loaded.name = str(folder)
    return loaded


def wrap_model(
    model: Any, source: str | Path, *, name: str = "", compute_dtype: torch.dtype | None = None
) -> VisionLanguageModel:
    """Return a model with tokenizer and processors read from a folder or hub name.

    Raises:
        ModelError: The tokenizer or a processor cannot be loaded.
    """
    name = name or str(source)
    check_parts(model, name)
    if model.config.model_type in qwen_vl.MODEL_TYPES:
        tokenizer = read_pretrained(AutoTokenizer, source, name)
        # The full Qwen processor needs torchvision for its video half; images do not.
        image_processor = read_pretrained(AutoImageProcessor, source, name, backend="pil")
        family: Family = qwen_vl.QwenVLFamily(model, tokenizer, image_processor)
        processors: list[Any] = [image_processor, *_video_processor_file(source)]
    else:
        processor = read_processor(source, name)
        tokenizer = processor.tokenizer
        family = generic.GenericFamily(processor)
        processors = [processor]
    return VisionLanguageModel(
        model, tokenizer, family, processors=processors, compute_dtype=compute_dtype, name=name
    )


def _video_processor_file(source: str | Path) -> list[Path]:
    """Return the video processor's settings, which serving engines want beside a checkpoint."""
    found = cached_file(
        str(source),
        "video_preprocessor_config.json",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return [Path(found)] if found else []


class PromptEncoder:
    """Problems to prompts of one model: pixel budget, degraded view, limits, alignment."""

    def __init__(self, model: VisionLanguageModel, data: DataConfig, view: ViewConfig) -> None:
        self.family = model.family
        self.data = data
        self.view = view

    def original(self, problem: Problem) -> EncodedPrompt:
        """Return the prompt with the images as they are.

        Raises:
            ProblemError: The prompt with its visual tokens is over ``data.max_prompt_tokens``.
        """
        images = self.original_images(problem)
        prompt = replace(self.family.encode(problem, images), images=tuple(images))
        if len(prompt) > self.data.max_prompt_tokens:
            raise too_long(problem, len(prompt), self.data)
        return prompt

    def degraded(self, problem: Problem) -> EncodedPrompt:
        """Return the prompt with every image degraded as ``view`` says."""
        return self.family.encode(problem, self.degraded_images(problem))

    def original_images(self, problem: Problem) -> list[Image.Image]:
        """Return the images inside the pixel budget, as the models see them."""
        return [self._fit(image) for image in problem.load_images()]

    def degraded_images(self, problem: Problem) -> list[Image.Image]:
        """Return the images of the degraded view, as the models see them."""
        images = []
        for image in problem.load_images():
            if self.view.stage == "native":
                images.append(self._fit(views.degrade(image, self.view.name, self.view.ratio)))
            else:
                images.append(views.degrade(self._fit(image), self.view.name, self.view.ratio))
        return images

    def both(self, problem: Problem) -> tuple[EncodedPrompt, EncodedPrompt]:
        """Return the original and the degraded prompt.

        Raises:
            AlignmentError: The two differ in anything but pixel values, or with
                ``view.probe=small`` in anything but their images.
            ConfigError: ``view.probe=small`` with a model of an unknown family.
        """
        if self.view.probe == "small":
            return self._original_and_small(problem)
        original, degraded = self.original(problem), self.degraded(problem)
        check_same_prompt(original, degraded)
        return original, degraded

    def _original_and_small(self, problem: Problem) -> tuple[EncodedPrompt, EncodedPrompt]:
        if not isinstance(self.family, qwen_vl.QwenVLFamily):
            raise ConfigError(
                "view.probe is 'small', which needs a Qwen-VL model: no other family tells its "
                "image tokens from its text; use view.probe=full"
            )
        native = self.view.stage == "native"
        images = problem.load_images() if native else self.original_images(problem)
        small = [views.reduced(image, self.view.ratio) for image in images]
        original, degraded = self.original(problem), self.family.encode(problem, small)
        check_same_text(original, degraded, self.family.image_token_id)
        return original, degraded

    def _fit(self, image: Image.Image) -> Image.Image:
        return views.fit_pixel_budget(image, self.data.min_pixels, self.data.max_pixels)
