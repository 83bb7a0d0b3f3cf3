"""The sampler with a real vLLM, compared with our own forward in float32."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rescoring import largest_difference

from vaopd.config import DataConfig, ViewConfig, VllmConfig
from vaopd.errors import EngineError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.rollouts.vllm.sampler import VllmSampler

pytestmark = pytest.mark.slow

SETTINGS = SamplingSettings(
    num_rollouts=3, temperature=1.0, top_p=1.0, max_new_tokens=112, seed=3, stream="train 1"
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    cpu = torch.device("cpu")
    model = load_model("tiny:student", device=cpu, dtype=torch.float32, compute_dtype=torch.float32)
    model.model.eval()
    return model


@pytest.fixture(scope="module")
def prompts(model: VisionLanguageModel) -> list[EncodedPrompt]:
    encoder = PromptEncoder(model, DataConfig(train="", min_pixels=1024), ViewConfig())
    return [encoder.original(problem) for problem in DrawnProblems(num_problems=4, seed=7)]


@pytest.fixture(scope="module")
def sampler(
    model: VisionLanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmSampler]:
    log = tmp_path_factory.mktemp("logs") / "vllm.log"
    # Blocks smaller than a prompt of 66 tokens, or the prefix cache would never hold one.
    options = VllmConfig(arguments=("--served-model-name", "student", "--block-size", "32"))
    sampler = VllmSampler(model, options, log=log, say=print)
    yield sampler
    sampler.close()


def draw(
    sampler: VllmSampler, prompts: list[EncodedPrompt], settings: SamplingSettings
) -> list[list[Rollout]]:
    sampler.take_weights(settings.weights_version)
    return sampler.sample(prompts, settings)


def test_the_samples_are_problems_solved_and_the_same_ones_again(sampler, model, prompts):
    groups = draw(sampler, prompts, SETTINGS)
    responses = [r.response_ids for group in groups for r in group]
    assert all(r.weights_version == 0 for group in groups for r in group)
    assert all(r.finish_reason == "stop" for group in groups for r in group)
    texts = [model.tokenizer.decode(list(ids)) for ids in responses]
    assert all(r"\boxed{" in text for text in texts), texts
    assert len(set(responses)) > 8
    again = [r.response_ids for group in draw(sampler, prompts, SETTINGS) for r in group]
    # Not promised to the last bit: rounding may depend on which requests share a batch.
    assert sum(a == b for a, b in zip(responses, again, strict=True)) >= 10
    other = dataclasses.replace(SETTINGS, stream="train 2")
    assert [r.response_ids for group in draw(sampler, prompts, other) for r in group] != responses


def test_greedy_samples_are_those_of_the_transformers_sampler(sampler, model, prompts):
    greedy = dataclasses.replace(SETTINGS, temperature=0.0, num_rollouts=1)
    theirs = [group[0].response_ids for group in draw(sampler, prompts, greedy)]
    ours = [group[0].response_ids for group in TransformersSampler(model).sample(prompts, greedy)]
    assert theirs == ours


def test_log_probs_of_sampled_tokens_agree_with_ours(sampler, model, prompts):
    draw(sampler, prompts[:1], SETTINGS)
    assert largest_difference(sampler, model, prompts, SETTINGS) < 1e-3


def test_the_openai_engine_gets_k_samples_of_a_benchmark(
    sampler: VllmSampler, prompts, run: Run, tmp_path: Path
):
    draw(sampler, prompts[:1], SETTINGS)
    server = sampler.engine.server  # pyright: ignore
    code, out, err = run(
        "evaluate", "student", "--engine", "openai", "--base-url", f"{server.address}/v1",
        "--benchmark", "drawn", "--limit", 5, "--samples", 4, "--max-new-tokens", 112,
        "--min-pixels", 1024, "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    assert "20 requests, 0 retries" in out
    lines = (tmp_path / "out" / "drawn" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert sorted(row["sample"] for row in rows) == sorted(5 * [0, 1, 2, 3])
    assert all(r"\boxed{" in row["response"] for row in rows)
    assert len({row["response"] for row in rows}) > 10


def test_after_an_update_the_samples_come_from_the_new_weights(sampler, model, prompts):
    draw(sampler, prompts, SETTINGS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        # Rows of the head that nothing may sample become the likeliest of all.
        for token in (model.family.image_token_id, model.vocab_size + 3):
            model.head[token] *= 30
    # Old images and prefixes are in the server's caches: the new weights must not meet them.
    assert largest_difference(sampler, model, prompts, SETTINGS) > 1
    groups = draw(sampler, prompts, dataclasses.replace(SETTINGS, weights_version=1))
    assert {r.weights_version for group in groups for r in group} == {1}
    assert largest_difference(sampler, model, prompts, SETTINGS) < 1e-3
    allowed = set(range(model.vocab_size)) - set(model.forbidden_ids)
    assert all(set(r.response_ids) <= allowed for group in groups for r in group)


def test_weights_of_another_run_are_an_error(sampler, prompts):
    draw(sampler, prompts[:1], SETTINGS)
    (client,) = sampler.engine.clients
    body = {"new_version": "another run:0"}
    client.post("update_weight_version", json=body).raise_for_status()
    (answer,) = sampler.engine.generate([sampler.request(prompts[0], SETTINGS)])
    with pytest.raises(EngineError, match="sampled from weights another run:0 and not from"):
        sampler.siblings(prompts[0], answer, SETTINGS)
    # Its own weights again, for the next test.
    draw(sampler, prompts[:1], dataclasses.replace(SETTINGS, weights_version=2))


def test_a_server_that_slept_samples_from_the_weights_it_wakes_to(sampler, model, prompts):
    sampler.take_weights(2)
    (client,) = sampler.engine.clients
    sampler.options = sampler.options.model_copy(update={"sleep": True})
    sampler.sleep()
    # A CPU has no memory to let go, but the server takes no requests until all of it is awake.
    assert client.get("is_sleeping").json() == {"is_sleeping": True}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    sampler.take_weights(3)
    assert client.get("is_sleeping").json() == {"is_sleeping": False}
    assert largest_difference(sampler, model, prompts, SETTINGS) < 1e-3
    sampler.options = sampler.options.model_copy(update={"sleep": False})


def test_a_killed_server_is_an_error_with_its_log(sampler, prompts):
    draw(sampler, prompts[:1], SETTINGS)
    os.kill(sampler.engine.server.process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=f"exit code -9; see {sampler.engine.log}"):
        draw(sampler, prompts, SETTINGS)
