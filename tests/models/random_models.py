"""Tiny random models of many families, sharp enough that a wrong position or mask shows."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SmolVLMImageProcessorPil,
)

from vaopd.models import tiny
from vaopd.models.loading import wrap_model
from vaopd.models.model import VisionLanguageModel

VOCABULARY_ROWS = 656
"""The tokenizer has fewer ids, as in the real models."""


def sharpen(model: Any, seed: int = 0) -> None:
    """Draw weights of unit gain: at the default 0.02 every token looks like every other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 3:  # one matrix for each expert
                weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
            elif weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
            elif name.endswith("A_log"):  # decay of linear attention, drawn by the class itself
                weight.uniform_(0, 2.5, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0, 0.1, generator=generator)


def special_ids() -> dict[str, int]:
    tokenizer = AutoTokenizer.from_pretrained(tiny.asset_folder("tokenizer"))
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(list(tokens)), strict=True))


def text_config(**rope: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY_ROWS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        # The three sections share half of the head: 3 + 3 + 2 = 16 / 2.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [3, 3, 2],
            **rope,
        },
    }


def qwen2_vl() -> Any:
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 8}
    config = Qwen2VLConfig(text_config=text_config(), vision_config=vision, **special_ids())
    return Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 32,
        # Two merged patches of 16 pixels a side: images here span several windows.
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(text_config=text_config(), vision_config=vision, **special_ids())
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = text_config(mrope_interleaved=True) | {"tie_word_embeddings": True}
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **special_ids()
    )
    return Qwen3VLForConditionalGeneration(config)


def qwen3_vl_moe() -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    # The first layer has experts and the second one has none.
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [1],
    }
    text = text_config(mrope_interleaved=True) | experts
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, **special_ids())
    return Qwen3VLMoeForConditionalGeneration(config)


RECURRENT_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 32,
    "num_position_embeddings": 64,
}


def recurrent_text(**options: Any) -> dict[str, Any]:
    # A quarter of the head is rotated: 1 + 1 + 0 = 16 / 4 / 2.
    return text_config(mrope_interleaved=True, mrope_section=[1, 1, 0]) | {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        **options,
    }


def qwen3_5() -> Any:
    config = transformers.Qwen3_5Config(
        text_config=recurrent_text(), vision_config=RECURRENT_VISION, **special_ids()
    )
    return transformers.Qwen3_5ForConditionalGeneration(config)


def qwen3_5_moe() -> Any:
    text = recurrent_text(
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    )
    del text["intermediate_size"]
    config = transformers.Qwen3_5MoeConfig(
        text_config=text, vision_config=RECURRENT_VISION, **special_ids()
    )
    return transformers.Qwen3_5MoeForConditionalGeneration(config)


BUILDERS = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
}

RECURRENT = {"qwen3_5": qwen3_5, "qwen3_5_moe": qwen3_5_moe}

SIDE = {"height": 32, "width": 32}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
"""4 x 4 patches."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(*special: str, **named: str) -> Any:
    """Return the tiny tokenizer with more special tokens, some known by a name."""
    made = AutoTokenizer.from_pretrained(
        tiny.asset_folder("tokenizer"), extra_special_tokens=named or None
    )
    made.add_tokens([*special, *named.values()], special_tokens=True)
    return made


def plain_text(made: Any, model_type: str, **options: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": VOCABULARY_ROWS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": None,
        "eos_token_id": made.eos_token_id,
        "pad_token_id": made.pad_token_id,
        **options,
    }


def idefics3() -> tuple[Any, Any]:
    made = tokenizer("<global-img>", "<image>")
    side = {"longest_edge": 32}
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    # 2 x 2 patches in a token.
    processor = transformers.Idefics3Processor(
        images, made, image_seq_len=4, chat_template=CHAT_TEMPLATE.replace("IMAGE", "<image>")
    )
    config = transformers.Idefics3Config(
        text_config=plain_text(made, "llama"),
        vision_config=VISION,
        scale_factor=2,
        image_token_id=made.convert_tokens_to_ids("<image>"),
        pad_token_id=made.pad_token_id,
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    made = tokenizer("<global-img>", "<image>")
    side = {"longest_edge": 32}
    images = SmolVLMImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    processor = transformers.SmolVLMProcessor(
        *(images, made, transformers.SmolVLMVideoProcessor()),
        image_seq_len=4,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<image>"),
    )
    config = transformers.SmolVLMConfig(
        text_config=plain_text(made, "llama"),
        vision_config=VISION,
        scale_factor=2,
        image_token_id=made.convert_tokens_to_ids("<image>"),
        pad_token_id=made.pad_token_id,
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def llava() -> tuple[Any, Any]:
    made = tokenizer("<image>")
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIDE),
        made,
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<image>"),
    )
    config = transformers.LlavaConfig(
        text_config=plain_text(made, "llama"),
        vision_config={"model_type": "clip_vision_model", "projection_dim": 16, **VISION},
        vision_feature_layer=-1,
        image_token_index=made.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    made = tokenizer("<image>", "<video>")
    places = [[32, 32], [64, 32], [32, 64], [64, 64]]
    processor = transformers.LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(size=SIDE, image_grid_pinpoints=places),
        made,
        transformers.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<image>"),
    )
    config = transformers.LlavaOnevisionConfig(
        text_config=plain_text(made, "qwen2"),
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        image_grid_pinpoints=places,
        vision_feature_layer=-1,
        image_token_index=made.convert_tokens_to_ids("<image>"),
        video_token_index=made.convert_tokens_to_ids("<video>"),
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    made = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = transformers.InternVLProcessor(
        GotOcr2ImageProcessorPil(size=SIDE, crop_to_patches=False),
        made,
        transformers.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>"),
    )
    config = transformers.InternVLConfig(
        text_config=plain_text(made, "qwen2"),
        vision_config=VISION | {"image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=made.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    made = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    processor = transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(size=SIDE, do_pan_and_scan=False),
        made,
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<boi>"),
    )
    config = transformers.Gemma3Config(
        text_config=plain_text(
            *(made, "gemma3_text"),
            head_dim=16,
            sliding_window=16,  # shorter than the prompts
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        mm_tokens_per_image=4,
        boi_token_index=made.convert_tokens_to_ids("<boi>"),
        eoi_token_index=made.convert_tokens_to_ids("<eoi>"),
        image_token_index=made.convert_tokens_to_ids("<soft>"),
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


PLAIN: dict[str, Callable[[], tuple[Any, Any]]] = {
    "gemma3": gemma3,
    "idefics3": idefics3,
    "internvl": internvl,
    "llava": llava,
    "llava_onevision": llava_onevision,
    "smolvlm": smolvlm,
}

NEEDS = {
    "internvl": ("torchvision",),
    "llava_onevision": ("torchvision",),
    "smolvlm": ("torchvision", "num2words"),
}
"""What processors need for their half for videos."""

FAMILIES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            any(find_spec(package) is None for package in NEEDS.get(name, ())),
            reason=f"its processor needs {' and '.join(NEEDS.get(name, ()))}",
        ),
    )
    for name in sorted({**BUILDERS, **RECURRENT, **PLAIN})
]


def random_model(family: str, folder: Path, seed: int = 0) -> VisionLanguageModel:
    """Return a random model whose processor was written to the folder and read again."""
    if family in PLAIN:
        model, processor = PLAIN[family]()
        processor.save_pretrained(folder)
        source = folder
    else:
        model = {**BUILDERS, **RECURRENT}[family]()
        source = tiny.asset_folder("tokenizer")
    sharpen(model, seed)
    return wrap_model(model, source, name=family)
