"""Tiny random models of several families, sharp enough that a wrong position or mask shows."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vaopd.models import tiny
from vaopd.models.loading import VisionLanguageModel, wrap_model
from vaopd.problems.problem import Problem

VOCABULARY_ROWS = 656
"""The tokenizer has fewer ids, as in the real models."""

IDEFICS_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sharpen(model: Any, seed: int = 0) -> None:
    """Draw weights of unit gain: at the default 0.02 every token looks like every other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
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


BUILDERS = {"qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}


@pytest.fixture(scope="module", params=list(BUILDERS))
def qwen(request: pytest.FixtureRequest) -> VisionLanguageModel:
    """A tiny model of each Qwen-VL generation."""
    model = BUILDERS[request.param]()
    sharpen(model)
    return wrap_model(model, tiny.asset_folder("tokenizer"), name=request.param)


@pytest.fixture(scope="module")
def qwen3() -> VisionLanguageModel:
    model = qwen3_vl()
    sharpen(model)
    return wrap_model(model, tiny.asset_folder("tokenizer"), name="qwen3_vl")


@pytest.fixture(scope="module")
def idefics(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    """A tiny Idefics3, the architecture of SmolVLM, whose processor needs no torchvision."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.asset_folder("tokenizer"))
    tokenizer.add_tokens(["<global-img>"], special_tokens=True)
    side = {"longest_edge": 32}
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    # 4 x 4 patches, 2 x 2 of them in a token.
    processor = Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE
    )
    folder = tmp_path_factory.mktemp("idefics")
    processor.save_pretrained(folder)
    text = {
        "model_type": "llama",
        "vocab_size": VOCABULARY_ROWS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Idefics3ForConditionalGeneration(config)
    sharpen(model)
    return wrap_model(model, folder, name="idefics")


@pytest.fixture(scope="session")
def draw_problem() -> Callable[..., Problem]:
    """Return a problem with one random image of each size."""

    def draw(name: str, *sizes: tuple[int, int], text: str = "Find x.", seed: int = 0) -> Problem:
        rng = np.random.default_rng([seed, *name.encode()])
        images = []
        for width, height in sizes:
            # Blocks of 4 pixels: pixelation changes them, and so do no two images agree.
            noise = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST).save(
                encoded, "PNG"
            )
            images.append(encoded.getvalue())
        prompt = "".join(f"<image>{index}. " for index in range(1, len(sizes) + 1)) + text
        return Problem(name, prompt, tuple(images), None, "test", "train")

    return draw


@pytest.fixture(scope="session")
def draw_response() -> Callable[[int, int], torch.Tensor]:
    """Return random ordinary token ids."""

    def draw(length: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 500, (length,), generator=generator)

    return draw
