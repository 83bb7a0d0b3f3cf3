"""Loads and checks vision-language models."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.utils.hub import cached_file

from vaopd.errors import ConfigError, ModelError
from vaopd.models import adapters, tiny
from vaopd.models.attention import choose_kernels
from vaopd.models.families import Family, generic, qwen_vl
from vaopd.models.model import VisionLanguageModel
from vaopd.models.patches import use_float32_products, use_patch_products
from vaopd.models.pretrained import check_finite, read_pretrained, read_processor
from vaopd.models.quantization import quantization_config
from vaopd.models.supported import build_supported, check_parts, read_supported
from vaopd.records import CHECKSUMS, damage


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

    For a folder of LoRA adapters, it is their base model with the adapters merged into it.

    Args:
        name: Name of the model, as in a recipe.
        device: Device of the weights; meta builds the model without reading any.
        dtype: Precision of the weights.
        compute_dtype: Precision of forward passes; autocast is used if it differs from ``dtype``.
        seed: Seed of the random weights of ``tiny:new-NAME``.
        quantization: ``8bit`` or ``4bit`` quantizes the linear layers of the language model.
        key: Name of the setting of the quantization, for the error.

    Raises:
        ConfigError: A package that quantization needs is not installed.
        ModelError: The model, its tokenizer or its image processor cannot be loaded, or a file
            differs from the checksums of its folder.
    """
    if has_weights := device.type != "meta":
        check_files(name)
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
        model = _random_model(name, device, seed)
    else:
        quantized = quantization_config(key, quantization, compute_dtype)
        # Create quantized weights on their final device; `to` would not move their scales.
        place = {"quantization_config": quantized, "device_map": {"": device}} if quantized else {}
        folder = tiny.asset_folder(name.removeprefix("tiny:")) if name.startswith("tiny:") else name
        read = read_supported if has_weights else build_supported
        model: Any = read(folder, name, dtype=dtype, **place)
    # Convert parameters only: buffers such as the rotary frequencies must stay float32.
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(device=device, dtype=dtype)
    if quantization == "none":
        model = model.to(device=device)
    if has_weights:
        check_finite(model, name)
    source = tiny.asset_folder("tokenizer") if name.startswith("tiny:") else name
    loaded = wrap_model(model, source, name=name, compute_dtype=compute_dtype)
    loaded.quantization = quantization
    return loaded


def _random_model(name: str, device: torch.device, seed: int) -> Any:
    torch.manual_seed(seed)
    with torch.device("meta" if device.type == "meta" else "cpu"):
        return tiny.new_model(name.removeprefix("tiny:new-"))


def load_family(name: str) -> Family:
    """Return the family of a model with its tokenizer and image processor; loads no weights.

    Args:
        name: Name of the model, as in ``load_model``.

    Raises:
        ModelError: The model is not one that sees images, or a part of it cannot be loaded.
    """
    anything = torch.float32
    return load_model(
        name, device=torch.device("meta"), dtype=anything, compute_dtype=anything
    ).family


def check_files(name: str) -> None:
    """Check that a local folder of a model still has the files that were written.

    Raises:
        ModelError: A file differs from the checksums of its folder.
    """
    if found := damage(Path(name)):
        raise ModelError(
            f"model {name!r} cannot be used: {found}; write or copy the folder again, or remove "
            f"its {CHECKSUMS} if you changed the folder on purpose"
        )


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
    loaded.name = str(folder)
    if device.type == "meta":
        return loaded
    if quantization == "none":
        adapters.attach(loaded.model, folder)
        adapters.merge(loaded.model)
    else:
        # The adapters were trained together with the rounded weights, so they need these.
        rounded = load(quantization)
        adapters.attach(rounded.model, folder)
        loaded.model.load_state_dict(rounded.weights(dtype))
    check_finite(loaded.model, loaded.name)
    return loaded


def wrap_model(
    model: Any, source: str | Path, *, name: str = "", compute_dtype: torch.dtype | None = None
) -> VisionLanguageModel:
    """Return a model with tokenizer and processors read from a folder or hub name.

    Raises:
        ModelError: The tokenizer or a processor cannot be loaded.
    """
    choose_kernels()
    use_patch_products(model)
    use_float32_products(model)
    name = name or str(source)
    check_parts(model, name)
    if model.config.model_type in qwen_vl.MODEL_TYPES:
        tokenizer = read_pretrained(AutoTokenizer, source, name)
        # The full Qwen processor needs torchvision for videos; the image processor does not.
        image_processor = read_pretrained(AutoImageProcessor, source, name, backend="pil")
        family: Family = qwen_vl.QwenVLFamily(model, tokenizer, image_processor)
        processors: list[Any] = [image_processor, *_video_processor_file(source)]
    else:
        processor = read_processor(source, name)
        tokenizer = processor.tokenizer
        family = generic.GenericFamily(processor)
        processors = [processor]
    wrapped = VisionLanguageModel(
        model, tokenizer, family, processors=processors, compute_dtype=compute_dtype, name=name
    )
    check_ends(wrapped)
    return wrapped


def check_ends(model: VisionLanguageModel) -> None:
    """Check that what ends a response are ids; one beyond the tokenizer's ids is never sampled.

    Raises:
        ModelError: Some are not.
    """
    ids = model.model.generation_config.eos_token_id
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if wrong := [id for id in listed if type(id) is not int or id < 0]:
        raise ModelError(
            f"model {model.name!r} has eos_token_id {wrong[0]!r} in its generation_config.json, "
            "which is not the id of a token; correct it"
        )


def _video_processor_file(source: str | Path) -> list[Path]:
    """Return the video processor's settings file, which inference servers need in a checkpoint."""
    found = cached_file(
        str(source),
        "video_preprocessor_config.json",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return [Path(found)] if found else []
