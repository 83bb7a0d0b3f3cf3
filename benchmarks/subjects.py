"""Random models, prompts of exact length and random responses: the same for every arm."""

import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
)

from benchmarks.scales import ModelSize, Scale
from vaopd.config import RunConfig, parse_config
from vaopd.models import tiny
from vaopd.models.families.qwen_vl import QwenVLFamily
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.problems.problem import Problem

FIRST_PLAIN_ID = 300
"""Above the special ids of the shipped tokenizer."""


class RandomModel(VisionLanguageModel):
    """A model whose every head row counts as an id, and whose responses never end.

    The shipped tokenizer has far fewer ids than the heads that are measured, and the peers
    normalise over all rows; responses of one length make the arms comparable.
    """

    @property
    def vocab_size(self) -> int:
        """All rows of the head."""
        return len(self.head)

    @property
    def eos_token_ids(self) -> list[int]:
        """None: every response grows to the limit."""
        return []


@dataclass(frozen=True, eq=False, kw_only=True)
class Subjects:
    """What an update works on."""

    student: RandomModel
    teacher: RandomModel
    problems: list[Problem]
    prompts: list[EncodedPrompt]
    pixelated: list[EncodedPrompt]
    responses: list[list[Tensor]]


def make_subjects(scale: Scale, device: str) -> Subjects:
    """Return models, encoded problems under both views, and random responses."""
    student = make_model(scale, scale.student, device, dtype=torch.float32, seed=1)
    teacher = make_model(scale, scale.teacher, device, dtype=compute_dtype(device), seed=2)
    problems = make_problems(scale, student)
    config = make_config(scale)
    encoder = PromptEncoder(student, config.data, config.view)
    pairs = [encoder.both(problem) for problem in problems]
    return Subjects(
        student=student,
        teacher=teacher,
        problems=problems,
        prompts=[original for original, _ in pairs],
        pixelated=[degraded for _, degraded in pairs],
        responses=make_responses(scale),
    )


def compute_dtype(device: str) -> torch.dtype:
    """Return the precision of forwards: what ``student.dtype=auto`` means."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def make_model(
    scale: Scale, size: ModelSize, device: str, *, dtype: torch.dtype, seed: int
) -> RandomModel:
    """Return a Qwen3-VL with random weights of ``dtype``."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(tiny.asset_folder("tokenizer"))
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            _model_config(scale, size, tokenizer), dtype=dtype, attn_implementation="sdpa"
        )
    processor = Qwen2VLImageProcessorPil(
        patch_size=scale.patch,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 32 * 32, "longest_edge": 4096 * 4096},
    )
    family = QwenVLFamily(model, tokenizer, processor)
    return RandomModel(
        model, tokenizer, family, compute_dtype=compute_dtype(device), name=f"random-{size.width}"
    )


def _model_config(scale: Scale, size: ModelSize, tokenizer: Any) -> Qwen3VLConfig:
    ids = tokenizer.get_vocab()
    quarter = size.head_dim // 8
    return Qwen3VLConfig(
        text_config={
            "vocab_size": scale.vocabulary,
            "hidden_size": size.width,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.key_value_heads,
            "head_dim": size.head_dim,
            "max_position_embeddings": 32_768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                # The three sections share half of the head.
                "mrope_section": [size.head_dim // 2 - 2 * quarter, quarter, quarter],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": size.tied,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_width,
            "intermediate_size": size.vision_inner,
            "num_heads": size.vision_heads,
            "patch_size": scale.patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": size.width,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=size.tied,
    )


def make_problems(scale: Scale, model: VisionLanguageModel) -> list[Problem]:
    """Return drawn figures with questions padded so that each prompt has P tokens."""
    problems = []
    for number, drawn in enumerate(DrawnProblems(num_problems=scale.problems)):
        image = drawn.load_images()[0].resize(scale.image)
        file = io.BytesIO()
        image.save(file, "PNG")
        short = _problem(number, file.getvalue(), "<image>")
        missing = scale.prompt - len(model.family.encode(short, [image]))
        if missing < 0:
            raise ValueError(f"scale.prompt is {scale.prompt}, {-missing} too few for its image")
        problems.append(_problem(number, file.getvalue(), "<image>" + "7" * missing))
    return problems


def _problem(number: int, image: bytes, prompt: str) -> Problem:
    return Problem(f"problem {number}", prompt, (image,), None, "benchmark", "train")


def make_responses(scale: Scale, seed: int = 0) -> list[list[Tensor]]:
    """Return K random responses of R plain ids for each problem."""
    generator = torch.Generator().manual_seed(seed)
    shape = (scale.problems, scale.siblings, scale.response)
    ids = torch.randint(FIRST_PLAIN_ID, scale.vocabulary, shape, generator=generator)
    return [list(group) for group in ids]


def make_config(scale: Scale, *, method: str = "va_opd", share_prefix: bool = True) -> RunConfig:
    """Return the recipe that an arm of ours follows."""
    return parse_config(
        {
            "student": {"model": "random"},
            "teacher": {"batch_tokens": scale.budget},
            "data": {"train": "drawn", "min_pixels": 1024},
            "method": {"name": method},
            "sampling": {"num_rollouts": scale.siblings, "max_new_tokens": scale.response},
            "training": {
                "share_prefix": share_prefix,
                "micro_batch_tokens": scale.budget,
                "problems_per_step": scale.problems,
            },
        }
    )
