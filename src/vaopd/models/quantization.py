"""Configures frozen weights in 8 or 4 bits with bitsandbytes."""

from importlib.util import find_spec
from typing import Any, Literal

import torch

from vaopd.errors import ConfigError

Quantization = Literal["none", "8bit", "4bit"]

FULL_PRECISION = [
    "lm_head",
    "model.visual",
    "model.vision_tower",
    "model.vision_model",
    "model.multi_modal_projector",
]
"""Modules that are not quantized. The loss reads the head directly; a vision tower has few weights,
and rounding harms its results."""


def quantization_config(key: str, quantization: str, compute_dtype: torch.dtype) -> Any:
    """Return the setting for transformers that loads weights quantized; None for ``none``.

    Args:
        key: Name of the setting, for the error.
        quantization: ``none``, ``8bit`` or ``4bit``.
        compute_dtype: Precision of the products.

    Raises:
        ConfigError: bitsandbytes or accelerate is not installed.
    """
    if quantization == "none":
        return None
    missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{key} is {quantization!r}, which needs {' and '.join(missing)}; install "
            f"vaopd[quantize] or set {key}=none"
        )
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=FULL_PRECISION)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=FULL_PRECISION,
    )
