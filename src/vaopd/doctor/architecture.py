"""Computes the sizes of a model from its configuration; no weights are loaded."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from vaopd.config import StudentConfig
from vaopd.errors import ModelError
from vaopd.models.adapters import choose_trainable

BITS = {"8bit": 8.0, "4bit": 4.5}
"""Bits of a quantized weight, scales included. NF4 has an 8-bit scale for 64 weights, and these
scales have scales of their own."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of weights, and the shapes that determine the sizes of caches and logits."""

    config: Any
    total: int
    trained: int
    trained_linear: int
    """Number of trained weights that are used in matrix products; autocast copies them."""

    quantizable: int
    largest_layer: int
    """Number of weights of one layer of the language model."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    patch_pixels: int
    merge: int
    patch_values: int
    sees: bool
    """Whether the vision tower's activations can be traced."""

    @property
    def head(self) -> int:
        """Number of weights of the head."""
        return self.vocabulary * self.width


def measure(config: Any, student: StudentConfig | None = None) -> Sizes:
    """Return the sizes of a model; ``student`` decides which weights are trained.

    Without ``student``, no weights are trained.

    Raises:
        ModelError: The configuration does not belong to an image-text-to-text model.
    """
    try:
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config)
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"a {config.model_type!r} configuration makes no image-text-to-text model "
            f"({' '.join(str(error).split())[:120]}); give a vision-language model"
        ) from error
    decoder = model.get_decoder()
    quantizable = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, nn.Linear))
    layer = sum(p.numel() for p in decoder.layers[0].parameters())
    if student is None:
        model.requires_grad_(False)
    else:
        choose_trainable(model, student)
    trained = [p for p in model.parameters() if p.requires_grad]
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    return Sizes(
        config=config,
        total=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in trained),
        trained_linear=sum(p.numel() for p in trained if p.ndim == 2),
        quantizable=quantizable,
        largest_layer=layer,
        vocabulary=text.vocab_size,
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_value_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        patch_pixels=getattr(vision, "patch_size", 14),
        merge=getattr(vision, "spatial_merge_size", 2),
        patch_values=3
        * getattr(vision, "temporal_patch_size", 1)
        * getattr(vision, "patch_size", 14) ** 2,
        sees=hasattr(model.model, "visual"),
    )


def weight_bytes(
    sizes: Sizes, dtype: torch.dtype, quantization: str = "none", trained_bytes: int = 4
) -> int:
    """Return the bytes of all weights: frozen at ``dtype`` or quantized, trained in float32."""
    frozen = sizes.total - sizes.trained
    quantized = min(sizes.quantizable, frozen) if quantization != "none" else 0
    whole = (frozen - quantized) * dtype.itemsize + sizes.trained * trained_bytes
    return whole + int(quantized * BITS.get(quantization, 0) / 8)
