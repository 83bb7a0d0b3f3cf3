"""A model that samples responses of many lengths."""

import pytest
import torch

from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    """A tiny model with weights of unit gain, whose responses differ and end by themselves."""
    cpu = torch.device("cpu")
    model = load_model(
        "tiny:new-student", device=cpu, dtype=torch.float32, compute_dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    # Every eighth id ends a response, or random weights would hardly ever stop.
    model.model.generation_config.eos_token_id = list(range(0, 600, 8))
    return model
