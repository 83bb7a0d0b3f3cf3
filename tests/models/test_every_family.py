"""Every family of docs/models.md against the forward of its own transformers model."""

import pytest
import torch
from random_models import FAMILIES, PLAIN, RECURRENT, random_model
from torch import Tensor

from vaopd.errors import ConfigError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import micro_batches, response_hidden_states, split_by_rollout
from vaopd.models.prompts import EncodedPrompt
from vaopd.rollouts.drawing import draw_tokens
from vaopd.rollouts.sampler import SamplingSettings, sampling_noise
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.vision_cache import cache_vision

ROUNDING = 1e-4
"""Of a cumulative probability, where a cache rounds otherwise than a whole forward."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> VisionLanguageModel:
    return random_model(request.param, tmp_path_factory.mktemp(request.param))


def own_logits(model: VisionLanguageModel, prompt: EncodedPrompt, response: Tensor) -> Tensor:
    """Return what the whole model gives the response in a row of its own, at its own positions."""
    ids = torch.cat([prompt.input_ids, response])[None]
    inputs = dict(prompt.image_inputs)
    # Columns for each token: which are images.
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(response)))
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == model.model.config.image_token_id).int()
    with torch.no_grad():
        logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits
    return logits[0, len(prompt) - 1 : -1]


def encoded(model: VisionLanguageModel, draw_problem) -> list[EncodedPrompt]:
    problems = [draw_problem("a", (32, 32)), draw_problem("b", (64, 48), (32, 32), text="Why?")]
    return [model.family.encode(p, p.load_images()) for p in problems]


def test_its_siblings_share_rows_where_no_layer_forbids_it(family):
    assert family.family.can_pack == (family.name not in {**PLAIN, **RECURRENT})


def test_its_prompts_are_as_long_as_they_are_measured(family, draw_problem):
    problems = [draw_problem("a", (32, 32)), draw_problem("b", (64, 48), (32, 32), text="Why?")]
    sizes = [[image.size for image in problem.load_images()] for problem in problems]
    lengths = [len(prompt) for prompt in encoded(family, draw_problem)]
    assert [size.tokens for size in family.family.measure(problems, sizes)] == lengths


def test_what_it_thinks_of_responses_is_what_its_own_forward_thinks(
    family, draw_problem, draw_response
):
    prompts = encoded(family, draw_problem)
    responses = [[draw_response(n, n + 9) for n in group] for group in ((4, 1), (2, 5, 3))]
    flat = [(p, r) for p, group in zip(prompts, responses, strict=True) for r in group]
    compared = 0
    for micro in micro_batches(family, prompts, responses, budget_tokens=10_000):
        with torch.no_grad():
            states = response_hidden_states(family, micro.batch)
        for number, rows in split_by_rollout(states, micro, [len(r) for _, r in flat]):
            expected = own_logits(family, *flat[number])
            torch.testing.assert_close(rows @ family.head.T, expected, atol=2e-5, rtol=1e-4)
            compared += len(rows)
    assert compared == 4 + 1 + 2 + 5 + 3


def test_its_sampled_tokens_are_drawn_from_its_own_forward(family, draw_problem, monkeypatch):
    # A fifth of all ids ends a response, so siblings leave the batch one after the other.
    monkeypatch.setattr(family.model.generation_config, "eos_token_id", list(range(0, 640, 5)))
    settings = SamplingSettings(
        num_rollouts=6, temperature=1.0, top_p=0.95, max_new_tokens=7, seed=0, stream="test"
    )
    sampler = TransformersSampler(family)
    prompts = encoded(family, draw_problem)
    lengths = set()
    for prompt, group in zip(prompts, sampler.sample(prompts, settings), strict=True):
        for rollout in group:
            response = torch.tensor(rollout.response_ids)
            logits = own_logits(family, prompt, response)
            logits[:, sampler.suppressed] = -torch.inf
            noise = sampling_noise(settings, prompt.problem_id, rollout.sibling)
            uniforms = torch.from_numpy(noise)[: len(response)]
            # A cache rounds otherwise, which moves the boundaries between tokens a little.
            near = [
                draw_tokens(logits, (uniforms + shift).clamp(0, 1 - 1e-9), 1.0, 0.95)
                for shift in (-ROUNDING, 0.0, ROUNDING)
            ]
            assert torch.stack([response == drawn for drawn in near]).any(0).all()
            lengths.add(len(response))
    assert len(lengths) > 2


def test_a_teacher_of_it_remembers_images_or_says_that_it_cannot(family, draw_problem, monkeypatch):
    if family.name in PLAIN:
        with pytest.raises(ConfigError, match="is not a Qwen-VL model"):
            cache_vision(family, 10**6)
        return
    tower = family.base.visual
    inputs = family.family.prefill_inputs(encoded(family, draw_problem)[1:])
    monkeypatch.setattr(tower, "forward", tower.forward)
    with torch.no_grad():
        expected = family.base(**inputs).last_hidden_state
        cache = cache_vision(family, 10**6)
        for _ in range(2):
            torch.testing.assert_close(family.base(**inputs).last_hidden_state, expected)
    assert (cache.misses, cache.hits) == (2, 2)


def test_every_weight_of_it_is_written_and_read(family, tmp_path):
    family.save(tmp_path)
    cpu, dtype = torch.device("cpu"), torch.float32
    loaded = load_model(str(tmp_path), device=cpu, dtype=dtype, compute_dtype=dtype)
    before, after = family.model.state_dict(), loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert [name for name in before if not before[name].equal(after[name])] == []
