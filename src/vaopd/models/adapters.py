"""Selects the trained weights: all, the language model, or low-rank adapters (LoRA).

Adapters are injected into the transformers model in place, so its forward, its packing and its
head do not change. peft reads and writes the adapter folder; the file ``trained_weights`` in it
holds the float32 weights that are trained without an adapter.
"""

import contextlib
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vaopd.config import LoraConfig, StudentConfig
from vaopd.errors import ConfigError, ModelError
from vaopd.models.pretrained import listed
from vaopd.records import write_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OTHER_FILE = "trained_weights.safetensors"
BASE_FILE = "adapter_base.json"
PREFIX = "base_model.model."
"""Prefix of the weight names in peft's files; models with injected adapters do not have it."""


def choose_trainable(model: nn.Module, config: StudentConfig, seed: int = 0) -> None:
    """Freeze what ``student.train`` freezes and inject the adapters of ``student.lora``.

    Raises:
        ConfigError: peft is not installed, or a target module is not a linear layer of the
            language model.
    """
    if config.has_adapters:
        folder = Path(config.model)
        base = str(folder.resolve()) if folder.is_dir() else config.model
        _inject(model, config.lora, base, seed)
    elif config.train == "language":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not _is_vision(model, name))


def recompute_activations(model: Any) -> None:
    """Turn on gradient checkpointing; transformers 5 has two names for the option."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _inject(model: Any, config: LoraConfig, base: str, seed: int) -> None:
    try:
        import peft
    except ImportError:
        raise ConfigError(
            f"student.lora.rank is {config.rank}, which needs peft; install vaopd[lora] or set "
            "student.lora.rank=0"
        ) from None
    rank = config.rank or 0
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=config.scale,  # pyright: ignore[reportArgumentType]  # peft takes fractions
        lora_dropout=config.dropout,
        target_modules=_pattern(model, config),
        base_model_name_or_path=base,
    )
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        if config.vision == "full" and _is_vision(model, name):
            parameter.requires_grad_()
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _pattern(model: Any, config: LoraConfig) -> str:
    """Return a regular expression that matches the full names of the adapted layers only."""
    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    language = [name for name in linear if not _is_vision(model, name)]
    known = {name.rpartition(".")[2] for name in language}
    wanted = known if config.target_modules is None else set(config.target_modules)
    if not wanted or not wanted <= known:
        unknown = min(wanted - known, default="")
        raise ConfigError(
            f"student.lora.target_modules names {unknown!r}, which is not a linear layer of the "
            f"language model before its head; choose from {', '.join(sorted(known))}"
        )
    chosen = [name for name in language if name.rpartition(".")[2] in wanted]
    if config.vision == "adapters":
        chosen += [name for name in linear if _is_vision(model, name)]
    # The names of layers of one kind differ only in a number: one alternative per kind is enough.
    kinds = {re.sub(r"\\\.\d+(?=\\\.|$)", r"\\.\\d+", re.escape(name)) for name in chosen}
    return "|".join(sorted(kinds))


def _is_vision(model: Any, name: str) -> bool:
    """Return whether a parameter or module is outside the language model and its head."""
    return not name.startswith((_name_of(model, model.get_decoder()), *_head_names(model)))


def _head_names(model: Any) -> tuple[str, ...]:
    head = model.get_output_embeddings()
    return tuple(name for name, module in model.named_modules() if module is head)


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def has_adapters(model: nn.Module) -> bool:
    """Return whether adapters were injected into the model."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


@contextlib.contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Let the model compute without its adapters inside the context."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


Convert = Callable[[Tensor, torch.dtype], Tensor | None]


def plain_weights(
    model: nn.Module, dtype: torch.dtype, convert: Convert = Tensor.to
) -> dict[str, Tensor]:
    """Return the weights with adapters merged and quantization removed.

    Adapters are added in float32 before the rounding to ``dtype``; tied weights stay tied.

    Args:
        model: The model, sharded or not.
        dtype: Precision of the result.
        convert: Returns a tensor at a precision, or None if another process gets the tensor.
    """
    # A tied weight must also be one tensor after the conversion, so that it is stored once.
    converted: dict[int, Tensor | None] = {}
    weights: dict[str, Tensor | None] = {}
    for name, tensor, owner in _plain_tensors(model):
        if owner is None:
            weights[name] = convert(tensor, dtype)
        else:
            if owner not in converted:
                converted[owner] = convert(tensor, dtype)
            weights[name] = converted[owner]
    return {name: tensor for name, tensor in weights.items() if tensor is not None}


def _plain_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, int | None]]:
    """Yield the name and tensor of each weight, and the id of its parameter; None for new ones."""
    inside: tuple[str, ...] = ()
    for prefix, module in model.named_modules(remove_duplicate=False):
        if prefix.startswith(inside) and inside:
            continue
        is_adapted = hasattr(module, "lora_A")
        dot = f"{prefix}." if prefix else ""
        base: Any = module.get_base_layer() if is_adapted else module  # pyright: ignore
        if is_adapted:
            inside = (f"{prefix}.",)
        yield from _layer_tensors(dot, base, module if is_adapted else None)


def _layer_tensors(dot: str, base: Any, adapted: Any) -> Iterator[tuple[str, Tensor, int | None]]:
    is_changed = adapted is not None or is_quantized(base)
    for name, parameter in base.named_parameters(recurse=False):
        if name == "weight" and is_changed:
            yield dot + name, _merged(base, adapted), None
        else:
            yield dot + name, parameter.detach(), id(parameter)
    persistent = base.state_dict(keep_vars=True) if not is_changed else {}
    for name, buffer in base.named_buffers(recurse=False):
        if name in persistent:
            yield dot + name, buffer.detach(), id(buffer)


