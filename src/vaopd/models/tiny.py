"""Builds the tiny Qwen3-VL models that the package includes.

Architecture, tokenizer and processor files are those of the real family, but small: 8-pixel patches
are merged 2 x 2, so a 96 x 96 image becomes 36 visual tokens. ``tiny:NAME`` loads trained weights
from the package. ``tiny:new-NAME`` builds the same architecture with random weights; the supervised
recipes in ``recipes/tiny`` start from these.
"""

import shutil
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vaopd.errors import ModelError
from vaopd.problems.drawn import DrawnProblems

ASSETS = Path(__file__).parents[1] / "assets" / "tiny"

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

VOCABULARY_ROWS = 672
"""Rows of the language-model head; the tokenizer has fewer ids, as in the real models."""

INITIALIZER_DEVIATION = 0.08
"""About one over the square root of the width. With the family's 0.02, the attention of narrow
models stays uniform for so long that they do not learn to read."""

SIZES: dict[str, dict[str, int]] = {
    "teacher-s": {"width": 112, "layers": 4, "vision_width": 80, "vision_layers": 3},
    "teacher-m": {"width": 128, "layers": 4, "vision_width": 96, "vision_layers": 3},
    "teacher-l": {"width": 160, "layers": 5, "vision_width": 96, "vision_layers": 4},
    "student": {"width": 112, "layers": 4, "vision_width": 80, "vision_layers": 3},
}

# The chat format of Qwen3-VL, reduced to the parts that single-turn distillation uses.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: list[str], vocabulary: int = 640) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with Qwen's special tokens, trained on ``texts``.

    Each digit is a token, so a number is read and written digit by digit.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def image_processor() -> Qwen2VLImageProcessorPil:
    """Return the tiny models' image processor: white is 0 and black is 2.

    The negative standard deviation inverts the sign. With a background of 0, tiny vision towers
    learn to read in a fraction of the steps.
    """
    return Qwen2VLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[1.0, 1.0, 1.0],
        image_std=[-0.5, -0.5, -0.5],
        size={"shortest_edge": 32 * 32, "longest_edge": 1024 * 1024},
    )


def config(tokenizer: PreTrainedTokenizerFast, name: str) -> Qwen3VLConfig:
    """Return the configuration of a tiny model of one of ``SIZES``."""
    size = SIZES[name]
    vocabulary = tokenizer.get_vocab()
    width, vision_width = size["width"], size["vision_width"]
    return Qwen3VLConfig(
        text_config={
            "vocab_size": VOCABULARY_ROWS,
            "initializer_range": INITIALIZER_DEVIATION,
            "hidden_size": width,
            "intermediate_size": width * 5 // 2,
            "num_hidden_layers": size["layers"],
            "num_attention_heads": width // 32,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": size["vision_layers"],
            "initializer_range": INITIALIZER_DEVIATION,
            "hidden_size": vision_width,
            "intermediate_size": vision_width * 3,
            "num_heads": 4,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": width,
            "num_position_embeddings": 144,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def asset_folder(name: str) -> Path:
    """Return the folder of a model in the package, or of the shared ``tokenizer``.

    Raises:
        ModelError: The package does not include this model.
    """
    folder = ASSETS / name
    if name not in (*SIZES, "tokenizer") or not folder.is_dir():
        raise ModelError(
            f"no tiny model is called {name!r}; use one of "
            f"{', '.join(f'tiny:{known}' for known in SIZES)}, or tiny:new-... for random weights"
        )
    return folder


def new_model(name: str) -> Qwen3VLForConditionalGeneration:
    """Return a tiny model with random weights from torch's current seed.

    Raises:
        ModelError: The name is not one of ``SIZES``.
    """
    if name not in SIZES:
        raise ModelError(f"no tiny architecture is called {name!r}; use one of {', '.join(SIZES)}")
    tokenizer = AutoTokenizer.from_pretrained(asset_folder("tokenizer"))
    return Qwen3VLForConditionalGeneration(config(tokenizer, name))


def write_tokenizer(folder: Path) -> None:
    """Train the shared tokenizer on generated problems; write it with the image processor."""
    problems = DrawnProblems(num_problems=3000, wording=0.5)
    texts = []
    for problem in problems:
        texts += [problem.prompt.replace("<image>", ""), *problem.references]
    train_tokenizer(texts).save_pretrained(folder)
    image_processor().save_pretrained(folder)


def install(runs: Path) -> None:
    """Copy the final weights of ``runs/NAME`` into the package, for each of ``SIZES``."""
    for name in SIZES:
        target = ASSETS / name
        target.mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "generation_config.json", "model.safetensors"):
            shutil.copy(runs / name / "final" / file, target / file)


if __name__ == "__main__":
    # `tokenizer` trains the shared tokenizer; `install RUNS` copies newly trained weights.
    if sys.argv[1:2] == ["install"]:
        install(Path(sys.argv[2]))
    else:
        write_tokenizer(ASSETS / "tokenizer")
