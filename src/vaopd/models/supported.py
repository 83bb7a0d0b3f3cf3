"""Loads supported models; rejects others, most of them before their weights are read."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vaopd.errors import ModelError
from vaopd.models import adapters
from vaopd.models.pretrained import (
    check_stored,
    read_generation_settings,
    read_model,
    read_pretrained,
)

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "final_logit_softcapping": (None,),
    "logits_scaling": (None, 1),
    "logit_scale": (None, 1),
    "lm_head_multiplier": (None, 1),
}
"""Settings that change logits after the head, and their neutral values. The loss multiplies hidden
states by the head's weights itself, so it would ignore such a setting."""


def read_supported(source: str | Path, name: str, **options: Any) -> Any:
    """Return the transformers model of a folder or hub name.

    Raises:
        ModelError: The kind of model is not supported, or the model cannot be loaded completely.
    """
    config = read_pretrained(AutoConfig, source, name)
    check_configuration(config, name)
    model = read_model(
        *(AutoModelForImageTextToText, source, name),
        config=config,
        attn_implementation="sdpa",
        **options,
    )
    if getattr(config, "quantization_config", None) is None:
        check_stored(model, source, name)
    if adapters.has_adapters(model):
        raise ModelError(
            f"model {name!r} holds adapters beside the config.json of a whole model, so it is not "
            "clear which is meant; remove that file to use the adapters with their base model, or "
            "adapter_config.json to use the model"
        )
    return model


def build_supported(source: str | Path, name: str, *, dtype: torch.dtype) -> Any:
    """Return the transformers model of a folder or hub name on the meta device, without weights.

    Raises:
        ModelError: The kind of model is not supported, or its settings cannot be read.
    """
    config = read_pretrained(AutoConfig, source, name)
    check_configuration(config, name)
    try:
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(
                config, attn_implementation="sdpa", dtype=dtype
            )
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"model {name!r} is not an image-text-to-text model "
            f"({' '.join(str(error).split())[:120]}); name a vision-language model"
        ) from error
    if settings := read_generation_settings(source, name):
        model.generation_config = settings
    return model


def check_configuration(config: Any, name: str) -> None:
    """Check that a model is supported, from its configuration alone, before any weight is read.

    Raises:
        ModelError: The model's logits are not the product of hidden states and head.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"model {name!r} ({config.model_type}) is an encoder and a decoder; give a model that "
            "continues its prompt in one row of tokens, see docs/models.md"
        )
    text = config.get_text_config()
    for key, plain in NEUTRAL.items():
        if (value := getattr(text, key, None)) not in plain:
            raise ModelError(
                f"model {name!r} ({config.model_type}) has {key}={value}, which changes its logits "
                "after the head, and the loss cannot compute that; give a model of a family in "
                "docs/models.md"
            )


def check_parts(model: Any, name: str) -> None:
    """Check that a model has a part that returns hidden states, and a head without a bias.

    Raises:
        ModelError: The model has no such part or no head, or its head has a bias.
    """
    head = model.get_output_embeddings()
    wrong = None
    if getattr(model, "model", None) is None:
        wrong = "no part called 'model' that returns hidden states"
    elif getattr(head, "weight", None) is None:
        wrong = "no head for its language model"
    elif getattr(head, "bias", None) is not None:
        wrong = "a head with a bias, which the loss does not compute"
    if wrong:
        raise ModelError(
            f"model {name!r} ({type(model).__name__}) has {wrong}; give a model of a family in "
            "docs/models.md"
        )