def is_quantized(layer: nn.Module) -> bool:
    """Return whether a layer's weight is stored in 8 or 4 bits."""
    weight = getattr(layer, "weight", None)
    return type(weight).__name__ in ("Params4bit", "Int8Params")


@torch.no_grad()
def _merged(base: Any, adapted: Any) -> Tensor:
    from peft.utils.integrations import dequantize_module_weight

    weight = dequantize_module_weight(base).detach().float()
    if adapted is None:
        return weight
    for name in adapted.active_adapters:
        weight = weight + adapted.get_delta_weight(name).float()
    return weight


def plain_shell(model: Any) -> Any:
    """Return the model without weights, adapters and quantization, for saving other weights."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        shell = type(model)(config)
    shell.generation_config = model.generation_config
    return shell


def save_adapters(
    model: Any, folder: Path, weights: dict[str, Tensor], quantization: str = "none"
) -> None:
    """Write the trained weights: adapters in peft's format, all others in a second file."""
    import peft

    folder.mkdir(parents=True, exist_ok=True)
    adapters = {n: t for n, t in weights.items() if ".lora_" in n}
    settings = copy.deepcopy(model.peft_config["default"])
    settings.inference_mode = True
    settings.save_pretrained(str(folder))
    ours = peft.get_peft_model_state_dict(model, state_dict=adapters, save_embedding_layers=False)
    save_file({PREFIX + n: t.contiguous() for n, t in ours.items()}, folder / WEIGHTS_FILE)
    if others := {n: t.contiguous() for n, t in weights.items() if n not in adapters}:
        save_file(others, folder / OTHER_FILE)
    write_json(
        folder / BASE_FILE,
        {
            "model": settings.base_model_name_or_path,
            "quantization": quantization,
            # The names allow loading to detect a missing file or weight.
            "trained_weights": sorted(others),
        },
    )


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained parameters by name."""
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def is_adapter_folder(source: str | Path) -> bool:
    """Return whether a path is a folder of adapters and not a folder of a whole model."""
    return (Path(source) / CONFIG_FILE).is_file() and not (Path(source) / "config.json").is_file()


def read_base(folder: Path) -> tuple[str, str]:
    """Return the name of the model that adapters belong to, and how it was quantized.

    Raises:
        ModelError: The folder does not name the model, or the model had random weights, which no
            file holds.
    """
    try:
        values = _base_values(folder)
        base = values.get("model") or values.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"adapters {folder} cannot be read ({error}); save them again") from error
    if not isinstance(base, str) or base.startswith("tiny:new-"):
        reason = f"{base}, whose random weights are lost" if base else "a model without a name"
        raise ModelError(
            f"adapters {folder} belong to {reason}; give the merged model instead: the run's final/"
        )
    return base, values.get("quantization", "none")


def _base_values(folder: Path) -> dict[str, Any]:
    own = folder / BASE_FILE
    return json.loads((own if own.is_file() else folder / CONFIG_FILE).read_text("utf-8"))


def read_adapters(folder: Path) -> dict[str, Tensor]:
    """Return the trained weights of an adapter folder under the names of the model in memory.

    Raises:
        OSError: A file is missing.
        SafetensorError: A file is damaged.
    """
    weights = {}
    for name, tensor in load_file(folder / WEIGHTS_FILE).items():
        # peft does not write the adapter's name to its files.
        inner = name.removeprefix(PREFIX)
        weights[re.sub(r"(lora_[AB])\.weight$", r"\1.default.weight", inner)] = tensor
    if (folder / OTHER_FILE).is_file():
        weights |= load_file(folder / OTHER_FILE)
    return weights


def attach(model: Any, folder: Path) -> None:
    """Load the adapters and the other trained weights of a folder into their base model.

    Raises:
        ModelError: peft is missing, files are damaged, or the adapters do not fit the model.
    """
    try:
        import peft
    except ImportError:
        raise ModelError(
            f"{folder} holds LoRA adapters, which need peft; install vaopd[lora] or give a merged "
            "model (vaopd export)"
        ) from None
    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
        peft.inject_adapter_in_model(settings, model)
        weights = read_adapters(folder)
        wanted = {*trained_names(model), *_base_values(folder).get("trained_weights", ())}
        report = model.load_state_dict(weights, strict=False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"adapters {folder} cannot be put into their base model ({reason[:200]}); give the "
            "folder as it was saved"
        ) from error
    misfit = [
        listed(wanted - weights.keys(), "missing"),
        listed(report.unexpected_keys, "unknown to the base model"),
    ]
    if any(misfit):
        raise ModelError(
            f"adapters {folder} do not fit their base model: {', '.join(filter(None, misfit))}; "
            "give the base model they were trained on, and the folder as it was saved"
        )


def trained_names(model: nn.Module) -> list[str]:
    """Return the names of all adapter weights in the model."""
    return [name for name, _ in model.named_parameters() if ".lora_" in name]


def merge(model: Any) -> None:
    """Merge the adapters into the weights of their layers and remove them, in place."""
    for prefix, module in list(model.named_modules()):
        if hasattr(module, "lora_A"):
            base: Any = module.get_base_layer()
            weight = base.weight
            weight.data = _merged(base, module).to(weight.dtype)
            parent, _, name = prefix.rpartition(".")
            setattr(model.get_submodule(parent), name, base)
    del model.peft_config
    model.requires_grad_(True)
