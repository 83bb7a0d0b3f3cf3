"""Rounding to bfloat16 changes a visual advantage by less than the advantages differ."""

import pytest
import torch
from scipy.stats import spearmanr

from vaopd.config import DataConfig, ViewConfig
from vaopd.models.loading import load_model
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.problems.drawn import DrawnProblems
from vaopd.teacher.local import LocalTeacher


def advantages(dtype: torch.dtype) -> torch.Tensor:
    """Return the advantage of each token of the worked answers to twelve problems, in nats."""
    cpu = torch.device("cpu")
    model = load_model("tiny:teacher-s", device=cpu, dtype=dtype, compute_dtype=dtype)
    problems = list(DrawnProblems(num_problems=12))
    data = DataConfig(train="drawn:train", min_pixels=1024, max_pixels=1048576)
    encoder = PromptEncoder(model, data, ViewConfig())
    pairs = [encoder.both(problem) for problem in problems]
    responses = [
        [torch.tensor(model.tokenizer(problem.references[0]).input_ids)] for problem in problems
    ]
    scores = LocalTeacher(model, batch_tokens=16384).score(
        [original for original, _ in pairs], [degraded for _, degraded in pairs], responses
    )
    assert scores.degraded_logprobs is not None
    gains = torch.cat(scores.original_logprobs) - torch.cat(scores.degraded_logprobs)
    return gains.float().clamp(min=0)


@pytest.fixture(scope="module")
def measured() -> tuple[torch.Tensor, torch.Tensor]:
    return advantages(torch.float32), advantages(torch.bfloat16)


def test_tokens_rank_alike_by_their_advantage(measured: tuple[torch.Tensor, torch.Tensor]):
    exact, rounded = measured
    assert len(exact) > 500
    assert spearmanr(exact, rounded).statistic > 0.95
    # Where the image counts, rounding is next to nothing.
    counts = exact > 0.05
    assert counts.sum() > 40
    assert spearmanr(exact[counts], rounded[counts]).statistic > 0.99


def test_the_same_tokens_are_the_highest_fifth(measured: tuple[torch.Tensor, torch.Tensor]):
    size = len(measured[0]) // 5
    first, second = ({*values.topk(size).indices.tolist()} for values in measured)
    assert len(first & second) / size > 0.9
