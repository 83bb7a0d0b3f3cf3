"""Random models of the Qwen-VL families and another one, random problems and responses."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import BUILDERS, qwen3_vl, random_model, sharpen

from vaopd.models import tiny
from vaopd.models.loading import wrap_model
from vaopd.models.model import VisionLanguageModel
from vaopd.problems.problem import Problem


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
    return random_model("idefics3", tmp_path_factory.mktemp("idefics"))


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
